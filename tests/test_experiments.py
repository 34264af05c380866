"""Sweeps: every point is done once, what is there is kept, and what failed is said: in this
process, in others, and on a cluster.
"""

import itertools
import json
import os
import signal
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.circuits import experiments
from course_utils.circuits.evaluate import MEASURES, Evaluation
from course_utils.circuits.experiments import (
    SweepPoint,
    SweepResult,
    grid,
    learn_and_judge,
    read_results,
    sweep,
)
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import SplicedModel

POINTS = grid(sparsity=[0.1, 0.3], seed=range(3))


def number(point: SweepPoint) -> dict:
    return {"n_nodes": round(100 * point.sparsity) + point.seed}


def no_odd_seeds(point: SweepPoint) -> dict:
    if point.seed % 2:
        raise ArithmeticError(f"seed {point.seed} is odd")
    return number(point)


# ---------------------------------------------------------------------------------------------
# Grids
# ---------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination():
    points = grid(task="ioi", layers=[(5, 11), (17,)], seed=range(3))
    assert [(point.task, point.layers, point.seed) for point in points] == list(
        itertools.product(["ioi"], [(5, 11), (17,)], range(3))
    )
    assert points[0] == SweepPoint(task="ioi", layers=(5, 11), seed=0)  # the rest as it comes
    assert grid() == [SweepPoint()]


@given(
    st.lists(st.sampled_from(["ioi", "sva_rc"]), min_size=1, unique=True),
    st.lists(st.integers(1, 60), max_size=3, unique=True),
)
def test_a_grid_is_as_large_as_the_product_of_its_axes(tasks, steps):
    points = grid(task=tasks, steps=steps)
    assert len(set(points)) == len(points) == len(tasks) * len(steps)


@pytest.mark.parametrize("several", [["ioi", "sva_rc"], ("ioi", "sva_rc"), {"ioi": 1, "sva_rc": 2}])
def test_whatever_holds_several_values_is_an_axis_and_a_string_is_one_value(several):
    assert [point.task for point in grid(task=several)] == ["ioi", "sva_rc"]
    assert [point.task for point in grid(task="ioi")] == ["ioi"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([5, 11], [(5, 11)]),  # one placement, not two
        ((5, 11), [(5, 11)]),
        (range(5, 18, 6), [(5, 11, 17)]),
        ([5], [(5,)]),
        ([(5, 11), (17,)], [(5, 11), (17,)]),
        ([[5, 11], [17]], [(5, 11), (17,)]),
        (((5,), (11,)), [(5,), (11,)]),
        ([None, (5, 11)], [None, (5, 11)]),
        (None, [None]),
    ],
)
def test_a_list_of_layers_is_one_placement_and_a_list_of_lists_is_several(layers, expected):
    assert [point.layers for point in grid(layers=layers)] == expected


@pytest.mark.parametrize("layers", [5, [5, (11,)], [()], "5", [["5"]], [5.0]])
def test_layers_that_are_no_layer_numbers_are_refused(layers, wrong_types):
    with pytest.raises(ValueError, match="layers: wanted layer numbers"):
        grid(layers=layers)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="no lambda; it has lab, task"):
        grid(**{"lambda": [1]})


def test_a_point_with_lists_and_paths_can_be_kept_as_json(tmp_path):
    point = SweepPoint(task=Path("my.jsonl"), layers=[5, 11])
    assert point == SweepPoint(task="my.jsonl", layers=(5, 11))
    sweep([point], tmp_path / "r.jsonl", work=number, progress=False)
    assert read_results(tmp_path / "r.jsonl") == [SweepResult(point, number(point))]


# ---------------------------------------------------------------------------------------------
# Sweeps
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor], ids=["here", "threads"])
def test_every_point_gets_its_own_result(tmp_path, executor):
    results = sweep(
        POINTS, tmp_path / "r.jsonl", executor and executor(2), work=number, progress=False
    )
    assert results == [SweepResult(point, number(point)) for point in POINTS]
    in_file = {result.point: result.result for result in read_results(tmp_path / "r.jsonl")}
    assert in_file == {point: number(point) for point in POINTS}


def test_a_point_that_is_asked_for_twice_is_done_once(tmp_path):
    results = sweep([*POINTS, *POINTS], tmp_path / "r.jsonl", work=number, progress=False)
    assert [result.point for result in results] == POINTS
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == len(POINTS)


def test_a_second_sweep_does_only_what_is_missing(tmp_path):
    path, done = tmp_path / "new" / "r.jsonl", []

    def work(point):
        done.append(point)
        return number(point)

    sweep(POINTS[:2], path, work=work, progress=False)
    results = sweep(POINTS, path, work=work, progress=False)
    assert done == POINTS and len(results) == len(POINTS)


def test_points_with_and_without_layers_are_found_again(tmp_path):
    path, done = tmp_path / "r.jsonl", []
    points = grid(layers=[None, (5, 11)])
    for _ in range(2):
        sweep(points, path, work=lambda point: done.append(point) or {}, progress=False)
    assert done == points


def test_a_result_is_in_the_file_before_the_next_point_is_done(tmp_path):
    path, lines = tmp_path / "r.jsonl", []

    def work(point):
        lines.append(len(path.read_text().splitlines()))
        return number(point)

    sweep(POINTS, path, work=work, progress=False)
    assert lines == list(range(len(POINTS)))


def test_a_failed_point_is_recorded_reported_and_tried_again(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    results = sweep(POINTS, path, work=no_odd_seeds, progress=False)
    failed = [result for result in results if result.error]
    assert [result.point.seed for result in failed] == [1, 1]
    assert all("ArithmeticError: seed 1 is odd" in result.error for result in failed)
    assert all(result.result is None for result in failed)
    assert capsys.readouterr().out.count("ArithmeticError: seed 1 is odd") == 2
    assert not any(result.error for result in sweep(POINTS, path, work=number, progress=False))
    assert len(read_results(path)) == len(POINTS)  # the latest of each point
    assert not any(result.error for result in read_results(path))


def test_a_line_that_a_crash_cut_off_is_done_again(tmp_path):
    path = tmp_path / "r.jsonl"
    sweep(POINTS, path, work=number, progress=False)
    text = path.read_text()
    path.write_text(text[:-20])
    assert len(read_results(path)) == len(POINTS) - 1
    sweep(POINTS, path, work=number, progress=False)
    assert len(read_results(path)) == len(POINTS)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ValueError, match="line 1: not a sweep's result"):
        sweep(POINTS, path, work=number, progress=False)


# ---------------------------------------------------------------------------------------------
# Executors
# ---------------------------------------------------------------------------------------------


def test_an_executor_that_only_submits_is_enough(tmp_path):
    """As submitit's: its jobs have done() and result(), and are no futures of
    `concurrent.futures`.
    """

    class Job:
        def __init__(self, value):
            self.value, self.asked = value, 0

        def done(self):
            self.asked += 1
            return self.asked > 1

        def result(self):
            return self.value

        def cancel(self):
            raise AssertionError("nothing was to be cancelled")

    class Executor:
        def submit(self, function, point):
            return Job(function(point))

    results = sweep(POINTS, tmp_path / "r.jsonl", Executor(), work=number, progress=False)
    assert [result.result for result in results] == [number(point) for point in POINTS]


def test_ctrl_c_keeps_what_is_there_and_cancels_the_rest(tmp_path, monkeypatch):
    futures = []

    class Executor:
        def submit(self, function, point):
            future = Future()
            if not futures:
                future.set_result(function(point))
            futures.append(future)
            return future

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("course_utils.circuits.experiments.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(POINTS, tmp_path / "r.jsonl", Executor(), work=number, progress=False)
    assert len(read_results(tmp_path / "r.jsonl")) == 1
    assert all(future.cancelled() for future in futures[1:])


def test_ctrl_c_in_this_process_is_no_failed_point(tmp_path):
    def work(point):
        if point == POINTS[1]:
            raise KeyboardInterrupt
        return number(point)

    with pytest.raises(KeyboardInterrupt):
        sweep(POINTS, tmp_path / "r.jsonl", work=work, progress=False)
    assert [result.point for result in read_results(tmp_path / "r.jsonl")] == POINTS[:1]


def kill_the_first(point: SweepPoint) -> dict:
    """The first worker that gets here dies as if its machine had."""
    flag = os.environ["SWEEP_TEST_FLAG"]
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        time.sleep(0.05)
        return number(point)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_loses_no_result_that_was_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_TEST_FLAG", str(tmp_path / "flag"))
    path = tmp_path / "r.jsonl"
    sweep(POINTS[:2], path, work=number, progress=False)
    one_process = ProcessPoolExecutor(1, mp_context=get_context("fork"))
    results = sweep(POINTS, path, one_process, work=kill_the_first, progress=False)
    assert [bool(result.error) for result in results] == [False] * 2 + [True] * 4
    again = sweep(POINTS, path, work=kill_the_first, progress=False)
    assert not any(result.error for result in again)


@pytest.mark.slow
@pytest.mark.weights
def test_a_cluster_that_loses_a_worker_still_does_every_point(tmp_path, monkeypatch):
    """Dask, two workers with the real lab in each.

    One is killed on its first point, and its points go to the other.
    """
    import distributed

    # Dask sets these here too, and leaves them so.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    points = grid(sparsity=[0.1, 0.3], seed=range(2), steps=2, n_train=16, n_test=8)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(cluster.workers.values()))
        pid = victim.process.process.pid if hasattr(victim.process, "process") else victim.pid
        executor = client.get_executor(retries=3)

        def work_and_kill():
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)

        with ThreadPoolExecutor(1) as background:
            killed = background.submit(work_and_kill)
            results = sweep(points, tmp_path / "r.jsonl", executor, progress=False)
            killed.result()
    assert not [result.error for result in results if result.error]
    assert all(result.result["n"] == 8 and result.result["n_nodes"] >= 0 for result in results)


# ---------------------------------------------------------------------------------------------
# A point
# ---------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_a_point_of_the_real_lab_is_learned_and_judged():
    point = SweepPoint(sparsity=0.1, steps=20, n_train=32, n_test=16, layers=(17, 29))
    result = learn_and_judge(point)
    assert 0 < result["n_nodes"] < 2000 and result["n"] == 16 and result["seconds"] > 0
    for name in MEASURES:
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]


@pytest.fixture
def tiny(lab, task, monkeypatch):
    """In the real lab's place: the tiny one, and its task cut into two halves that differ."""
    some = [i % 7 for i in range(18)]  # as many as a step takes, and two more
    halves = {"train": replace(task[some], split="train"), "dev": replace(task[7:], split="dev")}
    asked = []

    def load(name, tokenizer, split, *, n, verbose):
        assert tokenizer is lab.tokenizer
        asked.append((name, split))
        return halves[split][:n]

    monkeypatch.setattr(experiments, "_lab", lambda name: lab)
    monkeypatch.setattr(experiments, "spec_of", lambda name: SimpleNamespace(placement=(3,)))
    monkeypatch.setattr(experiments, "load_task", load)
    return SimpleNamespace(lab=lab, asked=asked, **halves)


@pytest.mark.parametrize(("layers", "placed"), [(None, [3]), ((1,), [1]), ((1, 3), [1, 3])])
def test_a_point_is_learned_on_one_half_and_judged_on_the_other(tiny, layers, placed):
    point = SweepPoint(
        task="sva_rc",
        layers=layers,
        error="keep",
        n_nodes=10,
        sparsity=0.2,
        steps=3,
        seed=7,
        n_train=17,
        n_test=4,
    )
    result = learn_and_judge(point)
    spliced = SplicedModel(tiny.lab, placed, "keep")
    means = spliced.patch_means(tiny.train.patch[:17])
    learned = learn_masks(
        spliced,
        tiny.train[:17],
        means=means,
        n_nodes=10,
        sparsity=0.2,
        steps=3,
        seed=7,
        progress=False,
    )
    faithfulness = Evaluation(spliced, tiny.dev[:4], means).faithfulness(learned.masks)
    assert result.pop("seconds") > 0
    assert result == {
        "n_nodes": learned.n_nodes,
        "n": 4,
        **{name: vars(getattr(faithfulness, name)) for name in MEASURES},
    }
    assert tiny.asked == [("sva_rc", "train"), ("sva_rc", "dev")]
    json.dumps(result)


def test_a_point_without_a_size_leaves_it_to_lambda(tiny):
    sizes = [
        learn_and_judge(SweepPoint(sparsity=sparsity, steps=20))["n_nodes"]
        for sparsity in (0.001, 0.5)
    ]
    assert sizes[0] > sizes[1]
