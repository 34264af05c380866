"""The frontier: how faithful circuits of each size are, by how they were found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from course_utils import DATA
from course_utils.circuits.evaluate import MEASURES, Evaluation, Faithfulness, nodes_per_layer
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import Interval
from course_utils.prompts.tasks import Task

MASKS_DIR = DATA / "masks"


@dataclass(frozen=True)
class Point:
    """One circuit on the frontier.

    Attributes:
        method: how it was found.
        n_nodes: how many nodes it has; 0 is a circuit too.
        faithfulness: on held-out prompts.
        per_layer: how many nodes each hook point has.
        sparsity: λ, for a learned mask.
        seed: of the method, where it has one.
    """

    method: str
    n_nodes: int
    faithfulness: Faithfulness
    per_layer: dict[str, int]
    sparsity: float | None = None
    seed: int | None = None


@dataclass
class Frontier:
    """Nodes against faithfulness, for one task and one spliced model. Saved as JSON."""

    task: str
    lab: str
    layers: list[int]
    error: str
    points: list[Point] = field(default_factory=list)

    @classmethod
    def of(cls, spliced: SplicedModel, task: Task) -> Frontier:
        """An empty frontier of this model on this task."""
        return cls(task.name, spliced.lab.name, list(spliced.layers), spliced.error)

    def add(
        self,
        method: str,
        masks: SAEMasks,
        faithfulness: Faithfulness,
        *,
        sparsity: float | None = None,
        seed: int | None = None,
    ) -> Point:
        """Add a circuit, and how faithful it is on held-out prompts."""
        point = Point(
            method=method,
            n_nodes=masks.get_num_latents(),
            faithfulness=faithfulness,
            per_layer=nodes_per_layer(masks),
            sparsity=sparsity,
            seed=seed,
        )
        self.points.append(point)
        return point

    @property
    def methods(self) -> list[str]:
        """In the order in which they were added."""
        return list(dict.fromkeys(point.method for point in self.points))

    def of_method(self, method: str) -> list[Point]:
        """A method's points, from few nodes to many."""
        points = [point for point in self.points if point.method == method]
        return sorted(points, key=lambda point: point.n_nodes)

    def rows(self) -> list[dict[str, object]]:
        """A table: one row a point, ready for ``pandas.DataFrame``."""
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

    def save(self, path: Path | None = None) -> Path:
        """Write as JSON, by default to ``data/masks/<task>/frontier_<lab>.json``."""
        path = path or MASKS_DIR / self.task / f"frontier_{self.lab}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Frontier:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no frontier; the message names it.
        """
        try:
            record = json.loads(Path(path).read_text())
            points = [
                Point(**{**point, "faithfulness": _faithfulness_from(point["faithfulness"])})
                for point in record.pop("points")
            ]
            return cls(**record, points=points)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no frontier: {error}") from error


def _faithfulness_from(record: dict) -> Faithfulness:
    intervals = {name: Interval(**record[name]) for name in MEASURES}
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
    """Cut circuits of several sizes from one set of scores, and add each to the frontier.

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
    points = []
    for size in sizes:
        masks = SAEMasks.from_scores(scores, size, rank=rank)
        points.append(frontier.add(method, masks, evaluation.faithfulness(masks), seed=seed))
    return points
