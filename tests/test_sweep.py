"""A sweep does every point once, keeps what it has, and says what failed; in this process, in
others, and on a cluster.
"""

import json
import os
import signal
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from course_utils.circuits.experiments import SweepPoint, grid, learn_and_judge, read_results, sweep

POINTS = grid(sparsity=[0.1, 0.3], seed=range(3))


def number(point: SweepPoint) -> dict:
    return {"n_nodes": round(100 * point.sparsity) + point.seed}


def no_odd_seeds(point: SweepPoint) -> dict:
    if point.seed % 2:
        raise ArithmeticError(f"seed {point.seed} is odd")
    return number(point)


def test_a_grid_has_every_combination():
    points = grid(task="ioi", layers=[(5, 11), (17,)], seed=range(3))
    assert len(points) == 6 and {point.task for point in points} == {"ioi"}
    assert {point.layers for point in points} == {(5, 11), (17,)}
    assert grid(layers=(5, 11)) == [SweepPoint(layers=(5, 11))]
    with pytest.raises(ValueError, match="no lambda; it has lab, task"):
        grid(**{"lambda": [1]})


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor], ids=["here", "threads"])
def test_every_point_gets_its_own_result(tmp_path, executor):
    found = sweep(
        POINTS, tmp_path / "r.jsonl", executor and executor(2), work=number, progress=False
    )
    assert [result.point for result in found] == POINTS
    assert [result.result for result in found] == [number(point) for point in POINTS]
    assert {result.point: result.result for result in read_results(tmp_path / "r.jsonl")} == {
        point: number(point) for point in POINTS
    }


def test_a_second_sweep_does_only_what_is_missing(tmp_path):
    path, done = tmp_path / "r.jsonl", []

    def work(point):
        done.append(point)
        return number(point)

    sweep(POINTS[:2], path, work=work, progress=False)
    found = sweep(POINTS, path, work=work, progress=False)
    assert done == POINTS and len(found) == len(POINTS)


def test_a_failed_point_is_recorded_reported_and_tried_again(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    found = sweep(POINTS, path, work=no_odd_seeds, progress=False)
    failed = [result for result in found if result.error]
    assert [result.point.seed for result in failed] == [1, 1] and all(
        "ArithmeticError: seed 1 is odd" in result.error for result in failed
    )
    assert capsys.readouterr().out.count("ArithmeticError: seed 1 is odd") == 2
    assert not any(result.error for result in sweep(POINTS, path, work=number, progress=False))


def test_a_line_that_a_crash_cut_off_is_done_again(tmp_path):
    path = tmp_path / "r.jsonl"
    sweep(POINTS, path, work=number, progress=False)
    text = path.read_text()
    path.write_text(text[:-20])
    assert len(read_results(path)) == len(POINTS) - 1
    sweep(POINTS, path, work=number, progress=False)
    assert len(read_results(path)) == len(POINTS) and all(
        json.loads(line) for line in path.read_text().splitlines()
    )


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ValueError, match="line 1: not a sweep's result"):
        sweep(POINTS, path, work=number, progress=False)


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

    assert len(sweep(POINTS, tmp_path / "r.jsonl", Executor(), work=number, progress=False)) == len(
        POINTS
    )


def test_ctrl_c_keeps_what_is_there_and_cancels_the_rest(tmp_path):
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

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("course_utils.circuits.experiments.time.sleep", interrupt)
        sweep(POINTS, tmp_path / "r.jsonl", Executor(), work=number, progress=False)
    assert len(read_results(tmp_path / "r.jsonl")) == 1
    assert all(future.cancelled() for future in futures[1:])


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
    found = sweep(
        POINTS,
        path,
        ProcessPoolExecutor(1, mp_context=get_context("fork")),
        work=kill_the_first,
        progress=False,
    )
    assert [bool(result.error) for result in found] == [False] * 2 + [True] * 4
    assert not any(
        result.error for result in sweep(POINTS, path, work=kill_the_first, progress=False)
    )


@pytest.mark.weights
@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_still_does_every_point(tmp_path, monkeypatch):
    """Dask, two workers with the real lab in each; one is killed on its first point, and its points
    go to the other.
    """
    import distributed

    for variable in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    ):  # Dask sets them here too, and leaves them so
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
            found = sweep(points, tmp_path / "r.jsonl", executor, progress=False)
            killed.result()
    assert not [result.error for result in found if result.error]
    assert all(result.result["n"] == 8 and result.result["n_nodes"] >= 0 for result in found)


@pytest.mark.weights
def test_a_point_of_the_real_lab_is_learned_and_judged():
    found = learn_and_judge(
        SweepPoint(sparsity=0.1, steps=20, n_train=32, n_test=16, layers=(17, 29))
    )
    assert 0 < found["n_nodes"] < 2000 and found["n"] == 16
    assert found["vs_spliced"]["low"] <= found["vs_spliced"]["value"] <= found["vs_spliced"]["high"]
