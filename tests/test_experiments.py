"""Sweeps: every point is done once, what is there is kept, and what failed is said: in this
process, in others, and on a cluster.
"""

import functools
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils.circuits import experiments
from course_utils.circuits.evaluate import MEASURES, Evaluation
from course_utils.circuits.experiments import (
    SHARES,
    SweepPoint,
    SweepResult,
    grid,
    learn_and_judge,
    own_split,
    read_results,
    sweep,
)
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import SplicedModel
from course_utils.prompts.grammar import VOCABULARIES, inflect
from course_utils.prompts.tasks import PromptPair, is_path, load_task, write_pairs

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


# ---------------------------------------------------------------------------------------------
# The file of results
# ---------------------------------------------------------------------------------------------

ROWS = [
    json.dumps({"point": asdict(point), "result": number(point), "error": None}) for point in POINTS
]
EDITS = {
    "cut off": ("\n".join(ROWS)[:-20], 5, {6}),
    "no end of line": ("\n".join(ROWS), 6, set()),
    "blank lines": ("\n\n" + "\n \n".join(ROWS) + "\n\n", 6, set()),
    "rows twice": ("\n".join([*ROWS, *ROWS[2:4]]) + "\n", 6, set()),
    "garbage": ("\n".join([*ROWS[:2], "what?", *ROWS[2:]]) + "\n", 6, {3}),
    "an object": ("\n".join([*ROWS[:2], '{"a": {"point": 1}}', *ROWS[2:]]) + "\n", 6, {3}),
    "Windows": ("\r\n".join(ROWS) + "\r\n", 6, set()),
    "cut and went on": ("\n".join([ROWS[0][:70] + ROWS[1], *ROWS[2:]]) + "\n", 5, {1}),
    "cut, next line": ("\n".join([ROWS[0][:-14], *ROWS[1:]]) + "\n", 5, {1}),
    "on one line": (ROWS[0] + ROWS[1] + " what " + "".join(ROWS[2:]), 6, {1}),
    "made a list": ("[" + ",\n".join(ROWS) + "]", 6, set()),
    "indented": ("\n".join(json.dumps(json.loads(row), indent=2) for row in ROWS), 6, set()),
    "sorted": ("\n".join(json.dumps(json.loads(row), sort_keys=True) for row in ROWS), 6, set()),
    "byte-order mark": ("\ufeff" + "\n".join(ROWS) + "\n", 6, set()),
    "zeros": ("\n".join(ROWS[:3]) + "\n" + 40 * "\0", 3, {4}),
    "not UTF-8": ("\n".join([*ROWS[:2], "\udcff\udcfe", *ROWS[2:]]) + "\n", 6, {3}),
    "another version's": ("\n".join([ROWS[0].replace('"seed"', '"sed"'), *ROWS[1:]]), 5, {1}),
    "neither": ("\n".join([ROWS[0].replace('{"n_nodes": 10}', "null"), *ROWS[1:]]), 5, {1}),
    "the only row, cut": (ROWS[0][:12], 0, {1}),
    "empty": ("", 0, set()),
}


@pytest.mark.parametrize(("text", "n_kept", "bad"), EDITS.values(), ids=EDITS)
def test_no_row_is_lost_however_a_file_was_cut_or_edited(tmp_path, capsys, text, n_kept, bad):
    path, done = tmp_path / "r.jsonl", []
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kept = read_results(path)
    assert len(kept) == n_kept and all(one.result == number(one.point) for one in kept)
    assert {int(i) for one in said for i in re.findall(r"line (\d+)", str(one.message))} == bad

    sweep(POINTS, path, work=lambda point: done.append(point) or number(point), progress=False)
    assert done == [point for point in POINTS if point not in {one.point for one in kept}]
    assert {int(i) for i in re.findall(r"line (\d+) \(", capsys.readouterr().out)} == bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {one.point for one in read_results(path)} == set(POINTS)


@pytest.mark.parametrize(("text", "n_kept", "bad"), EDITS.values(), ids=EDITS)
def test_what_is_no_row_is_kept_beside_the_file(tmp_path, text, n_kept, bad):
    path, aside = tmp_path / "r.jsonl", tmp_path / "r.jsonl.bad"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    sweep(POINTS, path, work=number, progress=False)
    assert aside.exists() == bool(bad)
    if not bad:
        return
    lines = aside.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    for line in lines:
        name, _, what = line.partition(": ")
        assert name in {f"line {i}" for i in bad} and what in text
    sweep(POINTS, path, work=number, progress=False)
    assert aside.read_text(errors="surrogateescape").splitlines() == lines  # once
    assert len(path.read_text().splitlines()) == len(POINTS)


def test_a_file_that_was_saved_as_utf_16_is_read_and_written_on(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(ROWS[:4]), encoding="utf-16")
    assert len(read_results(path)) == 4
    sweep(POINTS, path, work=number, progress=False)
    assert len(read_results(path)) == len(POINTS) == len(path.read_text().splitlines())


@given(st.data())
def test_a_cut_anywhere_loses_the_row_that_was_cut_and_no_other(data):
    text = "\n".join(ROWS) + "\n"
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    whole = [row for row in ROWS if row in text[:begin] or row in text[end:]]
    found = experiments._parse((text[:begin] + text[end:]).encode())
    assert {json.dumps(json.loads(row)) for row in whole} <= set(found.rows)


def test_a_later_failure_does_not_replace_a_result(tmp_path):
    path = tmp_path / "r.jsonl"
    failed = {"point": asdict(POINTS[0]), "result": None, "error": "no room"}
    path.write_text("\n".join([*ROWS[:2], json.dumps(failed)]) + "\n")
    assert read_results(path)[0] == SweepResult(POINTS[0], number(POINTS[0]))


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ValueError, match=r"no results of a sweep: line 1 .*Name another file"):
        sweep(POINTS, path, work=number, progress=False)
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n' and not list(tmp_path.glob("*.bad"))


def test_a_result_that_json_cannot_hold_is_a_failure(tmp_path):
    [result] = sweep(POINTS[:1], tmp_path / "r.jsonl", work=lambda point: {"a": {1, 2}})
    assert "not JSON serializable" in result.error
    assert read_results(tmp_path / "r.jsonl") == [result]


def test_a_path_may_begin_with_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    sweep(POINTS, "~/r.jsonl", work=number, progress=False)
    assert len(read_results("~/r.jsonl")) == len(POINTS) and (tmp_path / "r.jsonl").exists()


def write_many(path: Path, sparsity: float) -> None:
    """A sweep of its own, in another process; its rows are long."""
    points = grid(sparsity=sparsity, seed=range(30))
    sweep(points, path, work=lambda point: {"text": 20_000 * "x"}, progress=False)


@pytest.mark.slow
def test_two_processes_may_write_to_one_file(tmp_path):
    path = tmp_path / "r.jsonl"
    other = get_context("spawn").Process(target=write_many, args=(path, 0.1))
    other.start()
    while not path.exists():  # until it has begun
        time.sleep(0.01)
    write_many(path, 0.3)
    other.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert other.exitcode == 0 and len(lines) == 60
    assert all(len(line["result"]["text"]) == 20_000 for line in lines)


def test_sweeps_that_write_to_one_file_wait_for_each_other(tmp_path):
    path = tmp_path / "r.jsonl"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(functools.partial(write_many, path), (0.1, 0.2, 0.3)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 90 and all(len(line["result"]["text"]) == 20_000 for line in lines)


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


def torch_in_a_process(point: SweepPoint) -> dict:
    """Enough work that torch takes all of its threads."""
    process = type(multiprocessing.current_process()).__name__
    a = torch.ones(300, 300)
    return {"process": process, "sum": float((a @ a).sum()), "threads": torch.get_num_threads()}


def test_workers_are_spawned_so_that_torch_works_in_them(tmp_path, monkeypatch):
    """A fork would hang here as soon as torch has two threads, since it has been used already."""
    assert float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()) == 300**3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    results = sweep(
        POINTS, tmp_path / "r.jsonl", workers=2, work=torch_in_a_process, progress=False
    )
    for result in results:
        assert result.error is None
        assert result.result == {"process": "SpawnProcess", "sum": 300.0**3, "threads": 1}


def test_processes_that_would_be_forked_are_refused_with_what_to_write(tmp_path):
    says = r'workers=2.*ProcessPoolExecutor\(2, mp_context=get_context\("spawn"\)\)'
    with (
        ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool,
        pytest.raises(ValueError, match=says),
    ):
        sweep(POINTS, tmp_path / "r.jsonl", pool, work=number)
    assert not (tmp_path / "r.jsonl").exists()


def test_workers_that_make_no_sense_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="workers"):
        sweep(POINTS, tmp_path / "r.jsonl", workers=0, work=number)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="not both"):
        sweep(POINTS, tmp_path / "r.jsonl", pool, workers=2, work=number)
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # a notebook's
    monkeypatch.setattr(number, "__module__", "__main__")
    with pytest.raises(ValueError, match="written in a notebook.*import it from there"):
        sweep(POINTS, tmp_path / "r.jsonl", workers=2, work=number)


def kill_the_first(point: SweepPoint) -> dict:
    """The first worker that gets here dies as if its machine had."""
    flag = os.environ["SWEEP_TEST_FLAG"]
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        time.sleep(0.05)
        return number(point)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_dies_loses_no_result_that_was_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_TEST_FLAG", str(tmp_path / "flag"))
    path = tmp_path / "r.jsonl"
    sweep(POINTS[:2], path, work=number, progress=False)
    one_process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
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

    def load(name, tokenizer, split="", *, n=None, verbose):
        assert tokenizer is lab.tokenizer and not verbose
        if is_path(name):
            return load_task(name, tokenizer, verbose=False)
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
        "n_train": 17,
        "prompts": "sva_rc: learned on train, judged on dev",
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


# ---------------------------------------------------------------------------------------------
# Task files of one's own
# ---------------------------------------------------------------------------------------------


def write_own(path: Path, n: int = 40, first: int = 0) -> list[PromptPair]:
    """Prompt pairs of the tiny tokenizer; each second one is the mirror of the one before."""
    people, pairs = VOCABULARIES["train"].people, []
    for i in range(first, first + n // 2):
        one, other = people[i % 20], people[20 + i // 20]
        singular, plural = (
            f"The {inflect(one, number)} near the {other}" for number in ("singular", "plural")
        )
        pairs.append(PromptPair(singular, plural, " is", " are", "singular"))
        pairs.append(PromptPair(plural, singular, " are", " is", "plural"))
    write_pairs(pairs, path)
    return pairs


def prompts_of(pairs) -> set[str]:
    return {prompt for pair in pairs for prompt in (pair.clean_prefix, pair.patch_prefix)}


def test_a_file_of_ones_own_is_split_so_that_no_prompt_is_in_two_splits(tmp_path):
    pairs = write_own(tmp_path / "own.jsonl")
    splits = own_split(pairs)
    of = {name: [pair for pair in pairs if splits[pair] == name] for name in SHARES}
    assert {name: len(some) for name, some in of.items()} == {"train": 20, "dev": 10, "test": 10}
    for one, other in itertools.combinations(of.values(), 2):
        assert not prompts_of(one) & prompts_of(other)
    assert own_split(pairs[::-1]) == splits  # in whatever order
    assert own_split([*pairs, *pairs]) == splits


def test_pairs_that_hang_together_by_way_of_others_stay_together():
    chain = [PromptPair(f"{i}", f"{i + 1}", " a", " b", "") for i in range(6)]
    single = [PromptPair(f"x{i}", f"y{i}", " a", " b", "") for i in range(6)]
    splits = own_split([*single[:3], *chain, *single[3:]])
    assert {splits[pair] for pair in chain} == {"train"}
    assert sorted(splits[pair] for pair in single) == ["dev"] * 3 + ["test"] * 3
    with pytest.raises(ValueError, match="6 prompt pairs fall into 1 groups.*two files"):
        own_split(chain)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_point_of_ones_own_file_is_not_judged_on_what_it_learned_on(tiny, tmp_path, split):
    path = tmp_path / "own.jsonl"
    splits = own_split(write_own(path))
    point = SweepPoint(task=path, layers=(3,), split=split, steps=2)
    train, test, words = experiments._prompts_of(point, tiny.lab.tokenizer)
    assert {splits[pair] for pair in train.pairs} == {"train"} and len(train) == 20
    assert {splits[pair] for pair in test.pairs} == {split} and len(test) == 10
    result = learn_and_judge(point)
    assert (result["n_train"], result["n"], result["prompts"]) == (20, 10, words)
    assert words == f"own.jsonl: learned on 50% of its pairs, judged on other 25% ({split})"


def test_two_files_of_ones_own_share_no_prompt(tiny, tmp_path):
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    write_own(paths[0])
    write_own(paths[1], first=20)
    point = SweepPoint(task=paths[0], judge_task=paths[1], n_train=16, n_test=8)
    train, test, words = experiments._prompts_of(point, tiny.lab.tokenizer)
    assert len(train) == 16 and len(test) == 8 and words == "learned on a.jsonl, judged on b.jsonl"
    assert not prompts_of(train.pairs) & prompts_of(test.pairs)
    write_own(paths[1], first=19)
    with pytest.raises(ValueError, match="b.jsonl has 2 of the prompts of .*a.jsonl, such as"):
        experiments._prompts_of(point, tiny.lab.tokenizer)
    with pytest.raises(ValueError, match="'ioi' is a task of the course"):
        SweepPoint(task="ioi", judge_task=paths[1])


def test_a_file_too_small_to_be_split_is_a_failure_that_says_what_to_do(tiny, tmp_path):
    path = tmp_path / "own.jsonl"
    write_own(path, n=4)
    [result] = sweep([SweepPoint(task=path)], tmp_path / "r.jsonl", progress=False)
    assert "Give two files: task=… and judge_task=…" in result.error


def test_rows_of_ones_own_file_from_before_it_was_split_are_done_again(tmp_path, monkeypatch):
    path, own, done = tmp_path / "r.jsonl", SweepPoint(task="own.jsonl"), []
    for point in (own, POINTS[0]):
        row = {"point": asdict(point), "result": number(point), "error": None}
        row["point"].pop("judge_task")
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def work(point):
        done.append(point)
        return number(point) | {"prompts": "…"}

    monkeypatch.setattr(experiments, "learn_and_judge", work)
    for _ in range(2):
        sweep([own, POINTS[0]], path, work=work, progress=False)
    assert done == [own]


def test_a_path_without_an_ending_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert SweepPoint(task=Path("ioi")).task == str(tmp_path / "ioi")
    assert SweepPoint(task="ioi").task == "ioi"
