"""Unwritten exercises run the course's version, written ones the reader's, and `check` says what is
what.
"""

import pytest
import torch

from course_utils.teaching.workbook import Checked, Workbook, Wrong, compare

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
    space = {"torch": torch}
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
        ("return 3 * x", "wrong", "off by up to 3, where values are up to 6"),
        ("return 'six'", "wrong", "to be a tensor, not str"),
        ("return undefined", "wrong", "double raised NameError"),
    ],
)
def test_check_says_what_is_what(body, status, says):
    found = book.checked(attempt(body))
    assert found.status == status and says in found.says


def test_an_error_in_check_shows_the_readers_line_and_not_the_courses():
    found = book.checked(attempt("return undefined"))
    assert "<reader>" in found.says and "exercises.py" not in found.says


def test_the_signs():
    assert [str(Checked(s, "f"))[0] for s in ("right", "open", "wrong")] == ["✅", "⏳", "❌"]


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
