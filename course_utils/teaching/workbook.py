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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from course_utils.teaching.differences import difference
from course_utils.teaching.watched import Watched

F = TypeVar("F", bound=Callable[..., Any])
Number = int | float | Tensor
SIGNS = {"right": "✅", "open": "⏳", "wrong": "❌"}


class Wrong(Exception):
    """What a checker raises: a sentence that names the likely bug, and not the solution."""


class Unnamed(Wrong):
    """The values are wrong, and no known mistake gives them: another sentence may say more."""


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
        self.gradients: dict[str, tuple[str, ...]] = {}

    def solution(self, function: F) -> F:
        """Decorator: this is the course's version of the exercise of that name."""
        self.solutions[function.__name__] = function
        return function

    def checker(self, solution: Callable, *, gradient: Sequence[str] = ()) -> Callable:
        """Decorator: this function checks attempts at ``solution``, and raises `Wrong`.

        It looks at values. What goes wrong alike in all exercises is looked for by `checked`, in
        every call that the checker makes: an input that is changed in place, a result of another
        kind than the solution's (a float, a tuple, another dtype), a gradient that does not arrive.

        Args:
            solution: the course's version.
            gradient: its parameters that a gradient is to reach, as a later cell trains them.
        """

        def register(function: Callable[[Callable], None]) -> Callable[[Callable], None]:
            self.checkers[solution.__name__] = function
            self.gradients[solution.__name__] = tuple(gradient)
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
        watched = Watched(exercise.attempt, exercise.solution, self.gradients[name])
        try:
            self.checkers[name](watched)
            says = _besides(watched)
        except Unnamed as wrong:
            says = _more(watched, wrong)
        except Wrong as wrong:
            says = str(wrong)
        except NotImplementedError as error:
            if _is_from(error, exercise.attempt):
                says = f"{name} is not written yet; the course's version runs in its place."
                return Checked("open", says)
            return _raised(exercise, error)
        except Exception as error:
            says = None if _line_of(exercise.attempt, error) else watched.other_kind()
            if says is None:
                return _raised(exercise, error)
        if says is None:
            return Checked("right", name)
        return Checked("wrong", f"{name}: {says}{_in_place_too(says, watched)}")


def _besides(watched: Watched) -> str | None:
    """What is wrong although all values are right."""
    if changed := watched.changed():
        return (
            f"the values are right, but {_were(changed)} changed in place. Others still need the "
            "old numbers: make a new one."
        )
    says = watched.other_kind() or watched.lost_gradient()
    return f"the values are right, but {says}" if says else None


def _more(watched: Watched, wrong: Wrong) -> str:
    """What can be said of wrong values from what went in, and from the kind of what came out."""
    if name := watched.an_input():
        return f"this is {name} as it came in."
    if says := watched.other_kind():
        return says
    if changed := watched.changed():
        return (
            f"{_were(changed)} changed in place, so that what reads it after that gets other "
            f"numbers: make a new one. ({wrong})"
        )
    return str(wrong)


def _in_place_too(says: str, watched: Watched) -> str:
    """A second sentence for a known mistake, if an input was changed besides."""
    if "changed in place" in says or not (changed := watched.changed()):
        return ""
    return f" Besides, {_were(changed)} changed in place: make a new one."


def _were(names: Sequence[str]) -> str:
    return f"{names[0]} was" if len(names) == 1 else f"{' and '.join(names)} were"


def _raised(exercise: Exercise, error: Exception) -> Checked:
    """The traceback from the reader's function on, without the checker's lines before it."""
    place = _line_of(exercise.attempt, error)
    lines = "".join([*traceback.format_tb(place), *traceback.format_exception_only(error)])
    return Checked("wrong", f"{exercise.__name__} raised {type(error).__name__}.\n{lines.rstrip()}")


def _line_of(function: Callable, error: BaseException) -> TracebackType | None:
    """Where an error's way through a function begins; None if it did not go through it."""
    code, place = inspect.unwrap(function).__code__, error.__traceback__
    while place is not None and place.tb_frame.f_code is not code:
        place = place.tb_next
    return place


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

    Raises:
        Wrong: a known wrong answer, or none at all.
        Unnamed: another one; the sentence says what can be seen from the numbers.
    """
    if answer is None:
        raise Wrong(f"{what} is None. Is the return missing?")
    right = torch.as_tensor(right)
    try:
        answer = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        hint = " Is there a comma too many?" if isinstance(answer, tuple) else ""
        raise Wrong(f"{what} is to be a tensor, not {type(answer).__name__}.{hint}") from None
    if is_close(answer, right, tolerance):
        return
    for says, value in (wrong or {}).items():
        if is_close(answer, torch.as_tensor(value), tolerance):
            raise Wrong(says)
    if answer.shape != right.shape:
        raise Unnamed(
            f"{what} has the shape {list(answer.shape)}, and {list(right.shape)} is wanted."
        )
    if not answer.isfinite().all():
        raise Unnamed(f"{what} holds values that are not finite.")
    if says := difference(answer, right, tolerance):
        raise Unnamed(f"{what} {says}")
    off = (answer.detach().float() - right.float()).abs().max()
    size = right.float().abs().max()
    raise Unnamed(f"{what} is off by up to {off:.3g}, where values are up to {size:.3g}.")


def is_close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors are the same, up to a share of the size of the second.

    What is not finite is the same as nothing: an infinite size would allow any difference.
    """
    if a.shape != b.shape:
        return False
    a, b = a.detach().double(), b.detach().double()
    if not (a.isfinite().all() and b.isfinite().all()):
        return False
    size = b.abs().max().item() if b.numel() else 0.0
    return bool(((a - b).abs() <= tolerance * max(1e-12, size)).all())
