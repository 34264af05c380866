"""The two profiles: every notebook knows them, and refuses what is neither."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from course_utils.display.profile import PROFILES, is_quick
from tools.build_notebooks import sources

SOURCES = [pytest.param(source, id=source.stem) for source in sources()]


def test_there_are_two_profiles():
    assert {profile: is_quick(profile) for profile in PROFILES} == {"full": False, "quick": True}


@pytest.mark.parametrize("profile", ["fast", "Quick", "", "quick ", "FULL"])
def test_another_profile_is_refused_with_the_two_that_there_are(profile):
    with pytest.raises(ValueError, match=f'"full".*"quick".*not {profile!r}'):
        is_quick(profile)


def compares_profile(code: str) -> list[str]:
    """Where code decides by PROFILE or COURSE_PROFILE itself: comparisons, ``match``, look-ups."""
    found = []
    for node in ast.walk(ast.parse(code)):
        parts = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            parts = [node.subject]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        if any(re.search(r"\bPROFILE\b|COURSE_PROFILE", ast.unparse(part)) for part in parts):
            found.append(ast.unparse(node))
    return found


def code_cells(source: Path) -> list:
    return [cell for cell in jupytext.read(source).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("source", SOURCES)
def test_no_notebook_compares_its_profile_itself(source):
    for cell in code_cells(source):
        if not cell.source.startswith("%"):
            assert compares_profile(cell.source) == []


def test_whoever_decides_by_the_profile_is_noticed():
    for code in (
        'QUICK = PROFILE == "quick"',
        'n = 4 if PROFILE in ("quick", "fast") else 8',
        'if os.environ.get("COURSE_PROFILE") != "quick":\n    pass',
        'n = {"quick": 4, "full": 8}[PROFILE]',
        'match PROFILE:\n    case "quick":\n        pass',
    ):
        assert compares_profile(code), code
    assert not compares_profile('QUICK = is_quick(PROFILE)\nn = SIZES["quick"]')


@pytest.mark.parametrize("source", SOURCES)
def test_every_notebook_asks_in_its_first_cell_after_the_parameters(source):
    """papermill puts its own parameters behind that cell, so that asking in it would be too early;
    later, something would have been fetched.
    """
    cells = code_cells(source)
    [at] = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert 'PROFILE = os.environ.get("COURSE_PROFILE", "full")' in cells[at].source
    assert "QUICK = is_quick(PROFILE)" in cells[at + 1].source.splitlines()
    assert not any("is_quick(" in cell.source for cell in cells[: at + 1] + cells[at + 2 :])


@pytest.mark.parametrize("source", SOURCES)
def test_a_notebook_with_an_unknown_profile_stops_there(source):
    """Its parameters and the line that asks, run as they stand there."""
    cells = code_cells(source)
    [at] = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    imports = ["import os", "from course_utils.display.profile import is_quick"]
    assert imports[1] in "\n".join(cell.source for cell in cells[:at])
    [asks] = [line for line in cells[at + 1].source.splitlines() if "is_quick(" in line]
    code = "\n".join([*imports, cells[at].source, asks])
    environment = {**os.environ, "COURSE_PROFILE": "fast"}
    command = [sys.executable, "-c", code + "\nprint('went on')"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "went on" not in done.stdout
    assert 'PROFILE is "full" (everything) or "quick" (fewer prompts), not \'fast\'' in done.stderr
