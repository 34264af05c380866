"""The frontier: its points, its table, its files."""

import json
from dataclasses import replace

import pytest
import torch

from course_utils.circuits import frontier as module
from course_utils.circuits.evaluate import (
    MEASURES,
    Evaluation,
    Faithfulness,
    Reference,
    area_intervals,
    paired_difference,
    seed_mean,
)
from course_utils.circuits.frontier import Frontier, Point, score_frontier, summary_sentence
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import Interval
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)


def faithfulness(value):
    """Made up, with another number in each place."""
    intervals = {
        name: Interval(value + i, value + i - 0.25, value + i + 0.5)
        for i, name in enumerate(("vs_model", "vs_spliced", "raw", "gap"))
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
        "distance": "0.90 [0.65, 1.40]",
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
    assert set(record["points"][0]["faithfulness"]) >= set(MEASURES) - {"distance"}
    del record["points"][0]["faithfulness"]["gap"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="gap"):
        Frontier.load(path)


# ---------------------------------------------------------------------------------------------
# Points that keep their logit differences
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(spliced, task, means):
    return Evaluation(spliced, task, means)


def test_a_circuit_is_judged_and_keeps_its_logit_differences_to_4_decimals(evaluation, task):
    made = Frontier.of(evaluation.spliced, task)
    masks = SAEMasks.full(evaluation.means.latents, 1.0)
    point = made.judge("all", masks, evaluation, sparsity=0.1, seed=3, wanted=500)
    assert made.points == [point]
    assert point.faithfulness == evaluation.faithfulness(masks)
    assert (point.sparsity, point.seed, point.wanted, point.size) == (0.1, 3, 500, 500)
    kept = {
        "model": (made.model, evaluation.model),
        "spliced_model": (made.spliced_model, evaluation.spliced_model),
        "empty": (made.empty, evaluation.empty),
        "circuit": (point.logit_diffs, evaluation(masks)),
    }
    for name, (row, right) in kept.items():
        assert row == [round(x, 4) for x in right.double().tolist()], name
        assert row == pytest.approx(right.tolist(), abs=6e-5)
    assert torch.equal(made.reference.empty, torch.tensor(made.empty, dtype=torch.double))


def test_circuits_that_were_judged_on_other_prompts_or_means_are_refused(evaluation, task):
    made = Frontier.of(evaluation.spliced, task)
    masks = SAEMasks.full(evaluation.means.latents, 1.0)
    made.judge("all", masks, evaluation)
    zeros = {name: torch.zeros_like(f) for name, f in evaluation.means.latents.items()}
    others = {
        "model": Evaluation(evaluation.spliced, task[:6], evaluation.means),
        "empty": evaluation.with_means(replace(evaluation.means, latents=zeros)),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"other prompts, or with other means .{name} differs"):
            made.judge("all", masks, other)
    assert len(made.points) == 1
    made.judge("all", masks, Evaluation(evaluation.spliced, task, evaluation.means))
    assert len(made.points) == 2


def test_logit_differences_of_other_prompts_than_the_faithfulness_are_refused(frontier):
    with pytest.raises(ValueError, match="over 12 prompts, and logit differences of 3"):
        frontier.add("x", masks_of(1, 0), faithfulness(1.0), logit_diffs=torch.ones(3))


def test_points_without_logit_differences_are_read_and_drawn_but_not_compared(frontier):
    frontier.add("random", masks_of(5, 2), faithfulness(0.1))
    with pytest.raises(ValueError, match="were not kept.*add the points with `Frontier.judge`"):
        frontier.compare("mask", "random", 7, "gap")
    with pytest.raises(ValueError, match="were not kept"):
        _ = frontier.reference


# ---------------------------------------------------------------------------------------------
# Several seeds at one size
# ---------------------------------------------------------------------------------------------

N = 60


def prompts_of(seed):
    return torch.randn(N, generator=torch.Generator().manual_seed(seed)).double()


REFERENCE = Reference(4 + prompts_of(0), 3 + prompts_of(1), prompts_of(2) / 10)


class Answers(Evaluation):
    """Stands in for an evaluation: every circuit has these logit differences."""

    def __init__(self, row):
        self.model, self.spliced_model = REFERENCE.model, REFERENCE.spliced_model
        self.empty, self.row = REFERENCE.empty, row

    def logit_diff(self, masks):
        return self.row


def add(frontier, method, size, share, *, noise=0.0, seed=0, n_nodes=None):
    """A circuit that keeps this share of the spliced model's answers, give or take some noise."""
    whole, empty = REFERENCE.spliced_model, REFERENCE.empty
    answers = Answers(empty + share * (whole - empty) + noise * prompts_of(10 + seed))
    n = size if n_nodes is None else n_nodes
    masks = masks_of(min(n, 12), max(n - 12, 0))
    return frontier.judge(method, masks, answers, seed=seed, wanted=size)


@pytest.fixture
def seeds():
    """A mask with 3 seeds at 4, 6 and 9 nodes (one seed has a node more), and two rivals."""
    made = Frontier("sva", "tiny", [1, 3], "drop")
    for seed, shift in enumerate((-0.05, 0.0, 0.05)):
        for size, share in ((4, 0.7), (6, 0.9), (9, 1.0)):
            add(made, "mask", size, share + shift, seed=seed, n_nodes=size + (seed == 1))
    for size, share in ((4, 1.01), (6, 1.3), (9, 1.02), (20, 1.0)):
        add(made, "IG", size, share, noise=1.0, seed=7)
    for size in (4, 6):
        add(made, "random", size, 0.0)
    return made


def test_seeds_of_one_size_stand_together_whatever_their_number_of_nodes(seeds):
    groups = seeds.by_size("mask")
    assert {size: [p.n_nodes for p in points] for size, points in groups.items()} == {
        4: [4, 4, 5],
        6: [6, 6, 7],
        9: [9, 9, 10],
    }
    assert [point.n_nodes for point in seeds.of_method("mask")] == [4, 4, 5, 6, 6, 7, 9, 9, 10]
    assert seeds.shared_sizes(["mask", "IG"]) == [4, 6, 9]
    assert seeds.shared_sizes(["mask", "IG", "random"]) == [4, 6]
    assert seeds.shared_sizes(["mask", "no such method"]) == seeds.shared_sizes([]) == []


def test_circuits_of_no_nodes_are_no_shared_size(seeds):
    for method in ("mask", "IG"):
        add(seeds, method, 0, 0.0)
    assert seeds.shared_sizes(["mask", "IG"]) == [4, 6, 9]


def test_without_a_wanted_size_points_stand_together_by_their_number_of_nodes(frontier):
    assert list(frontier.by_size("mask")) == [0, 3, 7]
    assert [point.size for point in frontier.of_method("mask")] == [0, 3, 7]


def test_the_range_over_seeds_is_from_the_smallest_to_the_largest_value(seeds):
    low, high = seeds.seed_range("mask", 6, "vs_spliced")
    assert (low, high) == pytest.approx((0.85, 0.95), abs=1e-3)
    assert seeds.seed_range("IG", 20, "gap")[0] == seeds.seed_range("IG", 20, "gap")[1]
    with pytest.raises(ValueError, match=r"'mask' has no point of 7 nodes.*\[4, 6, 9\]"):
        seeds.seed_range("mask", 7, "gap")


@pytest.mark.parametrize("measure", MEASURES)
def test_methods_are_compared_over_all_their_seeds_on_the_same_prompts(seeds, measure):
    a = torch.tensor([p.logit_diffs for p in seeds.points if (p.method, p.wanted) == ("mask", 6)])
    b = torch.tensor([p.logit_diffs for p in seeds.points if (p.method, p.wanted) == ("IG", 6)])
    assert a.shape == (3, N) and b.shape == (1, N)
    a, b, reference = a.double(), b.double(), seeds.reference
    found = seeds.compare("mask", "IG", 6, measure)
    expected = paired_difference(a, b, measure, reference)
    assert vars(found) == pytest.approx(vars(expected), abs=1e-6)
    assert seeds.compare("mask", "IG", 6, measure, n_bootstrap=9).low != found.low
    mean = seeds.mean("mask", 6, measure)
    assert vars(mean) == pytest.approx(vars(seed_mean(a, measure, reference)), abs=1e-6)


def test_differences_are_comparisons_at_every_size_that_both_have(seeds):
    found = seeds.differences("mask", "gap")
    assert {rival: list(sizes) for rival, sizes in found.items()} == {
        "IG": [4, 6, 9],
        "random": [4, 6],
    }
    assert found["IG"][6] == seeds.compare("mask", "IG", 6, "gap")
    assert list(seeds.differences("mask", "gap", ["random"])) == ["random"]
    with pytest.raises(ValueError, match=r"no method is called 'AtP'; there are \['mask', "):
        seeds.differences("mask", "gap", ["AtP"])
    with pytest.raises(ValueError, match="no method is called 'AtP'"):
        seeds.differences("AtP", "gap")


def test_wins_are_where_the_interval_is_clear_of_0_and_no_size_is_lost(seeds):
    for measure in ("gap", "distance"):
        for rival, sizes in seeds.wins("mask", measure).items():
            for size in seeds.shared_sizes(["mask", rival]):
                found = seeds.compare("mask", rival, size, measure)
                kind = "better" if found.high < 0 else "worse" if found.low > 0 else "level"
                assert [name for name in sizes if size in sizes[name]] == [kind]
    assert seeds.wins("mask", "distance") == {
        "IG": {"better": [6], "worse": [4], "level": [9]},
        "random": {"better": [4, 6], "worse": [], "level": []},
    }
    assert seeds.wins("IG", "distance", ["mask"]) == {
        "mask": {"better": [4], "worse": [6], "level": [9]}
    }


def test_an_interval_that_ends_at_0_is_level(seeds, monkeypatch):
    ends = {4: Interval(-1.0, -2.0, 0.0), 6: Interval(1.0, 0.0, 2.0), 9: Interval(0.0, 0.0, 0.0)}
    monkeypatch.setattr(Frontier, "compare", lambda self, a, b, size, measure, **_: ends[size])
    assert seeds.wins("mask", "gap", ["IG"])["IG"] == {
        "better": [],
        "worse": [],
        "level": [4, 6, 9],
    }


def test_measures_that_are_best_at_1_have_no_winner(seeds):
    for measure in ("vs_spliced", "vs_model", "raw"):
        with pytest.raises(ValueError, match="does not say which circuit is better"):
            seeds.wins("mask", measure)


@pytest.mark.parametrize("log", [False, True])
def test_areas_are_over_the_sizes_that_are_there_as_fractions_of_all_nodes(seeds, log):
    found = seeds.areas("mask", 60, log=log)
    assert found.fractions == pytest.approx([4 / 60, 6 / 60, 9 / 60])
    circuits = [seeds.logit_diffs("mask", size) for size in (4, 6, 9)]
    expected = area_intervals(found.fractions, circuits, seeds.reference, log=log)
    assert (found.cpr, found.cmd) == expected
    assert found.best_cpr == pytest.approx(1 if log else 5 / 60)
    assert 0.8 * found.best_cpr < found.cpr.value < found.best_cpr
    some = seeds.areas("IG", 60, sizes=[9, 4, 0], log=log)
    assert some.fractions == pytest.approx([4 / 60, 9 / 60])
    assert seeds.areas("IG", 60, n_bootstrap=9).cmd != seeds.areas("IG", 60).cmd


def test_areas_refuse_sizes_without_points_too_few_sizes_and_too_few_nodes(seeds):
    with pytest.raises(ValueError, match="no point of 5 nodes"):
        seeds.areas("mask", 60, sizes=[4, 5])
    with pytest.raises(ValueError, match="rising fractions"):
        seeds.areas("mask", 60, sizes=[4])
    with pytest.raises(ValueError, match="rising fractions in 0…1"):
        seeds.areas("mask", 8)


def test_comparisons_are_the_same_from_the_file(seeds, tmp_path):
    path = seeds.save(tmp_path / "f.json")
    loaded = Frontier.load(path)
    assert loaded == seeds
    assert loaded.compare("mask", "IG", 6, "gap") == seeds.compare("mask", "IG", 6, "gap")
    lines = path.read_text().splitlines()
    assert len([line for line in lines if "logit_diffs" in line]) == len(seeds.points)
    assert len(lines) < 40 * len(seeds.points)  # the numbers of a point stand in one line


def test_a_file_from_before_logit_differences_were_kept_is_read(seeds, tmp_path):
    path = seeds.save(tmp_path / "f.json")
    record = json.loads(path.read_text())
    for name in ("model", "spliced_model", "empty"):
        del record[name]
    for point in record["points"]:
        del point["logit_diffs"], point["wanted"]
    path.write_text(json.dumps(record))
    old = Frontier.load(path)
    assert [point.faithfulness for point in old.points] == [p.faithfulness for p in seeds.points]
    assert old.points[0].faithfulness.distance == seeds.points[0].faithfulness.distance
    assert [point.size for point in old.points] == [point.n_nodes for point in seeds.points]


# ---------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------

LEGEND = (
    "(Beats, loses: the 95 % interval of the paired difference, over prompts, is clear of 0. "
    "Level: it is not.)"
)


def test_the_summary_says_where_a_method_beats_each_rival(seeds):
    assert summary_sentence(seeds, "mask") == (
        "sva, 60 prompts, 3 seeds of mask, one seed of IG and random. "
        "By the gap, mask beats IG at 6 and 9 nodes and loses at 4; "
        "beats random at both sizes (4 and 6 nodes). "
        "By |1 − F| against F(S), mask beats IG at 6 nodes, is level at 9 and loses at 4; "
        "beats random at both sizes (4 and 6 nodes). " + LEGEND
    )
    assert summary_sentence(seeds, "IG", measures=["distance"]) == (
        "sva, 60 prompts, 3 seeds of mask, one seed of IG and random. "
        "By |1 − F| against F(S), IG beats mask at 4 nodes, is level at 9 and loses at 6; "
        "beats random at both sizes (4 and 6 nodes). " + LEGEND
    )
    assert summary_sentence(seeds, "mask", ["IG"], ["distance"]) == (
        "sva, 60 prompts, 3 seeds of mask, one seed of IG. "
        "By |1 − F| against F(S), mask beats IG at 6 nodes, is level at 9 and loses at 4. " + LEGEND
    )


VERDICTS = {
    ("b", "b", "b"): "beats IG at all 3 sizes (4 to 9 nodes)",
    ("l", "l", "l"): "is level with IG at all 3 sizes (4 to 9 nodes)",
    ("w", "w", "w"): "loses to IG at all 3 sizes (4 to 9 nodes)",
    ("b", "b", "l"): "beats IG at 4 and 6 nodes, is level at 9 and loses nowhere",
    ("b", "l", "l"): "beats IG at 4 nodes, is level at 6 and 9 and loses nowhere",
    ("l", "l", "w"): "beats IG nowhere, is level at 4 and 6 nodes and loses at 9",
    ("b", "w", "w"): "beats IG at 4 nodes and loses at 6 and 9",
    ("w", "l", "b"): "beats IG at 9 nodes, is level at 6 and loses at 4",
}
INTERVALS = {
    "b": Interval(-1.0, -2.0, -0.5),
    "w": Interval(1.0, 0.5, 2.0),
    "l": Interval(0.0, -1.0, 1.0),
}


@pytest.mark.parametrize("kinds", VERDICTS)
def test_the_summary_has_words_for_every_outcome(seeds, monkeypatch, kinds):
    found = {size: INTERVALS[kind] for size, kind in zip((4, 6, 9), kinds, strict=True)}
    monkeypatch.setattr(Frontier, "compare", lambda self, a, b, size, measure, **_: found[size])
    said = summary_sentence(seeds, "mask", ["IG"], ["gap"])
    assert said == (
        "sva, 60 prompts, 3 seeds of mask, one seed of IG. "
        f"By the gap, mask {VERDICTS[kinds]}. {LEGEND}"
    )


def test_the_summary_of_one_size_and_of_none_in_common():
    made = Frontier("ioi", "tiny", [1, 3], "drop")
    add(made, "mask", 1, 1.0)
    add(made, "IG", 1, 0.2)
    add(made, "AtP", 2, 0.2)
    assert summary_sentence(made, "mask", measures=["gap"]) == (
        "ioi, 60 prompts, one seed of each method. "
        f"By the gap, mask beats IG at 1 node; shares no size with AtP. {LEGEND}"
    )
    assert "IG loses to mask at 1 node; shares no size with AtP." in summary_sentence(made, "IG")


def test_rivals_with_the_same_verdict_share_their_words():
    made = Frontier("ioi", "tiny", [1, 3], "drop")
    for size in (12, 3):
        for seed in range(2):
            add(made, "mask", size, 1.0, seed=seed)
            add(made, "random", size, 0.0, seed=seed)
        for method in ("AtP", "IG", "largest change"):
            add(made, method, size, 0.3)
    add(made, "mask", 12, 1.0, seed=2)
    assert summary_sentence(made, "mask", measures=["gap"]) == (
        "ioi, 60 prompts, up to 3 seeds of mask, 2 seeds of random, one seed of each other method. "
        "By the gap, mask beats random, AtP, IG and largest change at both sizes (3 and 12 nodes). "
        + LEGEND
    )
    assert summary_sentence(made, "random", ["mask"], ["distance"]) == (
        "ioi, 60 prompts, 2 seeds of random, up to 3 seeds of mask. By |1 − F| against F(S), "
        f"random loses to mask at both sizes (3 and 12 nodes). {LEGEND}"
    )


def test_large_sizes_are_written_with_commas():
    assert module._verdict([1116], [2232], []).format("IG") == (
        "beats IG at 1,116 nodes and loses at 2,232"
    )


def test_a_method_without_rivals_has_no_summary(seeds):
    with pytest.raises(ValueError, match="'mask' has no rival"):
        summary_sentence(seeds, "mask", [])
    with pytest.raises(ValueError, match="does not say which circuit is better"):
        summary_sentence(seeds, "mask", ["IG"], ["raw"])


# ---------------------------------------------------------------------------------------------
# Circuits of several sizes, from scores
# ---------------------------------------------------------------------------------------------


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
        assert point.wanted == point.n_nodes
        assert point.logit_diffs == pytest.approx(evaluation(masks).tolist(), abs=6e-5)


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
