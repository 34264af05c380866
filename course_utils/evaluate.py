"""How good is a circuit? Faithfulness on held-out prompts, with intervals, and the frontier.

Four logit differences, each a mean over prompts: F(M) the model, F(S) the model with SAEs spliced, F(C)
the circuit, F(∅) every latent ablated. *Faithfulness* is how far from nothing to everything the circuit
gets, and papers differ in what they call nothing and everything. All three are reported, by name:

    vs_model    (F(C) − F(∅)) / (F(M) − F(∅))    Wang et al. 2022, Marks et al. 2024
    vs_spliced  (F(C) − F(∅)) / (F(S) − F(∅))    charges the circuit nothing for what the SAEs lose
    raw         F(C) / F(S)                      the post: F(∅) is taken to be 0

All three compare means over prompts, so that a circuit which is too sure of one prompt and too unsure of
the next can score 1. The *gap* cannot be fooled so: it is what a learned mask minimises, per prompt,

    gap         mean |LD_C − LD_S| / mean |LD_∅ − LD_S|    0 = the same on every prompt, 1 = as far off as nothing
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.masks import SAEMasks
from course_utils.splice import PatchMeans, SplicedModel, Start
from course_utils.tasks import Task

MASKS_DIR = Path(__file__).resolve().parent.parent / "data" / "masks"
NORMALISATIONS = ("vs_model", "vs_spliced", "raw")
MEASURES = (*NORMALISATIONS, "gap")


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_interval(values: Float[Tensor, " n"], *, n_bootstrap: int = 1000, seed: int = 0) -> Interval:
    """The mean over prompts, with its 95 % percentile interval over ``n_bootstrap`` resamples of the prompts.

    Of the difference of two conditions on the same prompts, give the differences prompt by prompt: what makes prompts
    unlike one another then cancels.
    """
    values = values.detach().double().cpu()
    samples = torch.randint(len(values), (n_bootstrap, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[samples].mean(-1).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Interval(values.mean().item(), low, high)


@dataclass(frozen=True)
class Faithfulness:
    """The three faithfulnesses of one circuit, and the mean logit differences they are made of.

    0 = no better than ablating every latent; 1 = as good as the model (or the spliced model); above 1,
    the circuit is surer than the model. ``gap`` compares prompt by prompt: 0 is best. ``n`` prompts.
    """

    vs_model: Interval
    vs_spliced: Interval
    raw: Interval
    gap: Interval
    f_model: float
    f_spliced: float
    f_circuit: float
    f_empty: float
    n: int


@dataclass(frozen=True)
class References:
    """F(M), F(S) and F(∅) for every prompt, ``[n]``: the same for every circuit, so computed once.

    ``start`` is what comes before the first SAE, which circuits share too.
    """

    model: Float[Tensor, " n"]
    spliced: Float[Tensor, " n"]
    empty: Float[Tensor, " n"]
    start: Start | None = field(default=None, repr=False)


def references(spliced: SplicedModel, task: Task, means: PatchMeans) -> References:
    """What every circuit of this spliced model is compared with on these prompts."""
    empty = SAEMasks.full(means.latents, 0.0)
    start = spliced.start(task.clean, lengths=task.lengths)
    return References(
        model=spliced.model_logit_diff(task),
        spliced=spliced.logit_diff(task, means=means, start=start),
        empty=spliced.logit_diff(task, masks=empty, means=means, start=start),
        start=start,
    )


def faithfulness(
    spliced: SplicedModel,
    task: Task,
    masks: SAEMasks,
    means: PatchMeans,
    *,
    against: References | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Faithfulness:
    """Faithfulness of the circuit ``masks`` on the prompts of ``task``; hold them out from training.

    Args:
        means: the patch means that the circuit was found with (of the training prompts).
        against: `references`, if they are at hand.
        n_bootstrap: resamples of the prompts for the 95 % percentile intervals.
    """
    against = against or references(spliced, task, means)
    circuit = spliced.logit_diff(task, masks=masks, means=means, start=against.start)
    rows = [against.model, against.spliced, circuit, against.empty]
    table = torch.stack([row.double().cpu() for row in rows])  # [4, n]
    n = table.shape[1]
    samples = torch.randint(n, (n_bootstrap, n), generator=torch.Generator().manual_seed(seed))
    table = torch.cat([table, (table[2:] - table[1]).abs()])  # two rows more: |LD_C − LD_S| and |LD_∅ − LD_S|
    resampled = _ratios(table[:, samples].mean(-1))  # [4, n_bootstrap]
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.double), dim=-1)
    value = _ratios(table.mean(-1))
    intervals = [Interval(*(float(x[i]) for x in (value, low, high))) for i in range(len(MEASURES))]
    f_model, f_spliced, f_circuit, f_empty, *_ = table.mean(-1).tolist()
    return Faithfulness(*intervals, f_model=f_model, f_spliced=f_spliced, f_circuit=f_circuit, f_empty=f_empty, n=n)


def _ratios(means: Float[Tensor, "6 *samples"]) -> Float[Tensor, "4 *samples"]:
    model, spliced, circuit, empty, off, off_empty = means
    return torch.stack([(circuit - empty) / (model - empty), (circuit - empty) / (spliced - empty), circuit / spliced, off / off_empty])


def nodes_per_layer(masks: SAEMasks) -> dict[str, int]:
    """How many nodes each hook point has in the circuit."""
    return {hook_point: int((mask > 0).sum()) for hook_point, mask in masks.items()}


# ---------------------------------------------------------------------------------------------
# The frontier
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One circuit on the frontier: how it was found, how large it is, how faithful on held-out prompts."""

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

    def add(self, method: str, masks: SAEMasks, found: Faithfulness, *, sparsity: float | None = None, seed: int | None = None) -> Point:
        """Add a circuit."""
        point = Point(method, masks.get_num_latents(), found, nodes_per_layer(masks), sparsity, seed)
        self.points.append(point)
        return point

    @property
    def methods(self) -> list[str]:
        """In the order in which they were added."""
        return list(dict.fromkeys(point.method for point in self.points))

    def of_method(self, method: str) -> list[Point]:
        """A method's points, from few nodes to many."""
        return sorted((point for point in self.points if point.method == method), key=lambda point: point.n_nodes)

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
                Point(**{**point, "faithfulness": _faithfulness_from(point["faithfulness"])}) for point in record.pop("points")
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
        points.append(frontier.add(method, masks, faithfulness(spliced, task, masks, means, against=against), seed=seed))
    return points
