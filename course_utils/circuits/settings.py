"""Settings: frozen dataclasses that are checked when they are made, and changed by keyword.

Methods with many settings take them as one object, or some of them by name:

    learn_masks(spliced, task, settings=MaskSettings(sparsity=0.1, seed=1))
    learn_masks(spliced, task, sparsity=0.1, seed=1)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)
else:
    Settings = TypeVar("Settings")


def with_changes(
    settings: Settings, changes: Mapping[str, Any], *, known: Iterable[str] | None = None
) -> Settings:
    """``settings`` with some of its fields changed; it stays as it is.

    Args:
        settings: any dataclass.
        changes: new values, by the name of the field.
        known: the fields that may be changed; all by default.

    Raises:
        TypeError: a name that is not known; the message lists those that are.
        ValueError: a value out of range, where the settings check their values.
    """
    names = [field.name for field in fields(settings)] if known is None else list(known)
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise TypeError(f"unknown setting: {', '.join(unknown)}. There is {', '.join(names)}.")
    return replace(settings, **changes)


def require(settings: object, name: str, ok: bool, wanted: str) -> None:
    """Raise ValueError with the setting's name and value, and what is wanted, unless ``ok``."""
    if not ok:
        raise ValueError(f"{name} must be {wanted}, not {getattr(settings, name)!r}.")
