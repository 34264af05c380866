"""Keep the outputs of an executed notebook whose source has changed and whose results have not.

A full run of all notebooks takes hours. Two checks can stand in its place, and each gives back the
new notebook with the outputs of the old one, or refuses and says where the two part:

- `with_outputs_of`: the new code is the old code, statement by statement. Imports, comments,
  docstrings, formatting, and how statements are spread over cells do not count; a name that is only
  called something else is told.
- `with_outputs_of_same_results`: the code has changed, and both versions were run in the quick
  profile. All that they print and show is compared: words have to be the same, and numbers the same
  within rounding. Of a figure its alt text is compared, of HTML what a reader sees of it.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeVar

from nbformat import NotebookNode

RELATIVE = 1e-3
"""How far two numbers may be apart, relative to the larger, besides their last printed digit."""
VARIES = (
    r"[\d.,]+ (GFLOP/s|s|seconds|minutes)\b",
    r"[\d.]+ times as long",
    r"free memory [\d.]+ GB",
    r"[\d.]+ GB of it still missing here",
    r"Converting \S+ to safetensors \(once\) …",
    r"circuits-vis-[\w-]+",
    r"#?T_[0-9a-f]{5}\w*",
)
"""What differs between two runs of one notebook: times, speeds, the machine, made-up ids.

A line of which nothing else is left is not compared.
"""
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?", re.IGNORECASE)


Definition = TypeVar("Definition", ast.FunctionDef, ast.ClassDef)


class OutputsChanged(ValueError):
    """The outputs cannot be kept; the message says where old and new part."""


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells of a notebook, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# ---------------------------------------------------------------------------------------------
# The same code
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """A top-level statement without what does not count, and the number of its code cell."""

    cell: int
    node: ast.stmt

    @property
    def code(self) -> str:
        return ast.unparse(self.node)


class _Bare(ast.NodeTransformer):
    """Takes out imports and docstrings, and gives names their new name."""

    def __init__(self, renamed: Mapping[str, str]):
        self.renamed = renamed

    def new(self, name: str) -> str:
        return self.renamed.get(name, name)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new(node.id), node.ctx)

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        return ast.Attribute(node.value, self.new(node.attr), node.ctx)

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        return ast.keyword(self.new(node.arg) if node.arg else None, node.value)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self.generic_visit(node)
        return ast.arg(self.new(node.arg), node.annotation)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return self._definition(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return self._definition(node)

    def _definition(self, node: Definition) -> Definition:
        if ast.get_docstring(node) is not None:
            del node.body[0]
        self.generic_visit(node)
        node.name = self.new(node.name)
        node.body = node.body or [ast.Pass()]
        return node


def statements(
    cells: Sequence[NotebookNode], renamed: Mapping[str, str] | None = None
) -> list[Statement]:
    """The statements of code cells, without imports and docstrings, under their new names."""
    bare = _Bare(renamed or {})
    found = []
    for number, cell in enumerate(cells):
        for node in ast.parse(cell.source).body:
            kept = bare.visit(node)
            if kept is not None:
                found.append(Statement(number, ast.fix_missing_locations(kept)))
    return found


def _names(cells: Sequence[NotebookNode]) -> set[str]:
    trees = (ast.parse(cell.source) for cell in cells)
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _last_of_cells(found: Sequence[Statement]) -> dict[int, int]:
    """Per cell, the index of its last statement."""
    return {statement.cell: index for index, statement in enumerate(found)}


SHOWS_NOTHING = ("print", "display", "check", "show")
"""Calls whose value is None, so that they may come to stand last in a cell."""


def _may_stand_last(node: ast.stmt) -> bool:
    """Whether a statement shows nothing by being the last of its cell."""
    if not isinstance(node, ast.Expr):
        return True
    function = node.value.func if isinstance(node.value, ast.Call) else None
    name = getattr(function, "id", getattr(function, "attr", ""))
    return name in SHOWS_NOTHING


def with_outputs_of(
    built: NotebookNode, notebook: NotebookNode, renamed: Mapping[str, str] | None = None
) -> NotebookNode:
    """``notebook`` with the outputs of ``built``, which was executed from the same statements.

    The outputs of a cell go to the cell that now holds its last statement.

    Args:
        renamed: names that are only called something else, old to new.

    Raises:
        OutputsChanged: a statement has changed, or another one would show its value.
    """
    renamed = renamed or {}
    old_cells, new_cells = code_cells(built), code_cells(notebook)
    taken = _names(old_cells) & {new for old, new in renamed.items() if old in _names(old_cells)}
    if taken:
        raise OutputsChanged(f"two names would become one: {', '.join(sorted(taken))}.")
    old, new = statements(old_cells, renamed), statements(new_cells)
    for before, after in zip(old, new):
        if before.code != after.code:
            raise OutputsChanged(_code_changed(before, after))
    if len(old) != len(new):
        longer = max(old, new, key=len)[min(len(old), len(new))]
        raise OutputsChanged(f"its code has changed: a statement more or less.\n{longer.code}")

    old_last, new_last = _last_of_cells(old), _last_of_cells(new)
    shown = {
        index
        for cell, index in old_last.items()
        if any(output.output_type == "execute_result" for output in old_cells[cell].outputs)
    }
    for index in set(new_last.values()) ^ set(old_last.values()):
        if index in shown or (index in new_last.values() and not _may_stand_last(new[index].node)):
            raise OutputsChanged(
                f"a value that is shown as the last of a cell is not any more, or the other way "
                f"round.\n{new[index].code}"
            )
    places = {cell: new[index].cell for cell, index in old_last.items()}
    return _with_outputs_at(old_cells, notebook, places)


def _code_changed(before: Statement, after: Statement) -> str:
    return (
        f"its code has changed since it was built: run it again, without --no-run. "
        f"Code cell {before.cell} had\n{before.code}\nand code cell {after.cell} has\n{after.code}"
    )


def _with_outputs_at(
    old_cells: Sequence[NotebookNode], notebook: NotebookNode, places: Mapping[int, int]
) -> NotebookNode:
    """``notebook`` with the outputs of ``old_cells``, where ``places`` (old cell to new) says."""
    new_cells = code_cells(notebook)
    for number, cell in enumerate(new_cells):
        cell.outputs, cell.execution_count = [], number + 1
    for number, cell in enumerate(old_cells):
        if not cell.outputs:
            continue
        if number not in places:
            raise OutputsChanged(f"no cell is left for the outputs of code cell {number}.")
        place = new_cells[places[number]]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = place.execution_count
            place.outputs.append(output)
    return notebook


# ---------------------------------------------------------------------------------------------
# The same results
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One thing that a cell shows: a printed line, a figure's alt text, or the text of HTML."""

    cell: int
    text: str


def shown_by(cells: Sequence[NotebookNode], varies: Iterable[str] = VARIES) -> list[Shown]:
    """All that code cells show, as text, with ``…`` for what differs from run to run."""
    pattern = re.compile("|".join(varies))
    shown = []
    for number, cell in enumerate(cells):
        for output in cell.outputs:
            for text in _texts(output):
                text = pattern.sub("…", " ".join(text.split()))
                if text not in ("", "…"):
                    shown.append(Shown(number, text))
    return shown


def _texts(output: NotebookNode) -> list[str]:
    if output.output_type == "stream":
        return output.text.splitlines()
    if output.output_type == "error":
        return [f"{output.ename}: {output.evalue}"]
    data = output.data
    for kind in ("image/png", "image/svg+xml"):
        if kind in data:
            return [output.metadata.get(kind, {}).get("alt", "a figure without alt text")]
    if "text/html" in data:
        return [_visible(data["text/html"])]
    return data.get("text/plain", "").splitlines()


def _visible(page: str) -> str:
    """What a reader sees of HTML, and what its scripts are given."""
    page = re.sub(r"<style.*?</style>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def same_text(one: str, other: str) -> bool:
    """Whether two texts have the same words, and numbers that are the same within rounding."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    return all(map(same_number, NUMBER.findall(one), NUMBER.findall(other)))


def same_number(one: str, other: str) -> bool:
    """Whether two printed numbers are one number: whole ones the same; others, and percentages,
    apart by no more than `RELATIVE` and one in the last printed digit.

    What is below 1e-3 and printed with an exponent is the noise of floating point.
    """
    a, b = _value(one), _value(other)
    digit = max(_last_digit(one), _last_digit(other))
    if digit == 0:
        return a == b
    if "e" in (one + other).lower() and max(abs(a), abs(b)) < 1e-3:
        return True
    return abs(a - b) <= RELATIVE * max(abs(a), abs(b)) + 1.001 * digit


def _value(number: str) -> float:
    return float(number.rstrip("%").rstrip(",").replace(",", "").replace("−", "-"))


def _last_digit(number: str) -> float:
    """What one in the last printed digit is worth; 0 for a whole number that is no percentage."""
    mantissa, _, exponent = number.rstrip("%").lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    if not (decimals or exponent or number.endswith("%")):
        return 0.0
    return 10.0 ** (int(exponent or 0) - decimals)


def pairs_and_differences(
    old: Sequence[Shown], new: Sequence[Shown]
) -> tuple[list[tuple[Shown, Shown]], list[str]]:
    """What is shown by both, and each difference in words."""
    words = [[NUMBER.sub("#", shown.text) for shown in side] for side in (old, new)]
    pairs, differences = [], []
    matcher = SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind != "equal":
            differences += [_lost("was shown", shown) for shown in old[start:end]]
            differences += [_lost("is shown now", shown) for shown in new[new_start:new_end]]
            continue
        for before, after in zip(old[start:end], new[new_start:new_end]):
            pairs.append((before, after))
            if not same_text(before.text, after.text):
                differences.append(_changed(before, after))
    return pairs, differences


def _lost(what: str, shown: Shown) -> str:
    return f"code cell {shown.cell}: {what}: {shown.text[:200]}"


def _changed(before: Shown, after: Shown) -> str:
    numbers = zip(NUMBER.findall(before.text), NUMBER.findall(after.text))
    apart = [f"{one} is now {other}" for one, other in numbers if not same_number(one, other)]
    return f"code cell {before.cell}: {', '.join(apart)}: {after.text[:200]}"


def with_outputs_of_same_results(
    built: NotebookNode,
    notebook: NotebookNode,
    *,
    quick_before: NotebookNode,
    quick_now: NotebookNode,
    ignored: Iterable[str] = (),
) -> NotebookNode:
    """``notebook`` with the outputs of ``built``, the full run of the code as it was.

    The outputs of a cell of ``built`` go to the cell that shows in the quick profile what that one
    showed last. Where a cell shows something in the full run only, its place is counted from its
    neighbours.

    Args:
        quick_before: the old code, executed in the quick profile, with the cells of ``built``.
        quick_now: the new code, executed in the quick profile, with the cells of ``notebook``.
        ignored: patterns of what may differ, besides `VARIES`.

    Raises:
        OutputsChanged: the quick runs differ; the message lists every difference.
    """
    old_cells, before, now = (code_cells(one) for one in (built, quick_before, quick_now))
    if [cell.source for cell in old_cells] != [cell.source for cell in before]:
        raise OutputsChanged("the quick run was not of the code that the full run is of.")
    if [cell.source for cell in code_cells(notebook)] != [cell.source for cell in now]:
        raise OutputsChanged("the quick run is not of the source as it is now.")
    varies = (*VARIES, *ignored)
    pairs, differences = pairs_and_differences(shown_by(before, varies), shown_by(now, varies))
    if differences:
        raise OutputsChanged("\n".join(["it shows something else than before:", *differences]))
    places = {old.cell: new.cell for old, new in pairs}
    for number, cell in enumerate(old_cells):
        if cell.outputs and number not in places:
            places[number] = _place_between(number, places, len(old_cells), len(now))
    return _with_outputs_at(old_cells, notebook, places)


def _place_between(number: int, places: Mapping[int, int], n_old: int, n_new: int) -> int:
    """Where a cell stands now, by its neighbours with a known place: those before and after it have
    to be as far apart as they were.
    """
    known = {-1: -1, n_old: n_new, **places}
    before = max(cell for cell in known if cell < number)
    after = min(cell for cell in known if cell > number)
    if known[after] - known[before] != after - before:
        raise OutputsChanged(
            f"code cell {number} shows something in the full run only, and the cells around it "
            f"were cut anew: where it belongs cannot be told."
        )
    return known[before] + number - before
