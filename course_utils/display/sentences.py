"""Pieces of sentences that are made from results: lists of things, and how many there are.

Titles of figures and recaps are sentences computed from numbers. A list in them is to read "14, 20
and 26", not ``[14, 20, 26]``, and one SAE is not "1 SAEs".
"""

from __future__ import annotations

from collections.abc import Iterable


def listed(items: Iterable[object], *, none: str = "none") -> str:
    """``"14, 20 and 26"`` of 14, 20 and 26.

    Args:
        items: what is written with `str`.
        none: what stands there for an empty list.
    """
    texts = [str(item) for item in items]
    if not texts:
        return none
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def counted(n: int, noun: str, plural: str = "") -> str:
    """``"1 SAE"``, ``"10 SAEs"``, ``"1,024 latents"``.

    Args:
        noun: for one of them.
        plural: by default the noun with an s.
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
