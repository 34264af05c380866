"""Faithfulness on numbers small enough to check by hand, and the frontier's files."""

import pytest
import torch

from course_utils.attribution import largest_change
from course_utils.evaluate import (
    Frontier,
    Interval,
    References,
    faithfulness,
    mean_interval,
    nodes_per_layer,
    references,
    score_frontier,
)
from course_utils.labs import hook_point
from course_utils.masks import SAEMasks
from course_utils.splice import SplicedModel

A, B = hook_point(1), hook_point(3)


class Fixed:
    """A spliced model whose circuit has known logit differences."""

    def __init__(self, values):
        self.values = torch.tensor(values)

    def logit_diff(self, task, *, masks=None, means=None, start=None):
        return self.values


def test_the_three_faithfulnesses_by_hand():
    against = References(model=torch.tensor([4.0, 6.0]), spliced=torch.tensor([3.0, 5.0]), empty=torch.tensor([1.0, 1.0]))
    found = faithfulness(Fixed([2.0, 4.0]), None, None, None, against=against)
    assert found.vs_model.value == pytest.approx((3 - 1) / (5 - 1))
    assert found.vs_spliced.value == pytest.approx((3 - 1) / (4 - 1))
    assert found.raw.value == pytest.approx(3 / 4)
    assert found.gap.value == pytest.approx((1 + 1) / (2 + 4))
    assert (found.f_model, found.f_spliced, found.f_circuit, found.f_empty, found.n) == (5, 4, 3, 1, 2)


def test_the_interval_holds_the_value_and_shrinks_with_more_prompts():
    torch.manual_seed(0)
    widths = []
    for n in (20, 2000):
        noise = torch.randn(n)
        against = References(model=torch.full((n,), 4.0), spliced=torch.full((n,), 3.0), empty=torch.zeros(n))
        found = faithfulness(Fixed((2 + noise).tolist()), None, None, None, against=against).vs_model
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(2 * 1.96 / 4 / 2000**0.5, rel=0.15) and widths[0] > 5 * widths[1]


def test_resampling_keeps_prompts_together():
    """Where every prompt's circuit is half its model, so is every resample: no width at all."""
    model = torch.tensor([1.0, 5.0, 9.0])
    found = faithfulness(Fixed((model / 2).tolist()), None, None, None, against=References(model, model, torch.zeros(3)))
    assert found.vs_model.low == pytest.approx(0.5) and found.vs_model.high == pytest.approx(0.5)


def test_a_circuit_that_is_right_on_average_only_has_a_gap():
    against = References(model=torch.tensor([4.0, 4.0]), spliced=torch.tensor([4.0, 4.0]), empty=torch.zeros(2))
    found = faithfulness(Fixed([1.0, 7.0]), None, None, None, against=against)
    assert found.vs_spliced.value == pytest.approx(1) and found.gap.value == pytest.approx(3 / 4)


def test_the_whole_circuit_is_the_spliced_model_and_none_is_nothing(lab, task):
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)
    whole = faithfulness(spliced, task, SAEMasks.full(means.latents, 1.0), means)
    none = faithfulness(spliced, task, SAEMasks.full(means.latents, 0.0), means)
    assert whole.vs_spliced.value == pytest.approx(1, abs=1e-3) and whole.raw.value == pytest.approx(1, abs=1e-3)
    assert none.vs_spliced.value == pytest.approx(0, abs=1e-3) and none.vs_model.value == pytest.approx(0, abs=1e-3)
    against = references(spliced, task, means)
    torch.testing.assert_close(against.model, spliced.model_logit_diff(task))


def test_nodes_are_counted_per_layer():
    assert nodes_per_layer(SAEMasks([A, B], [torch.eye(3), torch.zeros(3, 3)])) == {A: 3, B: 0}


def test_a_frontier_survives_the_disk(lab, task, tmp_path):
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)
    frontier = Frontier.of(spliced, task)
    scores = largest_change(spliced, task)
    score_frontier(frontier, "largest change", scores, [20, 5], spliced, task, means)
    masks = SAEMasks.from_scores(scores, 7)
    frontier.add("mask", masks, faithfulness(spliced, task, masks, means), sparsity=0.1, seed=3)
    path = frontier.save(tmp_path / "f.json")
    assert Frontier.load(path) == frontier
    assert [point.n_nodes for point in frontier.of_method("largest change")] == [5, 20]
    assert frontier.methods == ["largest change", "mask"] and len(frontier.rows()) == 3
    assert frontier.rows()[2]["sparsity"] == 0.1 and frontier.rows()[2]["nodes"] == 7


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"points": [{"method": "x"}]}'])
def test_a_file_that_is_no_frontier_is_named(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="wrong.json holds no frontier"):
        Frontier.load(path)


def test_a_mean_interval_is_that_of_the_textbook_on_normal_numbers():
    values = 3 + 2 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    found = mean_interval(values)
    half = 1.96 * values.std().item() / 20
    assert found.value == pytest.approx(values.mean().item(), abs=1e-5)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.03)
    assert mean_interval(torch.full((5,), 2.0)) == Interval(2, 2, 2)
