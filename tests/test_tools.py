"""The SAE trainer and what it trains on, with a tiny model and a tiny corpus."""

import json
import random
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import N_LAYERS, session_tokenizer, tiny_hf_model, tiny_sae, tiny_tokenizer
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils.labs.layers import LayerStack
from course_utils.prompts.grammar import VOCABULARIES
from course_utils.prompts.sessions import KEYS
from tools import collect_activations, finetune_saes, measure_saes, train_saes
from tools.collect_activations import (
    SESSIONS,
    SHARES,
    Source,
    Words,
    other_dictionary,
    session,
    transcript,
)
from tools.train_saes import (
    KeptActivations,
    Sequences,
    jumprelu_sae,
    learning_rate,
    relative_squared_error,
    training_prompts,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a tiny model and a corpus of made-up sentences."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    model = tiny_hf_model("llama", len(tiny_tokenizer()))
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    people = VOCABULARIES["train"].people
    lines = [
        f"The {people[i]} near the {people[-i - 1]} is by the {people[i // 2]}. "
        f"The {people[i]} was near the {people[i // 3]}."
        for i in range(60)
    ]
    (folder / "corpus.txt").write_text("\n".join(lines))
    return folder


def run_training(workplace, name, tokens, monkeypatch=None):
    arguments = [
        "--model", workplace / "model", "--corpus", workplace / "corpus.txt", "--layers", 1, 2,
        "--width", 32, "--k", 4, "--seq-len", 8, "--batch-size", 6, "--dtype", "float32",
        "--device", "cpu", "--tokens", tokens, "--checkpoints", workplace / name, "--out",
        workplace / f"{name}-out", "--log-every", 10, "--lab", "tiny",
    ]  # fmt: skip
    train_saes.main([str(argument) for argument in arguments])
    return {
        layer: SAE.load_from_disk(workplace / f"{name}-out" / f"layer_{layer}", dtype="float32")
        for layer in (1, 2)
    }


@pytest.mark.slow
def test_training_stops_resumes_and_writes_saes_that_saelens_reads(workplace, monkeypatch):
    tokens = 6 * 7 * 120
    whole = run_training(workplace, "whole", tokens)
    saved = train_saes.save_checkpoint

    def save_and_stop(trainer, folder):
        saved(trainer, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_saes, "save_checkpoint", save_and_stop)
    monkeypatch.setattr(train_saes, "learning_rate", lambda step, steps: learning_rate(step, 120))
    with pytest.raises(KeyboardInterrupt):
        run_training(workplace, "parts", 6 * 7 * 50)
    monkeypatch.setattr(train_saes, "save_checkpoint", saved)
    log = (workplace / "parts" / "LATEST").read_text()
    assert (workplace / "parts" / log / "layer_1").is_dir()
    resumed = run_training(workplace, "parts", tokens)
    for layer in (1, 2):
        assert whole[layer].cfg.architecture() == "jumprelu" and whole[layer].W_dec.shape == (
            32,
            16,
        )
        torch.testing.assert_close(
            whole[layer].W_dec.norm(dim=1), torch.ones(32), atol=2e-3, rtol=0
        )
        assert (
            torch.nn.functional.cosine_similarity(resumed[layer].W_dec, whole[layer].W_dec).mean()
            > 0.9
        )
    recipe = json.loads((workplace / "whole-out" / "metrics.json").read_text())["recipe"][
        "training"
    ]
    assert recipe["tokens"] == tokens and recipe["seed"] == 0 and recipe["corpus"] == ["corpus.txt"]


def test_saelens_trainer_calls_what_the_courses_sae_overrides(workplace, monkeypatch):
    """A renamed method would not be called any more, and nothing else would say so."""
    called = set()
    names = [name for name in vars(train_saes.SampledBatchTopKSAE) if name[0].islower()]
    for name in names:
        right = getattr(train_saes.SampledBatchTopKSAE, name)

        def noted(*args, name=name, right=right, **kwargs):
            called.add(name)
            return right(*args, **kwargs)

        monkeypatch.setattr(train_saes.SampledBatchTopKSAE, name, noted)
    run_training(workplace, "overridden", 6 * 7 * 3)
    assert len(names) == 5
    assert called == set(names), f"SAELens {version('sae-lens')} does not call all of {names}"


def test_the_tools_use_nothing_private_of_saelens():
    for name in ("train_saes", "finetune_saes", "measure_saes", "collect_activations"):
        source = (ROOT / "tools" / f"{name}.py").read_text()
        private = set(re.findall(r"(?:trainer|single|scaler|sae|cfg)\._\w+", source))
        assert not private, f"{name}.py: {private}; written for SAELens {version('sae-lens')}"


def test_training_learns_to_rebuild_the_residual_stream(workplace):
    sae = run_training(workplace, "long", 6 * 7 * 250)[2]
    args = SimpleNamespace(model=workplace / "model", dtype=torch.float32, device="cpu", bos=None)
    model, tokenizer = train_saes.load_model(args)
    held_out = train_saes.read_paragraphs([workplace / "corpus.txt"])[1]
    x = train_saes.residuals(
        model, Sequences(held_out, [], tokenizer, seq_len=8, seed=3).batch(0, 40), [2]
    )["blocks.2.hook_resid_post"].flatten(0, 1)
    assert train_saes.unexplained_variance(x, sae(x)) < 0.5
    assert 2 < (sae.encode(x) > 0).float().sum(1).mean() < 8


@pytest.mark.slow
def test_finetuning_brings_the_spliced_model_closer(workplace):
    run_training(workplace, "tuned", 6 * 7 * 60)
    args = SimpleNamespace(model=workplace / "model", dtype=torch.float32, device="cpu", bos=None)
    model, tokenizer = train_saes.load_model(args)
    text = Sequences(["The artist is near the boy."] * 4, [], tokenizer, seq_len=8, seed=9)

    def divergence():
        saes = saes_in(workplace / "tuned-out")
        return divergence_with(model, tokenizer, saes, text.batch(0, 4))

    before = divergence()
    arguments = [
        "--model", workplace / "model", "--corpus", workplace / "corpus.txt", "--layers", 1, 2,
        "--k", 4, "--seq-len", 8, "--batch-size", 6, "--lab", "tiny", "--dtype", "float32",
        "--device", "cpu", "--steps", 60, "--lr", 3e-3, "--checkpoints", workplace / "tuned",
        "--out", workplace / "tuned-out",
    ]  # fmt: skip
    finetune_saes.main([str(argument) for argument in arguments])
    assert divergence() < before
    assert (
        "finetuning" in json.loads((workplace / "tuned-out" / "metrics.json").read_text())["recipe"]
    )


def saes_in(folder: Path) -> dict[int, SAE]:
    return {
        layer: SAE.load_from_disk(folder / f"layer_{layer}", dtype="float32") for layer in (1, 2)
    }


def divergence_with(model, tokenizer, saes: dict[int, SAE], tokens: torch.Tensor) -> float:
    """KL(model ‖ spliced), by hooks on the model's own layers and SAELens' own encode."""

    def hook(sae):
        def replace(module, args, output):
            x = output[0] if isinstance(output, tuple) else output
            new = torch.cat([x[:, :1], sae(x[:, 1:])], dim=1)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return replace

    with torch.no_grad():
        target = model(tokens).logits[:, 1:].log_softmax(-1)
        handles = [
            model.model.layers[layer].register_forward_hook(hook(sae))
            for layer, sae in saes.items()
        ]
        spliced = model(tokens).logits[:, 1:].log_softmax(-1)
        for handle in handles:
            handle.remove()
    return (target.exp() * (target - spliced)).sum(-1).mean().item()


def test_the_loss_of_finetuning_is_the_divergence_that_hooks_give(workplace):
    run_training(workplace, "loss", 6 * 7 * 20)
    args = SimpleNamespace(model=workplace / "model", dtype=torch.float32, device="cpu", bos=None)
    model, tokenizer = train_saes.load_model(args)
    saes = saes_in(workplace / "loss-out")
    tokens = make_sequences().batch(0, 5)
    stack = LayerStack(model, tokenizer.bos_token_id)
    batch = finetune_saes.FromText(stack, make_sequences(), 5, seed=0).of(tokens)
    with torch.no_grad():
        spliced, errors = finetune_saes.spliced_log_probs(stack, saes, batch)
    kl = (batch.target.exp() * (batch.target - spliced)).sum(-1).mean().item()
    assert kl == pytest.approx(divergence_with(model, tokenizer, saes, tokens), rel=1e-3)
    assert errors.shape == (2,) and (errors > 0).all()


def make_sequences(prompt_share=0.25, n=40):
    people = VOCABULARIES["train"].people
    return Sequences(
        [f"The {people[i]} is near the {people[i + 1]}." for i in range(n)],
        ["The boy by the girl"],
        tiny_tokenizer(),
        seq_len=8,
        seed=0,
        prompt_share=prompt_share,
    )


def test_sequences_start_with_bos_and_are_the_same_at_the_same_step():
    one, two = make_sequences(), make_sequences()
    one.batch(0, 16), one.batch(1, 16)
    batch = one.batch(4, 16)
    assert torch.equal(batch, two.batch(4, 16)) and not torch.equal(batch, two.batch(3, 16))
    assert batch.shape == (16, 8) and (batch[:, 0] == tiny_tokenizer().bos_token_id).all()


def test_every_sentence_starts_one_sequence_before_any_starts_two():
    batch = make_sequences(prompt_share=0.0).batch(0, 40)
    assert len({tuple(row[:3].tolist()) for row in batch}) == 40


def test_the_wanted_share_of_sequences_starts_with_a_prompt():
    batch = make_sequences(prompt_share=0.25).batch(0, 1000)
    prompt = torch.tensor(
        tiny_tokenizer()("The boy by the girl", add_special_tokens=False)["input_ids"]
    )
    assert 0.2 < (batch[:, 1:6] == prompt).all(1).float().mean() < 0.3


@pytest.mark.parametrize("split", ["dev", "test"])
def test_training_prompts_hold_no_word_of_another_vocabulary(split):
    other = VOCABULARIES[split]
    forbidden = {*other.people, *other.things, *other.names, *other.places, *other.objects}
    words = {
        word.strip(",.") for prompt in training_prompts(300, seed=0) for word in prompt.split()
    }
    assert len(words) > 100 and not words & forbidden


def test_held_out_paragraphs_are_not_trained_on_and_always_the_same(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(
        "\n".join(
            f"Paragraph number {i} has to be long enough to be kept here." for i in range(200)
        )
    )
    training, held_out = train_saes.read_paragraphs([path])
    assert (
        len(held_out) == 6
        and not set(training) & set(held_out)
        and len(training) + len(held_out) == 200
    )
    assert train_saes.read_paragraphs([path])[1] == held_out


def test_the_learning_rate_warms_up_and_decays_to_a_tenth():
    assert learning_rate(0, 1000) == pytest.approx(0.01) and learning_rate(500, 1000) == 1
    assert learning_rate(900, 1000) == pytest.approx(0.55) and learning_rate(
        1000, 1000
    ) == pytest.approx(0.1)


def test_a_long_token_counts_by_its_relative_error():
    target = torch.tensor([[1.0, 1.0], [100.0, 100.0], [0.1, 0.1]])
    loss = relative_squared_error(1.1 * target, target)
    torch.testing.assert_close(loss, torch.tensor([[0.01, 0.01], [0.01, 0.01], [1e-4, 1e-4]]))


def test_the_finished_sae_fires_k_latents_on_average_and_has_unit_decoder_rows():
    torch.manual_seed(0)
    x = 5 * torch.randn(500, 16)
    args = SimpleNamespace(k=4, lab="tiny", seq_len=8)
    W_enc, b_enc = torch.randn(16, 32), torch.randn(32)
    W_dec, b_dec = 3 * torch.randn(32, 16), torch.randn(16)
    W = dict(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec)
    sae = jumprelu_sae(W, 1, args, x).float()
    assert (sae.encode(x) > 0).float().sum(1).mean() == pytest.approx(4, abs=0.1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32), atol=2e-3, rtol=0)
    pre = (x - b_dec) @ W_enc + b_enc
    on = sae.encode(x) > 0
    torch.testing.assert_close(
        sae.decode(sae.encode(x)), (pre * on) @ W_dec + b_dec, atol=0.3, rtol=1e-2
    )


# ---------------------------------------------------------------------------------------------
# Activations that are kept
# ---------------------------------------------------------------------------------------------

SEQ_LEN, BATCH = 24, 4
PER_SHARD = BATCH * (SEQ_LEN - 1)
HOOKS = {1: "blocks.1.hook_resid_post", 2: "blocks.2.hook_resid_post"}


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    """A folder with a tiny model that reads interpreter sessions, and English: a hundred
    paragraphs.
    """
    folder = tmp_path_factory.mktemp("coder")
    torch.manual_seed(0)
    tiny_hf_model("qwen3", len(session_tokenizer())).save_pretrained(folder / "model")
    session_tokenizer().save_pretrained(folder / "model")
    (folder / "english.txt").write_text(
        "".join(
            f"{i:03d} is the number of this paragraph of plain English words.\n" for i in range(100)
        )
    )
    return folder


def collect(coder: Path, name: str, n_shards: int, *more: object) -> dict[str, Path]:
    """Run the tool; the shards by name."""
    arguments = [
        "--lab", "tiny", "--model", coder / "model", "--corpus", coder / "english.txt", "--layers",
        *HOOKS, "--tokens", n_shards * PER_SHARD, "--seq-len", SEQ_LEN, "--batch-size", BATCH,
        "--device", "cpu", "--out", coder / name, *more,
    ]  # fmt: skip
    collect_activations.main([str(argument) for argument in arguments])
    return {path.name: path for path in sorted((coder / name).glob("shard_*"))}


@pytest.fixture(scope="module")
def collected(coder):
    """27 shards, of which 0 and 25 are held out."""
    return collect(coder, "kept", 27)


def test_every_shard_has_the_layers_the_tokens_and_what_they_are(collected):
    assert list(collected) == [f"shard_{i:04d}.safetensors" for i in range(27)]
    for path in collected.values():
        shard = load_file(path)
        assert set(shard) == {*HOOKS.values(), "tokens", "kind"}
        for name in HOOKS.values():
            assert (
                shard[name].shape == (BATCH, SEQ_LEN - 1, 16) and shard[name].dtype == torch.float16
            )
        assert shard["tokens"].shape == (BATCH, SEQ_LEN) and shard["kind"].shape == (BATCH,)
        assert (shard["tokens"][:, 0] == session_tokenizer().bos_token_id).all()
        assert set(shard["kind"].tolist()) <= {0, 1, 2}


def test_activations_are_what_the_model_itself_puts_out_for_the_tokens_beside_them(
    coder, collected
):
    model = AutoModelForCausalLM.from_pretrained(coder / "model", dtype=torch.float32).eval()
    for path in list(collected.values())[:3]:
        shard = load_file(path)
        with torch.no_grad():
            states = model(shard["tokens"], output_hidden_states=True).hidden_states
        assert len(states) == N_LAYERS + 1
        for layer, name in HOOKS.items():
            torch.testing.assert_close(
                shard[name].float(), states[layer + 1][:, 1:], atol=1e-3, rtol=2e-3
            )


def test_no_session_is_there_twice(collected):
    shards = [load_file(path) for path in collected.values()]
    rows = [tuple(row) for shard in shards for row in shard["tokens"][shard["kind"] == 0].tolist()]
    assert len(rows) == len(set(rows)) > 27 * BATCH / 2


def test_a_shard_that_is_missing_is_written_again_as_it_was_and_the_others_are_left_alone(
    coder, collected
):
    before = {
        name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in collected.items()
    }
    gone = ["shard_0000.safetensors", "shard_0011.safetensors"]
    for name in gone:
        collected[name].unlink()
    (coder / "kept" / "shard_0011.part").write_bytes(b"cut while writing")
    after = collect(coder, "kept", 27)
    assert list(after) == list(before)
    assert all(path.read_bytes() == before[name][0] for name, path in after.items())
    assert all(
        (path.stat().st_mtime_ns == before[name][1]) == (name not in gone)
        for name, path in after.items()
    )


def test_more_tokens_are_more_shards_and_another_seed_is_other_text(coder, collected):
    longer = collect(coder, "longer", 2)
    assert list(longer) == ["shard_0000.safetensors", "shard_0001.safetensors"]
    assert list(collect(coder, "longer", 2, "--tokens", 2 * PER_SHARD + 1)) == [
        *longer,
        "shard_0002.safetensors",
    ]
    assert all(path.read_bytes() == collected[name].read_bytes() for name, path in longer.items())
    other = collect(coder, "other", 1, "--seed", 1)["shard_0000.safetensors"]
    assert not torch.equal(
        load_file(other)["tokens"], load_file(collected["shard_0000.safetensors"])["tokens"]
    )


def test_activations_too_large_for_sixteen_bits_are_an_error_and_leave_no_shard(coder, monkeypatch):
    right = collect_activations.residuals
    monkeypatch.setattr(
        collect_activations,
        "residuals",
        lambda *args: {**right(*args), HOOKS[2]: 1e6 * right(*args)[HOOKS[2]]},
    )
    with pytest.raises(RuntimeError, match=r"blocks\.2\.hook_resid_post.*do not fit into float16"):
        collect(coder, "large", 1)
    assert list((coder / "large").glob("*shard*")) == []


@pytest.fixture(scope="module")
def source(coder):
    return Source(
        AutoTokenizer.from_pretrained(coder / "model"),
        [coder / "english.txt"],
        seq_len=SEQ_LEN,
        seed=0,
    )


def test_sequences_are_sessions_python_and_english_in_the_wanted_shares(source):
    kinds = torch.tensor([source.sequence(i, held_out=False)[1] for i in range(600)])
    shares = torch.bincount(kinds, minlength=3) / len(kinds)
    torch.testing.assert_close(shares, torch.tensor(list(SHARES.values())), atol=0.05, rtol=0)


def test_held_out_sequences_have_paragraphs_and_files_of_their_own(source, coder):
    """Of a hundred paragraphs three are held out, and every tenth file."""
    english = (coder / "english.txt").read_text().splitlines()
    numbers = {}
    for held_out in (False, True):
        rows = [source.sequence(i, held_out) for i in range(600)]
        text = {
            kind: [source.tokenizer.decode(row[1:]) for row, k in rows if list(SHARES)[k] == kind]
            for kind in SHARES
        }
        assert all(piece.startswith(">>> ") for piece in text["session"])
        assert all(
            any(paragraph.startswith(piece[:20]) for paragraph in english)
            for piece in text["english"]
        )
        numbers[held_out] = {piece[:3] for piece in text["english"]}
    assert (
        len(numbers[True]) == 3
        and len(numbers[False]) > 20
        and numbers[True].isdisjoint(numbers[False])
    )
    assert source.files[True] and set(source.files[True]).isdisjoint(source.files[False])
    for held_out in (False, True):
        files = " ".join(
            path.read_text(encoding="utf-8", errors="replace") for path in source.files[held_out]
        )
        assert all(source._python(random.Random(i), held_out) in files for i in range(20))


def test_every_twenty_fifth_shard_is_collected_from_what_is_held_out(source, collected):
    for shard in (0, 1, 7, 24, 25, 26):
        kept = load_file(collected[f"shard_{shard:04d}.safetensors"])
        rows, kinds = zip(
            *(source.sequence(shard * BATCH + i, held_out=shard in (0, 25)) for i in range(BATCH))
        )
        assert kept["tokens"].tolist() == list(rows) and kept["kind"].tolist() == list(kinds)


def typed_into_python(lines: list[str]) -> str:
    """What Python's own interpreter shows, with what was typed put in after its prompts. Newer ones
    also show the faulty line.
    """
    python = [sys.executable, "-I", "-q", "-u", "-i"]
    typed = "\n".join(lines) + "\n"
    shown = subprocess.run(
        python, input=typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout
    _, *answers, _ = shown.split(">>> ")
    assert len(answers) == len(lines)
    answers = [
        "".join(line for line in answer.splitlines(keepends=True) if not line.startswith("    "))
        for answer in answers
    ]
    return "".join(f">>> {line}\n{answer}" for line, answer in zip(lines, answers))


def test_a_transcript_is_what_python_itself_shows():
    lines = [
        "age = {'Bob': 1, 'Kim': None, \"O'Neil\": 'x'}", "age['Bob']", "age['Kim']", "age['Ann']",
        "age[\"O'Neil\"]", "age[\"O'Hara\"]", "age['Ann'] = 3", "age['Ann']", "del age['Bob']",
        "age['Bob']", "'Bob' in age", "age.get('Bob')", "len(age)", "age.update(Bob=2)", "age",
        "x = [4, 5]  # two", "x[1]", "x[2]", "x[-3]", "x[1:]", "x.append(6)", "x[2]", "x['a']",
        "print('said')", "None", "1 / 0",
    ]  # fmt: skip
    shown = transcript(lines)
    assert shown == typed_into_python(lines)
    traceback = 'Traceback (most recent call last):\n  File "<stdin>", line 1, in <module>\n'
    assert f">>> age['Kim']\n>>> age['Ann']\n{traceback}KeyError: 'Ann'\n>>> " in shown
    assert (
        "IndexError: list index out of range\n" in shown
        and ">>> x.append(6)\n>>> x[2]\n6\n" in shown
    )


def test_one_transcript_knows_nothing_of_another():
    transcript(["age = {'Bob': 1}"])
    assert "NameError: name 'age' is not defined" in transcript(["age['Bob']"])


def test_sessions_of_every_kind_show_what_python_itself_shows():
    words = Words.of(session_tokenizer())
    for kind in SESSIONS:
        rng = random.Random(kind.__name__)
        lines = [line for _ in range(40) for line in kind(words, rng)]
        assert transcript(lines) == typed_into_python(lines)
        assert len(set(lines)) > 60


def test_the_words_of_a_tokenizer_are_its_plain_ones_without_the_keys_of_dev_and_test():
    words = Words.of(session_tokenizer())
    tested = {key.lower() for key in KEYS["dev"] + KEYS["test"]}
    there = set(session_tokenizer().get_vocab())
    assert {"Ann", "ann", "Connor", "connor"} <= there  # they were there to be taken
    assert not tested & {
        word.lower() for group in (words.names, words.capitalised, words.lower) for word in group
    }
    assert words.names == KEYS["train"]
    assert {"River", "Michael", "Trace"} <= set(words.capitalised) and {
        "river",
        "michael",
        "rank",
    } <= set(words.lower)
    assert all(re.fullmatch("[A-Z][a-z]+", word) for word in words.capitalised)
    assert all(re.fullmatch("[a-z]+", word) for word in words.lower)


def test_words_that_are_drawn_are_different():
    words = Words(("Bob",), ("River", "Stone"), ("river", "stone"))
    assert all(
        sorted(words.draw(random.Random(seed), 5)) == ["Bob", "River", "Stone", "river", "stone"]
        for seed in range(20)
    )


def keys_kept_out_of(text: str) -> set[str]:
    """The keys of dev and test that stand in a text as words, in whatever spelling; ``len(`` is
    Python's own.
    """
    return {key.lower() for key in KEYS["dev"] + KEYS["test"]} & {
        word.lower() for word in re.findall(r"[A-Za-z]+", text.replace("len(", "("))
    }


def test_no_key_of_dev_or_test_is_in_a_session_in_any_spelling():
    shown = ">>> age['ANN']\n>>> len(age)  # no Jack, no connor"
    assert keys_kept_out_of(shown) == {"ann", "jack", "connor"}
    words, rng = Words.of(session_tokenizer()), random.Random(0)
    sessions = [session(words, rng) for _ in range(300)]
    assert [text for text in sessions if keys_kept_out_of(text)] == []
    assert len(set(sessions)) > 290 and sum("KeyError" in text for text in sessions) > 100


def kept_shards(folder: Path, n_shards: int, rows: int = 2, seq: int = 4) -> Path:
    """Shards of numbered tokens: token ``i`` is ``[i, i]`` after layer 1, and ``[-i, -i]`` after
    layer 2.
    """
    for shard in range(n_shards):
        numbers = torch.arange(rows * (seq - 1)) + shard * rows * (seq - 1)
        x = numbers.reshape(rows, seq - 1, 1).expand(-1, -1, 2).to(torch.float16)
        kind = torch.tensor([shard % 3, 2])
        tensors = {
            HOOKS[1]: x.contiguous(),
            HOOKS[2]: -x,
            "tokens": torch.zeros(rows, seq, dtype=torch.long),
            "kind": kind,
        }
        save_file(tensors, folder / f"shard_{shard:04d}.safetensors")
    return folder


def test_every_twenty_fifth_shard_is_held_out_with_what_its_tokens_are(tmp_path):
    kept = KeptActivations(kept_shards(tmp_path, 27), [1, 2])
    held_out = [*range(6), *range(150, 156)]  # of shards 0 and 25
    assert kept.held_out[HOOKS[1]][:, 0].tolist() == held_out and kept.held_out[HOOKS[2]][
        :, 1
    ].tolist() == [-i for i in held_out]
    assert kept.rows[HOOKS[1]][:, 1].tolist() == [i for i in range(27 * 6) if i not in held_out]
    assert kept.kind.tolist() == [0, 0, 0, 2, 2, 2, 1, 1, 1, 2, 2, 2]
    assert len(kept) == 25 * 6 and set(kept.rows) == set(HOOKS.values())
    assert set(KeptActivations(tmp_path, [2]).rows) == {HOOKS[2]}


def test_a_missing_shard_moves_no_other_between_the_parts(tmp_path):
    kept_shards(tmp_path, 27)
    (tmp_path / "shard_0000.safetensors").unlink()
    assert KeptActivations(tmp_path, [1]).held_out[HOOKS[1]][:, 0].tolist() == [*range(150, 156)]


@pytest.mark.parametrize("n_shards", [0, 1])
def test_too_few_shards_are_an_error_that_says_what_to_run(tmp_path, n_shards):
    with pytest.raises(FileNotFoundError, match="two shards or more.*collect_activations.py"):
        KeptActivations(kept_shards(tmp_path, n_shards), [1])


def test_what_is_collected_is_what_is_kept(collected):
    kept = KeptActivations(next(iter(collected.values())).parent, [1, 2])
    shards = [load_file(path) for path in collected.values()]
    assert torch.equal(
        kept.held_out[HOOKS[2]], torch.cat([shards[i][HOOKS[2]].flatten(0, 1) for i in (0, 25)])
    )
    trained = [shard[HOOKS[1]].flatten(0, 1) for i, shard in enumerate(shards) if i not in (0, 25)]
    assert torch.equal(kept.rows[HOOKS[1]], torch.cat(trained))
    assert torch.equal(
        kept.kind, torch.cat([shards[i]["kind"].repeat_interleave(SEQ_LEN - 1) for i in (0, 25)])
    )


def numbers_of(batch: dict[str, torch.Tensor]) -> list[int]:
    """Which tokens of `kept_shards` a batch has; the layers are to agree."""
    assert batch[HOOKS[1]].dtype == torch.float32 and torch.equal(batch[HOOKS[1]], -batch[HOOKS[2]])
    return batch[HOOKS[1]][:, 0].int().tolist()


def test_every_token_is_seen_once_before_any_is_seen_twice_in_another_order(tmp_path):
    kept = KeptActivations(kept_shards(tmp_path, 6), [1, 2])  # 30 tokens to train on
    stream = kept.stream(10, seed=0)
    epochs = [[number for _ in range(3) for number in numbers_of(next(stream))] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(6, 36))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert numbers_of(next(kept.stream(10, seed=1))) != epochs[0][:10]


def test_a_rest_at_the_end_of_an_epoch_is_left_out(tmp_path):
    stream = KeptActivations(kept_shards(tmp_path, 6), [1, 2]).stream(8, seed=0)
    epochs = [[number for _ in range(3) for number in numbers_of(next(stream))] for _ in range(2)]
    assert all(len(epoch) == len(set(epoch)) == 24 for epoch in epochs) and set(epochs[0]) != set(
        epochs[1]
    )


def test_a_stream_that_starts_at_a_step_goes_on_as_the_one_from_the_start(tmp_path):
    kept = KeptActivations(kept_shards(tmp_path, 6), [1, 2])
    whole = kept.stream(8, seed=5)
    batches = [numbers_of(next(whole)) for _ in range(9)]
    for step in (1, 2, 3, 7):
        resumed = kept.stream(8, seed=5, step=step)
        assert [numbers_of(next(resumed)) for _ in range(2)] == batches[step : step + 2]


def test_saes_that_train_on_kept_activations_rebuild_those_held_out(coder, collected):
    arguments = [
        "--activations", coder / "kept", "--layers", 1, 2, "--width", 32, "--k", 4, "--seq-len", 8,
        "--batch-size", 6, "--dtype", "float32", "--device", "cpu", "--tokens", 6 * 7 * 250,
        "--checkpoints", coder / "build", "--out", coder / "saes", "--lab", "tiny",
    ]  # fmt: skip
    train_saes.main([str(argument) for argument in arguments])
    kept = KeptActivations(coder / "kept", [1, 2])
    for layer, name in HOOKS.items():
        sae, x = (
            SAE.load_from_disk(coder / "saes" / f"layer_{layer}", dtype="float32"),
            kept.held_out[name].float(),
        )
        assert train_saes.unexplained_variance(x, sae(x)) < 0.5
        assert (sae.encode(x) > 0).float().sum(1).mean() == pytest.approx(
            4, abs=0.2
        )  # calibrated on these
        assert sae.cfg.metadata.hook_name == name
    recipe = json.loads((coder / "saes" / "metrics.json").read_text())["recipe"]["training"]
    assert recipe["tokens"] == 6 * 7 * 250 and "activations" not in recipe


def test_finetuning_from_kept_activations_brings_the_spliced_model_closer(coder, collected):
    common = [
        "--activations", coder / "kept", "--layers", 1, 2, "--k", 4, "--dtype", "float32",
        "--device", "cpu", "--lab", "tiny", "--checkpoints", coder / "tuned",
    ]  # fmt: skip
    before = [
        *common, "--width", 32, "--seq-len", 8, "--batch-size", 6, "--tokens", 6 * 7 * 60,
        "--out", coder / "rough",
    ]  # fmt: skip
    train_saes.main([str(argument) for argument in before])
    after = [
        *common, "--model", coder / "model", "--saes", coder / "rough", "--out", coder / "fine",
        "--steps", 60, "--lr", 3e-3, "--batch-size", 4,
    ]  # fmt: skip
    finetune_saes.main([str(argument) for argument in after])
    model, tokenizer = train_saes.load_model(
        SimpleNamespace(model=coder / "model", dtype=torch.float32, device="cpu", bos=None)
    )
    held_out = load_file(collected["shard_0025.safetensors"])
    tokens = held_out["tokens"][held_out["kind"] == 0]

    rough, fine = saes_in(coder / "rough"), saes_in(coder / "fine")
    divergences = [divergence_with(model, tokenizer, saes, tokens) for saes in (fine, rough)]
    assert divergences[0] < divergences[1]
    unmoved = [*after, "--steps", 2, "--average", 0, "--out", coder / "unmoved"]
    finetune_saes.main([str(argument) for argument in unmoved])
    for layer, sae in saes_in(coder / "unmoved").items():
        torch.testing.assert_close(sae.W_enc, rough[layer].W_enc, atol=2e-3, rtol=1e-2)
        assert (fine[layer].W_enc - rough[layer].W_enc).abs().max() > 0.02


def test_an_sae_is_measured_the_same_in_one_part_and_in_many():
    torch.manual_seed(0)
    x, sae = torch.randn(300, 16), tiny_sae()
    x[::50] *= 100  # six unusual tokens
    whole, parts = measure_saes.Account(sae), measure_saes.Account(sae)
    whole.add(x)
    for part in x.split(60):
        parts.add(part)
    row = whole.row()
    assert parts.row() == pytest.approx(row, rel=1e-4)
    f = sae.encode(x)
    error, usual = (x - sae.decode(f)).pow(2).sum(1), x.norm(dim=1) < 100
    assert row["n_tokens"] == 300 and row["share_of_usual_tokens"] == 0.98
    assert row["l0"] == pytest.approx((f > 0).sum(1).float().mean().item())
    assert row["dead"] == pytest.approx((f > 0).sum(0).eq(0).float().mean().item())
    for name, rows in (("", slice(None)), ("_usual_tokens", usual)):
        variance = (x[rows] - x[rows].mean(0)).pow(2).sum()
        expected = (error[rows].sum() / variance).item()
        assert row[f"unexplained_variance{name}"] == pytest.approx(expected, rel=1e-4)


def test_an_answer_is_due_after_a_closing_bracket_and_a_line_break(coder, collected):
    tokenizer = session_tokenizer()
    first, last, due = finetune_saes.KeptSequences(coder / "kept", 1, tokenizer, seed=0).batch(0, 3)
    assert (
        first.shape == last.shape and first.shape[:2] == due.shape and due.shape[1] == SEQ_LEN - 1
    )
    matches = [path for path in collected.values() if _holds(path, first[0], due[0], tokenizer)]
    assert len(matches) == 1 and matches[0].name not in (
        "shard_0000.safetensors",
        "shard_0025.safetensors",
    )


def _holds(path: Path, row: torch.Tensor, due: torch.Tensor, tokenizer) -> bool:
    """Whether a shard has this row after layer 1, as a session, and ``due`` says where its text has
    such a line's end.
    """
    x, tokens, kind = (load_file(path)[name] for name in (HOOKS[1], "tokens", "kind"))
    for i in range(len(x)):
        if torch.equal(x[i].float(), row):
            return kind[i] == 0 and due.tolist() == [
                tokenizer.decode([token]).endswith("]\n") for token in tokens[i, 1:].tolist()
            ]
    return False


def test_shards_with_other_settings_are_not_mixed(coder, collected, capsys):
    with pytest.raises(SystemExit):
        collect(coder, "kept", 28, "--seed", 5)
    assert "made with other settings" in capsys.readouterr().err
    assert len(list((coder / "kept").glob("shard_*"))) == 27


def test_training_on_nothing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_saes.main(["--checkpoints", str(tmp_path), "--lab", "tiny"])
    assert "--corpus FILE …, or --activations FOLDER" in capsys.readouterr().err


def test_no_longer_word_in_a_session_is_a_key_of_dev_or_test():
    words, rng = (
        Words(
            ("Jam", "Rus"), ("River", "Stone", "Storm", "Cloud"), ("jam", "rus", "river", "stone")
        ),
        random.Random(0),
    )
    sessions = [transcript(other_dictionary(words, rng)) for _ in range(600)]
    assert [text for text in sessions if keys_kept_out_of(text)] == []
