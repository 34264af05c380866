"""The labs' names, shapes and SAEs, against what is published; nothing is fetched."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from course_utils.labs.catalog import (
    LABS,
    LabError,
    Release,
    hub_file,
    placement,
    registry,
    release_of,
    spec_of,
)

PUBLIC = [name for name, spec in LABS.items() if isinstance(spec.saes, Release)]

# parameters, as published in the model cards and papers
PARAMETERS = {
    "smollm2": 134_515_008,
    "qwen-coder": 1_543_714_304,
    "gpt2-small": 124_439_808,
    "gemma-3-270m": 268_098_176,
    "qwen3-1.7b": 1_720_574_976,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
}


@pytest.mark.parametrize("name", LABS)
def test_the_shape_of_every_model_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(spec_of(name).config())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_placement_is_in_saelens_own_registry(name):
    release = spec_of(name).saes
    entry = registry()[release.name]
    n_layers = spec_of(name).config().num_hidden_layers
    chosen = placement(name)
    assert tuple(chosen) == spec_of(name).placement
    for layer, choice in chosen.items():
        assert choice.sae_id in entry.saes_map and 0 <= layer < n_layers and choice.l0 > 0
    assert {choice.layer for choice in release.choices()} == set(
        range(n_layers)
    )  # one or more for each layer


@pytest.mark.parametrize("name", PUBLIC)
def test_the_registry_means_the_same_model(name):
    model = registry()[spec_of(name).saes.name].model
    plain = lambda text: text.split("/")[-1].lower().replace("-small", "")  # noqa: E731
    assert plain(model) == plain(spec_of(name).model.repo)


def test_gemma_2_9b_gets_the_saes_of_the_post():
    assert {layer: choice.l0 for layer, choice in placement("gemma-2-9b").items()} == {
        7: 92,
        14: 67,
        21: 129,
        40: 125,
    }
    assert placement("gemma-2-9b")[7].sae_id == "layer_7/width_16k/average_l0_92"


def test_gemma_2_2b_gets_the_canonical_saes():
    canonical = registry()["gemma-scope-2b-pt-res-canonical"].saes_map
    for layer, choice in placement("gemma-2-2b", range(26)).items():
        assert choice.sae_id == canonical[f"layer_{layer}/width_16k/canonical"]


def test_a_gap_takes_every_kth_layer_and_the_l0_that_is_nearest():
    assert list(placement("gemma-2-9b", gap=7)) == [7, 14, 21, 28, 35]
    assert placement("gemma-2-9b", gap=7, l0=10)[7].l0 == 8
    assert list(placement("gpt2-small", gap=4)) == [4, 8]


def test_a_resid_pre_sae_belongs_to_the_layer_before():
    chosen = placement("gpt2-small", [7, 10, 11])
    assert [choice.sae_id for choice in chosen.values()] == [
        "blocks.8.hook_resid_pre",
        "blocks.11.hook_resid_pre",
        "blocks.11.hook_resid_post",
    ]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            dict(name="gemma-2-9b", layers=[42]),
            r"no SAE for layer 42; there are SAEs for layers \[0, 1,",
        ),
        (dict(name="gemma-2-9b", gap=0), "gap must be 1 or more"),
        (dict(name="gemma-2-9b", gap=43), "none asked for"),
        (dict(name="gemma-2-9b", gap=2, layers=[2]), "not both"),
        (dict(name="smollm2", gap=2), "one SAE a layer"),
        (dict(name="gemma-9b"), "unknown lab 'gemma-9b'.*gemma-2-9b.*from_parts"),
    ],
)
def test_a_placement_that_cannot_be_says_why(asked, says):
    with pytest.raises(LabError, match=says):
        placement(**asked)


def test_only_a_lab_with_public_saes_has_a_release():
    assert release_of("gpt2-small").name == "gpt2-small-res-jb"
    with pytest.raises(LabError, match="'qwen-coder' has one SAE a layer: load_lab"):
        release_of("qwen-coder")


@given(st.sampled_from(PUBLIC), st.floats(0, 500), st.data())
def test_the_sae_of_a_layer_is_the_one_with_the_nearest_l0(name, l0, data):
    choices = release_of(name).by_layer()
    layer = data.draw(st.sampled_from(sorted(choices)))
    nearest = placement(name, [layer], l0=l0)[layer]
    assert nearest in choices[layer]
    assert all(abs(nearest.l0 - l0) <= abs(choice.l0 - l0) for choice in choices[layer])


def test_the_file_of_an_sae_on_the_hub():
    assert hub_file("gemma-scope-9b-pt-res", "layer_7/width_16k/average_l0_92") == (
        "google/gemma-scope-9b-pt-res",
        "layer_7/width_16k/average_l0_92/params.npz",
    )
    assert hub_file("qwen-scope-3-1.7b-base-w32k-l50", "layer3")[1] == "layer3.sae.pt"
