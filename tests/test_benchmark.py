"""The benchmark's parts on a tiny lab, and the README's table against the measured record."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_lab

from course_utils.circuits.optimize import learn_masks
from tools import benchmark

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
    row = bench.agreement(steps=12) | bench.attribution_agreement()
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


def test_the_ladder_has_a_time_for_every_change(bench):
    rungs = list(bench.ladder(repeats=1))
    assert rungs[:2] == ["as published", "no graph for the SAEs' weights"] and len(rungs) == 5


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
