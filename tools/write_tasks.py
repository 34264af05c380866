"""Write the task files, data/tasks/<task>_<split>.jsonl: ``python -m tools.write_tasks``.

The same seed gives the same files, byte by byte; a test compares them with those that are there.
"""

from __future__ import annotations

from pathlib import Path

from course_utils.prompts.facts import FACTS, fact_pairs
from course_utils.prompts.grammar import GENERATORS, VOCABULARIES, generate_pairs
from course_utils.prompts.tasks import TASKS_DIR, write_pairs

SIZES = {"train": 600, "dev": 300, "test": 300}
PAIRS_OF_A_NOUN = 6
"""``sva_simple`` is a noun in one of two numbers with one of three verbs: there are no more."""


def size_of(name: str, split: str) -> int:
    """How many prompt pairs a task file has."""
    if name == "sva_simple":
        return min(SIZES[split], PAIRS_OF_A_NOUN * len(VOCABULARIES[split].people))
    return SIZES[split]


def write_tasks(folder: Path = TASKS_DIR) -> None:
    """Write every task file into ``folder``."""
    for name in (*GENERATORS, *FACTS):
        for split in SIZES:
            if name in FACTS:
                pairs = fact_pairs(name, split, SIZES[split])
            else:
                pairs = generate_pairs(name, split, size_of(name, split))
            path = folder / f"{name}_{split}.jsonl"
            write_pairs(pairs, path)
            print(f"{path.name}: {len(pairs)} pairs")


if __name__ == "__main__":
    write_tasks()
