"""Attribution at its best, as one ranking of nodes: the rival of a learned mask.

Scoring all nodes of a large model takes longer than a reader waits, so rankings come with the
course, as circuits do. Nodes are scored on training prompts; which variant is the best is chosen on
dev.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from course_utils.circuits.attribution import Scores, variants
from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.masks import Node, SAEMasks, only
from course_utils.circuits.splice import PatchMeans, SplicedModel
from course_utils.prompts.tasks import Task

N_KEPT = 500
"""How many nodes a ranking keeps."""


@dataclass(frozen=True)
class Ranking:
    """Nodes by attribution, the best first.

    Attributes:
        variant: how they were scored, such as ``"IG to means, |mean|"``.
        gaps: of every variant that was tried, the gap of its circuits on dev, a mean over sizes.
        n_prompts, n_dev: training prompts that scored, dev prompts that chose the variant.
        steps: points on IG's path.
        nodes: the best `N_KEPT` by the chosen variant.
    """

    variant: str
    gaps: dict[str, float]
    n_prompts: int
    n_dev: int
    steps: int
    nodes: list[Node]

    def circuit(self, n_nodes: int, shapes: Mapping[str, Tensor]) -> SAEMasks:
        """The best nodes, as masks of the shapes of some tensors, ``[seq, d_sae]`` by hook point.

        Raises:
            ValueError: more nodes than the ranking keeps.
        """
        if n_nodes > len(self.nodes):
            raise ValueError(f"{n_nodes} nodes are wanted, and this ranking has {len(self.nodes)}.")
        return only(SAEMasks.full(dict(shapes), 0.0), self.nodes[:n_nodes])

    def save(self, path: Path) -> None:
        """Write it as JSON, for `load`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Ranking:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file holds something else.
        """
        record = json.loads(Path(path).read_text())
        try:
            nodes = [(name, position, latent) for name, position, latent in record.pop("nodes")]
            return cls(**record, nodes=nodes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no ranking: {error}") from error


def best_ranking(
    spliced: SplicedModel,
    train: Task,
    dev: Task,
    *,
    means: PatchMeans,
    sizes: Iterable[int],
    steps: int = 10,
    progress: bool = False,
) -> Ranking:
    """Score all nodes in all of `attribution.variants`, and rank them by the one with the smallest
    gap on dev.

    Args:
        train: scores the nodes.
        dev: chooses the variant.
        means: of the patch prompts of training.
        sizes: the gap is a mean over circuits of these sizes.
        steps: points on IG's path.
    """
    sizes = list(sizes)
    on_dev = Evaluation(spliced, dev, means)
    scores = variants(spliced, train, means=means, steps=steps, progress=progress)
    gaps = {}
    for variant, score in scores.items():
        cuts = [SAEMasks.from_scores(score, n, rank="signed") for n in sizes]
        found = [on_dev.faithfulness(one, n_bootstrap=1).gap.value for one in cuts]
        gaps[variant] = round(sum(found) / len(found), 4)
    best = min(gaps, key=gaps.__getitem__)
    return Ranking(best, gaps, len(train), len(dev), steps, _in_order(scores[best]))


def _in_order(scores: Scores) -> list[Node]:
    """The nodes with the largest scores, the largest first."""
    flat = torch.cat([score.detach().flatten() for score in scores.values()])
    nodes: list[Node] = []
    for index in flat.topk(min(N_KEPT, len(flat))).indices.tolist():
        for name, score in scores.items():
            if index < score.numel():
                position, latent = divmod(index, score.shape[-1])
                nodes.append((name, position, latent))
                break
            index -= score.numel()
    return nodes
