"""The frontier: its points, its table, its files."""

import json

import pytest
import torch

from course_utils.circuits import frontier as module
from course_utils.circuits.evaluate import MEASURES, Evaluation, Faithfulness
from course_utils.circuits.frontier import Frontier, Point, score_frontier
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import Interval
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)


def faithfulness(value):
    """Made up, with another number in each place."""
    intervals = {
        name: Interval(value + i, value + i - 0.25, value + i + 0.5)
        for i, name in enumerate(MEASURES)
    }
    return Faithfulness(
        **intervals, f_model=4.0, f_spliced=3.0, f_circuit=value * 1.23456, f_empty=0.0, n=12
    )


def masks_of(n_first, n_last):
    """Masks with so many nodes at the first hook point, and so many at the last."""
    masks = [torch.zeros(3, 4), torch.zeros(3, 4)]
    for mask, n in zip(masks, (n_first, n_last), strict=True):
        mask.view(-1)[:n] = 1
    return SAEMasks([A, B], masks)


@pytest.fixture
def frontier():
    made = Frontier("sva", "tiny", [1, 3], "drop")
    made.add("mask", masks_of(5, 2), faithfulness(0.9), sparsity=0.1, seed=3)
    made.add("random", masks_of(4, 0), faithfulness(0.2))
    made.add("mask", masks_of(0, 0), faithfulness(0.0), sparsity=0.9)
    made.add("mask", masks_of(1, 2), faithfulness(0.6), sparsity=0.3)
    return made


def test_a_new_frontier_names_its_task_and_model_and_is_empty(lab, task):
    made = Frontier.of(SplicedModel(lab, [3], error="keep"), task)
    assert made == Frontier(task.name, lab.name, [3], "keep", [])
    assert made.methods == [] and made.rows() == []


def test_a_frontier_keeps_layers_of_its_own(lab, task):
    spliced = SplicedModel(lab, [1, 3])
    Frontier.of(spliced, task).layers.append(99)
    assert spliced.layers == [1, 3]


def test_a_point_holds_its_circuits_size_by_layer_and_how_it_was_found(frontier):
    assert frontier.points[0] == Point("mask", 7, faithfulness(0.9), {A: 5, B: 2}, 0.1, 3)
    assert frontier.points[1] == Point("random", 4, faithfulness(0.2), {A: 4, B: 0}, None, None)
    assert frontier.points[1] == Point("random", 4, faithfulness(0.2), {A: 4, B: 0})
    assert frontier.add("x", masks_of(1, 0), faithfulness(1.0)) is frontier.points[-1]


def test_methods_keep_their_order_and_their_points_go_from_few_nodes_to_many(frontier):
    assert frontier.methods == ["mask", "random"]
    assert [point.n_nodes for point in frontier.of_method("mask")] == [0, 3, 7]
    assert frontier.of_method("no such method") == []


def test_the_table_has_a_row_a_point_method_by_method(frontier):
    rows = frontier.rows()
    assert [(row["method"], row["nodes"]) for row in rows] == [
        ("mask", 0),
        ("mask", 3),
        ("mask", 7),
        ("random", 4),
    ]
    assert rows[2] == {
        "method": "mask",
        "nodes": 7,
        "vs_model": "0.90 [0.65, 1.40]",
        "vs_spliced": "1.90 [1.65, 2.40]",
        "raw": "2.90 [2.65, 3.40]",
        "gap": "3.90 [3.65, 4.40]",
        "F(C)": 1.111,
        "sparsity": 0.1,
        "seed": 3,
    }


def test_a_frontier_survives_the_disk(frontier, tmp_path):
    path = frontier.save(tmp_path / "new" / "folder" / "f.json")
    assert path == tmp_path / "new" / "folder" / "f.json"
    assert Frontier.load(path) == frontier == Frontier.load(str(path))
    assert path.read_text().endswith("}\n")


def test_by_default_it_is_saved_by_task_and_lab(frontier, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MASKS_DIR", tmp_path)
    assert frontier.save() == tmp_path / "sva" / "frontier_tiny.json"


def test_the_shipped_frontiers_are_read():
    paths = sorted(module.MASKS_DIR.glob("*/frontier_*.json"))
    assert paths
    for path in paths:
        shipped = Frontier.load(path)
        assert shipped.points and path == module.MASKS_DIR / shipped.task / path.name
        assert path.name == f"frontier_{shipped.lab}.json"
        assert all(sum(point.per_layer.values()) == point.n_nodes for point in shipped.points)


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"points": [{"method": "x"}]}'])
def test_a_file_that_is_no_frontier_is_named(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="wrong.json holds no frontier"):
        Frontier.load(path)


def test_a_file_with_a_measure_missing_is_refused(frontier, tmp_path):
    path = frontier.save(tmp_path / "f.json")
    record = json.loads(path.read_text())
    del record["points"][0]["faithfulness"]["gap"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="gap"):
        Frontier.load(path)


# ---------------------------------------------------------------------------------------------
# Circuits of several sizes, from scores
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(lab, task):
    spliced = SplicedModel(lab)
    return Evaluation(spliced, task, spliced.patch_means(task.patch))


@pytest.fixture(scope="module")
def scores(evaluation):
    torch.manual_seed(0)
    return {name: torch.randn_like(f) for name, f in evaluation.means.latents.items()}


def test_scores_are_cut_at_every_size_and_judged(evaluation, scores, task):
    made = Frontier.of(evaluation.spliced, task)
    points = score_frontier(made, "scores", scores, [20, 5], evaluation, seed=4)
    assert made.points == points and [point.n_nodes for point in points] == [20, 5]
    for point in points:
        masks = SAEMasks.from_scores(scores, point.n_nodes)
        assert point.faithfulness == evaluation.faithfulness(masks)
        assert (point.method, point.seed, point.sparsity) == ("scores", 4, None)


def test_the_rank_says_which_nodes_are_best(evaluation, scores, task):
    made = Frontier.of(evaluation.spliced, task)
    [by_size] = score_frontier(made, "abs", scores, [9], evaluation)
    [by_value] = score_frontier(made, "signed", scores, [9], evaluation, rank="signed")
    for point, rank in ((by_size, "abs"), (by_value, "signed")):
        masks = SAEMasks.from_scores(scores, 9, rank=rank)
        assert point.faithfulness == evaluation.faithfulness(masks)
    assert by_size.faithfulness != by_value.faithfulness
    assert by_size.seed is None


def test_a_circuit_of_no_nodes_is_a_point_as_good_as_nothing(evaluation, scores, task, tmp_path):
    made = Frontier.of(evaluation.spliced, task)
    [point] = score_frontier(made, "scores", scores, [0], evaluation)
    assert point.n_nodes == 0 and set(point.per_layer.values()) == {0}
    assert point.faithfulness.f_circuit == point.faithfulness.f_empty
    assert point.faithfulness.vs_spliced.value == 0 and point.faithfulness.gap.value == 1
    assert made.rows()[0]["nodes"] == 0
    assert Frontier.load(made.save(tmp_path / "f.json")) == made
