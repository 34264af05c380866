"""The frontier: how faithful circuits of each size are, by how they were found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from course_utils import DATA
from course_utils.circuits.evaluate import (
    MEASURES,
    Faithfulness,
    References,
    faithfulness,
    nodes_per_layer,
    references,
)
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import PatchMeans, SplicedModel
from course_utils.circuits.statistics import Interval
from course_utils.prompts.tasks import Task

MASKS_DIR = DATA / "masks"


@dataclass(frozen=True)
class Point:
    """One circuit on the frontier: how it was found, how large it is, how faithful on held-out
    prompts.
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
        found: Faithfulness,
        *,
        sparsity: float | None = None,
        seed: int | None = None,
    ) -> Point:
        """Add a circuit."""
        point = Point(
            method, masks.get_num_latents(), found, nodes_per_layer(masks), sparsity, seed
        )
        self.points.append(point)
        return point

    @property
    def methods(self) -> list[str]:
        """In the order in which they were added."""
        return list(dict.fromkeys(point.method for point in self.points))

    def of_method(self, method: str) -> list[Point]:
        """A method's points, from few nodes to many."""
        return sorted(
            (point for point in self.points if point.method == method),
            key=lambda point: point.n_nodes,
        )

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
    def load(cls, path: Path) -> Frontier:
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
    return Faithfulness(**{**record, **{name: Interval(**record[name]) for name in MEASURES}})


def score_frontier(
    frontier: Frontier,
    method: str,
    scores: dict[str, Float[Tensor, "seq d_sae"]],
    sizes: Iterable[int],
    spliced: SplicedModel,
    task: Task,
    means: PatchMeans,
    *,
    rank: str = "abs",
    against: References | None = None,
    seed: int | None = None,
) -> list[Point]:
    """Cut circuits of several sizes from one set of scores, and add each to the frontier."""
    against = against or references(spliced, task, means)
    points = []
    for size in sizes:
        masks = SAEMasks.from_scores(scores, size, rank=rank)
        points.append(
            frontier.add(
                method, masks, faithfulness(spliced, task, masks, means, against=against), seed=seed
            )
        )
    return points
