"""Exercises: the reader writes a function; until then, the course's own version runs in its place.

A notebook's exercises, their solutions and their checkers are a `Workbook`, in a file of its own
(``nb03.py``). The reader's copy of the notebook has

    @exercise
    def ablate(x, mask, ablation):
        \"\"\"What it is to do.\"\"\"
        raise NotImplementedError

    check(ablate)

and runs from top to bottom as it is: a function that still raises `NotImplementedError` hands over
to the solution, and says so once. Any other error is the reader's own, and is shown as it is.
`check` says ✅, ⏳ or ❌ with the likely bug named.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
Number = int | float | Tensor
SIGNS = {"right": "✅", "open": "⏳", "wrong": "❌"}


class Wrong(Exception):
    """What a checker raises: a sentence that names the likely bug, and not the solution."""


@dataclass(frozen=True)
class Checked:
    """What `check` says of an exercise.

    Attributes:
        status: ``"right"``, ``"open"`` (not written yet) or ``"wrong"``.
        says: a sentence for the reader.
    """

    status: Literal["right", "open", "wrong"]
    says: str

    def __str__(self) -> str:
        return f"{SIGNS[self.status]} {self.says}"


class Exercise:
    """The reader's function, with the course's behind it.

    Args:
        attempt: what the reader wrote.
        solution: what runs while ``attempt`` raises `NotImplementedError` by itself.
    """

    __name__: str

    def __init__(self, attempt: Callable, solution: Callable):
        functools.update_wrapper(self, attempt)
        self.attempt, self.solution = attempt, solution
        self._said_that_it_is_open = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.attempt(*args, **kwargs)
        except NotImplementedError as error:
            if not _is_from(error, self.attempt):
                raise
        if not self._said_that_it_is_open:
            print(
                f"({self.__name__} is yours to write. "
                "Until then the course's version runs in its place.)"
            )
            self._said_that_it_is_open = True
        return self.solution(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<exercise {self.__name__}>"


def _is_from(error: BaseException, function: Callable) -> bool:
    """Whether ``function`` itself raised the error, and not something that it called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_code is inspect.unwrap(function).__code__


class Workbook:
    """The exercises of one notebook: their solutions and their checkers."""

    def __init__(self) -> None:
        self.solutions: dict[str, Callable] = {}
        self.checkers: dict[str, Callable[[Callable], None]] = {}

    def solution(self, function: F) -> F:
        """Decorator: this is the course's version of the exercise of that name."""
        self.solutions[function.__name__] = function
        return function

    def checker(self, solution: Callable) -> Callable:
        """Decorator: this function checks attempts at ``solution``, and raises `Wrong`."""

        def register(function: Callable[[Callable], None]) -> Callable[[Callable], None]:
            self.checkers[solution.__name__] = function
            return function

        return register

    def exercise(self, attempt: Callable) -> Exercise:
        """Decorator for the reader's function.

        Raises:
            NameError: this notebook has no exercise of that name.
        """
        name = attempt.__name__
        if name not in self.solutions:
            names = ", ".join(self.solutions)
            raise NameError(
                f"no exercise is called {name!r}; here there are {names}. Keep the name as it was."
            )
        return Exercise(attempt, self.solutions[name])

    def check(self, exercise: Exercise | Callable) -> None:
        """Print whether an exercise is right (✅), not written yet (⏳) or wrong (❌).

        Where it is wrong, the likely bug is named.
        """
        print(self.checked(exercise))

    def checked(self, exercise: Exercise | Callable) -> Checked:
        """What `check` prints."""
        if not isinstance(exercise, Exercise):
            exercise = self.exercise(exercise)
        name = exercise.__name__
        wanted, written = (
            ", ".join(inspect.signature(function).parameters)
            for function in (exercise.solution, exercise.attempt)
        )
        if wanted != written:
            return Checked("wrong", f"{name}: its arguments are to be ({wanted}), not ({written}).")
        try:
            self.checkers[name](exercise.attempt)
        except Wrong as wrong:
            return Checked("wrong", f"{name}: {wrong}")
        except NotImplementedError as error:
            if _is_from(error, exercise.attempt):
                says = f"{name} is not written yet; the course's version runs in its place."
                return Checked("open", says)
            return _raised(exercise, error)
        except Exception as error:
            return _raised(exercise, error)
        return Checked("right", name)


def _raised(exercise: Exercise, error: Exception) -> Checked:
    """The traceback from the reader's function on, without the checker's lines before it."""
    code, place = inspect.unwrap(exercise.attempt).__code__, error.__traceback__
    while place is not None and place.tb_frame.f_code is not code:
        place = place.tb_next
    lines = "".join([*traceback.format_tb(place), *traceback.format_exception_only(error)])
    return Checked("wrong", f"{exercise.__name__} raised {type(error).__name__}.\n{lines.rstrip()}")


def compare(
    answer: Any,
    right: Number,
    wrong: Mapping[str, Number] | None = None,
    *,
    what: str = "it",
    tolerance: float = 1e-4,
) -> None:
    """Raise `Wrong` unless ``answer`` is ``right``; where it is a known wrong one, say which.

    Args:
        answer: what the reader's function returned.
        right: what it should have.
        wrong: known wrong answers, by the sentence that explains them. The first that fits counts.
        what: what is compared, as a subject: "the loss".
        tolerance: the largest allowed difference, relative to the size of ``right``.
    """
    if answer is None:
        raise Wrong(f"{what} is None. Is the return missing?")
    right = torch.as_tensor(right)
    try:
        answer = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what} is to be a tensor, not {type(answer).__name__}.") from None
    if _equal(answer, right, tolerance):
        return
    for says, value in (wrong or {}).items():
        if _equal(answer, torch.as_tensor(value), tolerance):
            raise Wrong(says)
    if answer.shape != right.shape:
        raise Wrong(
            f"{what} has the shape {list(answer.shape)}, and {list(right.shape)} is wanted."
        )
    if not answer.isfinite().all():
        raise Wrong(f"{what} holds values that are not finite.")
    off = (answer.detach().float() - right.float()).abs().max()
    size = right.float().abs().max()
    raise Wrong(f"{what} is off by up to {off:.3g}, where values are up to {size:.3g}.")


def _equal(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors are the same, up to a share of the size of the second."""
    if a.shape != b.shape:
        return False
    a, b = a.detach().double(), b.detach().double()
    size = b.abs().max().item() if b.numel() else 0.0
    return bool(((a - b).abs() <= tolerance * max(1e-12, size)).all())
