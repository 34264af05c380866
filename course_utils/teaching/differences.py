"""In what way numbers differ from the right ones: a sign, a factor, one row, another order.

A checker knows the usual mistakes of its exercise by name. For the others, this says what can be
seen from the numbers alone, so that the reader knows where to look.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def difference(answer: Tensor, right: Tensor, tolerance: float = 1e-4) -> str | None:
    """What can be said of numbers that are not the right ones: how the sentence goes on after "it".

    Args:
        answer, right: finite numbers of one shape, at least one of which differs.
        tolerance: the largest difference that counts as none, relative to the right one's size.

    Returns:
        "is 0 everywhere.", "has the wrong sign." and the like; None if no pattern is seen.
    """
    a, r = answer.detach().double(), right.detach().double()
    if not r.numel() or not r.abs().max():
        return None

    def is_(other: Tensor) -> bool:
        return bool(
            other.isfinite().all()
            and other.shape == a.shape
            and other.abs().max() > 0
            and ((a - other).abs() <= tolerance * other.abs().max()).all()
        )

    for says, made in PATTERNS.items():
        if is_(made(r)):
            return says
    if not a.any():
        return "is 0." if a.ndim == 0 else "is 0 everywhere."
    return (_of_one_number(a, r) if r.numel() == 1 else _of_many(a, r, is_)) or None


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "has the wrong sign. Is a difference the wrong way round?": lambda r: -r,
    "has lost its signs: what should be below 0 is above.": lambda r: r.abs(),
    "is 0 where it should be below 0.": lambda r: r.relu(),
    "is 1 minus what is wanted.": lambda r: 1 - r,
    "is one divided by what is wanted: a fraction is upside down.": lambda r: 1 / r,
    "is the square of what is wanted.": lambda r: r**2,
    "is the square root of what is wanted.": lambda r: r.sqrt(),
    "is the logarithm of what is wanted.": lambda r: r.log(),
    "is the exponential of what is wanted.": lambda r: r.exp(),
}
"""How the sentence goes on, and what the right numbers have become."""


def _of_one_number(a: Tensor, r: Tensor) -> str | None:
    """A whole multiple or a whole part; for counts, one too many."""
    value, wanted = a.item(), r.item()
    if wanted == round(wanted) and value == round(value):
        more = {1: "one too many", -1: "one too few"}.get(round(value - wanted))
        return f"is {more}." if more else None
    return _factor(value / wanted, "")


def _factor(factor: float, where: str) -> str | None:
    """A factor that is a whole number, or one divided by one."""
    for size, says in ((factor, "{} times"), (1 / factor if factor else 0, "1/{} of")):
        if abs(size) > 1.5 and abs(size - round(size)) < 1e-4 * abs(size) and abs(size) < 1000:
            many = says.format(round(size)).replace("1/2 of", "half")
            return (
                f"is {many} what is wanted{where}. Is there a sum for a mean (or the other way "
                "round), or is a factor missing?"
            )
    return None


def _of_many(a: Tensor, r: Tensor, is_: Callable[[Tensor], bool]) -> str | None:
    """A factor, an amount, another order, or the places that are wrong."""
    if (a == a.flatten()[0]).all():
        return f"is the same number everywhere, {a.flatten()[0]:.3g}."
    factor = (a * r).sum() / (r * r).sum()
    if factor and is_(factor * r):
        whole = _factor(factor.item(), " everywhere")
        return whole or f"is {factor:.3g} times what is wanted, everywhere: a factor is wrong."
    amount = (a - r).mean()
    if is_(r + amount):
        return f"is off by {amount:.3g} everywhere: a term that is the same for all is wrong."
    for axis in range(r.ndim):
        if r.shape[axis] > 1 and is_(r.flip(axis)):
            return f"is in reverse order along axis {axis}."
        if any(is_(r.roll(step, axis)) for step in (1, -1)):
            return f"is shifted by one place along axis {axis}."
    if r.ndim >= 2 and is_(r.mT):
        return "is transposed: rows and columns have changed places."
    if is_same_set(a, r):
        return "holds the right numbers in other places."
    return _places(a, r)


def is_same_set(a: Tensor, r: Tensor) -> bool:
    """Whether two tensors hold the same numbers in whatever order."""
    return torch.allclose(a.flatten().sort().values, r.flatten().sort().values)


def _places(a: Tensor, r: Tensor) -> str | None:
    """Along one axis, the indices at which numbers are wrong, if all others are right."""
    is_wrong = (a - r).abs() > 1e-4 * r.abs().max()
    for axis in range(r.ndim):
        others = [other for other in range(r.ndim) if other != axis]
        at = is_wrong.any(dim=others) if others else is_wrong
        held = r.movedim(axis, 0)[~at]
        if at.all() or not held.any():
            continue
        indices = at.nonzero()[:, 0].tolist()
        if len(indices) <= max(1, r.shape[axis] // 2):
            places = ", ".join(map(str, indices))
            return f"is right but at {places} along axis {axis} (of {r.shape[axis]})."
        places = ", ".join(map(str, (~at).nonzero()[:, 0].tolist()))
        return f"is right at {places} along axis {axis} (of {r.shape[axis]}) alone."
    return None
