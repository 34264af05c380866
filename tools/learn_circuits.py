"""Learn the circuits of notebook 06, rank its nodes by attribution, and write both to
``data/masks``: ``python -m tools.learn_circuits``.

On a CPU these take longer than a reader waits, so the notebook reads them and makes them again on
request. Nodes are scored on some of the training prompts that masks are learned on. Sizes, settings
and the variant of attribution are chosen on dev. What is there is not made again: delete the file
to start afresh.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.frontier import MASKS_DIR
from course_utils.circuits.masks import load_circuits, save_circuits
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import load_lab
from course_utils.prompts.tasks import load_task
from course_utils.studies.dictionaries import CIRCUITS, LEARNING, N_LEARN, N_SCORED, SCORING
from course_utils.studies.ranking import best_ranking


def circuits_path(task: str, lab: str = "qwen-coder") -> Path:
    """Where a task's circuits are."""
    return MASKS_DIR / task / f"circuits_{lab}.json"


def ranking_path(task: str, lab: str = "qwen-coder") -> Path:
    """Where the ranking of a task's nodes is."""
    return MASKS_DIR / task / f"ranking_{lab}.json"


def learn_circuits(lab_name: str, seeds: int, n_dev: int) -> None:
    """Learn all circuits that are not there yet, and say how good each is on dev."""
    lab = load_lab(lab_name)
    spliced = SplicedModel(lab)
    for task, sizes in CIRCUITS.items():
        path = circuits_path(task, lab_name)
        circuits = load_circuits(path) if path.exists() else {}
        train = load_task(task, lab.tokenizer, "train", n=N_LEARN)
        means = spliced.patch_means(train.patch)
        on_dev = Evaluation(spliced, load_task(task, lab.tokenizer, "dev", n=n_dev), means)
        for seed, size in itertools.product(range(seeds), sizes):
            if (size, seed) in circuits:
                continue
            begin = time.perf_counter()
            learned = learn_masks(
                spliced, train, means=means, n_nodes=size, seed=seed, progress=False, **LEARNING
            )
            circuits[size, seed] = learned.masks
            save_circuits(circuits, path)
            found = on_dev.faithfulness(learned.masks)
            print(
                f"{task}, {size} wanted, seed {seed}: {learned.n_nodes} nodes, F "
                f"{found.vs_spliced}, gap {found.gap}, {time.perf_counter() - begin:.0f} s",
                flush=True,
            )


def rank_nodes(lab_name: str, n_dev: int) -> None:
    """Rank the nodes of all tasks that have no ranking yet."""
    lab = load_lab(lab_name)
    spliced = SplicedModel(lab)
    for task, sizes in CIRCUITS.items():
        path = ranking_path(task, lab_name)
        if path.exists():
            continue
        begin = time.perf_counter()
        train = load_task(task, lab.tokenizer, "train", n=N_LEARN)
        dev = load_task(task, lab.tokenizer, "dev", n=n_dev)
        means = spliced.patch_means(train.patch)
        found = best_ranking(
            spliced, train[:N_SCORED], dev, means=means, sizes=sizes, progress=True, **SCORING
        )
        found.save(path)
        seconds = time.perf_counter() - begin
        print(f"{task}: {found.variant}, gaps on dev {found.gaps}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="qwen-coder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dev", type=int, default=32, help="dev prompts to judge on")
    parser.add_argument("--only-rank", action="store_true", help="learn no circuits")
    arguments = parser.parse_args()
    if not arguments.only_rank:
        learn_circuits(arguments.lab, arguments.seeds, arguments.dev)
    rank_nodes(arguments.lab, arguments.dev)
