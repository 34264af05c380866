"""Many circuits: a grid of tasks × sizes × placements × seeds.

A sweep is a list of points, a function that turns a point into numbers, and any executor of
`concurrent.futures`:

    points = grid(task=["sva_nounpp", "ioi"], sparsity=[0.01, 0.03, 0.1], seed=range(3))
    sweep(points, "results.jsonl")                                              # in this process
    sweep(points, "results.jsonl", ProcessPoolExecutor(2))                      # two processes
    sweep(points, "results.jsonl", dask.distributed.Client().get_executor())    # a Dask cluster
    sweep(points, "results.jsonl", submitit.AutoExecutor("logs"))               # a SLURM cluster

Each result is a line of JSON, written as soon as it is there. A sweep that is started again with
the same file does only what is missing. A point that fails is recorded with its error, and the
others go on. On other machines, the course must be installed: ``pip install -e .`` in a checkout,
or a wheel (``pip wheel --no-deps .``), which carries the tasks and the SAEs.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from tqdm.auto import tqdm

from course_utils.circuits.evaluate import MEASURES, Evaluation
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import ErrorPolicy, SplicedModel
from course_utils.labs.catalog import spec_of
from course_utils.labs.lab import Lab, load_lab
from course_utils.prompts.tasks import load_task


@dataclass(frozen=True)
class SweepPoint:
    """One circuit to learn and to judge.

    Attributes:
        lab: the name of a lab, for `load_lab`.
        task: the name of a task, or the path of one of your own.
        layers: where SAEs are spliced; None is the lab's own placement.
        error: the error policy.
        sparsity: λ.
        n_nodes: the wanted number of nodes; None leaves it to λ.
        steps, seed: as in `MaskSettings`.
        n_train, n_test: prompts to learn on, and to judge on (with other words).
        split: what to judge on: ``"dev"``, since a sweep is made to choose; ``"test"`` for what is
            reported.

    Raises:
        ValueError: ``layers`` that are no layer numbers.
    """

    lab: str = "smollm2"
    task: str | Path = "sva_nounpp"
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
        """A task's path becomes text, for JSON, and layers a tuple, so that points are hashable."""
        object.__setattr__(self, "task", str(self.task))
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
        ``n_nodes``, ``seconds`` of learning, ``n`` prompts, and a ``{value, low, high}`` for each
        of ``evaluate.MEASURES``.
    """
    lab = _lab(point.lab)
    train = load_task(point.task, lab.tokenizer, "train", n=point.n_train, verbose=False)
    test = load_task(point.task, lab.tokenizer, point.split, n=point.n_test, verbose=False)
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
        **{name: asdict(getattr(faithfulness, name)) for name in MEASURES},
    }


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
    work: Callable[[SweepPoint], dict[str, Any]] = learn_and_judge,
    progress: bool = True,
) -> list[SweepResult]:
    """Work through points, and write each result to a file as soon as it is there.

    Args:
        points: e.g. from `grid`.
        path: JSON lines. Points that have a result there are not done again; those that failed are.
        executor: who does the work; this process by default. On other machines, the course must be
            installed.
        work: what turns a point into numbers that JSON can hold.
        progress: show a bar.

    Returns:
        A result for each point, in their order; failures say so, and are printed at the end. Ctrl-C
        keeps what is there.

    Raises:
        ValueError: a line of ``path`` is not a sweep's.
    """
    points, path = list(dict.fromkeys(points)), Path(path)
    results = {result.point: result for result in read_results(path)} if path.exists() else {}
    missing = [
        point for point in points if point not in results or results[point].error is not None
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_off_line(path)
    n_done, n_failed = len(points) - len(missing), 0
    with (
        open(path, "a") as file,
        tqdm(total=len(points), initial=n_done, desc=path.stem, disable=not progress) as bar,
    ):
        for result in _results_of(missing, work, executor):
            results[result.point] = result
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            n_failed += result.error is not None
            bar.set_postfix(failed=n_failed)
            bar.update()
    for point in points:
        error = results[point].error
        if error is not None:
            print(f"failed: {point}\n  {error.splitlines()[-1]}")
    return [results[point] for point in points]


def read_results(path: str | Path) -> list[SweepResult]:
    """The results in a file, the latest of each point. A last line that was cut off is left out.

    Raises:
        ValueError: a line is not a sweep's; the message says which.
    """
    results: dict[SweepPoint, SweepResult] = {}
    lines = Path(path).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            point = SweepPoint(**record["point"])
            results[point] = SweepResult(point, record["result"], record["error"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not a sweep's result ({error}).") from error
    return list(results.values())


def _drop_cut_off_line(path: Path) -> None:
    """Take away a last line that a crash left without an end, so that the next starts afresh."""
    if path.exists():
        whole, newline, _ = path.read_text().rpartition("\n")
        path.write_text(whole + newline)


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
    """What a call gives for a point, or how it fails."""
    try:
        return SweepResult(point, result=call(*args))
    except Exception:
        return SweepResult(point, error=traceback.format_exc().strip())
