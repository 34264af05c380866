"""Unwritten exercises run the course's version, written ones the reader's; `check` says which."""

import importlib
import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from course_utils.teaching.workbook import Checked, Unnamed, Workbook, Wrong, compare, is_close

book = Workbook()


@book.solution
def double(x):
    """Twice x."""
    return 2 * x


@book.checker(double)
def _(attempt):
    x = torch.tensor([1.0, -3.0])
    compare(
        attempt(x),
        2 * x,
        {"you squared it": x**2, "you took its size": 2 * x.abs()},
        what="the double",
    )


def attempt(body):
    """The reader's ``double``, with that body."""
    space: dict[str, Any] = {"torch": torch}
    exec(compile(f"def double(x):\n    {body}", "<reader>", "exec"), space)
    return book.exercise(space["double"])


def test_an_unwritten_exercise_runs_the_courses_version_and_says_so_once(capsys):
    unwritten = attempt("raise NotImplementedError")
    assert unwritten(3) == 6 and unwritten(4) == 8
    assert capsys.readouterr().out.count("double is yours to write") == 1


def test_a_written_exercise_runs(capsys):
    assert attempt("return x + x")(3) == 6 and attempt("return 3 * x")(3) == 9
    assert capsys.readouterr().out == ""


def test_a_half_written_exercise_still_runs_the_courses_version():
    assert attempt("y = x + x; raise NotImplementedError('go on here')")(3) == 6


def test_the_readers_own_error_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        attempt("return x / 0")(3)


def test_an_unfinished_thing_that_the_reader_calls_is_the_readers_error():
    with pytest.raises(NotImplementedError):
        attempt("return torch.nn.Module()(x)")(3)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("return x + x", "right", "double"),
        ("raise NotImplementedError", "open", "not written yet"),
        ("return x ** 2", "wrong", "you squared it"),
        ("return 2 * x.abs()", "wrong", "you took its size"),
        ("x + x", "wrong", "the double is None. Is the return missing?"),
        ("return 2 * x[:1]", "wrong", r"has the shape [1], and [2] is wanted"),
        ("return x / 0", "wrong", "not finite"),
        ("return 2 * x + torch.tensor([1, 2])", "wrong", "off by up to 2, where values are up"),
        ("return 4 * x", "wrong", "the double is 2 times what is wanted everywhere"),
        ("return x.tolist()", "wrong", "it is a list of 2, and a tensor is wanted"),
        ("return x.clone()", "wrong", "this is x as it came in"),
        ("return (2 * x).double()", "wrong", "it is float64, and float32 is wanted"),
        ("return x.mul_(2)", "wrong", "the values are right, but x was changed in place"),
        ("return x.mul_(2) ** 2", "wrong", "x was changed in place, so that what reads it after"),
        ("return x.mul_(x)", "wrong", "you squared it Besides, x was changed in place"),
        ("return 'six'", "wrong", "to be a tensor, not str"),
        ("return undefined", "wrong", "double raised NameError"),
    ],
)
def test_check_says_what_is_what(body, status, says):
    checked = book.checked(attempt(body))
    assert checked.status == status and says in checked.says


def test_an_error_in_check_shows_the_readers_line_and_not_the_checkers():
    says = book.checked(attempt("return undefined")).says
    assert 'File "<reader>", line 2, in double' in says and "workbook.py" not in says


@pytest.mark.parametrize(("status", "sign"), [("right", "✅"), ("open", "⏳"), ("wrong", "❌")])
def test_what_is_said_begins_with_a_sign(status, sign):
    assert str(Checked(status, "f: the words.")) == f"{sign} f: the words."


def test_other_names_and_other_arguments_are_refused():
    def triple(x): ...

    def double(y): ...

    with pytest.raises(NameError, match="no exercise is called 'triple'; here there are double"):
        book.exercise(triple)
    assert "its arguments are to be (x), not (y)" in book.checked(double).says


def test_a_checker_never_shows_the_solution(capsys):
    for body in ("return 3 * x", "raise NotImplementedError", "return undefined"):
        book.check(attempt(body))
    assert "2 * x" not in capsys.readouterr().out


def test_compare_is_relative_to_the_size_of_what_is_right():
    compare(torch.tensor([1000.05]), torch.tensor([1000.0]))
    with pytest.raises(Wrong):
        compare(torch.tensor([0.05]), torch.tensor([0.0]))
    compare(torch.tensor([0.05]), torch.tensor([0.0]), tolerance=1e12)


def test_the_first_known_wrong_answer_that_fits_counts():
    with pytest.raises(Wrong, match="^first$"):
        compare(2.0, 1.0, {"neither": 3.0, "first": 2.0, "second": 2.0})


def test_a_right_answer_is_right_even_if_it_is_listed_as_wrong():
    assert compare(1.0, 1.0, {"this is 1": 1.0}) is None
    with pytest.raises(Wrong, match="this is 1"):
        compare(1.0, 2.0, {"this is 1": 1.0})


@given(
    right=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5),
    at=st.integers(0, 4),
    share=st.floats(-0.01, 0.01),
)
def test_an_answer_is_right_up_to_the_tolerance_and_no_further(right, at, share):
    right = torch.tensor(right, dtype=torch.double)
    answer, size = right.clone(), right.abs().max()
    answer[at % len(right)] += share * size
    assume(size > 1e-3 and not 0.9e-3 < abs(share) < 1.1e-3)
    if abs(share) < 1e-3:
        compare(answer, right, tolerance=1e-3)
    else:
        with pytest.raises(Unnamed):
            compare(answer, right, tolerance=1e-3)


@pytest.mark.parametrize("number", range(1, 8))
def test_known_mistakes_differ_from_what_is_right_and_from_each_other(monkeypatch, number):
    """In some comparison: where two always coincide, one of them is named for the other."""
    notebook = importlib.import_module(f"course_utils.teaching.nb0{number}")
    alike: dict[tuple[str, str], bool] = {}

    def look(answer, right, wrong=None, *, what="it", tolerance=1e-4):
        values = {"what is right": right, **(wrong or {})}
        tensors = {says: torch.as_tensor(value) for says, value in values.items()}
        for one, other in itertools.combinations(values, 2):
            coincide = is_close(tensors[other], tensors[one])
            alike[one, other] = alike.get((one, other), True) and coincide

    monkeypatch.setattr(notebook, "compare", look)
    for name, solution in notebook.book.solutions.items():
        notebook.book.checkers[name](solution)
    assert len(alike) > 100
    assert not [pair for pair, always in alike.items() if always and not from_answer(pair)]


def from_answer(pair):
    """Whether a known mistake is made from the answer itself, which here is right."""
    return any(says.startswith("latents without ties are right") for says in pair)
