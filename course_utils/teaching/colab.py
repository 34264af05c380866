"""Colab: installs what the course needs beside what Colab ships.

A notebook in Colab runs in a session whose packages are there already and partly loaded. Replacing
one of them under the running session leaves its old modules in memory, beside new files on disk. So
nothing that is there is replaced, if pip finds versions of the rest that let it be; if not, the
session is restarted where something that was loaded has changed.

The notebooks' first cell calls `install`. Nothing is installed at that time, so this module needs
the standard library only.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distribution, distributions
from pathlib import Path

REQUIREMENTS = "requirements-colab.txt"
MARKER = ".git/installed-in-colab"
"""Written into the course's folder after an installation; holds the requirements of that time."""

_PINNABLE = re.compile(r"(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[\w.]+)?")


def installed_versions() -> dict[str, str]:
    """The version of each package that an import would find, by its normalised name."""
    importlib.invalidate_caches()
    found: dict[str, str] = {}
    for package in distributions():
        name = package.metadata["Name"]
        if name and package.version:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), package.version)
    return found


_AT_START = installed_versions()
"""As this session found them. The module stays loaded when an interrupted cell is run again."""


def install(root: Path) -> None:
    """Install what the course in ``root`` requires, if that is not done yet; say what changed.

    Ends the session if a package that it had loaded was replaced: Colab starts another.

    Raises:
        RuntimeError: pip failed; the message has its last lines and says what to do.
    """
    requirements, marker = root / REQUIREMENTS, root / MARKER
    if marker.is_file() and marker.read_text() == requirements.read_text():
        return
    print("Installing what the course needs and Colab lacks. This takes a minute or two.")
    _run_pip(requirements)
    now = installed_versions()
    changed = {name for name in _AT_START.keys() & now.keys() if now[name] != _AT_START[name]}
    print(f"Done: {len(now.keys() - _AT_START.keys())} packages added, {len(changed)} replaced.")
    changes = {name: f"{name} {_AT_START[name]} → {now[name]}" for name in sorted(changed)}
    in_memory = [changes[name] for name in changes if _is_loaded(name)]
    if changes:
        print("Replaced:", ", ".join(changes.values()))
    if in_memory:
        print(
            f"Restarting the session now: {', '.join(in_memory)} had been loaded before, and the "
            f"old version is still in memory. Colab may say that the session crashed. "
            f"Run this cell again, then go on.",
            flush=True,
        )
        time.sleep(2)  # for the words to reach the page
    marker.write_text(requirements.read_text())
    if in_memory:
        os.kill(os.getpid(), 9)


def pip_arguments(requirements: Path, constraints: Path | None) -> list[str]:
    """What pip is told, beginning with ``install``."""
    kept = ["-c", str(constraints)] if constraints else []
    return ["install", "--quiet", "--disable-pip-version-check", "-r", str(requirements), *kept]


def pinned(versions: dict[str, str]) -> str:
    """Constraints by which pip leaves packages as they are. Versions that pip cannot read, such as
    those of Debian's own packages, are left out.
    """
    return "".join(
        f"{name}=={version}\n"
        for name, version in sorted(versions.items())
        if _PINNABLE.fullmatch(version)
    )


def _run_pip(requirements: Path) -> None:
    """Add packages without changing any; if that cannot be, let pip replace what it must."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "as-they-are.txt"
        constraints.write_text(pinned(installed_versions()))
        problem = _pip_problem(pip_arguments(requirements, constraints))
    if problem:
        print(f"pip cannot leave all packages as they are:\n{problem}\nIt may now replace some.")
        problem = _pip_problem(pip_arguments(requirements, None))
    if problem:
        raise RuntimeError(
            f"pip could not install the course's packages:\n{problem}\nRun this cell again. If it "
            f"fails again: Runtime, Disconnect and delete runtime, then run it once more."
        )


def _pip_problem(arguments: list[str]) -> str:
    """pip's last lines if it failed, or nothing."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "\n".join(said[-5:]) or f"exit status {done.returncode}, and not a word"


def _is_loaded(name: str) -> bool:
    """Whether a module of this package has been imported in this session."""
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    package = distribution(name)
    return any(str(package.locate_file(file)) in loaded for file in package.files or ())
