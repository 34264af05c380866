"""Outputs are kept where the code or the results are the same, and refused where they are not."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import build_notebooks
from tools.keep_outputs import (
    OutputsChanged,
    code_cells,
    same_text,
    shown_by,
    with_outputs_of,
    with_outputs_of_same_results,
)


def printed(text):
    return new_output("stream", text=text)


def figure(alt):
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "<Image>"}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": alt}})


def table(page):
    return new_output("execute_result", data={"text/html": page, "text/plain": "a table"})


def notebook(*cells):
    """A notebook of ``(code, output, …)`` after a cell of text."""
    made = [new_code_cell(source, outputs=outputs) for source, *outputs in cells]
    for number, cell in enumerate(made):
        cell.execution_count = number + 1
    return new_notebook(cells=[new_markdown_cell("some text"), *made])


def outputs(made):
    """What each code cell shows, as text."""
    cells = code_cells(made)
    shown = shown_by(cells)
    return [[one.text for one in shown if one.cell == number] for number in range(len(cells))]


# ---------------------------------------------------------------------------------------------
# The same code
# ---------------------------------------------------------------------------------------------

BUILT = notebook(
    ("from old.place import work, LIMIT\nimport json",),
    ("x = work(  'a',LIMIT )\nprint(x)", printed("one\n")),
    (
        "def f(y):\n    '''Old words.'''\n    from old.place import g\n    return g(y)\nf(x)",
        table("two"),
    ),
    ("figure(f'{x} of'\n       f' {f}')", figure("three")),
)


def test_imports_formatting_comments_docstrings_and_text_may_change():
    fresh = notebook(
        ("from new.house import LIMIT, work",),
        ('x = work("a", LIMIT)  # the same\nprint(x)',),
        ('def f(y):\n    """New\n    words."""\n    return g(y)\n\n\nf(x)',),
        ('figure(f"{x} of {f}")',),
    )
    fresh.cells[0].source = "another text"
    for cell in code_cells(fresh):
        cell.execution_count = None
    kept = with_outputs_of(BUILT, fresh)
    assert outputs(kept) == [[], ["one"], ["two"], ["three"]]
    assert kept.cells[0].source == "another text"
    assert [cell.execution_count for cell in code_cells(kept)] == [1, 2, 3, 4]


def test_outputs_go_to_the_cell_that_holds_the_last_statement_of_theirs():
    fresh = notebook(
        ("x = work('a', LIMIT)",),
        ("print(x)\ndef f(y):\n    return g(y)",),
        ("f(x)",),
        ("figure(f'{x} of {f}')",),
    )
    kept = with_outputs_of(BUILT, fresh)
    assert outputs(kept) == [[], ["one"], ["two"], ["three"]]
    assert code_cells(kept)[2].outputs[0].execution_count == 3
    together = notebook(
        ("x = work('a', LIMIT)\nprint(x)\ndef f(y):\n    return g(y)\nf(x)",),
        ("figure(f'{x} of {f}')",),
    )
    assert outputs(with_outputs_of(BUILT, together)) == [["one", "two"], ["three"]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'a'", "'b'"),
        ("print(x)", "print(x, x)"),
        ("print(x)", "print(x)\nprint(x)"),
        ("\nprint(x)", ""),
        ("return g(y)", "return g(-y)"),
        ("LIMIT )", "limit=LIMIT )"),
        (" of", "of"),
    ],
)
def test_changed_code_is_refused(old, new):
    fresh = nbformat.from_dict(BUILT)
    for cell in code_cells(fresh):
        cell.source = cell.source.replace(old, new)
    with pytest.raises(OutputsChanged, match="its code has changed"):
        with_outputs_of(BUILT, fresh)


def test_a_statement_more_or_less_at_the_end_is_refused():
    shorter = notebook(*[(cell.source,) for cell in code_cells(BUILT)[:-1]])
    longer = notebook(*[(cell.source,) for cell in code_cells(BUILT)], ("x = 17",))
    for fresh in (shorter, longer):
        with pytest.raises(OutputsChanged, match="a statement more or less"):
            with_outputs_of(BUILT, fresh)


def test_outputs_without_a_statement_have_no_place():
    built = notebook(("import noisy", printed("hello")), ("x = 1",))
    with pytest.raises(OutputsChanged, match="no cell is left for the outputs of code cell 0"):
        with_outputs_of(built, notebook(("x = 1",)))


def test_statements_in_another_order_are_refused():
    fresh = notebook(*[(cell.source,) for cell in reversed(code_cells(BUILT))])
    with pytest.raises(OutputsChanged, match="its code has changed"):
        with_outputs_of(BUILT, fresh)


def test_a_value_that_is_shown_has_to_stay_the_last_of_its_cell():
    hidden = notebook(
        ("x = work('a', LIMIT)\nprint(x)\ndef f(y):\n    return g(y)",),
        ("f(x)\nfigure(f'{x} of {f}')",),
    )
    with pytest.raises(OutputsChanged, match=r"is shown as the last.*\nf\(x\)"):
        with_outputs_of(BUILT, hidden)
    built = notebook(("ax.set_title('a')\nx = 1", printed("one")))
    cut = notebook(("ax.set_title('a')",), ("x = 1",))
    with pytest.raises(OutputsChanged, match=r"other way round.\nax.set_title"):
        with_outputs_of(built, cut)


def test_names_may_change_that_are_given_with_their_new_name():
    built = notebook(("band = plots.band(found, keep=1)\nband.low", table("two")))
    fresh = notebook(("mean = figures.mean(found, save_as=1)\nmean.low",))
    renamed = {"band": "mean", "plots": "figures", "keep": "save_as"}
    assert outputs(with_outputs_of(built, fresh, renamed)) == [["two"]]
    for forgotten in renamed:
        fewer = {old: new for old, new in renamed.items() if old != forgotten}
        with pytest.raises(OutputsChanged, match="its code has changed"):
            with_outputs_of(built, fresh, fewer)


def test_functions_and_their_arguments_may_have_new_names():
    built = notebook(("def band(keep):\n    return keep\nprint(band(keep=1))", printed("1")))
    fresh = notebook(("def mean(save_as):\n    return save_as\nprint(mean(save_as=1))",))
    assert outputs(with_outputs_of(built, fresh, {"band": "mean", "keep": "save_as"})) == [["1"]]


def test_two_names_do_not_become_one():
    built = notebook(("price = 1\nsparsity = 2\nprint(price)", printed("1")))
    fresh = notebook(("sparsity = 1\nsparsity = 2\nprint(sparsity)",))
    with pytest.raises(OutputsChanged, match="two names would become one: sparsity"):
        with_outputs_of(built, fresh, {"price": "sparsity"})


# ---------------------------------------------------------------------------------------------
# The same results
# ---------------------------------------------------------------------------------------------

BEFORE = notebook(
    ("old(1)", printed("faithfulness 0.82 [0.78, 0.88], n = 48\nThis took 2.4 seconds.\n")),
    ("old(2)\nold(3)", printed("a line\n"), figure("37 nodes: 0.92 of F(S).")),
    ("if not QUICK:\n    old(4)",),
    ("old(5)", table("<style>p {}</style><table><td a='1'>1,234</td><td>-0.00</td></table>")),
)
FULL = notebook(
    *[(cell.source, printed(f"full {number}")) for number, cell in enumerate(code_cells(BEFORE))]
)
NOW = notebook(
    ("new(1)", printed("faithfulness 0.83 [0.78, 0.88], n = 48\nThis took 13.9 seconds.\n")),
    ("new(2)", printed("a line\n")),
    ("new(3)", figure("37 nodes: 0.92 of F(S).")),
    ("if not QUICK:\n    new(4)",),
    ("new(5)", table("<table><td a='2'>1,234</td>\n<td>0.00</td></table>")),
)
FRESH = notebook(*[(cell.source,) for cell in code_cells(NOW)])


def kept(now=NOW, fresh=FRESH, **changes):
    fresh = nbformat.from_dict(fresh)
    return with_outputs_of_same_results(FULL, fresh, quick_before=BEFORE, quick_now=now, **changes)


def test_the_same_results_keep_the_outputs_of_the_full_run_where_they_are_shown_now():
    assert outputs(kept()) == [["full 0"], [], ["full 1"], ["full 2"], ["full 3"]]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0.83", "0.85", "code cell 0: 0.82 is now 0.85: faithfulness 0.85"),
        ("n = 48", "n = 49", "48 is now 49"),
        ("faithfulness", "Faithfulness", "code cell 0: was shown: faithfulness"),
        ("a line\n", "", "code cell 1: was shown: a line"),
        ("a line\n", "a line\na line\n", "is shown now: a line"),
        ("37 nodes", "38 nodes", "code cell 1: 37 is now 38: 38 nodes"),
        ("0.92 of F(S)", "0.92 of F(M)", "was shown: 37 nodes"),
        ("1,234", "1,235", "code cell 3: 1,234 is now 1,235"),
    ],
)
def test_another_number_or_word_is_refused_and_named(old, new, said):
    old, new = (text.replace("\n", r"\n") for text in (old, new))  # as in the file
    assert old in nbformat.writes(NOW)
    changed = nbformat.reads(nbformat.writes(NOW).replace(old, new), as_version=4)
    with pytest.raises(OutputsChanged) as refusal:
        kept(changed)
    assert said in str(refusal.value)


def test_html_is_read_as_a_reader_sees_it_and_errors_by_their_message():
    error = new_output("error", ename="ValueError", evalue="no such layer", traceback=[])
    page = table("<style>p {color: red}</style><b>F(S) &minus; F(&empty;)</b> &lt; 1")
    assert outputs(notebook(("a", error), ("b", page))) == [
        ["ValueError: no such layer"],
        ["F(S) − F(∅) < 1"],
    ]


def test_every_difference_is_listed():
    changed = nbformat.writes(NOW).replace("0.83", "0.95").replace("37", "99")
    with pytest.raises(OutputsChanged) as refusal:
        kept(nbformat.reads(changed, as_version=4))
    assert len(str(refusal.value).splitlines()) == 3


def test_what_is_to_be_ignored_can_be_said():
    changed = nbformat.reads(nbformat.writes(NOW).replace("37 nodes", "99 nodes"), as_version=4)
    assert outputs(kept(changed, ignored=[r"\d+ nodes"])) == outputs(kept())


def test_a_line_that_the_first_run_on_a_machine_prints_is_not_compared():
    once = "This took 13.9 seconds.\nConverting some-model.gguf to safetensors (once) …\n"
    changed = nbformat.writes(NOW).replace(r"This took 13.9 seconds.\n", once.replace("\n", r"\n"))
    assert "Converting" in changed
    assert outputs(kept(nbformat.reads(changed, as_version=4))) == outputs(kept())


def test_quick_runs_of_other_code_are_refused():
    other = nbformat.from_dict(FRESH)
    code_cells(other)[0].source = "new(17)"
    with pytest.raises(OutputsChanged, match="not of the source as it is now"):
        kept(fresh=other)
    with pytest.raises(OutputsChanged, match="not of the code that the full run is of"):
        with_outputs_of_same_results(FULL, other, quick_before=NOW, quick_now=NOW)


def test_an_output_of_the_full_run_only_has_to_have_a_place():
    now, fresh = nbformat.from_dict(NOW), nbformat.from_dict(FRESH)
    for made in (now, fresh):
        made.cells.insert(4, new_code_cell("a_new_cell"))
    with pytest.raises(OutputsChanged, match="code cell 2 shows something in the full run only"):
        kept(now, fresh)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.000", "1.001", True),
        ("1.000", "1.003", False),
        ("2512.0", "2514.0", True),  # a thousandth
        ("2512", "2514", False),  # whole numbers are counts
        ("57%", "58%", True),
        ("57%", "59%", False),
        ("4.0e-05", "9.1e-06", True),  # floating point's noise
        ("4.0e-05", "9.1e-02", False),
        ("−0.20", "-0.20", True),  # another minus
        ("[3, 3, 2]", "[3, 3, 2]", True),
        ("[3, 3, 2]", "[3, 2, 2]", False),
        ("layer 5", "layer 5 or", False),
        ("-0.00", "0.00", True),
        ("-0.50", "0.50", False),
    ],
)
def test_numbers_are_the_same_within_rounding(one, other, same):
    assert same_text(one, other) == same and same_text(other, one) == same


# ---------------------------------------------------------------------------------------------
# The builder
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one notebook, built from a source that has changed since; its quick run is made
    up.
    """
    (tmp_path / "solutions").mkdir()
    source = tmp_path / "solutions" / "07_tiny.py"
    source.write_text("# %% [markdown]\n# # Tiny\n\n# %%\nx = 1 + 1\nprint(x)\n")
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)

    def execute(source, *, solved=True):
        made = build_notebooks.unexecuted(source, solved=solved)
        code_cells(made)[0].outputs = [printed("2\n")]
        return made

    monkeypatch.setattr(build_notebooks, "execute", execute)
    monkeypatch.setattr(build_notebooks, "TIMES", tmp_path / "times.json")
    build_notebooks.main([])
    build_notebooks.main(["--quick"])
    (tmp_path / "build").rename(tmp_path / "before")
    source.write_text("# %% [markdown]\n# # Tiny\n\n# %%\ny = 2\n\n# %%\nprint(y)\n")
    return source


def test_the_builder_keeps_outputs_of_the_same_results(course, tmp_path, monkeypatch, capsys):
    def execute(source, *, solved=True):
        made = build_notebooks.unexecuted(source, solved=solved)
        code_cells(made)[1].outputs = [printed(shows)]
        return made

    built = build_notebooks.solution_path(course)
    monkeypatch.setattr(build_notebooks, "execute", execute)
    as_it_was, shows = built.read_text(), "3\n"
    with pytest.raises(SystemExit, match="not written: 07_tiny"):
        build_notebooks.main(["--same-as", str(tmp_path / "before")])
    assert "2 is now 3" in capsys.readouterr().out and built.read_text() == as_it_was
    shows = "2\n"
    build_notebooks.main(["07", "--same-as", str(tmp_path / "before")])
    done = nbformat.read(built, as_version=4)
    assert outputs(done) == [[], ["2"]]
    assert [cell.id for cell in done.cells] == ["cell-000", "cell-001", "cell-002"]
    reader = nbformat.read(build_notebooks.reader_path(course), as_version=4)
    assert [cell.source for cell in reader.cells] == [cell.source for cell in done.cells]


def test_the_builder_refuses_changed_code_and_takes_names_that_are_given(course, capsys):
    with pytest.raises(SystemExit, match="not written: 07_tiny"):
        build_notebooks.main(["--no-run"])
    assert "its code has changed" in capsys.readouterr().out
    course.write_text("# %% [markdown]\n# # Tiny\n\n# %%\nz = 1 + 1\n\n# %%\nprint(z)\n")
    build_notebooks.main(["--no-run", "--renamed", "x=z"])
    built = nbformat.read(build_notebooks.solution_path(course), as_version=4)
    assert outputs(built) == [[], ["2"]]
    with pytest.raises(SystemExit):
        build_notebooks.main(["--no-run", "--renamed", "x"])
    assert "is not old=new" in capsys.readouterr().err
