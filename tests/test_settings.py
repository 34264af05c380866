"""Settings: changed by keyword, unknown names refused, ranges checked."""

from dataclasses import dataclass

import pytest

from course_utils.circuits.settings import require, with_changes


@dataclass(frozen=True)
class Settings:
    size: int = 3
    name: str = "some"

    def __post_init__(self):
        require(self, "size", self.size > 0, "above 0")


def test_changes_make_new_settings_and_leave_the_old_ones():
    old = Settings()
    assert with_changes(old, {"size": 5}) == Settings(5, "some") and old == Settings(3, "some")
    assert with_changes(old, {}) == old


def test_changed_settings_are_checked():
    with pytest.raises(ValueError, match="^size must be above 0, not 0[.]$"):
        with_changes(Settings(), {"size": 0})


def test_unknown_names_are_listed_with_the_known_ones():
    with pytest.raises(TypeError, match="^unknown setting: colour, sizes. There is size, name[.]$"):
        with_changes(Settings(), {"colour": 1, "size": 2, "sizes": 3})


def test_a_setting_that_does_not_apply_is_unknown():
    with pytest.raises(TypeError, match="^unknown setting: name. There is size[.]$"):
        with_changes(Settings(), {"name": "other"}, known=["size"])
