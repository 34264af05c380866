"""What a reader's function does to its inputs, and of what kind its result is, is noticed."""

import pytest
import torch
from torch import Tensor, nn

from course_utils.circuits.masks import SAEMasks
from course_utils.teaching.watched import Watched, other_kind, same

X, W = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([2.0, -1.0])
MASKS = SAEMasks(["a"], [torch.ones(2, 3)])


def weighed(x, w):
    return (x * w).sum(1)


def watched(attempt, *args, gradient=(), solution=weighed):
    watch = Watched(attempt, solution, gradient)
    watch(*args)
    return watch


def test_nothing_is_said_of_the_solution_itself():
    watch = watched(weighed, X, W, gradient=("x", "w"))
    assert watch.changed() == [] and watch.an_input() is None
    assert watch.other_kind() is None and watch.lost_gradient() is None


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(2),
        torch.tensor([True]),
        {"a": torch.ones(2)},
        [torch.ones(2), torch.ones(1)],
        [1, 2],
        MASKS,
        nn.Linear(2, 1),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_change_in_place_is_noticed_and_does_not_reach_the_checkers_own_data(given):
    def spoil(value):
        if isinstance(value, nn.Module):
            value = next(iter(value.state_dict().values()))
        if isinstance(value, dict):
            value = value["a"]
        value[0] = 0

    before = repr(given), repr(list(given.state_dict().values())) if given is MASKS else ""
    assert watched(spoil, given, solution=lambda value: None).changed() == ["value"]
    after = repr(given), repr(list(given.state_dict().values())) if given is MASKS else ""
    assert before == after or isinstance(given, nn.Linear)  # its parameters take gradients


def test_what_the_solution_changes_too_may_be_changed():
    def fill(value):
        value[0] = 7

    assert watched(fill, [1, 2], solution=fill).changed() == []


def test_a_tensor_that_takes_gradients_is_handed_over_itself():
    leaf = torch.ones(2, requires_grad=True)
    watch = Watched(lambda x, w: (x * w).sum(), lambda x, w: (x * w).sum())
    watch(leaf, W).backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, W)


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda x, w: weighed(x, w).detach(), "no gradient reaches w"),
        (lambda x, w: weighed(x, w.detach()), "no gradient reaches w"),
        (lambda x, w: weighed(x, w) + (x * (w - w.detach())).sum(1), "reaches w is not the right"),
    ],
)
def test_a_gradient_that_does_not_arrive_or_is_another_is_noticed(attempt, says):
    lost = watched(attempt, X, W, gradient=("w",)).lost_gradient()
    assert lost is not None and says in lost
    assert watched(attempt, X, W).lost_gradient() is None


def test_the_gradient_of_a_soft_mask_is_looked_at_too():
    def kept(masks: SAEMasks) -> Tensor:
        return masks["a"].sum()

    lost = watched(lambda masks: kept(masks).detach(), MASKS, gradient=("masks",), solution=kept)
    assert "no gradient reaches masks" in str(lost.lost_gradient())


def test_an_input_that_comes_back_is_named():
    watch = watched(lambda x, w: x.clone(), X, W, solution=lambda x, w: x * w)
    assert watch.an_input() == "x"


def test_a_call_with_an_iterator_is_left_alone():
    watch = watched(lambda rows: sum(rows) * 0, iter([X]), solution=lambda rows: sum(rows))
    assert watch.other_kind() is None and watch.an_input() is None


@pytest.mark.parametrize(
    ("answer", "right", "says"),
    [
        (1.5, torch.tensor(1.5), "it is a float, and a tensor is wanted. Leave `.item()`"),
        ((X,), X, "it is a tuple of 1, and a tensor is wanted. Is there a comma too many?"),
        (X > 0, X, "True and False, and numbers are wanted"),
        (X.half(), X, "it is float16, and float32 is wanted"),
        (True, 1, "it is True, and a number is wanted"),
        (2.0, 2, "it is a float, and a whole number (int) is wanted"),
        ("2", 2.0, "it is a str, and a number (float) is wanted"),
        (torch.tensor(2), 2.0, "it is a tensor of int64; a float is wanted"),
        (range(2), [0, 1], "it is a range, and a list is wanted"),
        ((0, 1), [0, 1], "it is a tuple of 2, and a list is wanted"),
        (X, (X, X), "2 results, with a comma between them, are wanted"),
        ([1.0, 2], (1.0, 2.5, 3), "3 results"),
        ({"b": X}, {"a": X}, "a dictionary is wanted, with the keys ['a']"),
        ({"a": X > 0}, {"a": X}, "what it has at a is True and False"),
        ({"a": X}, MASKS, "it is a dict, and SAEMasks is wanted"),
        (SAEMasks(["a"], [torch.ones(2, 3).bool()]), MASKS, "a tensor in it is True and False"),
        (None, 1, "it is None"),
    ],
)
def test_another_kind_of_result_is_named(answer, right, says):
    assert says in str(other_kind(answer, right))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (2, 2.0),
        (torch.tensor(2.0), 2.0),
        ([1.0, 2], (1.5, 3)),
        (torch.zeros(1), X),
        (MASKS, MASKS),
        ("any", "thing"),
    ],
)
def test_the_same_kind_may_have_other_values(answer, right):
    assert other_kind(answer, right) is None


def test_numbers_are_the_same_only_if_their_types_are():
    assert same(X, X.clone()) and not same(X, X.double()) and not same(X, X[0])
    assert same(torch.tensor(float("nan")), torch.tensor(float("nan")))
    assert not same([1], [1, 2]) and not same({"a": 1}, {"b": 1}) and not same(MASKS, X)
