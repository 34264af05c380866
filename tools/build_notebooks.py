"""Make both notebooks of each solutions/NN_name.py.

    python -m tools.build_notebooks [NN ...]             # run it in full, and write both
    python -m tools.build_notebooks [NN ...] --quick     # see whether both run: in the quick
                                                         # profile, into build/

A full run takes hours. `keep_outputs.py` has two checks that can stand in its place:

    # Only text, imports or formatting have changed, or names that are given as old=new.
    python -m tools.build_notebooks [NN ...] --no-run [--renamed old=new ...]
    # The code has changed and its results have not: FOLDER holds NN_name_solved.ipynb of the code
    # before, executed in the quick profile (--quick makes them). The new code is run so, too.
    python -m tools.build_notebooks [NN ...] --same-as FOLDER [--ignored PATTERN ...]

``solutions/NN_name.ipynb`` is executed, with outputs and figures; ``notebooks/NN_name.ipynb`` is
the reader's copy, with exercises open and without outputs. Both come from one source, and
tests/test_notebooks.py fails where they do not match it.

What is filled in, in a source:

- ``# setup``: the same first cell for all, which finds the course (in Colab, fetches it and
  installs what is lacking, by `course_utils.teaching.colab`).
- ``# exercise: name``: the solution's code stands in ``course_utils/teaching/nbNN.py``; it is put
  into the solutions notebook as it is, and into the reader's copy with its body taken out. There
  the text before it ends with a fold that holds the solution, after the hints.
- ``{times}`` in the first cell: how long the notebook takes, from ``data/notebook_times.json``. A
  full build writes its time there (give it the machine for itself); the quick times are those that
  ``make test`` reports.

Each notebook begins with a badge that opens the reader's copy in Colab. A fork's badges point to
the fork: ``COURSE_REPOSITORY=https://github.com/you/your-fork make notebooks``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tools.keep_outputs import OutputsChanged, with_outputs_of, with_outputs_of_same_results

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = os.environ.get(
    "COURSE_REPOSITORY", "https://github.com/scalable-sae-circuits/scalable-sae-circuits"
)
"""The course's public address."""
EXERCISE = re.compile(r"# exercise: (\w+)")
SETUP = """\
# Finds the course. In Colab, fetches it and installs what Colab lacks.
import shutil, subprocess, sys, tempfile
from pathlib import Path

COLAB = "google.colab" in sys.modules
root = Path("/content/course") if COLAB else Path.cwd().parent
whole = f"git --git-dir={{root}}/.git --work-tree={{root}} diff --quiet --diff-filter=D HEAD"
if COLAB and subprocess.run(whole.split(), capture_output=True).returncode:
    print(f"Fetching the course to {{root}}.")
    url = "{repository}"
    new = root.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)  # of an earlier try
    done = subprocess.run(["git", "clone", "--depth=1", url, new], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git could not fetch it: {{done.stderr}}Run this cell again.")
    if root.exists():
        old = root.rename(tempfile.mkdtemp(prefix="incomplete-", dir=root.parent))
        print(f"Files were missing in {{root}}. What was there is now in {{old}}.")
    new.rename(root)
if not (root / "course_utils").is_dir():
    raise RuntimeError(f"No course in {{root}}. Open this notebook from notebooks/ or solutions/.")
sys.path.insert(0, str(root))
if COLAB:
    from course_utils.teaching import colab
    colab.install(root)"""
MAX_BYTES = 2_000_000
TIMES = ROOT / "data" / "notebook_times.json"


def sources() -> list[Path]:
    """The course's sources, in order."""
    return sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))


def exercise_source(solution: Callable, *, solved: bool) -> str:
    """The cell of an exercise: the course's version, or its signature and docstring alone."""
    text = inspect.getsource(solution)
    lines, [function] = text.splitlines(), ast.parse(text).body
    if not isinstance(function, ast.FunctionDef) or ast.get_docstring(function) is None:
        name = getattr(solution, "__name__", repr(solution))
        raise ValueError(f"the exercise {name} has no docstring to tell the reader what to write.")
    last = function.end_lineno if solved else function.body[0].end_lineno
    stub = [] if solved else ["    raise NotImplementedError"]
    return "\n".join(["@exercise", *lines[function.lineno - 1 : last], *stub])


def solution_fold(solution: Callable) -> str:
    """The course's version of an exercise, closed until the reader opens it."""
    code = exercise_source(solution, solved=True)
    return f"\n\n<details><summary>Solution</summary>\n\n```python\n{code}\n```\n</details>"


def badge(source: Path) -> str:
    """A link that opens the reader's copy in Colab."""
    path = (
        REPOSITORY.removeprefix("https://github.com/") + f"/blob/main/notebooks/{source.stem}.ipynb"
    )
    colab = "https://colab.research.google.com"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{path})"


def times_of(source: Path) -> dict[str, float]:
    """Minutes that the notebook took: ``full`` on two cores, ``quick`` on one; empty before it was
    measured.
    """
    return json.loads(TIMES.read_text()).get(source.name[:2], {}) if TIMES.exists() else {}


def _say_times(source: Path) -> str:
    full, quick = (
        f"{minutes:.1f} minutes" if minutes else "unmeasured"
        for minutes in map(times_of(source).get, ("full", "quick"))
    )
    return (
        f"on two CPU cores: {full} where it was built, or {quick} in the quick profile on one "
        f"core. The last cell says how long it took here"
    )


def _with_times(paragraph: str, source: Path) -> str:
    if "{times}" not in paragraph:
        return paragraph
    said = paragraph.replace("{times}", _say_times(source))
    return textwrap.fill(said, 100, break_long_words=False, break_on_hyphens=False)


def _record_time(source: Path, seconds: float) -> None:
    minutes = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    minutes.setdefault(source.name[:2], {})["full"] = round(seconds / 60, 1)
    TIMES.write_text(json.dumps(dict(sorted(minutes.items())), indent=1) + "\n")


def exercises_of(source: Path) -> list[str]:
    """The names of a source's exercises, in order."""
    return EXERCISE.findall(source.read_text())


def _solutions(source: Path) -> dict[str, Callable]:
    return importlib.import_module(f"course_utils.teaching.nb{source.name[:2]}").book.solutions


def unexecuted(source: Path, *, solved: bool) -> NotebookNode:
    """The notebook of a source, with stable cell ids and no outputs; exercises solved or open."""
    notebook = jupytext.read(source)
    first = notebook.cells[0]
    paragraphs = [_with_times(text, source) for text in first.source.split("\n\n")]
    first.source = "\n\n".join([badge(source), *paragraphs])
    before = first
    for cell in notebook.cells:
        if cell.source.strip() == "# setup":
            cell.source = SETUP.format(repository=REPOSITORY)
        named = EXERCISE.fullmatch(cell.source.strip()) if cell.cell_type == "code" else None
        if named:
            solution = _solutions(source)[named[1]]
            cell.source = exercise_source(solution, solved=solved)
            if not solved:
                before.source += solution_fold(solution)
        before = cell
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def reader_path(source: Path) -> Path:
    return ROOT / "notebooks" / f"{source.stem}.ipynb"


def solution_path(source: Path) -> Path:
    return source.with_suffix(".ipynb")


def execute(source: Path, *, solved: bool = True) -> NotebookNode:
    """Run the notebook from the top, in solutions/, and keep its outputs without its times of
    day.
    """
    notebook = unexecuted(source, solved=solved)
    os.environ["COURSE_BUILD"] = "1"
    NotebookClient(
        notebook,
        timeout=4 * 3600,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    notebook.metadata.pop("widgets", None)
    return notebook


def _is_progress(output: NotebookNode) -> bool:
    """Progress bars and warnings, which belong to the run and not to the page; widgets without
    their state.
    """
    if output.output_type == "stream":
        return output.name == "stderr"
    return (
        output.output_type == "display_data"
        and "application/vnd.jupyter.widget-view+json" in output.data
    )


def quick_path(source: Path, *, solved: bool) -> Path:
    """Where a run in the quick profile goes."""
    return ROOT / "build" / f"{source.stem}_{'solved' if solved else 'open'}.ipynb"


def run_quickly(source: Path, *, solved: bool) -> NotebookNode:
    """Run a notebook in the quick profile, into build/."""
    os.environ["COURSE_PROFILE"] = "quick"
    path = quick_path(source, solved=solved)
    path.parent.mkdir(exist_ok=True)
    begin = time.perf_counter()
    notebook = execute(source, solved=solved)
    nbformat.write(notebook, path)
    print(f"wrote {path.relative_to(ROOT)} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return notebook


def run_in_full(source: Path) -> NotebookNode:
    """Run the solutions notebook, and write down how long it takes."""
    print(f"running {source.name} …", flush=True)
    begin = time.perf_counter()
    notebook = execute(source)
    _record_time(source, time.perf_counter() - begin)
    notebook.cells[0].source = unexecuted(source, solved=True).cells[0].source  # with its time
    return notebook


def same_code(source: Path, renamed: dict[str, str]) -> NotebookNode:
    """The solutions notebook with the outputs that it has, if its code is still the same."""
    built = nbformat.read(solution_path(source), as_version=4)
    return with_outputs_of(built, unexecuted(source, solved=True), renamed)


def same_results(source: Path, before: Path, ignored: list[str]) -> NotebookNode:
    """The solutions notebook with the outputs that it has, if a quick run shows what the one in the
    folder ``before`` shows.
    """
    return with_outputs_of_same_results(
        nbformat.read(solution_path(source), as_version=4),
        unexecuted(source, solved=True),
        quick_before=nbformat.read(before / f"{source.stem}_solved.ipynb", as_version=4),
        quick_now=run_quickly(source, solved=True),
        ignored=ignored,
    )


def write_both(source: Path, notebook: NotebookNode) -> None:
    """Write the solutions notebook, executed, and the reader's copy."""
    nbformat.write(notebook, solution_path(source))
    reader_path(source).parent.mkdir(exist_ok=True)
    nbformat.write(unexecuted(source, solved=False), reader_path(source))
    print(f"wrote {reader_path(source).relative_to(ROOT)}")
    size = solution_path(source).stat().st_size
    print(f"wrote {solution_path(source).relative_to(ROOT)} ({size / 1e6:.2f} MB)")
    if size > MAX_BYTES:
        sys.exit(
            f"{solution_path(source).name} is over {MAX_BYTES / 1e6:.0f} MB: "
            f"find the output that is too large"
        )


def renamed_pair(text: str) -> tuple[str, str]:
    """``("old", "new")`` of ``old=new``."""
    old, equals, new = text.partition("=")
    if not (equals and old.isidentifier() and new.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not old=new, with a name on both sides")
    return old, new


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", help="e.g. 04; all by default")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--quick", action="store_true", help="only run both, quickly, into build/")
    way.add_argument("--no-run", action="store_true", help="the code is the same: keep the outputs")
    way.add_argument("--same-as", type=Path, metavar="FOLDER", help="its results are: keep them")
    parser.add_argument(
        "--renamed", type=renamed_pair, nargs="+", default=[], metavar="OLD=NEW",
        help="with --no-run: names that are only called something else",
    )  # fmt: skip
    parser.add_argument(
        "--ignored", nargs="+", default=[], metavar="PATTERN",
        help="with --same-as: what may differ, as a regular expression",
    )  # fmt: skip
    args = parser.parse_args(argv)
    refused = []
    for source in sources():
        if args.numbers and source.name[:2] not in args.numbers:
            continue
        if args.quick:
            run_quickly(source, solved=True)
            if exercises_of(source):
                run_quickly(source, solved=False)
            continue
        try:
            if args.no_run:
                notebook = same_code(source, dict(args.renamed))
            elif args.same_as:
                notebook = same_results(source, args.same_as, args.ignored)
            else:
                notebook = run_in_full(source)
        except (OSError, OutputsChanged) as error:
            refused.append(source.stem)
            print(f"{source.stem}: {error}", flush=True)
            continue
        write_both(source, notebook)
    if refused:
        sys.exit(f"not written: {', '.join(refused)}")


if __name__ == "__main__":
    main()
