"""Make both notebooks of each solutions/NN_name.py.

    python tools/build_notebooks.py [NN ...] [--no-run]

``solutions/NN_name.ipynb`` is executed, with outputs and figures; ``notebooks/NN_name.ipynb`` is the
reader's copy, without outputs. Both come from one source, and tests/test_notebooks.py fails where they
do not match it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 2_000_000


def sources() -> list[Path]:
    """The course's sources, in order."""
    return sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))


def unexecuted(source: Path) -> NotebookNode:
    """The notebook of a source, with stable cell ids and no outputs."""
    notebook = jupytext.read(source)
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


def execute(source: Path) -> NotebookNode:
    """Run the notebook from the top, in solutions/, and keep its outputs without its times of day."""
    notebook = unexecuted(source)
    os.environ["COURSE_BUILD"] = "1"
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(source.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    notebook.metadata.pop("widgets", None)
    return notebook


def _is_progress(output: NotebookNode) -> bool:
    """Progress bars and warnings, which belong to the run and not to the page; widgets without their state."""
    if output.output_type == "stream":
        return output.name == "stderr"
    return output.output_type == "display_data" and "application/vnd.jupyter.widget-view+json" in output.data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="e.g. 04; all by default")
    parser.add_argument("--no-run", action="store_true", help="write the readers' copies only")
    args = parser.parse_args()
    for source in sources():
        if args.numbers and source.name[:2] not in args.numbers:
            continue
        reader_path(source).parent.mkdir(exist_ok=True)
        nbformat.write(unexecuted(source), reader_path(source))
        print(f"wrote {reader_path(source).relative_to(ROOT)}")
        if args.no_run:
            continue
        print(f"running {source.name} …", flush=True)
        nbformat.write(execute(source), solution_path(source))
        size = solution_path(source).stat().st_size
        print(f"wrote {solution_path(source).relative_to(ROOT)} ({size / 1e6:.2f} MB)")
        if size > MAX_BYTES:
            sys.exit(f"{solution_path(source).name} is over {MAX_BYTES / 1e6:.0f} MB: find the output that is too large")


if __name__ == "__main__":
    main()
