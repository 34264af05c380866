"""The benchmark's parts on a tiny lab, and the README's table against the measured record."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_lab

from course_utils.circuits import optimize
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import SplicedModel
from tools import benchmark, count_passes

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "data" / "benchmarks" / "cpu.json"


@pytest.fixture(scope="module")
def bench(task):
    patched = pytest.MonkeyPatch()
    patched.setattr(benchmark, "BATCH", 4)
    yield benchmark.Bench(make_lab(), task, 0.01, [1, 3])
    patched.undo()


def test_ratios_are_of_the_same_work_done_twice(bench):
    rows = bench.ratios(repeats=2, steps=2)
    assert len(rows) == 4
    for row in rows.values():
        assert 0 < row["fast_s"] and row["repeats"] == 2
        for side in (row, row.get("frozen", row)):
            assert 0 < side["plain_s"] and side["ratio_min"] <= side["ratio"] <= side["ratio_max"]
    with_frozen = [name.split(",")[0] for name, row in rows.items() if "frozen" in row]
    assert with_frozen == ["learning a mask", "integrated gradients"]  # where gradients are taken


def test_as_published_the_saes_weights_have_a_graph_and_the_models_have_none(bench):
    def graphs():
        models = [p.requires_grad for p in bench.lab.hf_model.parameters()]
        saes = [p.requires_grad for sae in bench.lab.saes.values() for p in sae.parameters()]
        return any(models), all(saes), any(saes)

    assert bench.published(graphs)() == (False, True, True)
    assert graphs() == (False, False, False)


def test_turns_compare_with_the_fast_work_and_give_the_median(monkeypatch):
    clock = iter([4.0, 2.0, 1.0, 9.0, 3.0, 3.0, 10.0, 4.0, 2.0])
    monkeypatch.setattr(benchmark, "seconds", lambda work, device: next(clock))
    monkeypatch.setattr(benchmark, "peak_mb", lambda work, device: None)
    nothing = dict.fromkeys(("plain", "frozen", "fast"), lambda: None)
    row = benchmark.turns(nothing, torch.device("cpu"), repeats=3)
    assert (row["plain_s"], row["fast_s"]) == (9, 2)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (4, 3, 5)
    frozen = row["frozen"]
    assert (frozen["plain_s"], frozen["ratio"], frozen["ratio_min"]) == (3, 2, 1)


def test_library_and_plain_recipe_agree(bench):
    row = bench.agreement(steps=12)
    assert row["nodes_agree"] >= 0.99
    assert row["nodes_on_in_both"] <= min(row["nodes_on"], row["nodes_on_plain"])
    assert row["ig_relative_difference"] < 1e-4 and row["faithfulness_difference"] < 1e-4


def test_the_arithmetic_is_that_of_the_layers_after_the_first_sae(bench, task):
    """Matrix products of layers 2 and 3 and of the SAEs, forward and back, for 4 prompts of 5
    tokens (BOS is cached).
    """
    flops = bench.arithmetic(1.0)["gflop_per_step"] * 1e9
    layer = sum(p.numel() for p in bench.lab.hf_model.model.layers[2].parameters() if p.ndim == 2)
    tokens = 4 * 5
    keep = len(
        learn_masks(bench.fast, task, means=bench.means, steps=1, batch_size=4, progress=False)
        .theta["blocks.1.hook_resid_post"][0]
        .isfinite()
        .nonzero()
    )
    body, first, last = 4 * tokens * 2 * layer, 4 * tokens * 16 * keep, 4 * 4 * 2 * 16 * 24
    assert flops == pytest.approx(
        body + first + last, rel=0.25
    )  # attention's own products are the rest


def test_a_random_sae_fires_about_as_often_as_it_should():
    torch.manual_seed(0)
    x = torch.randn(200, 32)
    f = benchmark.random_sae(x, 512, l0=20).encode(x)
    assert 10 < (f > 0).sum(1).float().mean() < 40


def test_plain_units_are_seconds_per_prompt(bench):
    units = benchmark.plain_units(bench, repeats=1)
    assert set(units) == {"step", "both", "fwd", "single"}
    assert min(units[name] for name in ("both", "fwd", "single")) > 0


def test_the_ladder_has_a_time_for_every_change(bench):
    rungs = list(bench.ladder(repeats=1))
    assert rungs[:2] == ["as published", "no graph for the SAEs' weights"] and len(rungs) == 5


def test_notebook_04_as_published_is_its_passes_times_what_each_takes(task, monkeypatch):
    def learn_a_mask(cells):
        optimize.learn_masks(spliced, task, steps=3, batch_size=4, progress=False)

    lab = make_lab()
    spliced = SplicedModel(lab)
    units = {False: {"step": 2.0}, True: {"step": 0.5}}
    monkeypatch.setattr(benchmark, "run_cells", learn_a_mask)
    monkeypatch.setattr(benchmark, "load_task", lambda *args, **kwargs: task)
    monkeypatch.setattr(benchmark, "Bench", lambda lab, task, sparsity: SimpleNamespace(task=task))
    monkeypatch.setattr(
        benchmark, "plain_units", lambda b, repeats, frozen: {"single": 0, **units[frozen]}
    )
    row = benchmark.notebook_04(lab, repeats=1)
    assert row["plain_s"] == 3 * 4 * 2.0 and row["frozen"]["plain_s"] == 3 * 4 * 0.5
    assert row["ratio"] == pytest.approx(4 * row["frozen"]["ratio"])


CELLS = (
    """
from course_utils import Evaluation, SplicedModel, atp, integrated_gradients, learn_masks
from course_utils.circuits.attribution import activation_patching, random_nodes, random_scores
from course_utils.circuits.attribution import variants
from course_utils.circuits.frontier import Frontier, score_frontier
spliced = SplicedModel(lab)
""",
    """
means = spliced.patch_means(task.patch)
evaluation = Evaluation(spliced, task, means)
scores = atp(spliced, task[:4])
nodes = random_nodes(scores, 3, seed=0)
activation_patching(spliced, task[:2], nodes)
""",
    """
integrated_gradients(spliced, task[:4], steps=5)
integrated_gradients(spliced, task[:4], steps=5, means=means, baseline="mean")
variants(spliced, task[:1], means=means, steps=5)
random_scores(spliced, task, seed=0)
print("nobody sees this")
assert display("nor this", display_id=True) is not None
""",
    """
learn_masks(spliced, task, means=means, steps=2, batch_size=8, progress=False)
frontier = Frontier.of(spliced, task)
score_frontier(frontier, "AtP", scores, [3, 6], evaluation)
saved = frontier.save()
""",
)


@pytest.fixture
def counted(task, tmp_path, monkeypatch):
    """What the plain recipe would do in place of `CELLS`, with two SAEs and twelve prompts."""
    monkeypatch.setattr(count_passes, "ROOT", tmp_path)
    (tmp_path / "solutions").mkdir()
    passes = count_passes.PlainPasses()
    with passes.counting():
        count_passes.run_cells(CELLS, lab=make_lab(), task=task)
    return passes.counts


def test_the_passes_of_the_plain_recipe_are_counted(counted, tmp_path, capsys):
    both = 4 + 2 * 4 * 5 * 2  # AtP; IG twice: five points for two SAEs
    both += 2 * (1 + 5 * 2)  # the variants of AtP and IG, to patch and means, on one prompt
    forward = (
        12 * (1 + 2 * 3)  # F(M), and F(C), F(S), F(∅) of two circuits
        + 2 * (3 + 2)  # activation patching: clean, patch, and three nodes
        + 4 * (1 + 2 + 1)  # the latents that AtP and IG compare
        + 2
        + 1
        + 1  # the latents that the variants compare: of the patch, and where IG starts
        + 2 * 12  # random scores
    )
    assert counted == {6: {"single": 12, "both": both, "fwd": forward, "step": 2 * 8}}
    assert capsys.readouterr().out == ""
    assert list(tmp_path.glob("build/benchmark/masks/*/frontier_*.json"))


def test_a_cell_that_fails_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(count_passes, "ROOT", tmp_path)
    (tmp_path / "solutions").mkdir()
    with pytest.raises(ZeroDivisionError):
        count_passes.run_cells(["1 / 0", "raise AssertionError"])


def test_nothing_is_counted_any_more_afterwards(counted, task):
    before = {length: dict(kinds) for length, kinds in counted.items()}
    learn_masks(SplicedModel(make_lab()), task, steps=1, batch_size=2, progress=False)
    assert counted == before


def test_the_readme_shows_the_measured_table():
    """If this fails: paste what `python -m tools.benchmark --only --out data/benchmarks` prints."""
    assert benchmark.summary(json.loads(RECORD.read_text())) in (ROOT / "README.md").read_text()


def test_the_record_says_that_both_compute_the_same():
    agreement = json.loads(RECORD.read_text())["agreement"]
    assert set(agreement) == {"sva_nounpp", "ioi"}
    for row in agreement.values():
        assert (
            row["nodes_agree"] >= 0.99
            and row["ig_relative_difference"] < 1e-4
            and row["faithfulness_difference"] < 1e-4
        )
