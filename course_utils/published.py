"""The circuits of "Scaling Sparse Feature Circuit Finding to Gemma 9B" (Caples et al. 2025), and ours of the same sizes beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from course_utils.evaluate import faithfulness, references
from course_utils.optimize import learn_masks
from course_utils.splice import SplicedModel
from course_utils.tasks import available_tasks, load_task

PUBLISHED_DIR = Path(__file__).resolve().parent.parent / "data" / "published"


@dataclass(frozen=True)
class PublishedCircuit:
    """A row of the post: a behaviour, the task of this course that is made like the post's, the size of a circuit in nodes,
    and its faithfulness F(C) / F(S)."""

    task: str
    behaviour: str
    nodes: int
    faithfulness: float


def published_circuits(lab_name: str) -> list[PublishedCircuit]:
    """The post's circuits for a lab; none where it has none."""
    path = PUBLISHED_DIR / f"{lab_name}.json"
    return [PublishedCircuit(**row) for row in json.loads(path.read_text())] if path.exists() else []


def beside_published(spliced: SplicedModel, circuits: list[PublishedCircuit], *, n_train: int = 256, n_test: int = 100, **settings) -> list[dict]:
    """Learn a mask of each published size, and judge it as the post does and on prompts with other words.

    Args:
        spliced: the lab of the post, with its SAEs.
        circuits: from `published_circuits`. Those whose task this course does not have are left out.
        n_train, n_test: prompts to learn on, and to judge on.
        settings: of `learn_masks`.

    Returns:
        A row for each: nodes and F(C) / F(S), published and ours (with its 95 % interval over prompts).
    """
    rows = []
    for circuit in circuits:
        if circuit.task not in available_tasks():
            continue
        train, test = (
            load_task(circuit.task, spliced.lab.tokenizer, split, n=n, verbose=False) for split, n in (("train", n_train), ("test", n_test))
        )
        means = spliced.patch_means(train.patch)
        learned = learn_masks(spliced, train, means=means, n_nodes=circuit.nodes, **settings)
        found = faithfulness(spliced, test, learned.masks, means, against=references(spliced, test, means))
        rows.append(
            {"behaviour": circuit.behaviour, "nodes, published": circuit.nodes, "F(C)/F(S), published": circuit.faithfulness,
             "nodes, ours": learned.n_nodes, "F(C)/F(S), ours": str(found.raw), "prompts": found.n}
        )  # fmt: skip
    return rows
