"""The labs from the model hub, without a hub: repositories of the right names and formats in a
cache, loaded by the calls that users make.

The models have their published d_model and number of layers, and are tiny otherwise; the SAEs have
their published shapes where SAELens insists on them. What they compute is random; that it is the
formula of their kind is tested.
"""

import copy
import types

import psutil
import pytest
import torch
from conftest import make_task, tiny_tokenizer
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM

import course_utils.labs.hub as hub
from course_utils.circuits.attribution import atp
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import SplicedModel
from course_utils.labs import requirements
from course_utils.labs.catalog import LabError, spec_of
from course_utils.labs.lab import load_lab
from course_utils.labs.loading import load_sae
from course_utils.labs.memory import FreeMemory
from tools.random_hub import put_model, put_sae, put_saes

LAYER = {"gpt2-small": 2, "gemma-3-270m": 3, "qwen3-1.7b": 4, "gemma-2-2b": 4, "gemma-2-9b": 7}


def has_memory(monkeypatch, n_bytes):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=n_bytes))
    monkeypatch.setattr(requirements, "free_memory", lambda: FreeMemory(n_bytes, "this machine"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no network, and memory for everything."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    has_memory(monkeypatch, 10**12)
    return tmp_path / "hub"


def tokenizer_of(name):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    if spec_of(name).bos_token:
        tokenizer.add_tokens([spec_of(name).bos_token])
        tokenizer.bos_token = None  # as Qwen's comes
    return tokenizer


def put_small_model(cache, name, vocab_size=None):
    tokenizer = tokenizer_of(name)
    smaller = dict(
        vocab_size=vocab_size or len(tokenizer),
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    if spec_of(name).architecture == "GPT2Config":
        smaller.update(n_head=4, n_inner=32, n_positions=64)
    else:
        smaller.update(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    return put_model(cache, name, tokenizer, dtype=torch.float32, **smaller)


def expected_latents(name, W, x):
    """What an SAE of the lab's kind finds, by its formula."""
    if name == "gpt2-small":
        return ((x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
    before = x @ W["W_enc"] + W["b_enc"]
    if name.startswith("gemma"):
        return before * (before > W["threshold"])
    top = before.topk(50, dim=-1)
    return torch.zeros_like(before).scatter(-1, top.indices, top.values.relu())


@pytest.mark.parametrize(
    "name",  # the real d_model and number of layers: more than ten seconds for the largest
    [pytest.param(n, marks=[pytest.mark.slow] if n == "gemma-2-9b" else []) for n in LAYER],
)
def test_a_public_lab_loads_from_the_cache_and_does_the_courses_work(cache, name):
    layer = LAYER[name]
    put_small_model(cache, name)
    # SAELens knows the width of Gemma Scope by heart; that of the others is read from their files
    d_sae = None if name.startswith("gemma-2") else 60
    W = put_sae(cache, name, layer, threshold=0.1, d_sae=d_sae)
    lab = load_lab(name, layers=[layer], device="cpu", dtype=torch.float32)
    assert lab.sae_layers == [layer] and not lab.saes.loaded  # on demand
    x = torch.randn(3, lab.d_model)
    torch.testing.assert_close(
        lab.saes[layer].encode(x), expected_latents(name, W, x), atol=1e-4, rtol=1e-4
    )
    assert lab.tokenizer.bos_token == (spec_of(name).bos_token or "<bos>")

    task = make_task(lab.tokenizer)[:4]
    assert task.has_bos
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)
    learned = learn_masks(spliced, task, means=means, steps=2, batch_size=4, progress=False)
    assert 0 < learned.n_nodes
    assert all(score.isfinite().all() for score in atp(spliced, task).values())
    keep = SplicedModel(lab, error="keep")
    torch.testing.assert_close(
        keep.logit_diff(task), keep.model_logit_diff(task), atol=1e-3, rtol=1e-3
    )


def test_random_saes_fire_as_often_as_they_were_told_to(cache):
    folder = put_small_model(cache, "gemma-3-270m", vocab_size=2000)
    put_saes(cache, "gemma-3-270m", folder, [3], l0=30)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(1000, 1064)[None]  # those that they were calibrated on
    with torch.no_grad():
        x = model(tokens, output_hidden_states=True).hidden_states[4][0, 1:]
    sae = load_sae(("gemma-scope-2-270m-pt-res-all", "layer_3_width_16k_l0_big"))
    assert (sae.encode(x) > 0).sum(-1).float().mean() == pytest.approx(30, rel=0.5)


def test_gpt2_writes_nothing_along_the_mean_and_says_the_same(cache):
    folder = put_small_model(cache, "gpt2-small")
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    centred = load_lab("gpt2-small", device="cpu").hf_model
    tokens = torch.randint(2, 30, (2, 6))
    with torch.no_grad():
        before, after = (model(tokens, output_hidden_states=True) for model in (original, centred))
    torch.testing.assert_close(before.logits, after.logits, atol=1e-4, rtol=1e-4)
    assert before.hidden_states[5].mean(-1).abs().max() > 1e-3
    assert max(h.mean(-1).abs().max() for h in after.hidden_states[:-1]) < 1e-5


def test_an_sae_that_is_not_here_says_what_to_do(cache):
    put_small_model(cache, "gpt2-small")
    lab = load_lab("gpt2-small", device="cpu")
    missing = r"blocks\.3\.hook_resid_pre of gpt2-small-res-jb is not on this machine"
    with pytest.raises(LabError, match=f"{missing}.*HF_HUB_OFFLINE.*Connect"):
        lab.saes[2]
    with pytest.raises(LabError, match="not found in release"):
        load_sae(("gpt2-small-res-jb", "blocks.99"))


# -- before a download -----------------------------------------------------------------------------


def test_without_a_network_the_message_says_so(cache):
    with pytest.raises(
        LabError, match=r"gemma-3-270m.*not on this machine.*HF_HUB_OFFLINE.*smollm2"
    ):
        load_lab("gemma-3-270m", device="cpu")


@pytest.fixture
def online(cache, monkeypatch):
    """A hub that answers, and from which nothing may be fetched."""

    def refuse(*args, local_files_only=False, **kwargs):
        if local_files_only:
            return download(*args, local_files_only=True, **kwargs)
        raise AssertionError("a download was started")

    download = hub.snapshot_download
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "auth_check", lambda repo: None)
    monkeypatch.setattr(hub, "snapshot_download", refuse)


def http_error(kind):
    import httpx

    return kind(
        "no", response=httpx.Response(403, request=httpx.Request("GET", "https://example.org"))
    )


def test_a_gated_model_without_a_token_says_how_to_get_in(online, monkeypatch):
    monkeypatch.setattr(
        hub, "auth_check", lambda repo: (_ for _ in ()).throw(http_error(GatedRepoError))
    )
    with pytest.raises(
        LabError,
        match=r"google/gemma-2-2b is gated: \(1\) accept.*\(2\) make a token.*\(3\) log in",
    ):
        load_lab("gemma-2-2b", device="cpu")


def test_a_model_that_may_not_be_seen_is_named(online, monkeypatch):
    monkeypatch.setattr(
        hub, "auth_check", lambda repo: (_ for _ in ()).throw(http_error(RepositoryNotFoundError))
    )
    with pytest.raises(
        LabError, match="no repository 'google/gemma-2-2b' that you may see.*log in"
    ):
        load_lab("gemma-2-2b", device="cpu")


def test_too_little_disk_is_told_before_the_download(online, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: types.SimpleNamespace(free=3e9))
    with pytest.raises(
        LabError, match=r"gemma-2-2b has [67]\.\d GB to fetch, and .* has 3\.0 GB left.*HF_HOME"
    ):
        load_lab("gemma-2-2b", device="cpu")


def test_too_little_memory_is_told_before_the_download(online, monkeypatch):
    has_memory(monkeypatch, 9 * 10**9)
    too_little = r"gemma-2-2b needs 1\d\.\d GB of memory in float32, and cpu has 9\.0 GB"
    with pytest.raises(LabError, match=f"{too_little}.*Half of that.*bfloat16"):
        load_lab("gemma-2-2b", device="cpu", dtype=torch.float32)


def test_a_cpu_where_a_gpu_is_needed_is_told_before_the_download(online, monkeypatch):
    monkeypatch.setattr("course_utils.labs.lab.usual_device", lambda: torch.device("cpu"))
    with pytest.raises(LabError, match="gemma-2-9b wants a GPU with 2[0-9] GB or more.*smollm2"):
        load_lab("gemma-2-9b")


def test_a_download_that_broke_off_says_that_it_goes_on(online, monkeypatch):
    def broken(*args, local_files_only=False, **kwargs):
        if local_files_only:
            raise hub.LocalEntryNotFoundError("nothing here")
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub, "snapshot_download", broken)
    with pytest.raises(
        LabError, match="broke off: ConnectionError: reset by peer. Run this again: it goes on"
    ):
        load_lab("gemma-3-270m", device="cpu")


def test_a_model_that_lacks_a_shard_is_not_taken_for_whole(cache):
    folder = put_small_model(cache, "gemma-3-270m")
    assert hub.local_model("google/gemma-3-270m") == folder
    (folder / "model.safetensors").unlink()
    assert hub.local_model("google/gemma-3-270m") is None
