"""The two profiles of a notebook: in full, or the same steps with fewer prompts."""

from __future__ import annotations

PROFILES = ("full", "quick")


def is_quick(profile: str) -> bool:
    """Whether a notebook's ``PROFILE`` is ``"quick"``.

    Call it after the cell of parameters, where ``papermill -p PROFILE quick`` sets another one.

    Raises:
        ValueError: neither ``"quick"`` nor ``"full"``.
    """
    if profile not in PROFILES:
        raise ValueError(
            f'PROFILE is "full" (everything) or "quick" (fewer prompts), not {profile!r}. It is '
            "set in the notebook's cell of parameters, or before Jupyter starts: "
            "export COURSE_PROFILE=quick"
        )
    return profile == "quick"
