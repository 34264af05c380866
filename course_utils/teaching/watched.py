"""A reader's function, watched while a checker calls it: what it does to its inputs, what it gives.

Three things go wrong with right values, in every exercise alike: an input is changed in place, the
result is of another kind (a float, a tuple, True and False), or no gradient flows through it. Each
shows only later, in another cell. So they are looked for here once, against the solution, and the
checkers look at values.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call: copies of what was given, by parameter, and what came back."""

    given: dict[str, Any]
    answer: Any
    changed: list[str]


class Watched:
    """``attempt``, called with copies of the arguments, which are compared after the call.

    Args:
        attempt: what the reader wrote.
        solution: the course's version, called on the same arguments once the checker is done.
        gradient: the parameters that a gradient is to reach.
    """

    def __init__(self, attempt: Callable, solution: Callable, gradient: Sequence[str] = ()):
        self.attempt, self.solution, self.gradient = attempt, solution, gradient
        self.calls: list[Call] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = inspect.signature(self.attempt).bind(*args, **kwargs)
        except TypeError:
            return self.attempt(*args, **kwargs)
        before = {name: copied(value) for name, value in bound.arguments.items()}
        for name, value in bound.arguments.items():
            bound.arguments[name] = handed_over(value)
        answer = self.attempt(*bound.args, **bound.kwargs)
        changed = [n for n, value in bound.arguments.items() if not same(value, before[n])]
        self.calls.append(Call(before, answer, changed))
        return answer

    def changed(self) -> list[str]:
        """The inputs that some call changed in place, and that the solution leaves alone."""
        names: dict[str, None] = {}
        for call in self.calls:
            if call.changed:
                _, given = self._solve(call)
                left_alone = (n for n in call.changed if same(given[n], call.given[n]))
                names |= dict.fromkeys(left_alone)
        return list(names)

    def other_kind(self) -> str | None:
        """How some answer is of another kind than the solution's; None if all are of its kind."""
        for call in self.calls:
            if _can_be_repeated(call):
                says = other_kind(call.answer, self._solve(call)[0])
                if says:
                    return says
        return None

    def an_input(self) -> str | None:
        """The name of an input that came back as the result."""
        for call in self.calls:
            if not _can_be_repeated(call) or not isinstance(call.answer, Tensor):
                continue
            right = self._solve(call)[0]
            for name, value in call.given.items():
                is_it = isinstance(value, Tensor) and same(call.answer, value)
                if is_it and not same(right, value):
                    return name
        return None

    def lost_gradient(self) -> str | None:
        """Which gradients do not get through, in one sentence; None if all do."""
        if not self.gradient:
            return None
        for call in self.calls:
            if not _can_be_repeated(call):
                continue
            right, given = self._gradients(self.solution, call)
            here, _ = self._gradients(self.attempt, call)
            lost = [n for n in given if not _is_zero(right[n]) and _is_zero(here[n])]
            if lost:
                return (
                    f"no gradient reaches {_listed(lost)}, and training needs it. `.detach()`, "
                    "`.item()`, `.data`, `float(…)` and `torch.no_grad()` cut it off; so do "
                    "comparisons and counts."
                )
            other = [n for n in given if not _all_close(here[n], right[n])]
            if other:
                return (
                    f"the gradient that reaches {_listed(other)} is not the right one: a part of "
                    "the computation is cut off (`.detach()`, `.item()`, `torch.no_grad()`, a "
                    "comparison)."
                )
        return None

    def _solve(self, call: Call) -> tuple[Any, dict[str, Any]]:
        """The solution's answer to the same call, and the arguments after it."""
        given = {name: copied(value) for name, value in call.given.items()}
        return _called(self.solution, given), given

    def _gradients(self, function: Callable, call: Call) -> tuple[dict[str, list], dict[str, list]]:
        """By parameter: the gradient of the result's numbers, weighed at random; the tensors."""
        given = {name: copied(value) for name, value in call.given.items()}
        leaves = {}
        for name in self.gradient:
            if name in given:
                given[name], leaves[name] = _with_gradient(given[name])
        with torch.enable_grad():
            results = [t for t in tensors(_called(function, given)) if t.requires_grad]
        every = [leaf for own in leaves.values() for leaf in own]
        if not results or not every:
            return {name: [None] * len(own) for name, own in leaves.items()}, leaves
        draw = torch.Generator().manual_seed(0)
        loss = torch.stack(
            [(t * torch.randn(t.shape, generator=draw).to(t)).sum() for t in results]
        ).sum()
        found = iter(torch.autograd.grad(loss, every, allow_unused=True))
        return {name: [next(found) for _ in own] for name, own in leaves.items()}, leaves


def _called(function: Callable, given: dict[str, Any]) -> Any:
    """A function called with arguments by name, as its signature wants them."""
    bound = inspect.BoundArguments(inspect.signature(function), given)  # pyright: ignore
    return function(*bound.args, **bound.kwargs)


def _can_be_repeated(call: Call) -> bool:
    """Whether no argument is used up by the call."""
    return not any(isinstance(value, Iterator) for value in call.given.values())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ---------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------


def copied(value: Any) -> Any:
    """A copy of tensors, modules and collections of them; anything else is given back as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, nn.Module):
        with_history = [t for t in value.buffers() if t.grad_fn is not None]
        return copy.deepcopy(value, {id(t): t.detach().clone() for t in with_history})
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(part) for part in value)
    return value


def handed_over(value: Any) -> Any:
    """What the reader's function gets: a copy, but tensors that take gradients as they are."""
    if any(tensor.requires_grad for tensor in tensors(value)):
        return value
    return copied(value)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value: itself, a module's, those in a collection."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return []


def same(a: Any, b: Any) -> bool:
    """Whether two values hold the same numbers; what cannot hold any is the same."""
    if isinstance(b, Tensor):
        if not isinstance(a, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(b, nn.Module):
        names = isinstance(a, nn.Module) and list(a.state_dict()) == list(b.state_dict())
        return names and all(same(p, q) for p, q in zip(_state(a), _state(b)))
    if isinstance(b, dict):
        is_like = isinstance(a, dict) and list(a) == list(b)
        return is_like and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        is_like = isinstance(a, list | tuple) and len(a) == len(b)
        return is_like and all(same(p, q) for p, q in zip(a, b))
    if isinstance(b, int | float | str):
        return a == b
    return True


def _state(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


def other_kind(answer: Any, right: Any, it: str = "it") -> str | None:
    """How an answer differs in kind from the right one, in one sentence; None if it does not.

    A tensor is to be a tensor of the same dtype; a number a number; True and False are no numbers.
    A list is to be a list; a tuple may be one.
    """
    if isinstance(right, Tensor):
        return _no_such_tensor(answer, right, it)
    if isinstance(right, bool):
        return None
    if isinstance(right, int | float):
        return _no_such_number(answer, right, it)
    if isinstance(right, nn.Module) and not isinstance(answer, type(right)):
        return f"{it} is {_a(answer)}, and {type(right).__name__} is wanted."
    if isinstance(right, nn.Module):
        parts = zip(_state(answer), _state(right))
        return _first(other_kind(a, b, f"a tensor in {it}") for a, b in parts)
    if isinstance(right, Mapping):
        if not isinstance(answer, Mapping) or set(answer) != set(right):
            return f"{it} is {_a(answer)}, and a dictionary is wanted, with the keys {list(right)}."
        return _first(
            other_kind(answer[key], right[key], f"what {it} has at {key}") for key in right
        )
    if isinstance(right, list | tuple):
        wanted = list if isinstance(right, list) else (list, tuple)
        if not isinstance(answer, wanted) or len(answer) != len(right):
            a_tuple = f"{len(right)} results, with a comma between them, are"
            says = "a list is" if isinstance(right, list) else a_tuple
            return f"{it} is {_a(answer)}, and {says} wanted."
        items = enumerate(zip(answer, right), start=1)
        return _first(other_kind(a, b, f"number {i} of what {it} holds") for i, (a, b) in items)
    return None


def _first(says: Iterator[str | None]) -> str | None:
    return next((sentence for sentence in says if sentence), None)


def _no_such_tensor(answer: Any, right: Tensor, it: str) -> str | None:
    if not isinstance(answer, Tensor):
        hint = ""
        if isinstance(answer, tuple):
            hint = " Is there a comma too many?"
        elif isinstance(answer, int | float):
            hint = " Leave `.item()` and `float(…)` to whoever calls it."
        return f"{it} is {_a(answer)}, and a tensor is wanted.{hint}"
    if answer.dtype == right.dtype:
        return None
    if answer.dtype == torch.bool:
        return f"{it} is True and False, and numbers are wanted: `.float()` makes 1 and 0 of them."
    return (
        f"{it} is {_name(answer.dtype)}, and {_name(right.dtype)} is wanted, which is what the "
        "cells after this one multiply it with."
    )


def _no_such_number(answer: Any, right: int | float, it: str) -> str | None:
    if isinstance(answer, bool):
        return f"{it} is {answer}, and a number is wanted."
    if isinstance(right, float) and isinstance(answer, Tensor) and not answer.ndim:
        return None if answer.is_floating_point() else f"{it} is {_a(answer)}; a float is wanted."
    wanted = "a whole number (int)" if isinstance(right, int) else "a number (float)"
    if not isinstance(answer, int if isinstance(right, int) else (int, float)):
        return f"{it} is {_a(answer)}, and {wanted} is wanted."
    return None


def _a(answer: Any) -> str:
    """What kind of thing an answer is: "a list", "a tensor of torch.bool"."""
    if answer is None:
        return "None"
    if isinstance(answer, Tensor):
        return f"a tensor of {_name(answer.dtype)}"
    if isinstance(answer, tuple | list) and type(answer) in (tuple, list):
        return f"a {type(answer).__name__} of {len(answer)}"
    kind = type(answer).__name__
    return f"an {kind}" if kind[0] in "aeiouAEIOUS" and kind != "str" else f"a {kind}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------


def _with_gradient(value: Any) -> tuple[Any, list[Tensor]]:
    """A value whose float tensors take gradients, and those tensors."""
    if isinstance(value, nn.Module):
        value.requires_grad_()
    leaves = [tensor for tensor in tensors(value) if tensor.is_floating_point()]
    for tensor in leaves:
        tensor.requires_grad_()
    return value, leaves


def _is_zero(gradients: Sequence[Tensor | None]) -> bool:
    return all(gradient is None or not gradient.any() for gradient in gradients)


def _all_close(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> bool:
    """Whether two rows of gradients agree; None is 0."""
    for one, other in zip(a, b, strict=True):
        if one is None or other is None:
            known = other if one is None else one
            if known is not None and known.any():
                return False
        elif not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max())):
            return False
    return True
