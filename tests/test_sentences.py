"""Lists and counts read as a person would write them."""

import pytest

from course_utils.display.sentences import counted, listed


@pytest.mark.parametrize(
    ("items", "text"),
    [([], "none"), ([14], "14"), ([14, 20], "14 and 20"), (range(3), "0, 1 and 2")],
)
def test_a_list_has_commas_and_an_and_before_its_last(items, text):
    assert listed(items) == text


def test_an_empty_list_can_have_a_word_of_its_own():
    assert listed([], none="no number of SAEs") == "no number of SAEs"
    assert listed(["one"], none="no number of SAEs") == "one"


@pytest.mark.parametrize(("n", "text"), [(0, "0 SAEs"), (1, "1 SAE"), (1024, "1,024 SAEs")])
def test_one_thing_has_no_plural(n, text):
    assert counted(n, "SAE") == text


def test_a_plural_can_be_given():
    assert counted(2, "loss", "losses") == "2 losses" and counted(1, "loss", "losses") == "1 loss"
