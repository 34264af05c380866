"""Loading: our own readers against SAELens', what is refused, and the private names of other
libraries that loading leans on.
"""

import json
import pickle
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from conftest import tiny_sae
from huggingface_hub import constants
from sae_lens import SAE
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from course_utils.labs.catalog import FILES_OF, LABS, LabError, hub_file, placement, registry
from course_utils.labs.lab import load_lab
from course_utils.labs.loading import READERS, load_sae, saes_in
from course_utils.labs.requirements import estimate
from course_utils.labs.weights import fetch, forget_quantisation
from tools.random_hub import put_sae, repository

QWEN = "qwen-scope-3-1.7b-base-w32k-l50"
FORCE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def file_in(cache, release, sae_id):
    """Where the cache has the file of an SAE."""
    repo, name = hub_file(release, sae_id)
    return repository(cache, repo) / name


def made(path):
    """The path, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# ---------------------------------------------------------------------------------------------
# Pickles
# ---------------------------------------------------------------------------------------------


class Touches:
    """A pickle of this makes a file when it is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("forced", [False, True], ids=["as it is", "unpickling forced"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(cache, tmp_path, monkeypatch, forced):
    touched = tmp_path / "touched"
    path = file_in(cache, QWEN, "layer4")
    torch.save({"W_enc": torch.zeros(2, 2), "W_dec": Touches(touched)}, path)
    if forced:
        monkeypatch.setenv(FORCE, "1")
    with pytest.raises(LabError, match="layer4 of qwen-scope.*holds more than tensors.*Delete it"):
        load_sae((QWEN, "layer4"))
    assert not touched.exists()
    with open(path, "rb"):  # the same file does run code where nobody minds
        torch.load(path, weights_only=False)
    assert touched.exists()


def test_a_plain_pickle_is_refused_too(cache, tmp_path):
    file_in(cache, QWEN, "layer4").write_bytes(
        pickle.dumps(Touches(tmp_path / "touched"), protocol=2)
    )
    with pytest.raises(LabError, match="layer4 of qwen-scope"):
        load_sae((QWEN, "layer4"))
    assert not (tmp_path / "touched").exists()


def test_the_qwen_reader_reads_what_saelens_own_reads(cache):
    """Of the full size, on which SAELens insists; its rows (and columns) are alike in memory."""
    d_sae, d_in = 32_768, 2_048
    weights = {
        "W_enc": torch.randn(d_in).expand(d_sae, d_in),
        "W_dec": torch.randn(d_sae).expand(d_in, d_sae),
        "b_enc": torch.randn(d_sae),
        "b_dec": torch.randn(d_in),
    }
    torch.save(weights, file_in(cache, QWEN, "layer4"))
    ours = load_sae((QWEN, "layer4"))
    theirs = SAE.from_pretrained(QWEN, "layer4")
    assert type(ours) is type(theirs)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    same = set(theirs.cfg.to_dict()) - {"metadata"}
    assert {key: ours.cfg.to_dict()[key] for key in same} == {
        key: theirs.cfg.to_dict()[key] for key in same
    }
    for key in ("hook_name", "prepend_bos"):
        assert getattr(ours.cfg.metadata, key) == getattr(theirs.cfg.metadata, key)


# ---------------------------------------------------------------------------------------------
# What cannot be read
# ---------------------------------------------------------------------------------------------


def test_a_file_that_is_here_and_broken_says_so_and_not_that_it_is_missing(cache):
    file_in(cache, QWEN, "layer4").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(LabError, match="is on this machine and cannot be read.*Delete its file"):
        load_sae((QWEN, "layer4"))


def test_tensors_of_other_names_are_named(cache):
    torch.save({"W_enc": torch.zeros(2, 2)}, file_in(cache, QWEN, "layer4"))
    with pytest.raises(LabError, match="cannot be read: KeyError: 'W_dec'"):
        load_sae((QWEN, "layer4"))


def test_a_file_that_is_not_here_says_that_it_cannot_be_fetched(cache):
    with pytest.raises(LabError, match="not on this machine and cannot be fetched: HF_HUB_OFFLINE"):
        load_sae((QWEN, "layer4"))


def test_an_unknown_release_is_named(cache):
    with pytest.raises(LabError, match="no-such-release"):
        load_sae(("no-such-release", "layer4"))


def test_a_folder_without_an_sae_says_what_is_wanted(tmp_path):
    with pytest.raises(LabError, match="no SAE in .*cfg.json and sae_weights.safetensors"):
        load_sae(tmp_path)


def broken_sae(folder, file, content):
    """A saved SAE, one of whose files holds something else; None: is missing."""
    tiny_sae().save_model(folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("cfg.json", b"", "cannot be read: JSONDecodeError.*save_model"),
        ("cfg.json", b"[1]", "cannot be read: AttributeError.*save_model"),
        ("cfg.json", b'{"architecture": "jumprelu"}', "cannot be read: .*save_model"),
        ("cfg.json", b'{"architecture": "new", "d_in": 16, "d_sae": 24}', "cannot be read: KeyErr"),
        ("cfg.json", b'{"architecture": "batchtopk"}', r"\(batchtopk\).*save_inference_model"),
        ("sae_weights.safetensors", None, "has a cfg.json and no sae_weights.safetensors"),
        ("sae_weights.safetensors", b"", "cannot be read: SafetensorError.*save_model"),
        ("sae_weights.safetensors", b"\x10" + 23 * b"\x00", "cannot be read: Safetensor"),
    ],
)
def test_a_damaged_sae_is_named_with_what_is_wanted(tmp_path, file, content, says):
    broken_sae(tmp_path, file, content)
    with pytest.raises(LabError, match=f"{tmp_path.name}.*{says}"):
        load_sae(tmp_path)


def test_weights_of_another_width_than_the_configuration_says_are_refused(tmp_path):
    tiny_sae().save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "d_sae": 25}))
    with pytest.raises(LabError, match="cannot be read: RuntimeError"):
        load_sae(tmp_path)


def test_a_path_may_begin_with_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_sae().save_model(tmp_path / "sae")
    assert load_sae("~/sae").cfg.d_sae == 24


def test_a_folder_of_no_saes_says_what_is_wanted(tmp_path, monkeypatch):
    with pytest.raises(LabError, match=r"no SAE in .*layer_8.*for layers \[\]"):
        saes_in(tmp_path, None)
    monkeypatch.setitem(LABS, "empty", replace(LABS["smollm2"], saes=tmp_path))
    with pytest.raises(LabError, match="no SAE in .*layer_8"):
        load_lab("empty")
    with pytest.raises(LabError, match="no SAE in .*layer_8"):
        estimate("empty")


@pytest.mark.parametrize("name", ["smollm2", "gpt2-small"])
@pytest.mark.parametrize("layer", ["8", 8.0, None])
def test_layers_that_are_no_whole_numbers_are_refused(wrong_types, name, layer):
    with pytest.raises(LabError, match=f"the layer {layer!r} is a .*whole numbers: 8, not '8'"):
        load_lab(name, layers=[layer])


def test_a_lab_by_name_wants_an_sae():
    for given in (dict(layers=[]), dict(saes={})):
        with pytest.raises(LabError, match=r"one layer or more is wanted: load_lab\('gpt2-small'"):
            load_lab("gpt2-small", **given)


def test_public_saes_for_a_lab_with_saes_of_its_own_are_not_ignored():
    with pytest.raises(LabError, match=r"one SAE a layer: load_lab\('smollm2', layers="):
        load_lab("smollm2", saes=placement("gpt2-small"))


def test_the_saes_of_a_folder_are_found_by_their_layers_number(tmp_path):
    for layer in (2, 10, 5):
        (tmp_path / f"layer_{layer}").mkdir()
        (tmp_path / f"layer_{layer}" / "cfg.json").write_text("{}")
    (tmp_path / "layer_7").mkdir()  # without an SAE
    assert list(saes_in(tmp_path, None)) == [2, 5, 10]
    assert saes_in(tmp_path, [10, 2]) == {10: tmp_path / "layer_10", 2: tmp_path / "layer_2"}
    with pytest.raises(LabError, match=r"no SAE for layer 7, 3 in .*for layers \[2, 5, 10\]"):
        saes_in(tmp_path, [7, 2, 3])


@pytest.mark.parametrize(
    ("release", "sae_id"),
    [
        ("gemma-scope-2-270m-pt-mlp-all", "layer_0_width_16k_l0_big"),
        ("gemma-scope-2-270m-pt-att-all", "layer_0_width_16k_l0_big"),
        ("gemma-scope-2-270m-pt-transcoders-all", "layer_0_width_16k_l0_big"),
        (
            "gemma-scope-2-270m-pt-transcoders",
            "transcoder/layer_15_width_262k_l0_big_affine",
        ),
    ],
)
def test_gemma_scope_2_of_other_places_is_refused_before_a_download(cache, release, sae_id):
    with pytest.raises(LabError, match="is no SAE of the residual stream.*end in -res"):
        load_sae((release, sae_id))


def test_tensors_that_an_sae_has_no_use_for_are_not_dropped(cache):
    release, sae_id = "gemma-scope-2-270m-pt-res-all", "layer_3_width_16k_l0_big"
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection")
    save_file({name: torch.zeros(2, 2) for name in names}, made(file_in(cache, release, sae_id)))
    with pytest.raises(LabError, match="holds affine_skip_connection"):
        load_sae((release, sae_id))


# ---------------------------------------------------------------------------------------------
# Private names of other libraries
# ---------------------------------------------------------------------------------------------


def test_saelens_registry_is_where_it_was():
    says = f"sae-lens {version('sae-lens')} has changed its registry: mend catalog.registry"
    try:
        entry = registry()[QWEN]
        known = (entry.repo_id, entry.saes_map["layer4"], entry.conversion_func)
        l0 = registry()["gemma-scope-2b-pt-res"].expected_l0["layer_4/width_16k/average_l0_60"]
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        pytest.fail(f"{says}: {error!r}")
    assert known == ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer4.sae.pt", "qwen_scope"), says
    assert l0 == 60, says


def test_saelens_calls_the_formats_of_the_courses_labs_what_it_called_them():
    says = f"sae-lens {version('sae-lens')} has renamed a format: mend FILES_OF and READERS"
    formats = {
        registry()[spec.saes.name].conversion_func
        for spec in LABS.values()
        if not hasattr(spec.saes, "glob")
    }
    assert formats == set(FILES_OF), says
    assert set(READERS) <= formats, says


def test_saelens_still_takes_a_reader_of_ours(cache):
    """Both of our readers are called, with the arguments that they have names for."""
    for name, layer in (("gemma-3-270m", 3), ("qwen3-1.7b", 4)):
        weights = put_sae(cache, name, layer, threshold=0.1, d_sae=40)
        release, sae_id = LABS[name].saes.name, placement(name, [layer])[layer].sae_id
        try:
            sae = load_sae((release, sae_id))
        except (LabError, TypeError) as error:
            pytest.fail(f"sae-lens {version('sae-lens')} calls readers otherwise: {error!r}")
        assert torch.equal(sae.W_dec, weights["W_dec"])


@pytest.mark.weights
def test_a_model_from_a_gguf_file_can_be_saved_once_it_forgets_that_it_was_quantised(tmp_path):
    says = f"transformers {version('transformers')}: mend weights.forget_quantisation"
    gguf = fetch(LABS["smollm2"].model)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    forget_quantisation(model)
    try:
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    except Exception as error:
        pytest.fail(f"{says}: {error!r}")
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text()), says
    for (name, before), after in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(before, after), (name, says)
