"""Write every task file under data/tasks/: ``python -m tools.write_tasks``."""

from __future__ import annotations

from course_utils.prompts.grammar import GENERATORS, VOCABULARIES, generate_pairs
from course_utils.prompts.tasks import TASKS_DIR, write_pairs

SIZES = {"train": 600, "test": 300}


def main() -> None:
    """Write every task file under data/tasks/ (``python -m tools.write_tasks``)."""
    for name in GENERATORS:
        for split, size in SIZES.items():
            size = min(size, 6 * len(VOCABULARIES[split].people)) if name == "sva_simple" else size
            path = TASKS_DIR / f"{name}_{split}.jsonl"
            write_pairs(generate_pairs(name, split, size), path)
            print(f"{path.name}: {size} pairs")


if __name__ == "__main__":
    main()
