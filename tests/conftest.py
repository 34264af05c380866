"""Tiny random labs: right in shape, made in milliseconds, with no weights to fetch."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings
from kept_results import FOLDER_VARIABLE, configure_kernels
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from course_utils.circuits.splice import PatchMeans, SplicedModel
from course_utils.labs.lab import Lab
from course_utils.prompts.grammar import VOCABULARIES, inflect
from course_utils.prompts.sessions import DICTIONARIES, KEYS, LISTS, SAYS_MISSING
from course_utils.prompts.tasks import Task, load_task

D_MODEL, D_SAE, N_LAYERS = 16, 24, 4
NOTEBOOK_TIMES = json.loads(
    (Path(__file__).parent.parent / "data" / "notebook_times.json").read_text()
)
# A slow machine is no failure, and a failure comes again.
settings.register_profile("course", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("course")

ARCHITECTURES = ("llama", "gemma2", "gemma3", "qwen2", "qwen3", "gpt2", "gpt_neox")


@pytest.fixture
def wrong_types():
    """For tests that give wrong types on purpose: the course's own messages are what is tested,
    not those of jaxtyping and beartype, with which `make check` runs the tests.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_configure(config: pytest.Config) -> None:
    """Notebooks of one session share their slowest results, whichever worker runs them."""
    if FOLDER_VARIABLE not in os.environ:
        configure_kernels(tempfile.mkdtemp(prefix="course-kept-results-"))
        config.add_cleanup(
            functools.partial(shutil.rmtree, os.environ[FOLDER_VARIABLE], ignore_errors=True)
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks are not run by ``make check``: those that nbmake collects have no marker.

    They come first where they are run, solutions before readers' copies and the slowest first, so
    that no worker is left alone with a slow one at the end.
    """
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.notebook)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, float]:
    """What to sort tests by: (kind, minus its minutes)."""
    if item.get_closest_marker("notebook") is None:
        return (1 if item.get_closest_marker("browser") else 3), 0.0
    is_readers = item.path.suffix == ".ipynb"
    number = re.search(r"\d\d", item.path.name if is_readers else item.name)
    minutes = NOTEBOOK_TIMES.get(number[0], {}) if number else {}
    return 2 if is_readers else 0, -minutes.get("quick", 0.0)


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words are tokens, with their leading space, as in the tokenizers of real models."""
    people = [
        inflect(word, number)
        for words in (VOCABULARIES["train"], VOCABULARIES["dev"])
        for word in words.people
        for number in ("singular", "plural")
    ]
    words = [
        "The",
        *(f" {word}" for word in dict.fromkeys(people)),
        " near",
        " by",
        " the",
        " is",
        " are",
        " was",
        " were",
    ]
    vocab = {word: i for i, word in enumerate(["<unk>", "<bos>", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>")
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # TransformerLens wants one that came from a folder
        made.save_pretrained(folder)
        loaded = PreTrainedTokenizerFast.from_pretrained(folder, add_bos_token=True)
    return loaded


PLAIN_WORDS = (
    "apple river stone cloud table glass paper storm tiger lemon "
    "Apple River Stone Cloud Table Glass Paper Storm Tiger Lemon"
).split()


@functools.cache
def session_tokenizer(without: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """For interpreter sessions: names, variables and the runs of punctuation around them are
    tokens, and single characters.
    """
    words = [*PLAIN_WORDS, *SAYS_MISSING]
    for names in (KEYS, DICTIONARIES, LISTS):
        words += [
            spelling
            for split in names.values()
            for name in split
            for spelling in (name, name.lower())
        ]
    words = [word for word in dict.fromkeys(words) if len(word) > 1 and word not in without]
    runs = [">>> ", " = {'", "': ", ", '", "['", "']\n", "}\n"]
    longest_first = sorted(words + runs, key=len, reverse=True)
    characters = [chr(i) for i in range(32, 127)] + ["\n"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<bos>", *longest_first, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("|".join(map(re.escape, longest_first)) + r"|[\s\S]"), "isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>")


def tiny_hf_model(architecture: str, vocab_size: int):
    common = dict(
        vocab_size=vocab_size,
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="eager",
        initializer_range=0.3,
    )
    grouped = dict(num_key_value_heads=1)
    gemma = dict(**grouped, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
    match architecture:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**common, **grouped, tie_word_embeddings=True))
        case "gemma2":
            return Gemma2ForCausalLM(Gemma2Config(**common, **gemma))
        case "gemma3":
            return Gemma3ForCausalLM(Gemma3TextConfig(**common, **gemma))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**common, **grouped))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**common, **grouped, head_dim=8))
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(**common))
        case "gpt_neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**common))
    raise ValueError(architecture)


def tiny_sae(d_in: int = D_MODEL, d_sae: int = D_SAE) -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=True))
    sae.load_state_dict(
        dict(
            W_enc=torch.randn(d_in, d_sae) / d_in**0.5,
            b_enc=0.1 * torch.randn(d_sae),
            W_dec=torch.randn(d_sae, d_in) / d_sae**0.5,
            b_dec=0.1 * torch.randn(d_in),
            threshold=0.05 * torch.rand(d_sae),
        )
    )
    return sae


def make_lab(architecture: str = "llama", layers=(1, 3), seed: int = 0) -> Lab:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    model = tiny_hf_model(architecture, len(tokenizer)).eval()
    return Lab(f"tiny-{architecture}", model, tokenizer, {layer: tiny_sae() for layer in layers})


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_lab(request) -> Lab:
    """A tiny lab of each architecture in turn."""
    return make_lab(request.param)


@pytest.fixture(scope="session")
def lab() -> Lab:
    """One tiny llama lab."""
    return make_lab()


@pytest.fixture(scope="session")
def task() -> Task:
    """Twelve prompt pairs of 6 tokens (BOS, "The athletes near the guard")."""
    return make_task(tiny_tokenizer())


@pytest.fixture(scope="module")
def spliced(lab) -> SplicedModel:
    """The tiny llama lab with its SAEs spliced in, errors dropped."""
    return SplicedModel(lab)


@pytest.fixture(scope="module")
def means(spliced, task) -> PatchMeans:
    """Its means over the patch prompts of `task`."""
    return spliced.patch_means(task.patch)


def make_task(tokenizer) -> Task:
    """The tokens of the prompts of `task`."""
    people = VOCABULARIES["train"].people
    records = []
    for i in range(12):
        one, other = people[i], people[i + 20]
        number, wrong = (" is", " are") if i % 2 == 0 else (" are", " is")
        subject = [inflect(one, "singular"), inflect(one, "plural")]
        clean, patch = subject if i % 2 == 0 else reversed(subject)
        records.append(
            {
                "clean_prefix": f"The {clean} near the {other}",
                "patch_prefix": f"The {patch} near the {other}",
                "clean_answer": number,
                "patch_answer": wrong,
                "case": "singular" if i % 2 == 0 else "plural",
            }
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return load_task(path, tokenizer)
