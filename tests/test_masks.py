"""SAEMasks: what it keeps, what it counts, and its files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from course_utils.circuits.masks import MaskError, SAEMasks

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
        ([A], [], "1 hook points and 0 masks"),
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
    assert (
        f"{A}: shape [5, 8], total latents 40, latents on {on[0]}, average on per token {on[0] / 5:.2f}"
        == printed[0]
    )
    assert printed[-1] == f"all hook points: {sum(on)} latents on"
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
    masks.masks[0] = masks.masks[0] * 0.5
    masks.save(tmp_path, "m.safetensors")
    loaded = SAEMasks.load(tmp_path, "m.safetensors")
    assert loaded.hook_points == masks.hook_points
    for one, other in zip(loaded.masks, masks.masks):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    again = SAEMasks.from_json(json.loads(json.dumps(masks.to_json())))
    assert again.nodes() == masks.nodes() and again[A].shape == masks[A].shape


def test_a_missing_file_says_what_is_there(masks, tmp_path):
    masks.save(tmp_path, "here.safetensors")
    with pytest.raises(MaskError, match="no masks at .*gone.*here.safetensors"):
        SAEMasks.load(tmp_path, "gone.safetensors")


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
