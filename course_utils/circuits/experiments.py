"""Many circuits: a grid of tasks × sizes × placements × seeds, on one machine or many.

A sweep is a list of points, a function that turns a point into numbers, and any executor of
`concurrent.futures`:

    points = grid(task=["sva_nounpp", "ioi"], sparsity=[0.01, 0.03, 0.1], seed=range(3))
    sweep(points, "results.jsonl")                                              # in this process
    sweep(points, "results.jsonl", ProcessPoolExecutor(2))                      # two processes
    sweep(points, "results.jsonl", dask.distributed.Client().get_executor())    # a Dask cluster
    sweep(points, "results.jsonl", submitit.AutoExecutor("logs"))               # a SLURM cluster

Each result is a line of JSON, written as soon as it is there. A sweep that is started again with
the same file does only what is missing. A point that fails is recorded with its error, and the
others go on.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from course_utils import DATA
from course_utils.circuits.evaluate import MEASURES, faithfulness, references
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.catalog import spec_of
from course_utils.labs.lab import Lab, load_lab
from course_utils.prompts.tasks import available_tasks, load_task


@dataclass(frozen=True)
class SweepPoint:
    """One circuit to learn and to judge.

    Attributes:
        lab: the name of a lab, for `load_lab`.
        task: the name of a task, or the path of one of your own.
        layers: where SAEs are spliced; None is the lab's own placement.
        error: the error policy.
        sparsity: λ, the price of a node.
        n_nodes: the wanted number of nodes; None leaves it to λ.
        steps, seed: as in `MaskSettings`.
        n_train, n_test: prompts to learn on, and to judge on (with other words).
    """

    lab: str = "smollm2"
    task: str = "sva_nounpp"
    layers: tuple[int, ...] | None = None
    error: str = "drop"
    sparsity: float = 0.03
    n_nodes: int | None = None
    steps: int = 60
    seed: int = 0
    n_train: int = 256
    n_test: int = 100


def grid(**axes: Iterable | Any) -> list[SweepPoint]:
    """Every combination: ``grid(task="ioi", sparsity=[0.01, 0.1], layers=[(5, 11), (17,)],
    seed=range(3))``.

    A value that is no list stands for itself. (One placement is a tuple; several are a list of
    tuples.)

    Raises:
        ValueError: a name that `SweepPoint` does not have.
    """
    known = [f.name for f in fields(SweepPoint)]
    unknown = [name for name in axes if name not in known]
    if unknown:
        raise ValueError(f"a sweep has no {', '.join(unknown)}; it has {', '.join(known)}.")
    values = [list(axis) if isinstance(axis, list | range) else [axis] for axis in axes.values()]
    return [SweepPoint(**dict(zip(axes, row))) for row in itertools.product(*values)]


# ---------------------------------------------------------------------------------------------
# A point
# ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _lab(name: str) -> Lab:
    """The lab of this worker: loaded at its first point, and kept for the next."""
    return load_lab(name)


def learn_and_judge(point: SweepPoint) -> dict[str, Any]:
    """Learn a mask on the training prompts, and judge it on the test prompts.

    Returns:
        ``n_nodes``, ``seconds`` of learning, ``n`` prompts, and a ``{value, low, high}`` for each
        of ``evaluate.MEASURES``.
    """
    lab = _lab(point.lab)
    train = load_task(point.task, lab.tokenizer, "train", n=point.n_train, verbose=False)
    test = load_task(point.task, lab.tokenizer, "test", n=point.n_test, verbose=False)
    spliced = SplicedModel(lab, point.layers or spec_of(point.lab).placement, point.error)
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
    found = faithfulness(
        spliced, test, learned.masks, means, against=references(spliced, test, means)
    )
    return {
        "n_nodes": learned.n_nodes,
        "seconds": seconds,
        "n": found.n,
        **{name: asdict(getattr(found, name)) for name in MEASURES},
    }


# ---------------------------------------------------------------------------------------------
# All points
# ---------------------------------------------------------------------------------------------


class CanSubmit(Protocol):
    """What is asked of an executor: ``submit(function, argument)`` gives something with ``done()``
    and ``result()``.
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
    done = {found.point: found for found in read_results(path)} if path.exists() else {}
    missing = [point for point in points if point not in done or done[point].error is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_off_line(path)
    with (
        open(path, "a") as file,
        tqdm(
            total=len(points),
            initial=len(points) - len(missing),
            desc=path.stem,
            disable=not progress,
        ) as bar,
    ):
        failed = 0
        for found in _worked(missing, work, executor):
            done[found.point] = found
            failed += found.error is not None
            file.write(
                json.dumps(
                    {"point": asdict(found.point), "result": found.result, "error": found.error}
                )
                + "\n"
            )
            file.flush()
            bar.set_postfix(failed=failed)
            bar.update()
    for point in points:
        if done[point].error is not None:
            print(f"failed: {point}\n  {done[point].error.splitlines()[-1]}")
    return [done[point] for point in points]


def read_results(path: str | Path) -> list[SweepResult]:
    """The results in a file, the latest of each point. A last line that was cut off is left out.

    Raises:
        ValueError: a line is not a sweep's; the message says which.
    """
    found: dict[SweepPoint, SweepResult] = {}
    lines = Path(path).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            point = SweepPoint(
                **{
                    **record["point"],
                    "layers": record["point"]["layers"] and tuple(record["point"]["layers"]),
                }
            )
            found[point] = SweepResult(point, record["result"], record["error"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not a sweep's result ({error}).") from error
    return list(found.values())


def _drop_cut_off_line(path: Path) -> None:
    """Take away a last line that a crash left without an end, so that the next starts on a line of
    its own.
    """
    if path.exists():
        whole, newline, _ = path.read_text().rpartition("\n")
        path.write_text(whole + newline)


def _worked(
    points: list[SweepPoint], work: Callable, executor: CanSubmit | None
) -> Iterator[SweepResult]:
    """The results as they come."""
    if executor is None:
        for point in points:
            yield _result_of(point, lambda: work(point))  # noqa: B023
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


def _result_of(point: SweepPoint, get: Callable[[], dict[str, Any]]) -> SweepResult:
    try:
        return SweepResult(point, result=get())
    except Exception:
        return SweepResult(point, error=traceback.format_exc().strip())


# ---------------------------------------------------------------------------------------------
# The post's circuits, and ours of the same sizes beside them
# ---------------------------------------------------------------------------------------------


PUBLISHED_DIR = DATA / "published"


@dataclass(frozen=True)
class PublishedCircuit:
    """A row of the post: a behaviour, the task of this course that is made like the post's, the
    size of a circuit in nodes, and its faithfulness F(C) / F(S)."""

    task: str
    behaviour: str
    nodes: int
    faithfulness: float


def published_circuits(lab_name: str) -> list[PublishedCircuit]:
    """The post's circuits for a lab; none where it has none."""
    path = PUBLISHED_DIR / f"{lab_name}.json"
    return (
        [PublishedCircuit(**row) for row in json.loads(path.read_text())] if path.exists() else []
    )


def beside_published(
    spliced: SplicedModel,
    circuits: list[PublishedCircuit],
    *,
    n_train: int = 256,
    n_test: int = 100,
    **settings,
) -> list[dict]:
    """Learn a mask of each published size, and judge it as the post does and on prompts with other
    words.

    Args:
        spliced: the lab of the post, with its SAEs.
        circuits: from `published_circuits`. Those whose task this course does not have are left
            out.
        n_train, n_test: prompts to learn on, and to judge on.
        settings: of `learn_masks`.

    Returns:
        A row for each: nodes and F(C) / F(S), published and ours (with its 95 % interval over
        prompts).
    """
    rows = []
    for circuit in circuits:
        if circuit.task not in available_tasks():
            continue
        train, test = (
            load_task(circuit.task, spliced.lab.tokenizer, split, n=n, verbose=False)
            for split, n in (("train", n_train), ("test", n_test))
        )
        means = spliced.patch_means(train.patch)
        learned = learn_masks(spliced, train, means=means, n_nodes=circuit.nodes, **settings)
        found = faithfulness(
            spliced, test, learned.masks, means, against=references(spliced, test, means)
        )
        rows.append(
            {"behaviour": circuit.behaviour, "nodes, published": circuit.nodes, "F(C)/F(S), published": circuit.faithfulness,
             "nodes, ours": learned.n_nodes, "F(C)/F(S), ours": str(found.raw), "prompts": found.n}
        )  # fmt: skip
    return rows
