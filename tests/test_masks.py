"""SAEMasks: what it keeps, what it counts, and its files."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from course_utils.circuits.frontier import MASKS_DIR, Frontier
from course_utils.circuits.masks import (
    MaskError,
    SAEMasks,
    ablate,
    load_circuits,
    only,
    random_subsets,
    save_circuits,
    without,
)
from course_utils.circuits.optimize import LearnedMask
from course_utils.circuits.sparsification import MaskSettings

A, B = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"


@pytest.fixture
def masks() -> SAEMasks:
    torch.manual_seed(0)
    return SAEMasks([A, B], [(torch.rand(5, 8) > 0.6).float(), (torch.rand(5, 8) > 0.6).float()])


@pytest.mark.parametrize("shape", [(8,), (5, 8)])
def test_forward_mixes_latents_and_ablation_by_the_mask(shape):
    x, ablation, mask = torch.randn(3, 5, 8), torch.randn(5, 8), torch.rand(shape)
    expected = torch.empty_like(x)
    for b in range(3):
        for s in range(5):
            for j in range(8):
                m = mask[j] if len(shape) == 1 else mask[s, j]
                expected[b, s, j] = m * x[b, s, j] + (1 - m) * ablation[s, j]
    torch.testing.assert_close(SAEMasks([A], [mask])(x, A, mean_ablation=ablation), expected)


def test_without_a_mean_the_ablation_is_zero(masks):
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(masks(x, A), x * masks[A])


def test_a_mask_of_the_wrong_length_is_refused_by_name(masks):
    with pytest.raises(MaskError, match=r"blocks\.1.*\[5, 8\].*\[6, 8\]"):
        masks(torch.randn(2, 6, 8), A)


def test_an_unknown_hook_point_lists_the_known_ones(masks):
    with pytest.raises(MaskError, match="blocks.2.*blocks.1.*blocks.3"):
        masks(torch.randn(2, 5, 8), "blocks.2.hook_resid_post")


@pytest.mark.parametrize(
    ("hook_points", "tensors", "message"),
    [
        ([A], [], "hook points: 1, masks: 0"),
        ([A, A], [torch.ones(2)] * 2, "twice"),
        ([A], [torch.ones(1, 2, 3)], r"\[1, 2, 3\]"),
    ],
)
def test_a_constructor_that_makes_no_sense_is_refused(hook_points, tensors, message):
    with pytest.raises(MaskError, match=message):
        SAEMasks(hook_points, tensors)


def test_statistics_say_shape_total_on_and_average(masks, capsys):
    on = [int(mask.sum()) for mask in masks.masks]
    masks.print_mask_statistics()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (f"{A}: {on[0]} of 40 nodes on, {on[0] / 5:.2f} per token (mask [5, 8])")
    assert printed[-1] == f"all hook points: {sum(on)} on"
    assert masks.get_num_latents() == sum(on) == len(masks.nodes())


def test_nodes_of_a_shared_mask_have_no_position():
    assert SAEMasks([A], [torch.tensor([0.0, 1.0, 1.0])]).nodes() == [(A, None, 1), (A, None, 2)]


def test_from_scores_keeps_the_best_over_all_hook_points():
    scores = {
        A: torch.tensor([[0.0, -5.0], [1.0, 2.0]]),
        B: torch.tensor([[3.0, 0.5], [-4.0, 0.0]]),
    }
    assert set(SAEMasks.from_scores(scores, 3).nodes()) == {(A, 0, 1), (B, 1, 0), (B, 0, 0)}
    assert set(SAEMasks.from_scores(scores, 3, rank="signed").nodes()) == {
        (B, 0, 0),
        (A, 1, 1),
        (A, 1, 0),
    }
    assert SAEMasks.from_scores(scores, 0).get_num_latents() == 0


@pytest.mark.parametrize(("n_nodes", "rank"), [(-1, "abs"), (9, "abs"), (1, "best")])
def test_from_scores_refuses_impossible_wishes(n_nodes, rank):
    scores = {A: torch.randn(2, 2), B: torch.randn(2, 2)}
    with pytest.raises(MaskError, match="n_nodes|rank"):
        SAEMasks.from_scores(scores, n_nodes, rank=rank)


def test_full_masks_leave_the_bos_row_off():
    masks = SAEMasks.full({A: torch.randn(5, 8), B: torch.randn(8)}, 1.0)
    assert masks[A][0].sum() == 0 and masks[A][1:].min() == 1 and masks[B].min() == 1
    assert SAEMasks.full({A: torch.randn(5, 8)}, 1.0, has_bos=False)[A].min() == 1


def test_masks_survive_the_disk_and_json(masks, tmp_path):
    masks[A].mul_(0.5)
    masks.save(tmp_path, "m.safetensors")
    loaded = SAEMasks.load(tmp_path, "m.safetensors")
    assert loaded.hook_points == masks.hook_points
    for one, other in zip(loaded.masks, masks.masks):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    again = SAEMasks.from_json(json.loads(json.dumps(masks.to_json())))
    assert again.nodes() == masks.nodes() and again[A].shape == masks[A].shape


def test_a_missing_file_says_what_is_there(masks, tmp_path):
    masks.save(tmp_path, "here.safetensors")
    for gone in ((tmp_path, "gone.safetensors"), (tmp_path / "gone.safetensors",)):
        with pytest.raises(FileNotFoundError, match="no masks at .*gone.*here.safetensors"):
            SAEMasks.load(*gone)
    with pytest.raises(FileNotFoundError, match="no masks at .*nowhere.*Files there: none"):
        SAEMasks.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [(), ("mine.safetensors",), ("mine",)])
@pytest.mark.parametrize("kind", [str, Path])
def test_the_path_that_save_returns_is_what_load_takes(masks, tmp_path, name, kind):
    loaded = SAEMasks.load(kind(masks.save(tmp_path, *name)))
    assert loaded.nodes() == masks.nodes() and loaded.hook_points == masks.hook_points


def test_a_path_may_begin_with_the_users_home(masks, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert masks.save("~/run").parent == tmp_path / "run"
    assert SAEMasks.load("~/run").nodes() == masks.nodes()
    save_circuits({(9, 0): masks}, "~/circuits.json")
    assert load_circuits("~/circuits.json")[9, 0].nodes() == masks.nodes()
    theta = {name: mask.clone() for name, mask in masks.items()}
    learned = LearnedMask(masks, theta, [], MaskSettings(), True, {})
    assert learned.save("~/mask").parent == tmp_path / "mask"
    assert LearnedMask.load("~/mask").settings == learned.settings
    assert Frontier("ioi", "tiny", [1], "drop").save("~/frontier.json").parent == tmp_path
    assert Frontier.load("~/frontier.json").task == "ioi"


def test_a_file_and_another_files_name_are_no_file(masks, tmp_path):
    path = masks.save(tmp_path)
    masks.save(tmp_path, "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no masks at"):
        SAEMasks.load(path, "other.safetensors")


def test_a_folder_whose_name_ends_like_a_file_is_a_folder(masks, tmp_path):
    masks.save(tmp_path / "run.safetensors")
    assert SAEMasks.load(tmp_path / "run.safetensors").nodes() == masks.nodes()


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(MaskError, match="holds no masks"):
        SAEMasks.load(tmp_path, "foreign.safetensors")


def test_a_damaged_file_is_refused(masks, tmp_path):
    path = masks.save(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MaskError, match="damaged"):
        SAEMasks.load(tmp_path)


@pytest.mark.parametrize(
    "record",
    [{A: {"on": []}}, {A: {"shape": [2, 2], "on": [[2, 0]]}}, {A: {"shape": [2, 2], "on": [[1]]}}],
)
def test_json_that_does_not_fit_is_refused_by_hook_point(record):
    with pytest.raises(MaskError, match="blocks.1"):
        SAEMasks.from_json(record)


# -- as a module ---------------------------------------------------------------------------------


def test_masks_are_buffers_that_torch_sees(masks):
    state = masks.state_dict()
    assert len(state) == 2
    other = SAEMasks([A, B], [torch.zeros(5, 8), torch.zeros(5, 8)])
    other.load_state_dict(state)
    assert all(torch.equal(other[hook_point], masks[hook_point]) for hook_point in (A, B))


def test_the_state_of_soft_masks_is_their_values_and_keeps_their_gradients():
    theta = torch.randn(5, 8, requires_grad=True)
    masks = SAEMasks([A], [torch.sigmoid(theta)])
    (value,) = masks.state_dict().values()
    torch.testing.assert_close(value, torch.sigmoid(theta.detach()), rtol=0, atol=0)
    assert not value.requires_grad
    masks[A].sum().backward()
    assert theta.grad is not None and theta.grad.abs().min() > 0


def test_a_cast_casts_the_masks(masks):
    nodes = masks.nodes()
    assert masks.half()[A].dtype == torch.float16 and masks.nodes() == nodes
    assert masks.to("meta")[B].device.type == "meta"


def test_gradients_flow_through_soft_masks():
    theta = torch.randn(5, 8, requires_grad=True)
    x = torch.randn(2, 5, 8)
    SAEMasks([A], [torch.sigmoid(theta)])(x, A).sum().backward()
    soft = torch.sigmoid(theta.detach())
    torch.testing.assert_close(theta.grad, x.sum(0) * soft * (1 - soft))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_mixed_in_float32(dtype):
    """In half precision, ablation + (x − ablation) · mask would round three times."""
    torch.manual_seed(0)
    x, mask = (100 * torch.randn(1000)).to(dtype), torch.rand(1000)
    ablation = 100 * torch.randn(1000)
    exact = torch.lerp(ablation.double(), x.double(), mask.double())
    in_half = (ablation.to(dtype) + (x - ablation.to(dtype)) * mask.to(dtype)).double()
    off, off_in_half = (ablate(x, mask, ablation) - exact).abs(), (in_half - exact).abs()
    assert ablate(x, mask, ablation).dtype == dtype
    assert off.mean() < 0.6 * off_in_half.mean()
    assert (off <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-4).all()  # rounded once
    torch.testing.assert_close(ablate(x, mask), (x.float() * mask).to(dtype), rtol=0, atol=0)


# -- as sets of nodes ----------------------------------------------------------------------------

NODES = st.lists(
    st.tuples(st.sampled_from([A, B]), st.integers(1, 4), st.integers(0, 7)), max_size=12
)


def everything(has_bos: bool = True) -> SAEMasks:
    return SAEMasks.full({A: torch.zeros(5, 8), B: torch.zeros(5, 8)}, 1.0, has_bos=has_bos)


@given(NODES)
@settings(deadline=None)
def test_only_and_without_split_everything_in_two(nodes):
    """However often a node is named."""
    inside, outside = only(everything(), nodes), without(everything(), nodes)
    assert set(inside.nodes()) == set(nodes)
    assert set(outside.nodes()) == set(everything().nodes()) - set(nodes)


@given(NODES)
@settings(deadline=None)
def test_masks_are_their_nodes(nodes):
    masks = only(everything(), nodes)
    assert masks.get_num_latents() == len(set(nodes)) == len(masks.nodes())
    assert sum(int(mask.sum()) for mask in masks.masks) == len(set(nodes))  # ones, no twos
    assert SAEMasks.from_json(masks.to_json()).nodes() == masks.nodes()


@pytest.mark.parametrize("has_bos", [True, False])
def test_a_node_without_a_position_stands_for_every_position(has_bos):
    whole = everything(has_bos)
    inside, outside = only(whole, [(A, None, 3)], has_bos=has_bos), without(whole, [(A, None, 3)])
    first = int(has_bos)
    assert inside.nodes() == [(A, position, 3) for position in range(first, 5)]
    assert set(outside.nodes()) == set(whole.nodes()) - set(inside.nodes())


def test_in_a_shared_mask_nodes_have_no_position():
    shared = SAEMasks([A], [torch.ones(8)])
    assert only(shared, [(A, None, 3)]).nodes() == [(A, None, 3)]
    assert len(without(shared, [(A, None, 3)]).nodes()) == 7
    with pytest.raises(MaskError, match="position None, not 2"):
        only(shared, [(A, 2, 3)])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (("blocks.9.hook_resid_post", 1, 1), "no mask for.*blocks.9"),
        ((A, 5, 1), "position 5"),
        ((A, 6, 1), "position 6"),
        ((A, -1, 1), "position -1"),
        ((A, 1, 8), "latent 8"),
        ((A, 1, -1), "latent -1"),
    ],
)
def test_a_node_outside_the_masks_is_refused(node, message):
    for change in (only, without):
        with pytest.raises(MaskError, match=message):
            change(everything(), [node])


def test_random_subsets_have_every_size_and_no_node_twice():
    nodes = [(A, position, latent) for position in range(1, 5) for latent in range(8)]
    subsets = random_subsets(nodes, 400, seed=0)
    sizes = [len(subset) for subset in subsets]
    assert min(sizes) == 1 and max(sizes) > 28
    assert all(len(set(subset)) == len(subset) for subset in subsets)
    small = sum(size <= 5 for size in sizes) / len(sizes)
    assert 0.42 < small < 0.6  # log(6) / log(33) = 0.51
    assert random_subsets(nodes, 400, seed=0) == subsets != random_subsets(nodes, 400, seed=1)


@pytest.mark.parametrize("path", sorted(MASKS_DIR.glob("*/circuits_*.json")), ids=str)
def test_the_circuits_that_come_with_the_course_are_about_as_large_as_was_wanted(path):
    circuits = load_circuits(path)
    assert len({seed for _, seed in circuits}) > 1
    for (wanted, seed), circuit in circuits.items():
        assert 0.75 < circuit.get_num_latents() / wanted < 1.25, (wanted, seed)
