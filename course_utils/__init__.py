"""The helper functions of the course, in rooms; each imports only from those before it.

    labs/       models and their SAEs: which there are, where they come from, what they need
    prompts/    what a model is asked: tokens, prompt pairs, sessions, running text
    circuits/   the method: the spliced pass, masks, attribution, learning, evaluation
    studies/    what a circuit is good for: dictionaries that fool a model of code
    display/    figures, coloured text, widgets
    teaching/   exercises: the workbook, and one file per notebook

The data's way is one line: ``Task → SplicedModel(lab) → scores | masks → evaluation → figure``.
The names that most people need are here: ``from course_utils import load_lab, load_task, …``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from course_utils.circuits.attribution import activation_patching, atp, integrated_gradients
    from course_utils.circuits.evaluate import Evaluation
    from course_utils.circuits.frontier import Frontier
    from course_utils.circuits.masks import Node, SAEMasks
    from course_utils.circuits.optimize import learn_masks
    from course_utils.circuits.splice import PatchMeans, SplicedModel
    from course_utils.labs.lab import Lab, load_lab
    from course_utils.labs.requirements import estimate
    from course_utils.prompts.tasks import Task, load_task

_HOMES = {
    "labs.lab": ("Lab", "load_lab"),
    "labs.requirements": ("estimate",),
    "prompts.tasks": ("Task", "load_task"),
    "circuits.splice": ("PatchMeans", "SplicedModel"),
    "circuits.masks": ("Node", "SAEMasks"),
    "circuits.attribution": ("activation_patching", "atp", "integrated_gradients"),
    "circuits.optimize": ("learn_masks",),
    "circuits.evaluate": ("Evaluation",),
    "circuits.frontier": ("Frontier",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Evaluation",
    "Frontier",
    "Lab",
    "Node",
    "PatchMeans",
    "SAEMasks",
    "SplicedModel",
    "Task",
    "activation_patching",
    "atp",
    "estimate",
    "integrated_gradients",
    "learn_masks",
    "load_lab",
    "load_task",
]

_HERE = Path(__file__).resolve().parent
DATA = _HERE / "data" if (_HERE / "data").is_dir() else _HERE.parent / "data"
"""Prompt pairs, SAEs, circuits and texts of the course: in a wheel inside this package, in a
checkout beside it.
"""


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first used: ``import course_utils`` costs nothing."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
