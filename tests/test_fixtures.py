"""What the checkers of several notebooks share."""

import pytest
import torch

from course_utils.circuits.masks import SAEMasks
from course_utils.teaching import fixtures
from course_utils.teaching.workbook import Wrong


def test_numbers_are_the_same_for_the_same_seed_and_leave_torchs_own_alone():
    state = torch.get_rng_state()
    for draw in (fixtures.normal, fixtures.uniform):
        assert torch.equal(draw(3, 4, seed=1), draw(3, 4, seed=1))
        assert not torch.equal(draw(3, 4, seed=1), draw(3, 4, seed=2))
        assert draw(3, 4, seed=1).shape == (3, 4)
    assert fixtures.uniform(1000, seed=0).min() >= 0 > fixtures.normal(1000, seed=0).min()
    fixtures.residual_stream()
    assert torch.equal(torch.get_rng_state(), state)


def test_flags_and_pairs_say_what_is_written():
    assert fixtures.flags("x.x").tolist() == [True, False, True]
    assert fixtures.pair(1, torch.tensor(0.5)).tolist() == [1.0, 0.5]
    assert fixtures.pair(1, 2).dtype == torch.double


def test_bos_stays_and_has_a_row_of_zeros_in_copies():
    x, x_hat, rows = torch.ones(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(3, 4)
    assert fixtures.keep_bos(x, x_hat)[:, :, 0].tolist() == [[1, 0, 0]] * 2
    assert fixtures.bos_row_off(rows)[:, 0].tolist() == [0, 1, 1]
    assert (x == 1).all() and (x_hat == 0).all() and (rows == 1).all()


def test_bos_is_far_longer_than_the_other_tokens():
    norms = fixtures.residual_stream().norm(dim=-1)
    assert norms[:, 0].min() > 2 * norms[:, 1:].max()


@pytest.mark.parametrize(
    ("require", "good", "bad", "says"),
    [
        (lambda x: fixtures.require_tensor(x, "it"), torch.ones(2), [1, 1], "not list"),
        (fixtures.require_masks, SAEMasks(["a"], [torch.ones(2)]), {}, "SAEMasks, not dict"),
        (lambda x: fixtures.require_two(x, "two, please"), (1, 2), (1, 2, 3), "^two, please$"),
        (lambda x: fixtures.require_two(x, "two, please"), [1, 2], torch.ones(2), "two"),
        (lambda x: fixtures.require_returned(x, "it"), 0, None, "it is None. Is the return miss"),
        (lambda x: fixtures.require_tensor(x, "it"), torch.ones(2), None, "Is the return missing"),
        (fixtures.require_masks, SAEMasks(["a"], [torch.ones(2)]), None, "Is the return missing"),
    ],
)
def test_what_an_answer_has_to_be_is_said_where_it_is_not(require, good, bad, says):
    require(good)
    with pytest.raises(Wrong, match=says):
        require(bad)
