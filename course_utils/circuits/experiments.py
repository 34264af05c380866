"""Many circuits: a grid of tasks × sizes × placements × seeds.

A sweep is a list of points, a function that turns a point into numbers, and any executor of
`concurrent.futures`:

    points = grid(task=["sva_nounpp", "ioi"], sparsity=[0.01, 0.03, 0.1], seed=range(3))
    sweep(points, "results.jsonl")                                              # in this process
    sweep(points, "results.jsonl", workers=2)                                   # two processes
    sweep(points, "results.jsonl", dask.distributed.Client().get_executor())    # a Dask cluster
    sweep(points, "results.jsonl", submitit.AutoExecutor("logs"))               # a SLURM cluster

Each result is a line of JSON, written as soon as it is there. A sweep that is started again with
the same file does only what is missing. A point that fails is recorded with its error, and the
others go on. Several sweeps may write to one file at once. Whatever happens to the file, rows that
can still be read are kept.

Processes are spawned, not forked: in a fork of a process that has used torch, torch waits for
threads that are not there, for ever. A script that sweeps with ``workers`` does so under
``if __name__ == "__main__":``, since each process reads the script again.

A task file of your own has no splits, so that it is split here: `own_split` says how. Or give two
files, ``task`` and ``judge_task``.

On other machines, the course must be installed: ``pip install -e .`` in a checkout, or a wheel
(``pip wheel --no-deps .``), which carries the tasks and the SAEs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from filelock import FileLock
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from course_utils.circuits.evaluate import MEASURES, Evaluation
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import ErrorPolicy, SplicedModel
from course_utils.labs.catalog import spec_of
from course_utils.labs.lab import Lab, load_lab
from course_utils.prompts.tasks import PromptPair, Task, is_path, load_task, read_pairs

SHARES = {"train": 0.5, "dev": 0.25, "test": 0.25}
"""How much of a task file of one's own each split gets."""


@dataclass(frozen=True)
class SweepPoint:
    """One circuit to learn and to judge.

    Attributes:
        lab: the name of a lab, for `load_lab`.
        task: the name of a task, or the path of one of your own, which is split (`own_split`).
        judge_task: the path of another file to judge on; then all of ``task``, a path too, is
            learned on.
        layers: where SAEs are spliced; None is the lab's own placement.
        error: the error policy.
        sparsity: λ.
        n_nodes: the wanted number of nodes; None leaves it to λ.
        steps, seed: as in `MaskSettings`.
        n_train, n_test: prompts to learn on, and to judge on (with other words).
        split: what to judge on: ``"dev"``, since a sweep is made to choose; ``"test"`` for what is
            reported.

    Raises:
        ValueError: ``layers`` that are no layer numbers; ``judge_task`` for a task of the course.
    """

    lab: str = "smollm2"
    task: str | Path = "sva_nounpp"
    judge_task: str | Path | None = None
    layers: Sequence[int] | None = None
    error: ErrorPolicy = "drop"
    sparsity: float = 0.03
    n_nodes: int | None = None
    steps: int = 60
    seed: int = 0
    n_train: int = 256
    n_test: int = 100
    split: Literal["dev", "test"] = "dev"

    def __post_init__(self) -> None:
        """Paths become text, for JSON, and layers a tuple, so that points are hashable."""
        if isinstance(self.task, Path) and not is_path(str(self.task)):
            object.__setattr__(self, "task", self.task.absolute())  # no task's name, as text
        object.__setattr__(self, "task", str(self.task))
        if self.judge_task is not None:
            if not is_path(str(self.task)):
                raise ValueError(
                    f"judge_task is for task files of your own, and {self.task!r} is a task of the "
                    "course, which has splits: give split='dev' or 'test'."
                )
            object.__setattr__(self, "judge_task", str(self.judge_task))
        if self.layers is None:
            return
        if not _is_placement(self.layers):
            raise ValueError(f"layers: wanted layer numbers, as in (5, 11); got {self.layers!r}.")
        object.__setattr__(self, "layers", tuple(self.layers))


def _is_placement(value: object) -> bool:
    """Whether a value is one placement: one layer number or more, in a list, tuple or range."""
    if not isinstance(value, list | tuple | range) or len(value) == 0:
        return False
    return all(isinstance(layer, int) for layer in value)


def grid(**axes: Any) -> list[SweepPoint]:
    """Every combination of the values of some fields of `SweepPoint`.

        grid(task="ioi", sparsity=[0.01, 0.1], layers=[(5, 11), (17,)], seed=range(3))

    has 1 × 2 × 2 × 3 points. A list (tuple, range, …) holds several values; anything else, a string
    too, is one value for all points. ``layers`` is the exception, since a placement is itself a
    list: ``layers=[5, 11]`` is one placement, the layers 5 and 11 together;
    ``layers=[(5, 11), (17,)]`` are two; ``layers=[(5,), (11,)]`` are two of one layer each.

    Raises:
        ValueError: a name that `SweepPoint` does not have; a placement that is no layer numbers.
    """
    known = [f.name for f in fields(SweepPoint)]
    unknown = [name for name in axes if name not in known]
    if unknown:
        raise ValueError(f"a sweep has no {', '.join(unknown)}; it has {', '.join(known)}.")
    values = [_values_of(name, axis) for name, axis in axes.items()]
    return [SweepPoint(**dict(zip(axes, row, strict=True))) for row in itertools.product(*values)]


def _values_of(name: str, axis: Any) -> list:
    """The values along one axis of a grid."""
    is_one = isinstance(axis, str) or not isinstance(axis, Iterable)
    if name == "layers":
        is_one = is_one or _is_placement(axis)
    return [axis] if is_one else list(axis)


# ---------------------------------------------------------------------------------------------
# A point
# ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _lab(name: str) -> Lab:
    """The lab of this worker: loaded at its first point, and kept for the next."""
    return load_lab(name)


def learn_and_judge(point: SweepPoint) -> dict[str, Any]:
    """Learn a mask on the training prompts, and judge it on prompts of another split.

    Returns:
        ``n_nodes``, ``seconds`` of learning, ``n`` prompts judged on and ``n_train`` learned on,
        ``prompts`` (which these are, in words), and a ``{value, low, high}`` for each of
        ``evaluate.MEASURES``.

    Raises:
        TaskError: see `load_task`.
        ValueError: a file of one's own cannot be split, or has prompts of the file to judge on.
    """
    lab = _lab(point.lab)
    train, test, prompts = _prompts_of(point, lab.tokenizer)
    layers = spec_of(point.lab).placement if point.layers is None else point.layers
    spliced = SplicedModel(lab, layers, point.error)
    means = spliced.patch_means(train.patch)
    begin = time.perf_counter()
    learned = learn_masks(
        spliced,
        train,
        means=means,
        sparsity=point.sparsity,
        n_nodes=point.n_nodes,
        steps=point.steps,
        seed=point.seed,
        progress=False,
    )
    seconds = time.perf_counter() - begin
    faithfulness = Evaluation(spliced, test, means).faithfulness(learned.masks)
    return {
        "n_nodes": learned.n_nodes,
        "seconds": seconds,
        "n": faithfulness.n,
        "n_train": len(train),
        "prompts": prompts,
        **{name: asdict(getattr(faithfulness, name)) for name in MEASURES},
    }


def _prompts_of(point: SweepPoint, tokenizer: Any) -> tuple[Task, Task, str]:
    """What to learn on, what to judge on, and which prompts these are, in words."""
    read = functools.partial(load_task, tokenizer=tokenizer, verbose=False)
    if not is_path(point.task):
        train, test = (
            read(point.task, split=split, n=n)
            for split, n in (("train", point.n_train), (point.split, point.n_test))
        )
        return train, test, f"{point.task}: learned on train, judged on {point.split}"
    name = Path(point.task).name
    whole = read(point.task)
    if point.judge_task is not None:
        test = read(point.judge_task)
        shared = _prompts_in(whole.pairs) & _prompts_in(test.pairs)
        if shared:
            raise ValueError(
                f"{point.judge_task} has {len(shared)} of the prompts of {point.task}, such as "
                f"{min(shared)!r}. What judges must not have been learned on: take them out of one."
            )
        words = f"learned on {name}, judged on {Path(point.judge_task).name}"
        return whole[: point.n_train], test[: point.n_test], words
    splits = own_split(read_pairs(Path(point.task).expanduser()))
    train, test = (
        whole[[i for i, pair in enumerate(whole.pairs) if splits[pair] == split]]
        for split in ("train", point.split)
    )
    if not len(train) or not len(test):
        raise ValueError(
            f"{point.task} has {len(whole)} prompt pairs that fit this tokenizer: "
            f"{len(train)} to learn on, {len(test)} to judge on. Give two files: task=… and "
            "judge_task=…."
        )
    words = f"{name}: learned on {SHARES['train']:.0%} of its pairs, judged on other "
    words += f"{SHARES[point.split]:.0%} ({point.split})"
    return train[: point.n_train], test[: point.n_test], words


def _prompts_in(pairs: Iterable[PromptPair]) -> set[str]:
    return {prompt for pair in pairs for prompt in (pair.clean_prefix, pair.patch_prefix)}


def own_split(pairs: Sequence[PromptPair]) -> dict[PromptPair, str]:
    """Which split each prompt pair of a file without splits belongs to: half of them to ``train``,
    a quarter to ``dev`` and a quarter to ``test``, as nearly as can be.

    Pairs that share a prompt, clean or patch, stay together, also by way of other pairs: no prompt
    is in two splits. (Words may be: to keep those apart, write two files.) Groups of pairs are
    dealt out, each to the split that lacks most: the largest first, and those of one size in the
    order of the SHA-256 of their first prompt. So the same pairs give the same splits, in whatever
    order, for every lab and every seed.

    Raises:
        ValueError: fewer than three such groups.
    """
    ids = {prompt: i for i, prompt in enumerate(sorted(_prompts_in(pairs)))}
    ends = [[ids[pair.clean_prefix] for pair in pairs], [ids[pair.patch_prefix] for pair in pairs]]
    graph = coo_array(([1] * len(pairs), ends), shape=(len(ids), len(ids)))
    n_groups, group_of = connected_components(graph, directed=False)
    if n_groups < 3:
        raise ValueError(
            f"the {len(pairs)} prompt pairs fall into {n_groups} groups that share no prompt, and "
            "three are wanted (train, dev, test). Give two files: task=… and judge_task=…."
        )
    groups: dict[int, list[PromptPair]] = {}
    first: dict[int, str] = {}
    for prompt, i in ids.items():  # in alphabetical order
        first.setdefault(int(group_of[i]), hashlib.sha256(prompt.encode()).hexdigest())
    for pair in pairs:
        groups.setdefault(int(group_of[ids[pair.clean_prefix]]), []).append(pair)
    splits: dict[PromptPair, str] = {}
    n_of = dict.fromkeys(SHARES, 0)
    for group in sorted(groups, key=lambda group: (-len(groups[group]), first[group])):
        split = max(SHARES, key=lambda name: SHARES[name] * (len(splits) + 1) - n_of[name])
        splits |= dict.fromkeys(groups[group], split)
        n_of[split] = sum(other == split for other in splits.values())
    return splits


# ---------------------------------------------------------------------------------------------
# All points
# ---------------------------------------------------------------------------------------------


@runtime_checkable
class CanSubmit(Protocol):
    """What is asked of an executor: a way to submit work.

    ``submit(function, argument)`` gives something with ``done()``, ``result()`` and ``cancel()``.
    """

    def submit(self, function: Callable, /, *args: Any) -> Any: ...


@dataclass(frozen=True)
class SweepResult:
    """A point and what came of it: ``result`` (numbers), or ``error`` (what went wrong)."""

    point: SweepPoint
    result: dict[str, Any] | None = None
    error: str | None = None


def sweep(
    points: Iterable[SweepPoint],
    path: str | Path,
    executor: CanSubmit | None = None,
    *,
    workers: int | None = None,
    work: Callable[[SweepPoint], dict[str, Any]] = learn_and_judge,
    progress: bool = True,
) -> list[SweepResult]:
    """Work through points, and write each result to a file as soon as it is there.

    Args:
        points: e.g. from `grid`.
        path: JSON lines. Points that have a result there are not done again; those that failed are.
            Lines that are no results are named, and moved to a file beside it (``.bad``).
        executor: who does the work; this process by default. On other machines, the course must be
            installed. Processes of one's own must be spawned:
            ``ProcessPoolExecutor(2, mp_context=get_context("spawn"))``.
        workers: so many processes of this machine do the work, each with a lab in memory and its
            share of the threads.
        work: what turns a point into numbers that JSON can hold. For ``workers``, a function of a
            module, not of a notebook.
        progress: show a bar.

    Returns:
        A result for each point, in their order; failures say so, and are printed at the end. Ctrl-C
        keeps what is there.

    Raises:
        ValueError: ``path`` holds something else than a sweep's results; processes that would be
            forked; ``workers`` below 1, together with an executor, or for work of a notebook.
    """
    points, path = list(dict.fromkeys(points)), Path(path).expanduser()
    _check_processes(executor, workers, work)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {result.point: result for result in _mended(path)}
    missing = [point for point in points if not _is_done(results.get(point), work)]
    n_done, n_failed = len(points) - len(missing), 0
    with (
        _spawned(workers) if workers else contextlib.nullcontext(executor) as doing,
        tqdm(total=len(points), initial=n_done, desc=path.stem, disable=not progress) as bar,
    ):
        for result in _results_of(missing, work, doing):
            results[result.point] = result
            _append(path, result)
            n_failed += result.error is not None
            bar.set_postfix(failed=n_failed)
            bar.update()
    for point in points:
        error = results[point].error
        if error is not None:
            print(f"failed: {point}\n  {error.splitlines()[-1]}")
    return [results[point] for point in points]


def _is_done(result: SweepResult | None, work: Callable) -> bool:
    """Whether a point needs no work.

    Rows of files of one's own that do not say which prompts they are about are older than the rule
    by which those files are split: they were judged on what they had learned on.
    """
    if result is None or result.result is None:
        return False
    judged_on_itself = is_path(result.point.task) and "prompts" not in result.result
    return not (work is learn_and_judge and judged_on_itself)


def _check_processes(executor: CanSubmit | None, workers: int | None, work: Callable) -> None:
    """Raise ValueError for processes that cannot do the work."""
    context = getattr(executor, "_mp_context", None)  # of a ProcessPoolExecutor
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "forked processes hang once torch has been used. Write sweep(points, path, workers=2), "
            'or ProcessPoolExecutor(2, mp_context=get_context("spawn")), with get_context from '
            "multiprocessing."
        )
    if workers is None:
        return
    if workers < 1 or executor is not None:
        raise ValueError("give workers (1 or more) or an executor, not both.")
    main_is_a_file = hasattr(sys.modules["__main__"], "__file__")
    if getattr(work, "__module__", "") == "__main__" and not main_is_a_file:
        raise ValueError(
            "other processes cannot see a function that was written in a notebook. Write it into a "
            "file beside it (my_work.py), and import it from there."
        )


@contextlib.contextmanager
def _spawned(workers: int) -> Iterator[CanSubmit]:
    """Processes that share this one's threads."""
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _results_of(
    points: list[SweepPoint], work: Callable, executor: CanSubmit | None
) -> Iterator[SweepResult]:
    """The results as they come."""
    if executor is None:
        for point in points:
            yield _result_of(point, work, point)
        return
    waiting = {point: executor.submit(work, point) for point in points}
    try:
        while waiting:
            ready = [point for point, future in waiting.items() if future.done()]
            for point in ready:
                yield _result_of(point, waiting.pop(point).result)
            if not ready:
                time.sleep(0.1)
    finally:
        for future in waiting.values():
            future.cancel()


def _result_of(point: SweepPoint, call: Callable[..., dict[str, Any]], *args: Any) -> SweepResult:
    """What a call gives for a point, or how it fails; what JSON cannot hold is a failure."""
    try:
        result = call(*args)
        json.dumps(result)
        return SweepResult(point, result=result)
    except Exception:
        return SweepResult(point, error=traceback.format_exc().strip())


# ---------------------------------------------------------------------------------------------
# The file of results
# ---------------------------------------------------------------------------------------------

BEGINS = '{"point": {'
"""How a row begins, unless somebody has sorted its keys."""
NOTHING = " \t\r,[]"
"""What may stand between rows: they may have been made a list, or lines of Windows."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How a text begins that an editor has saved as UTF-16."""


def read_results(path: str | Path) -> list[SweepResult]:
    """The results in a file: of each point the latest, or the latest that did not fail.

    Warns:
        UserWarning: lines that are no results; they are left out.
    """
    file = _parse(Path(path).expanduser().read_bytes())
    if file.bad:
        warnings.warn(f"{path}: left out {file.what_is_bad}.", stacklevel=2)
    return list(file.results.values())


@dataclass
class _ResultsFile:
    """What a file of results holds.

    Attributes:
        rows: its rows as JSON, in order, also those that come twice.
        results: by point.
        bad: what is no row, with the number of its line.
        rewrite: whether it is to be written anew before a row is added to it.
    """

    rows: list[str] = field(default_factory=list)
    results: dict[SweepPoint, SweepResult] = field(default_factory=dict)
    bad: list[tuple[int, str]] = field(default_factory=list)
    rewrite: bool = False

    @property
    def what_is_bad(self) -> str:
        return ", ".join(f"line {number} ({_short(text)})" for number, text in self.bad)

    def add(self, record: dict[str, Any]) -> None:
        """Add a row.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        point = SweepPoint(**record["point"])
        result = SweepResult(point, record["result"], record["error"])
        if (result.result is None) == (result.error is None):
            raise ValueError("a row has a result or an error.")
        before = self.results.get(point)
        if before is None or before.result is None or result.result is not None:
            self.results[point] = result
        self.rows.append(json.dumps(record))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _parse(data: bytes) -> _ResultsFile:
    """Find the rows in a file, wherever lines begin and end, and what is left."""
    utf_16 = data[:2] in UTF_16
    encoding, errors = ("utf-16", "replace") if utf_16 else ("utf-8-sig", "surrogateescape")
    text = data.decode(encoding, errors)
    file, read = _ResultsFile(), 0
    decoder = json.JSONDecoder()
    for begin in re.finditer(r"\{", text):
        if begin.start() < read:
            continue  # inside of a row
        try:
            record, end = decoder.raw_decode(text, begin.start())
            file.add(record)
        except (ValueError, KeyError, TypeError):
            continue
        _set_aside(file, text, read, begin.start())
        read = end
    _set_aside(file, text, read, len(text))
    file.rewrite = utf_16 or bool(file.bad)
    return file


def _set_aside(file: _ResultsFile, text: str, begin: int, end: int) -> None:
    """Note the lines between two rows that are not blank."""
    number = text.count("\n", 0, begin) + 1
    for i, line in enumerate(text[begin:end].split("\n")):
        if line.strip(NOTHING):
            file.bad.append((number + i, line.strip("\r")))


def _mended(path: Path) -> list[SweepResult]:
    """The results in a file that rows can be added to; it is made if it is not there.

    What is no row goes to a file beside it, by line; nothing is deleted.

    Raises:
        ValueError: there are lines, and none of them is a row or the beginning of one.
    """
    with _locked(path):
        path.touch()
        file = _parse(path.read_bytes())
        if file.bad and not file.rows and not any(_was_cut(line) for _, line in file.bad):
            raise ValueError(
                f"{path} holds no results of a sweep: {file.what_is_bad}. Name another file."
            )
        if file.bad:
            aside = path.with_name(f"{path.name}.bad")
            print(f"{path}: moved to {aside.name}: {file.what_is_bad}.")
            with open(aside, "a", encoding="utf-8", errors="surrogateescape") as other:
                other.writelines(f"line {i}: {line}\n" for i, line in file.bad)
        if file.rewrite:
            _replace(path, "".join(f"{row}\n" for row in file.rows))
    return list(file.results.values())


def _was_cut(line: str) -> bool:
    """Whether a line may be what is left of a row."""
    return '"point"' in line or BEGINS.startswith(line)


def _replace(path: Path, text: str) -> None:
    """Write a file anew in one step."""
    path = path.resolve()
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as part:
        part.write(text)
    shutil.copymode(path, part.name)
    os.replace(part.name, path)


def _append(path: Path, result: SweepResult) -> None:
    """Add a row, on a line of its own."""
    row = json.dumps(asdict(result)) + "\n"
    with _locked(path), open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            row = row if file.read(1) == b"\n" else f"\n{row}"
        file.write(row.encode())


def _locked(path: Path) -> FileLock:
    """Holds off all other sweeps that write to a file."""
    return FileLock(f"{path}.lock")
