"""The house: its rooms import only from those before them, and every door opens."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import course_utils

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("labs", "prompts", "circuits", "studies", "display", "teaching")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "course_utils").rglob("*.py"))
    if path.name != "__init__.py"
}


def imports_of(source: str, modules: set[str]) -> set[str]:
    """Which of ``modules`` a source imports, wherever it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & modules


def room_of(module: str) -> str:
    """``labs`` of ``course_utils.labs.layers``."""
    return module.split(".")[1]


def upward(sources: dict[str, str]) -> list[str]:
    """The imports that go from a room to a later one."""
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        for other in sorted(imports_of(source, set(sources)))
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]


def cycle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    graph = {module: imports_of(source, set(sources)) for module, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


SOURCES = {module: path.read_text() for module, path in MODULES.items()}


def test_every_module_stands_in_a_room():
    assert {room_of(module) for module in MODULES} == set(ROOMS)
    assert all(len(module.split(".")) == 3 for module in MODULES)


def test_imports_run_downwards_only():
    assert upward(SOURCES) == []


def test_no_two_modules_import_each_other():
    assert cycle(SOURCES) == []


BROKEN = {
    "course_utils.labs.lab": "def f():\n    from course_utils.circuits import masks",
    "course_utils.labs.layers": "from course_utils.labs.lab import Lab",
    "course_utils.circuits.masks": "import course_utils.labs.layers",
}


def test_an_import_that_runs_upwards_is_found_even_inside_a_function():
    assert upward(BROKEN) == ["course_utils.labs.lab imports course_utils.circuits.masks"]


def test_a_circle_of_imports_is_found():
    assert set(cycle(BROKEN)) == set(BROKEN)
    straight = {**BROKEN, "course_utils.labs.lab": ""}
    assert upward(straight) == [] and cycle(straight) == []


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("course_utils/**/*.py")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_module_begins_with_a_docstring(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and len(docstring) > 20


def test_a_room_holds_a_docstring_only():
    for room in ROOMS:
        [docstring] = ast.parse((ROOT / "course_utils" / room / "__init__.py").read_text()).body
        assert isinstance(docstring, ast.Expr)


def in_a_new_process(code: str) -> str:
    """What Python prints when it runs ``code`` in the repository."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def defines(module: str, name: str) -> bool:
    """Whether a class, function or constant of this name is made in a module, not imported."""
    for node in ast.parse(SOURCES[module]).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
        if name in names:
            return True
    return False


def test_the_fifteen_names_are_where_they_are_said_to_be():
    assert len(course_utils.__all__) == 15 and len(set(course_utils.__all__)) == 15
    for name in course_utils.__all__:
        assert name in dir(course_utils)
        homes = [module for module in MODULES if defines(module, name)]
        assert len(homes) == 1 and room_of(homes[0]) in ("labs", "prompts", "circuits")
        assert getattr(course_utils, name) is getattr(importlib.import_module(homes[0]), name)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        course_utils.no_such_name  # noqa: B018


def test_importing_the_course_imports_no_torch():
    said = in_a_new_process("import sys, course_utils; print('torch' in sys.modules)")
    assert said == "False"


@pytest.mark.slow
def test_every_module_can_be_the_first_to_be_imported():
    """Forked from one process that has the libraries and none of the course's modules."""
    code = f"""
import importlib, os, sys
import ipywidgets, matplotlib.pyplot, pandas, sae_lens, torch, transformers
for module in {list(MODULES)}:
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, module
assert not [name for name in sys.modules if name.startswith("course_utils")]
print("all")"""
    assert in_a_new_process(code) == "all"


def test_nothing_is_left_outside_the_rooms():
    """No module at an old path: the course's folder has its rooms, and one file."""
    entries = {path.name for path in (ROOT / "course_utils").iterdir()} - {"__pycache__"}
    assert entries == {"__init__.py", *ROOMS}


NAMED = re.compile(r"course_utils(?:\.\w+|/\w+(?:\.py)?)+(?![\w{])")
"""A module as a dotted name or as a path, with or without a name in it."""


def does_not_exist(named: str) -> bool:
    """Whether a dotted name or a path leads to no module and to no room."""
    if "/" in named:
        return not (ROOT / named).exists()
    _, room, *rest = named.split(".")
    if room not in ROOMS:
        return room not in (*course_utils.__all__, "DATA")
    return bool(rest) and f"course_utils.{room}.{rest[0]}" not in MODULES


def test_no_page_and_no_source_names_a_module_that_is_not_there():
    pages = [
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
        *ROOT.glob("data/**/README.md"),
        *(
            path
            for folder in ("course_utils", "solutions", "tools")
            for path in ROOT.glob(f"{folder}/**/*.py")
        ),
    ]
    missing = {
        f"{page.relative_to(ROOT)}: {named}"
        for page in pages
        for named in NAMED.findall(page.read_text())
        if does_not_exist(named) and "nbNN" not in named
    }
    assert not missing


def test_a_module_that_is_not_there_is_noticed():
    gone = ["course_utils.splice", "course_utils/splice.py", "course_utils.circuits.splicing.Run"]
    there = ["course_utils.circuits.splice.Run", "course_utils/labs", "course_utils.load_lab"]
    assert all(map(does_not_exist, gone)) and not any(map(does_not_exist, there))


def test_no_test_decides_by_a_clock():
    """What takes long on a busy machine is no error."""
    clocks = {"perf_counter", "monotonic", "process_time", "time_ns"}
    for path in (ROOT / "tests").glob("test_*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        called = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not called & clocks, path.name
