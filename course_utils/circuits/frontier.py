"""The frontier: how faithful circuits of each size are, by how they were found.

A point is one circuit. A method may have several at one size, one for each seed. Points that
`judge` adds keep the logit difference of every prompt, so that two methods can be compared prompt
by prompt later, from the file, with no model at hand. Every interval here is over prompts. How much
another seed would change is seen from the seeds themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils import DATA
from course_utils.circuits.evaluate import (
    LOWER_IS_BETTER,
    MEASURES,
    Evaluation,
    Faithfulness,
    Reference,
    area_intervals,
    nodes_per_layer,
    paired_difference,
    seed_mean,
)
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import N_BOOTSTRAP, Interval
from course_utils.prompts.tasks import Task

MASKS_DIR = DATA / "masks"
DECIMALS = 4
"""Of the logit differences that a frontier keeps."""


@dataclass(frozen=True)
class Point:
    """One circuit on the frontier.

    Attributes:
        method: how it was found.
        n_nodes: how many nodes it has; 0 is a circuit too.
        faithfulness: on held-out prompts, with intervals over prompts.
        per_layer: how many nodes each hook point has.
        sparsity: λ, for a learned mask.
        seed: of the method, where it has one.
        wanted: how many nodes were asked for, where a size was asked. Another seed may have given
            a node more or less.
        logit_diffs: of every prompt, to 4 decimals, where they were kept.
    """

    method: str
    n_nodes: int
    faithfulness: Faithfulness
    per_layer: dict[str, int]
    sparsity: float | None = None
    seed: int | None = None
    wanted: int | None = None
    logit_diffs: list[float] | None = None

    @property
    def size(self) -> int:
        """By which points are compared: the size that was asked for, or else ``n_nodes``."""
        return self.n_nodes if self.wanted is None else self.wanted


@dataclass(frozen=True)
class Areas:
    """A method's faithfulness summed up over the sizes that it has points at.

    Attributes:
        cpr, cmd: with 95 % intervals over prompts; seeds are averaged.
        best_cpr: the CPR of circuits that are as good as the spliced model at every size: the
            largest fraction minus the smallest; 1 with ``log``. (The best CMD is 0.)
        fractions: the sizes, as fractions of all nodes.
    """

    cpr: Interval
    cmd: Interval
    best_cpr: float
    fractions: list[float]


@dataclass
class Frontier:
    """Nodes against faithfulness, for one task and one spliced model. Saved as JSON.

    Attributes:
        task, lab, layers, error: what the circuits are circuits of.
        points: the circuits.
        model, spliced_model, empty: logit differences of every prompt, to 4 decimals, of what the
            circuits are compared with. None until `judge` adds the first point.
    """

    task: str
    lab: str
    layers: list[int]
    error: str
    points: list[Point] = field(default_factory=list)
    model: list[float] | None = None
    spliced_model: list[float] | None = None
    empty: list[float] | None = None

    @classmethod
    def of(cls, spliced: SplicedModel, task: Task) -> Frontier:
        """An empty frontier of this model on this task."""
        return cls(task.name, spliced.lab.name, list(spliced.layers), spliced.error)

    # -- points --------------------------------------------------------------------------------

    def judge(
        self,
        method: str,
        masks: SAEMasks,
        evaluation: Evaluation,
        *,
        sparsity: float | None = None,
        seed: int | None = None,
        wanted: int | None = None,
    ) -> Point:
        """Judge a circuit and add it, with the logit difference of every prompt.

        Args:
            method: how it was found.
            masks: the circuit.
            evaluation: of the held-out prompts; the same prompts and means for all points.
            sparsity, seed, wanted: see `Point`.

        Raises:
            ValueError: the points before it were judged on other prompts or with other means.
        """
        self._keep(evaluation.reference)
        logit_diffs = evaluation.logit_diff(masks)
        return self.add(
            method,
            masks,
            Faithfulness.of(logit_diffs, **vars(evaluation.reference)),
            sparsity=sparsity,
            seed=seed,
            wanted=wanted,
            logit_diffs=logit_diffs,
        )

    def _keep(self, reference: Reference) -> None:
        """Keep what the circuits are compared with, or see that it is what is kept."""
        if self.model is None:
            self.model = _rounded(reference.model)
            self.spliced_model = _rounded(reference.spliced_model)
            self.empty = _rounded(reference.empty)
            return
        for name, kept in vars(self.reference).items():
            row = getattr(reference, name).cpu().double()
            if row.shape != kept.shape or not torch.allclose(row, kept, rtol=0, atol=1e-3):
                raise ValueError(
                    f"this frontier has points that were judged on other prompts, or with other "
                    f"means ({name} differs): put these into a frontier of their own."
                )

    def add(
        self,
        method: str,
        masks: SAEMasks,
        faithfulness: Faithfulness,
        *,
        sparsity: float | None = None,
        seed: int | None = None,
        wanted: int | None = None,
        logit_diffs: Float[Tensor, " n"] | None = None,
    ) -> Point:
        """Add a circuit, and how faithful it is on held-out prompts. (`judge` does both, and keeps
        what comparisons need.)

        Raises:
            ValueError: logit differences of another number of prompts than the faithfulness.
        """
        if logit_diffs is not None and len(logit_diffs) != faithfulness.n:
            raise ValueError(
                f"faithfulness over {faithfulness.n} prompts, and logit differences of "
                f"{len(logit_diffs)}: they should be of the same prompts."
            )
        point = Point(
            method=method,
            n_nodes=masks.get_num_latents(),
            faithfulness=faithfulness,
            per_layer=nodes_per_layer(masks),
            sparsity=sparsity,
            seed=seed,
            wanted=wanted,
            logit_diffs=None if logit_diffs is None else _rounded(logit_diffs),
        )
        self.points.append(point)
        return point

    @property
    def methods(self) -> list[str]:
        """In the order in which they were added."""
        return list(dict.fromkeys(point.method for point in self.points))

    def of_method(self, method: str) -> list[Point]:
        """A method's points, from few nodes to many; at one size, in the order of adding."""
        points = [point for point in self.points if point.method == method]
        return sorted(points, key=lambda point: (point.size, point.n_nodes))

    def by_size(self, method: str) -> dict[int, list[Point]]:
        """A method's points at each size, from few nodes to many: one for each seed."""
        groups: dict[int, list[Point]] = {}
        for point in self.of_method(method):
            groups.setdefault(point.size, []).append(point)
        return groups

    def shared_sizes(self, methods: Iterable[str]) -> list[int]:
        """The sizes, above 0, at which each of these methods has a point."""
        sizes = [set(self.by_size(method)) for method in methods]
        return sorted(set.intersection(*sizes) - {0}) if sizes else []

    def seed_range(self, method: str, n_nodes: int, measure: str) -> tuple[float, float]:
        """The smallest and the largest value of a measure among a method's seeds at one size.

        Raises:
            ValueError: the method has no point of this size.
        """
        points = self._points_at(method, n_nodes)
        values = [getattr(point.faithfulness, measure).value for point in points]
        return min(values), max(values)

    def _points_at(self, method: str, n_nodes: int) -> list[Point]:
        groups = self.by_size(method)
        if n_nodes not in groups:
            raise ValueError(
                f"{method!r} has no point of {n_nodes} nodes; it has points of {list(groups)}."
            )
        return groups[n_nodes]

    def rows(self) -> list[dict[str, object]]:
        """A table: one row a point, ready for ``pandas.DataFrame``. Intervals are over prompts."""
        return [
            {
                "method": point.method,
                "nodes": point.n_nodes,
                **{name: str(getattr(point.faithfulness, name)) for name in MEASURES},
                "F(C)": round(point.faithfulness.f_circuit, 3),
                "sparsity": point.sparsity,
                "seed": point.seed,
            }
            for method in self.methods
            for point in self.of_method(method)
        ]

    # -- comparisons, over the same prompts ----------------------------------------------------

    @property
    def reference(self) -> Reference:
        """What the circuits are compared with.

        Raises:
            ValueError: no point was added by `judge`.
        """
        rows = (self.model, self.spliced_model, self.empty)
        model, spliced_model, empty = (_tensor(row) for row in rows)
        return Reference(model, spliced_model, empty)

    def logit_diffs(self, method: str, n_nodes: int) -> Float[Tensor, "seeds n"]:
        """The logit difference of every prompt, a row for each of a method's seeds at one size.

        Raises:
            ValueError: no point of this size, or one that `judge` did not add.
        """
        points = self._points_at(method, n_nodes)
        return torch.stack([_tensor(point.logit_diffs) for point in points])

    def mean(
        self, method: str, n_nodes: int, measure: str, *, n_bootstrap: int = N_BOOTSTRAP
    ) -> Interval:
        """A measure's mean over a method's seeds at one size, with its 95 % interval over prompts.

        Raises:
            ValueError: an unknown measure; no point of this size, or one that `judge` did not add.
        """
        circuits = self.logit_diffs(method, n_nodes)
        return seed_mean(circuits, measure, self.reference, n_bootstrap=n_bootstrap)

    def compare(
        self,
        method_a: str,
        method_b: str,
        n_nodes: int,
        measure: str,
        *,
        n_bootstrap: int = N_BOOTSTRAP,
    ) -> Interval:
        """A measure of a minus that of b at one size, each the mean over all of its seeds.

        The 95 % interval is over prompts, the same draws for both; see
        `evaluate.paired_difference`. For ``distance`` and ``gap``, below 0 = a is better.

        Raises:
            ValueError: an unknown measure; a method without a point of this size, or with one that
                `judge` did not add.
        """
        a, b = (self.logit_diffs(method, n_nodes) for method in (method_a, method_b))
        return paired_difference(a, b, measure, self.reference, n_bootstrap=n_bootstrap)

    def differences(
        self,
        method: str,
        measure: str,
        rivals: Iterable[str] | None = None,
        *,
        n_bootstrap: int = N_BOOTSTRAP,
    ) -> dict[str, dict[int, Interval]]:
        """`compare` the method with each rival, at every size that both have.

        Args:
            method: the first of each pair: below 0, it has less of the measure.
            measure: one of `evaluate.MEASURES`.
            rivals: by default all other methods.

        Returns:
            By rival, by size, the paired difference with its 95 % interval over prompts.

        Raises:
            ValueError: an unknown measure or method; a point that `judge` did not add.
        """
        rivals = self.rivals_of(method, rivals)
        return {
            rival: {
                size: self.compare(method, rival, size, measure, n_bootstrap=n_bootstrap)
                for size in self.shared_sizes([method, rival])
            }
            for rival in rivals
        }

    def rivals_of(self, method: str, rivals: Iterable[str] | None = None) -> list[str]:
        """Whom to compare a method with: these, or by default all other methods.

        Raises:
            ValueError: a method that has no point.
        """
        names = [other for other in self.methods if other != method]
        rivals = names if rivals is None else list(rivals)
        for name in (method, *rivals):
            if name not in self.methods:
                raise ValueError(f"no method is called {name!r}; there are {self.methods}.")
        return rivals

    def wins(
        self, method: str, measure: str, rivals: Iterable[str] | None = None
    ) -> dict[str, dict[str, list[int]]]:
        """At which sizes the method is surely better than each rival, surely worse, or neither.

        "Surely": the 95 % interval of the paired difference, over prompts, lies on one side of 0.
        Each interval stands for itself: of forty comparisons between methods that do not differ,
        two are expected to fall outside, one on either side. "Level" says that these prompts do not
        tell the two apart, and not that they are equal.

        Args:
            method: whose wins.
            measure: ``"gap"`` or ``"distance"``, which are better when they are lower.
            rivals: by default all other methods.

        Returns:
            By rival, the sizes under ``"better"``, ``"worse"`` and ``"level"``.

        Raises:
            ValueError: another measure, an unknown method, a point that `judge` did not add.
        """
        if measure not in LOWER_IS_BETTER:
            raise ValueError(
                f"{measure!r} does not say which circuit is better; "
                f"{' and '.join(LOWER_IS_BETTER)} do."
            )
        return {
            rival: {
                "better": [size for size, difference in by_size.items() if difference.high < 0],
                "worse": [size for size, difference in by_size.items() if difference.low > 0],
                "level": [
                    size
                    for size, difference in by_size.items()
                    if not (difference.high < 0 or difference.low > 0)
                ],
            }
            for rival, by_size in self.differences(method, measure, rivals).items()
        }

    def areas(
        self,
        method: str,
        n_all: int,
        *,
        sizes: Iterable[int] | None = None,
        log: bool = False,
        n_bootstrap: int = N_BOOTSTRAP,
    ) -> Areas:
        """CPR and CMD of a method over the sizes that it has points at (see `evaluate.areas`).

        Compare methods over the same sizes only: give `shared_sizes`. MIB's own numbers are over
        sizes from 0.001 to 1 of all nodes.

        Args:
            method: whose points.
            n_all: how many nodes fire; sizes are fractions of them.
            sizes: by default all that the method has points at; 0 is left out.
            log: over ln k, so that small circuits count as much as large ones.
            n_bootstrap: draws for the intervals, over prompts.

        Raises:
            ValueError: fewer than two sizes, or one above ``n_all``; a size without a point; a
                point that `judge` did not add.
        """
        sizes = sorted(set(self.by_size(method) if sizes is None else sizes) - {0})
        fractions = [size / n_all for size in sizes]
        circuits = [self.logit_diffs(method, size) for size in sizes]
        cpr, cmd = area_intervals(
            fractions, circuits, self.reference, log=log, n_bootstrap=n_bootstrap
        )
        return Areas(cpr, cmd, 1.0 if log else fractions[-1] - fractions[0], fractions)

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: str | Path | None = None) -> Path:
        """Write as JSON, by default to ``data/masks/<task>/frontier_<lab>.json``."""
        path = Path(path or MASKS_DIR / self.task / f"frontier_{self.lab}.json").expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        path.write_text(_NUMBERS.sub(lambda found: _in_one_line(found[0]), text) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Frontier:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no frontier; the message names it.
        """
        try:
            record = json.loads(Path(path).expanduser().read_text())
            points = [
                Point(**{**point, "faithfulness": _faithfulness_from(point["faithfulness"])})
                for point in record.pop("points")
            ]
            return cls(**record, points=points)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no frontier: {error}") from error


_NUMBERS = re.compile(r"\[[-\d.,\seE+]*\]")
"""A list of numbers in JSON."""


def _in_one_line(numbers: str) -> str:
    return "".join(numbers.split()).replace(",", ", ")


def _rounded(row: Float[Tensor, " n"]) -> list[float]:
    return [round(x, DECIMALS) for x in row.cpu().double().tolist()]


def _tensor(row: list[float] | None) -> Float[Tensor, " n"]:
    if row is None:
        raise ValueError(
            "the logit differences of the prompts were not kept, so nothing can be compared prompt "
            "by prompt: add the points with `Frontier.judge`."
        )
    return torch.tensor(row, dtype=torch.double)


def _faithfulness_from(record: dict) -> Faithfulness:
    intervals = {
        name: Interval(**record[name])
        for name in MEASURES
        if name != "distance"  # made of vs_spliced
    }
    return Faithfulness(**{**record, **intervals})


def score_frontier(
    frontier: Frontier,
    method: str,
    scores: Mapping[str, Float[Tensor, "seq d_sae"]],
    sizes: Iterable[int],
    evaluation: Evaluation,
    *,
    rank: str = "abs",
    seed: int | None = None,
) -> list[Point]:
    """Cut circuits of several sizes from one set of scores, judge each and add it to the frontier.

    For a method with several seeds, call it with the scores of each.

    Args:
        frontier: gets a point for each size.
        method: the name of what made the scores.
        scores: one score a node, by hook point.
        sizes: numbers of nodes; 0 is allowed.
        evaluation: judges the circuits.
        rank: ``"abs"`` (largest |score| first) or ``"signed"`` (largest score first).
        seed: noted with each point.

    Returns:
        The new points, in the order of ``sizes``.
    """
    return [
        frontier.judge(
            method,
            SAEMasks.from_scores(scores, size, rank=rank),
            evaluation,
            seed=seed,
            wanted=size,
        )
        for size in sizes
    ]


# ---------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------

SAID_OF_MEASURES = {"gap": "the gap", "distance": "|1 − F| against F(S)"}
"""What a sentence calls the measures that are better when they are lower."""


def summary_sentence(
    frontier: Frontier,
    method: str,
    rivals: Sequence[str] | None = None,
    measures: Sequence[str] = ("gap", "distance"),
) -> str:
    """Where a method beats its rivals, in words that are made from the numbers (`Frontier.wins`).

    One sentence for the prompts and seeds, one for each measure, one for what the verbs mean.
    Rivals with the same verdict share their words.

    Args:
        method: who is spoken of.
        rivals: by default all other methods.
        measures: of ``"gap"`` and ``"distance"``, in order.

    Raises:
        ValueError: as in `Frontier.wins`, or no rival.
    """
    rivals = frontier.rivals_of(method, rivals)
    if not rivals:
        raise ValueError(f"{method!r} has no rival on this frontier to be compared with.")
    sentences = [_setting(frontier, [method, *rivals])]
    for measure in measures:
        rivals_with: dict[str, list[str]] = {}
        for rival, sizes in frontier.wins(method, measure, rivals).items():
            rivals_with.setdefault(_verdict(**sizes), []).append(rival)
        said = [verdict.format(_listed(names)) for verdict, names in rivals_with.items()]
        sentences.append(f"By {SAID_OF_MEASURES[measure]}, {method} {'; '.join(said)}.")
    sentences.append(
        "(Beats, loses: the 95 % interval of the paired difference, over prompts, is clear of 0. "
        "Level: it is not.)"
    )
    return " ".join(sentences)


def _setting(frontier: Frontier, methods: Sequence[str]) -> str:
    """On what the methods were compared: task, prompts, seeds."""
    methods_with: dict[str, list[str]] = {}
    for method in methods:
        methods_with.setdefault(_said_of_seeds(frontier.by_size(method)), []).append(method)
    groups = sorted(methods_with.items(), key=lambda group: group[0] == ONE_SEED)  # these last
    seeds = [f"{n} of {_listed(names)}" for n, names in groups]
    n, names = groups[-1]
    if len(groups) == 1:
        seeds = [f"{n} of each method"]
    elif n == ONE_SEED and len(names) > 2:
        seeds[-1] = f"{n} of each other method"
    n_prompts = frontier.points[0].faithfulness.n
    return f"{frontier.task}, {n_prompts} prompts, {', '.join(seeds)}."


ONE_SEED = "one seed"


def _said_of_seeds(by_size: Mapping[int, Sequence[Point]]) -> str:
    """How many seeds a method has at a size."""
    counts = [len({point.seed for point in points}) for points in by_size.values()]
    if max(counts) == 1:
        return ONE_SEED
    return f"{max(counts)} seeds" if min(counts) == max(counts) else f"up to {max(counts)} seeds"


def _verdict(better: Sequence[int], worse: Sequence[int], level: Sequence[int]) -> str:
    """At which sizes a method beats its rivals, is level and loses, with ``{}`` for the rivals."""
    everywhere = _everywhere([*better, *level, *worse])
    if not level and not worse:
        return f"beats {{}} {everywhere}" if better else "shares no size with {}"
    if not better and not worse:
        return f"is level with {{}} {everywhere}"
    if not better and not level:
        return f"loses to {{}} {everywhere}"
    parts = [f"beats {{}} {_at(better)}"]
    if level:
        parts.append(f"is level {_at(level, named=not better)}")
    parts.append(f"loses {_at(worse, named=False)}")
    return _listed(parts)


def _everywhere(sizes: Sequence[int]) -> str:
    if len(sizes) < 2:
        return _at(sizes)
    if len(sizes) == 2:
        return f"at both sizes ({min(sizes):,} and {max(sizes):,} nodes)"
    return f"at all {len(sizes)} sizes ({min(sizes):,} to {max(sizes):,} nodes)"


def _at(sizes: Sequence[int], *, named: bool = True) -> str:
    """``at 12 and 17 nodes``; without the last word where it was said before."""
    if not sizes:
        return "nowhere"
    unit = " node" if list(sizes) == [1] else " nodes"
    return f"at {_listed([f'{size:,}' for size in sizes])}{unit if named else ''}"


def _listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
