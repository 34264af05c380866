"""Each checker is fed wrong versions of its solution: it accepts none, and names most of them.

`python -m pytest tests/test_mutants.py -s -k table` prints the table; with ``MUTANTS=topk`` in the
environment, what is said of each mutant of that exercise too.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from mutants import Mutant, mutants
from torch import Tensor

from course_utils.teaching.workbook import Workbook

HELD = {
    "nb01": True,
    "nb02": True,
    "nb03": True,
    "nb04": True,
    "nb05": True,
    "nb06": True,
    "nb07": True,
}
"""By notebook: whether its checkers are held to the standard. The table shows all."""
NAMED = 2 / 3
"""The least share of rejected mutants of which more is said than that they are off."""
SQUARED = "(a − b)² = (b − a)²"
NO_WAYS = "k starts at 0; below n_a + n_b − n, C(n − n_a, n_b − k) is 0"
EQUIVALENT: dict[tuple[str, str], dict[str, str]] = {
    ("nb07", "share_found"): {
        "abs, not square: truth.abs() → truth.square()": "|x| and x² are in the same order",
        "abs, not square: estimate.abs() → estimate.square()": "|x| and x² are in the same order",
        "swapped: truth ↔ estimate": "the size of an intersection",
    },
    ("nb07", "qk_fixed"): {
        "off by one: 0 → -1": "the axis has one place, which is first and last",
        "off by one: 0 → -1 (2)": "the axis has one place, which is first and last",
    },
    ("nb07", "grad_dropped"): {
        "dropped: x.detach().clone() → x.detach()": "a detached tensor has its own requires_grad",
        "dropped: x.detach() → x": "a clone of an x without a gradient",
    },
    ("nb07", "direct_effect"): {"swapped: written ↔ weight": "a product"},
    ("nb07", "through_values"): {"swapped: W_O ↔ gradient": "g @ W.T = W @ g for a vector g"},
    ("nb01", "toy_loss"): {"swapped: x - x_out → x_out - x": SQUARED},
    ("nb01", "l1_loss"): {"swapped: x - x_hat → x_hat - x": SQUARED},
    ("nb01", "explained_variance"): {
        "swapped: x - x_hat → x_hat - x": SQUARED,
        "swapped: x - x.mean(dim=0) → x.mean(dim=0) - x": SQUARED,
    },
    ("nb01", "step"): {
        "comparison: pre > threshold → pre >= threshold": "a pre-activation is never just θ",
        "comparison: (pre - threshold).abs() < width / 2 → (pre - threshold).abs() <= width / 2": (
            "a pre-activation is never just at the edge"
        ),
        "swapped: pre - threshold → threshold - pre": "|a − b| = |b − a|",
        "dropped: (pre > threshold).float() → pre > threshold": "True + 0.0 is 1.0",
    },
    ("nb01", "aux_loss"): {"swapped: error - rebuilt → rebuilt - error": SQUARED},
    ("nb01", "strongest"): {
        "dtype: the result → cast(torch.int64, the result)": "places are int64 as they are",
    },
    ("nb02", "cross_entropy"): {
        "dropped: logits[:, :-1] → logits": "gather reads as many positions as its index has",
        "off by one: 0 → -1": "the axis that gather leaves has one place, which is first and last",
    },
    ("nb03", "running_mean"): {
        "swapped: (torch.tensor(0.0), 0) → (0, torch.tensor(0.0))": "0 as a number and as a tensor",
        "constant: 0.0 → 0.5": "m + (b − m).sum() / len(b) is the first batch's mean for every m",
    },
    ("nb04", "attribution_scores"): {
        "dropped: clean.detach() → clean": "the checker hands over a copy",
        "off by one: 0 → -1": "a tuple of one",
    },
    ("nb04", "sparsification_loss"): {
        "swapped: ld_spliced - ld_masked → ld_masked - ld_spliced": "|a − b| = |b − a|",
    },
    ("nb04", "learn_by_hand"): {
        "in place: theta is changed after its last use": "θ is what the solution trains in place",
    },
    ("nb04", "prune"): {
        "abs, not square: score.abs() → score.square()": "|s| and s² are in the same order",
    },
    ("nb05", "three_faithfulnesses"): {
        "mean, not sum: row.mean() → row.sum()": "all four have n prompts: n cancels in a ratio",
    },
    ("nb05", "paired_gap"): {
        "mean, not sum: off[rows].mean(dim=1) → off[rows].sum(dim=1)": "n cancels in a ratio",
    },
    ("nb05", "left_without"): {
        "mean, not sum: evaluate(masks).mean() → evaluate(masks).sum()": "n cancels in a ratio",
    },
    ("nb05", "chance_jaccard"): {
        "swapped: max(0, n_a + n_b - n) → max(n_a + n_b - n, 0)": "the same maximum",
        "swapped: min(n_a, n_b) → min(n_b, n_a)": "the same minimum",
        "swapped: n_a ↔ n_b": "the Jaccard index is symmetric",
        "off by one: 0 → 1": "the term of k = 0 is 0",
        "sign: n_a + n_b → n_a - n_b": NO_WAYS,
        "dropped: n_a + n_b → n_a": NO_WAYS,
        "dropped: n_a + n_b → n_b": NO_WAYS,
    },
    ("nb05", "cpr_cmd"): {
        "swapped: 1 - f_1 → f_1 - 1": "|a − b| = |b − a|",
        "swapped: 1 - f_2 → f_2 - 1": "|a − b| = |b − a|",
    },
    ("nb06", "held_out_scores"): {
        "zeros, not ones: torch.zeros(len(f)) → torch.ones(len(f))": "every row is written",
        "dropped: family.unique() → family": "a family's scores are written several times",
    },
}
"""By exercise: mutants that give the solution's results on all inputs, and why."""


@dataclass
class Row:
    """What a checker said of the mutants of one exercise, by what they are called."""

    accepted: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    unnamed: dict[str, str] = field(default_factory=dict)
    equivalent: list[str] = field(default_factory=list)

    @property
    def share_named(self) -> float:
        return len(self.named) / max(1, len(self.named) + len(self.unnamed))


def exercises() -> Iterator[tuple[str, str]]:
    for notebook in HELD:
        for name in book_of(notebook).solutions:
            yield notebook, name


def book_of(notebook: str) -> Workbook:
    return importlib.import_module(f"course_utils.teaching.{notebook}").book


@functools.cache
def row_of(notebook: str, name: str) -> Row:
    """The mutants of an exercise, checked."""
    book, row = book_of(notebook), Row()
    listed = EQUIVALENT.get((notebook, name), {})
    for mutant in mutants_of(notebook, name):
        says = said_of(book, mutant)
        if says is None or (mutant.name in listed and "TypeCheckError" in says):
            (row.equivalent if mutant.name in listed else row.accepted).append(mutant.name)
        elif "is off by up to" in says and "changed in place" not in says:
            row.unnamed[mutant.name] = says
        else:
            row.named[mutant.name] = says
    return row


def mutants_of(notebook: str, name: str) -> list[Mutant]:
    book = book_of(notebook)
    return mutants(book.solutions[name], gradient=book.gradients.get(name, ()))


def said_of(book: Workbook, mutant: Mutant) -> str | None:
    """What `check` says of a mutant; None if it is accepted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mutant may transpose what has three axes
        checked = book.checked(mutant.function)
    return None if checked.status == "right" else checked.says


HELD_EXERCISES = [pytest.param(*key, id=".".join(key)) for key in exercises() if HELD[key[0]]]


@pytest.mark.parametrize(("notebook", "name"), HELD_EXERCISES)
def test_no_wrong_version_is_accepted(notebook, name):
    assert not row_of(notebook, name).accepted


@pytest.mark.parametrize(("notebook", "name"), HELD_EXERCISES)
def test_two_thirds_of_the_wrong_versions_are_named(notebook, name):
    row = row_of(notebook, name)
    assert row.share_named >= NAMED, row.unnamed


@pytest.mark.parametrize(("notebook", "name"), [pytest.param(*key) for key in EQUIVALENT])
def test_what_is_listed_as_equivalent_is_a_mutant_and_is_accepted(notebook, name):
    """Or a signature in `course_utils` refuses its type, which is checked only in tests."""
    assert set(row_of(notebook, name).equivalent) == set(EQUIVALENT[notebook, name])


def test_there_are_many_mutants_of_many_kinds_and_each_differs_from_the_solution():
    for notebook, name in exercises():
        made = mutants_of(notebook, name)
        assert len(made) >= 20 and len({mutant.kind for mutant in made}) >= 7, name
        assert len({mutant.name for mutant in made}) == len(made)
        assert len({mutant.source for mutant in made}) == len(made)


def example(x: Tensor, y: Tensor) -> Tensor:
    """The solution of no exercise."""
    shifted = x[1:] - y.mean(dim=0)
    return shifted.abs()


@pytest.mark.parametrize(
    "line",
    [
        "shifted = x[1:] + y.mean(dim=0)",
        "shifted = y.mean(dim=0) - x[1:]",
        "shifted = x[1:]",
        "shifted = x[2:] - y.mean(dim=0)",
        "shifted = x - y.mean(dim=0)",
        "shifted = x[1:] - y.sum(dim=0)",
        "shifted = x[1:] - y.mean(dim=1)",
        "shifted = x[1:] - y.mean()",
        "shifted = y[1:] - x.mean(dim=0)",
        "return shifted",
        "return times(-1, shifted.abs())",
        "return constant(1, shifted.abs())",
        "return cast(torch.float16, shifted.abs())",
        "return without_gradient(shifted.abs())",
        "return spoilt(shifted.abs(), y)",
        "return (shifted.abs(),)",
        "return x",
        "y = without_gradient(y)",
    ],
)
def test_the_mutants_of_a_function_are_those_that_one_would_make_by_hand(line):
    sources = [mutant.source for mutant in mutants(example, gradient=["y"])]
    assert sum(line in [text.strip() for text in source.splitlines()] for source in sources)


def test_a_mutant_does_what_its_text_says():
    x, y = torch.arange(6.0).view(3, 2), torch.ones(4, 2)
    made = {mutant.name: mutant.function for mutant in mutants(example)}
    assert not any(name.startswith("detach") for name in made)
    torch.testing.assert_close(made["dropped: shifted.abs() → shifted"](x, y), x[1:] - 1)
    assert made["dtype: the result → cast(torch.bool, the result)"](x, y).dtype == torch.bool
    kept = x.clone()
    torch.testing.assert_close(
        made["in place: x is changed after its last use"](x, y), kept[1:] - 1
    )
    assert not torch.equal(x, kept)


def test_table(capsys):
    """Printed with -s: exercise, mutants, accepted, named."""
    lines = [f"{'exercise':<32}{'mutants':>8}{'accepted':>9}{'same':>6}{'named':>7}  held"]
    for notebook, name in exercises():
        row = row_of(notebook, name)
        n = len(row.accepted) + len(row.named) + len(row.unnamed) + len(row.equivalent)
        numbers = f"{n:>8}{len(row.accepted):>9}{len(row.equivalent):>6}{row.share_named:>7.0%}"
        lines.append(f"{notebook}.{name:<27}{numbers}  {HELD[notebook]}")
        if name in os.environ.get("MUTANTS", "").split():
            lines += [f"    accepted  {mutant}" for mutant in row.accepted]
            lines += [f"    unnamed   {mutant}" for mutant in row.unnamed]
            lines += [f"    named     {mutant}: {says}" for mutant, says in row.named.items()]
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert len(lines) > len(HELD)
