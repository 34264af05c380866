"""What is said of wrong numbers is what was done to them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils.teaching.differences import difference

RIGHT = torch.tensor([[2.0, -3.0, 5.0], [7.0, 0.5, -1.5], [0.25, 11.0, 4.0]])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (-RIGHT, "has the wrong sign"),
        (RIGHT.abs(), "has lost its signs"),
        (RIGHT.relu(), "is 0 where it should be below 0"),
        (1 - RIGHT, "is 1 minus what is wanted"),
        (1 / RIGHT, "a fraction is upside down"),
        (RIGHT**2, "is the square of"),
        (RIGHT.exp(), "is the exponential of"),
        (0 * RIGHT, "is 0 everywhere"),
        (torch.full_like(RIGHT, 4), "is the same number everywhere, 4"),
        (3 * RIGHT, "is 3 times what is wanted everywhere"),
        (RIGHT / 2, "is half what is wanted everywhere"),
        (RIGHT / 9, "is 1/9 of what is wanted everywhere"),
        (0.7 * RIGHT, "is 0.7 times what is wanted, everywhere"),
        (RIGHT + 0.3, "is off by 0.3 everywhere"),
        (RIGHT.flip(0), "is in reverse order along axis 0"),
        (RIGHT.roll(1, 1), "is shifted by one place along axis 1"),
        (RIGHT.T, "is transposed"),
        (RIGHT.flatten()[[1, 0, 2, 3, 4, 5, 6, 7, 8]].view(3, 3), "the right numbers in other"),
        (RIGHT * torch.tensor([[1.0], [1.3], [1.0]]), "is right but at 1 along axis 0 (of 3)"),
        (RIGHT * torch.tensor([1.2, 1.3, 1.0]), "is right at 2 along axis 1 (of 3) alone"),
    ],
)
def test_what_was_done_to_the_numbers_is_said(answer, says):
    assert says in difference(answer, RIGHT)


@pytest.mark.parametrize(
    ("answer", "right", "says"),
    [
        (4.5, 1.5, "is 3 times what is wanted"),
        (0.5, 1.5, "is 1/3 of what is wanted"),
        (0.0, 1.5, "is 0."),
        (8.0, 7.0, "is one too many"),
        (6.0, 7.0, "is one too few"),
        (14.0, 7.0, None),  # of counts, a multiple says nothing
        (1.9, 1.5, None),
        (1.9, 0.0, None),
    ],
)
def test_of_one_number_whole_factors_are_said_and_of_counts_one_too_many(answer, right, says):
    said = difference(torch.tensor(answer), torch.tensor(right))
    assert said is None if says is None else said is not None and says in said


def test_the_logarithm_and_the_root_are_seen_of_what_is_above_0():
    right = RIGHT.abs()
    assert "is the logarithm of" in str(difference(right.log(), right))
    assert "is the square root of" in str(difference(right.sqrt(), right))


@given(seed=st.integers(0, 10_000))
def test_of_numbers_that_have_nothing_to_do_with_the_right_ones_nothing_is_said(seed):
    draw = torch.Generator().manual_seed(seed)
    answer, right = torch.randn(2, 3, 4, generator=draw)
    assert difference(answer, right) is None
