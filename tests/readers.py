"""What a reader of a notebook may write: an exercise's function from the text of its body."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from course_utils.teaching.workbook import Exercise

WrongVersions = dict[str, dict[str, str]]
"""By exercise: wrong bodies, by a piece of what is said of them."""


def attempt(notebook: ModuleType, name: str, body: str, **names: Any) -> Exercise:
    """An exercise of ``course_utils.teaching.nbNN`` with this body and the solution's signature.

    The body sees what the module sees, the solutions too, and ``names``.
    """
    solution = notebook.book.solutions[name]
    parameters = inspect.signature(solution).parameters.values()
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    code = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    space = {**vars(notebook), "torch": torch, "solutions": notebook.book.solutions, **names}
    text = f"def {name}{inspect.Signature(bare)}:\n{code}"
    exec(compile(text, "<reader>", "exec"), space)
    function = space[name]
    original = inspect.unwrap(solution)
    function.__defaults__, function.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    return notebook.book.exercise(function)


def cases(versions: WrongVersions) -> Iterator[Any]:
    """(exercise, body, what is said of it), as parameters of a test."""
    for name, bodies in versions.items():
        for says, body in bodies.items():
            yield pytest.param(name, body, says, id=f"{name}: {says}")
