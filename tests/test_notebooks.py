"""The built notebooks match their sources; nothing that they or the README point at is missing."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.build_notebooks import (
    MAX_BYTES,
    REPOSITORY,
    SETUP,
    badge,
    exercise_source,
    exercises_of,
    reader_path,
    solution_path,
    sources,
    times_of,
    unexecuted,
)
from tools.keep_outputs import code_cells

ROOT = Path(__file__).resolve().parent.parent

SOURCES = [pytest.param(source, id=source.stem) for source in sources()]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("data/**/README.md"), *sources()]


def test_there_are_sources():
    wanted = [f"{number:02d}" for number in range(8)]
    assert [source.name[:2] for source in sources()] == wanted


@pytest.mark.parametrize("source", SOURCES)
def test_both_notebooks_match_their_source(source):
    """If this fails: make notebooks."""
    for path, solved in ((reader_path(source), False), (solution_path(source), True)):
        expected = unexecuted(source, solved=solved)
        built = nbformat.read(path, as_version=4)
        assert [(cell.cell_type, cell.source) for cell in built.cells] == [
            (cell.cell_type, cell.source) for cell in expected.cells
        ], path
        assert [cell.metadata.get("tags") for cell in built.cells] == [
            cell.metadata.get("tags") for cell in expected.cells
        ]


@pytest.mark.parametrize("source", SOURCES)
def test_the_header_and_the_readme_say_the_measured_times(source):
    times = times_of(source)
    header = " ".join(unexecuted(source, solved=False).cells[0].source.split())
    full, quick = (f"{times[profile]:.1f} minutes" for profile in ("full", "quick"))
    assert f"{full} where it was built, or {quick} in the quick profile" in header
    [row] = [
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if f"](notebooks/{source.stem}.ipynb)" in line
    ]
    assert row.endswith(f"| {times['full']:.1f} min | {times['quick']:.1f} min |")


@pytest.mark.parametrize("source", SOURCES)
def test_the_readers_copy_has_no_outputs_and_the_solution_has_them(source):
    reader, solution = (
        nbformat.read(path, as_version=4) for path in (reader_path(source), solution_path(source))
    )
    code = [cell for cell in reader.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    outputs = [
        output for cell in solution.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert not [output for output in outputs if output.output_type == "error"]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) >= (1 if source.name.startswith("00") else 4) and all(
        output.metadata["image/png"]["alt"] for output in images
    )


@pytest.mark.parametrize("source", SOURCES)
def test_built_notebooks_are_small_and_name_no_folder_of_the_author(source):
    for path in (reader_path(source), solution_path(source)):
        assert path.stat().st_size < MAX_BYTES
        assert not re.search(r"/(home|root|work|Users)/\w", path.read_text())


@pytest.mark.parametrize("source", SOURCES)
def test_one_idea_a_cell(source):
    cells = code_cells(unexecuted(source, solved=True))
    lengths = [n_lines(cell.source) for cell in cells]
    assert not {cell.source for cell, n in zip(cells, lengths) if n > 25}
    assert sorted(lengths)[len(lengths) // 2] <= 12


def n_lines(code):
    """Lines of a cell; of an exercise, without its docstring, which tells the reader what to do."""
    lines = len(code.splitlines())
    if not code.startswith("@exercise"):
        return lines
    docstring = ast.parse(code).body[0].body[0]
    return lines - (docstring.end_lineno - docstring.lineno + 1)


@pytest.mark.parametrize("source", SOURCES)
def test_lines_are_no_longer_than_100(source):
    """In code and in text; a table, a badge and a link's address cannot be wrapped."""
    cells = unexecuted(source, solved=True).cells
    lines = [line for cell in cells for line in cell.source.splitlines()]
    long = [line for line in lines if len(line) > 100]
    assert not [line for line in long if not line.startswith(("|", "[!["))]


@pytest.mark.parametrize("source", SOURCES)
def test_stub_and_solution_have_one_signature_and_docstring(source):
    open_cells, solved_cells = (
        [
            cell.source
            for cell in unexecuted(source, solved=solved).cells
            if cell.source.startswith("@exercise")
        ]
        for solved in (False, True)
    )
    assert len(open_cells) == len(exercises_of(source))
    for stub, solution in zip(open_cells, solved_cells):
        [a], [b] = ast.parse(stub).body, ast.parse(solution).body
        assert (a.name, ast.unparse(a.args), ast.get_docstring(a)) == (
            b.name,
            ast.unparse(b.args),
            ast.get_docstring(b),
        )
        assert ast.unparse(a.body[1:]) == "raise NotImplementedError" != ast.unparse(b.body[1:])


@pytest.mark.parametrize("source", SOURCES)
def test_before_each_open_exercise_a_fold_holds_its_solution(source):
    names = exercises_of(source)
    cells = unexecuted(source, solved=False).cells
    folds = {}
    for before, cell in zip(cells, cells[1:]):
        found = re.match(r"@exercise\ndef (\w+)", cell.source)
        if found and before.cell_type == "markdown":
            _, _, fold = before.source.rpartition("<details><summary>Solution</summary>")
            folds[found[1]] = fold
    solved = {cell.source for cell in unexecuted(source, solved=True).cells}
    assert set(folds) == set(names)
    for fold in folds.values():
        code = re.search(r"```python\n(.*)\n```\n</details>$", fold, flags=re.DOTALL)
        assert code and code[1] in solved and "NotImplementedError" not in code[1]


def test_an_exercise_is_pasted_whole_or_with_its_body_taken_out():
    from test_workbook import double

    assert (
        exercise_source(double, solved=True)
        == '@exercise\ndef double(x):\n    """Twice x."""\n    return 2 * x'
    )
    assert (
        exercise_source(double, solved=False)
        == '@exercise\ndef double(x):\n    """Twice x."""\n    raise NotImplementedError'
    )


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]
)
def test_linked_files_exist(page):
    is_text = page.suffix == ".md"
    text = (
        page.read_text()
        if is_text
        else "\n".join(
            cell.source for cell in jupytext.read(page).cells if cell.cell_type == "markdown"
        )
    )
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_readme_names_commands_that_the_makefile_has():
    pages = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    commands = {name for page in pages for name in re.findall(r"(?:`|^)make ([a-z]+)", page, re.M)}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {"lab", "course", "check", "test", "benchmark", "notebooks"} <= commands <= targets


def test_the_readme_leads_with_the_two_commands():
    commands = re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text())
    assert commands[:2] == ["lab", "test"]


def test_every_required_package_is_bounded_and_pinned_in_the_constraints():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = [*(ROOT / "requirements.txt").read_text().splitlines(), *extras["tests"]]
    required = [Requirement(line) for line in wanted if line and not line.startswith("#")]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(r.name): r for r in map(Requirement, constraints)}
    assert len(required) > 20
    for requirement in required:
        [version] = pinned[canonicalize_name(requirement.name)].specifier
        assert version.operator == "==" and version.version in requirement.specifier
        assert {bound.operator for bound in requirement.specifier} == {">=", "<"}


# -- the first cell (in Colab: test_colab.py) ---------------------------------------------------


def test_elsewhere_the_first_cell_is_silent_and_says_where_the_notebook_belongs(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT / "notebooks")
    exec(SETUP.format(repository="x"), {})
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="Open this notebook from notebooks/ or solutions/"):
        exec(SETUP.format(repository="x"), {})


@pytest.mark.parametrize("source", SOURCES)
def test_every_notebook_has_the_setup_cell_and_its_own_badge(source):
    cells = unexecuted(source, solved=False).cells
    assert f"/blob/main/notebooks/{source.stem}.ipynb" in cells[0].source
    assert [cell.source for cell in cells].count(SETUP.format(repository=REPOSITORY)) == 1


def test_a_forks_badges_point_to_the_fork(monkeypatch):
    monkeypatch.setattr("tools.build_notebooks.REPOSITORY", "https://github.com/you/fork")
    assert (
        "colab.research.google.com/github/you/fork/blob/main/notebooks/00_start_here.ipynb"
        in badge(sources()[0])
    )
