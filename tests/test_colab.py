"""Colab, as far as it can be tried elsewhere: what the first cell does, in sessions of its own with
a made-up `google.colab` and pip; and what the course requires, against a list of what Colab ships.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_utils.teaching import colab
from tools.build_notebooks import SETUP

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_LIST = ROOT / "tests" / "colab_packages.txt"
FOR_AUTHORS = {"jupyterlab", "jupytext", "nbformat", "nbclient", "papermill", "nbmake", "pytest"}
"""What opens, builds and tests notebooks; Colab has its own ways to open them."""


def lines_of(name: str) -> list[str]:
    """The requirements in a file of this repository."""
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def required(name: str) -> dict[str, Requirement]:
    """They by normalised name."""
    return {canonicalize_name(r.name): r for r in map(Requirement, lines_of(name))}


def shipped() -> dict[str, str]:
    """What Colab ships: versions by normalised name."""
    pairs = (line.split("==") for line in lines_of("tests/colab_packages.txt"))
    return {canonicalize_name(name): version for name, version in pairs}


# -- what is required ----------------------------------------------------------------------------


def test_readers_in_colab_get_the_full_list_without_what_authors_need():
    everything, readers = lines_of("requirements.txt"), lines_of("requirements-colab.txt")
    authors = [line for line in everything if line not in readers]
    assert everything == [*readers, *authors]
    assert {Requirement(line).name for line in authors} == FOR_AUTHORS


def test_the_list_of_what_colab_ships_has_each_package_once():
    lines = lines_of("tests/colab_packages.txt")
    assert len(shipped()) == len(lines) > 100
    assert {"numpy", "torch", "transformers", "ipykernel", "ipywidgets"} <= shipped().keys()


def reached(start: dict[str, Requirement]) -> tuple[dict[str, set[str]], set[str]]:
    """Goes through requirements of requirements, in the versions that are installed here, up to
    what Colab ships.

    Returns:
        Of what Colab ships, what is required of it; and the names of what would be added.
    """
    environment = {**default_environment(), "python_version": "3.13", "extra": ""}
    of_shipped: dict[str, set[str]] = {}
    added: set[str] = set()
    left = list(start.values())
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        if name in shipped():
            of_shipped.setdefault(name, set()).add(str(requirement.specifier))
        elif name not in added:
            added.add(name)
            left += map(Requirement, requires(name) or [])
    return of_shipped, added


def test_what_colab_ships_satisfies_the_course_and_all_that_it_brings():
    of_shipped, added = reached(required("requirements-colab.txt"))
    wrong = {
        f"{name} {specifier}: Colab has {shipped()[name]}"
        for name, specifiers in of_shipped.items()
        for specifier in specifiers
        if not Requirement(name + specifier).specifier.contains(shipped()[name])
    }
    assert not wrong
    assert {"numpy", "torch", "transformers", "ipywidgets", "pandas"} <= of_shipped.keys()
    assert {"sae-lens", "transformer-lens", "circuitsvis"} <= added and len(added) < 30


def test_a_requirement_that_colab_does_not_meet_is_found_behind_others():
    start = {"sae-lens": Requirement("sae-lens")}  # requires transformer-lens, which requires:
    of_shipped, added = reached(start)
    assert "transformer-lens" in added and "wandb" not in start and "wandb" in of_shipped


def imported(path: Path) -> set[str]:
    """The first names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_what_notebooks_and_library_import_is_required_in_colab():
    files = [*ROOT.glob("course_utils/**/*.py"), *ROOT.glob("solutions/*.py")]
    names = set().union(*map(imported, files)) - sys.stdlib_module_names - {"course_utils"}
    of_packages = packages_distributions()
    packages = {canonicalize_name(name) for module in names for name in of_packages.get(module, [])}
    with_ipywidgets = {"ipython", "traitlets"}
    with_transformers = {"tokenizers"}
    assert (
        packages - with_ipywidgets - with_transformers <= required("requirements-colab.txt").keys()
    )
    assert {"torch", "sae-lens", "ipywidgets"} <= packages


def test_pip_is_told_to_leave_what_is_there_except_what_it_cannot_read():
    versions = {"torch": "2.11.0+cu128", "pandas": "2.2.3", "pillow": "12.0.0.post1",
                "distro-info": "1.1build1", "python-debian": "0.1.43ubuntu1"}  # fmt: skip
    said = colab.pinned(versions).splitlines()
    assert said == ["pandas==2.2.3", "pillow==12.0.0.post1", "torch==2.11.0+cu128"]


@pytest.fixture(scope="module")
def index() -> None:
    """Skips where the package index cannot be reached, but not in CI."""
    command = "install --quiet --dry-run --no-deps --ignore-installed circuitsvis".split()
    asked = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
    if asked.returncode and not os.environ.get("CI"):
        pytest.skip(f"the package index cannot be reached: {asked.stderr}")
    assert asked.returncode == 0, asked.stderr


def session_of_colab(folder: Path) -> tuple[str, Path]:
    """A virtual environment in which pip believes that what Colab ships is installed: its Python
    (3.13 if there is one here, as in Colab), and its site-packages.
    """
    found = shutil.which("python3.13")
    works = found and not subprocess.run([found, "-V"], capture_output=True).returncode
    command = [found if works else sys.executable, "-m", "venv", str(folder)]
    subprocess.run(command, check=True)
    [site] = folder.glob("lib/python*/site-packages")
    for name, version in shipped().items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").touch()
    return str(folder / "bin" / "python"), site


@pytest.mark.slow
@pytest.mark.parametrize("pins", [True, False], ids=["as the cell does it", "left to pip"])
def test_what_the_first_cell_installs_changes_nothing_that_colab_ships(index, tmp_path, pins):
    """pip's own answer, with the package index of today."""
    python, _ = session_of_colab(tmp_path / "colab")
    constraints = tmp_path / "as-they-are.txt"
    constraints.write_text(colab.pinned(shipped()))
    arguments = colab.pip_arguments(ROOT / colab.REQUIREMENTS, constraints if pins else None)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [python, "-m", "pip", *arguments, "--dry-run", "--report", report],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    installed = {
        canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    changed = {name: (shipped()[name], installed[name]) for name in installed.keys() & shipped()}
    assert not changed
    assert {"sae-lens", "transformer-lens", "circuitsvis"} <= installed.keys()


# What of Colab's a page is shown by, and what these import.
ON_THE_PAGE = """ipywidgets widgetsnbextension jupyterlab-widgets ipython ipython-genutils ipykernel
    traitlets backcall decorator pickleshare prompt-toolkit pygments jupyter-client""".split()


@pytest.mark.slow
def test_widgets_and_figures_work_with_the_ipywidgets_and_ipython_of_colab(index, tmp_path):
    """Their unit tests, with those packages in the way of the newer ones."""
    wanted = [f"{name}=={shipped()[name]}" for name in ON_THE_PAGE]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path]
    subprocess.run([*command, *wanted, "jedi<0.20", "entrypoints"], check=True)
    said = "import IPython, ipywidgets; print(IPython.__version__, ipywidgets.__version__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    tests = ["tests/test_widgets.py", "tests/test_html.py", "tests/test_figures.py::test_"]
    tests[2] += "show_gives_the_picture_alternative_text_and_closes_the_figure"
    for code in (["-c", said], ["-m", "pytest", "-q", "-p", "no:nbmake", "-p", "no:xdist", *tests]):
        done = subprocess.run(
            [sys.executable, *code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
        if code[0] == "-c":
            assert done.stdout.split() == [shipped()["ipython"], shipped()["ipywidgets"]]


# -- the first cell ------------------------------------------------------------------------------

PIP = '''
"""Stands in for pip: remembers what it was told, and does what the file `orders` says."""
import os, pathlib, shutil, signal, sys, time

here = pathlib.Path(os.environ["STAGE"])
with open(here / "told", "a") as told:
    told.write(" ".join(sys.argv[1:]) + "\\n")
kept = pathlib.Path(sys.argv[sys.argv.index("-c") + 1]).read_text() if "-c" in sys.argv else None
if kept:
    (here / "kept").write_text(kept)
orders = (here / "orders").read_text().split()
if "refuse" in orders or "refuse_to_keep" in orders and kept:
    sys.exit("ERROR: no version of it fits")
for order in orders:
    name, _, version = order.partition("==")
    if version:  # as pip does: the new files are there, and the old version's description is gone
        for old in (here / "site").glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        info = here / "site" / f"{name}-{version}.dist-info"
        info.mkdir()
        described = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        (info / "METADATA").write_text(described)
        (info / "RECORD").write_text(f"{name}/__init__.py,,\\n")
        (here / "site" / name).mkdir(exist_ok=True)
        (here / "site" / name / "__init__.py").touch()
if "kill_the_session" in orders:
    os.kill(os.getppid(), signal.SIGKILL)
if "interrupt" in orders:
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
'''

COURSE = ["course_utils/__init__.py", "course_utils/teaching/__init__.py",
          "course_utils/teaching/colab.py", "requirements-colab.txt"]  # fmt: skip


class Colab:
    """A made-up machine of Colab: two packages are installed, of which sessions load `numpy`; the
    course's address is a repository on the disk.
    """

    def __init__(self, stage: Path):
        self.stage, self.course = stage, stage / "content" / "course"
        self.course.parent.mkdir()
        (stage / "told").touch()
        self.order("numpy==2.0.0 pandas==2.2.3")
        site = stage / "site"
        for module in ("google/colab", "pip"):
            (site / module).mkdir(parents=True)
            (site / module / "__init__.py").touch()
        (site / "pip" / "__main__.py").write_text(PIP)
        self.pip("install")
        (stage / "told").write_text("")
        self.order("sae_lens==6.54.0")
        self.repository = stage / "repository"
        for name in COURSE:
            target = self.repository / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
        (self.repository / "tools.txt").write_text("last in the order of a checkout\n")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=n", "-c", "user.email=e@x.org", "commit", "--quiet", "-m", "all")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.stage / "site"), "STAGE": str(self.stage)}

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.repository, check=True)

    def pip(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "pip", *arguments], env=self.environment, check=True)

    def order(self, orders: str) -> None:
        """What pip will do when it is called."""
        (self.stage / "orders").write_text(orders)

    @property
    def told(self) -> list[str]:
        """What pip was told so far."""
        return (self.stage / "told").read_text().splitlines()

    def cell(self) -> str:
        """The first cell, with this machine's folder and the repository's address."""
        text = SETUP.format(repository=self.repository.as_uri())
        assert text.count("/content/course") == 1
        return text.replace("/content/course", str(self.course))

    def run(self, before: str = "import numpy", after: str = "print('went on')"):
        """A session: something is loaded, then the cell is run, then something else."""
        code = f"import google.colab\n{before}\ncell = {self.cell()!r}\nexec(cell)\n{after}"
        return subprocess.run(
            [sys.executable, "-S", "-c", code],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def is_whole(self) -> bool:
        return all((self.course / name).is_file() for name in [*COURSE, "tools.txt"])


@pytest.fixture
def machine(tmp_path) -> Colab:
    return Colab(tmp_path)


def test_the_first_run_fetches_installs_and_goes_on_without_a_restart(machine):
    done = machine.run(after="print('went on', sys.path[0] == str(root))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Fetching the course to {machine.course}.\nInstalling what")
    assert "Done: 1 packages added, 0 replaced.\n" in done.stdout
    assert done.stdout.endswith("went on True\n") and "Restarting" not in done.stdout
    [told] = machine.told
    assert f"-r {machine.course}/requirements-colab.txt" in told
    kept = (machine.stage / "kept").read_text().splitlines()
    assert {"numpy==2.0.0", "pandas==2.2.3"} <= set(kept)
    assert machine.is_whole() and not list(machine.course.parent.glob("course.*"))


@pytest.mark.slow
def test_the_second_run_does_nothing_and_says_nothing(machine):
    machine.run()
    done = machine.run()
    assert (done.returncode, done.stdout) == (0, "went on\n") and len(machine.told) == 1


@pytest.mark.slow
def test_work_of_the_readers_own_in_the_folder_is_left_alone(machine):
    machine.run()
    (machine.course / "mine.json").write_text("{}")
    (machine.course / "tools.txt").write_text("changed")
    assert machine.run().stdout == "went on\n"
    assert (machine.course / "tools.txt").read_text() == "changed"


@pytest.mark.slow
def test_new_requirements_are_installed_again(machine):
    machine.run()
    with (machine.course / "requirements-colab.txt").open("a") as file:
        file.write("einops>=0.8\n")
    assert "Installing" in machine.run().stdout and len(machine.told) == 2


@pytest.mark.slow
def test_a_session_that_ends_during_the_installation_is_made_up_for_by_the_next(machine):
    machine.order("kill_the_session")
    assert machine.run().returncode == -signal.SIGKILL and machine.is_whole()
    folder = machine.course.stat().st_ino
    machine.order("sae_lens==6.54.0")
    done = machine.run()
    assert "Fetching" not in done.stdout and "Installing" in done.stdout
    assert done.stdout.endswith("went on\n") and len(machine.told) == 2
    assert machine.course.stat().st_ino == folder


@pytest.mark.slow
def test_an_interrupted_cell_that_is_run_again_still_knows_what_the_session_had_loaded(machine):
    """pip had replaced numpy before it was interrupted; the second run finds nothing to replace."""
    machine.order("numpy==2.1.0 interrupt")
    loop = f"""
try:
    exec({machine.cell()!r})
except KeyboardInterrupt:
    print("interrupted", flush=True)
pathlib.Path({str(machine.stage)!r}, "orders").write_text("")
"""
    done = machine.run(before=f"import numpy, pathlib{loop}")
    assert "interrupted\nInstalling" in done.stdout
    assert "numpy 2.0.0 → 2.1.0 had been loaded before" in done.stdout
    assert done.returncode == -signal.SIGKILL
    assert machine.run().stdout == "went on\n"


def empty(machine: Colab) -> None:
    machine.course.mkdir()


def half(machine: Colab) -> None:
    """As a checkout that was cut off leaves it."""
    machine.run()
    (machine.course / "tools.txt").unlink()
    (machine.course / "course_utils" / "teaching" / "colab.py").unlink()


def without_the_last_file(machine: Colab) -> None:
    machine.run()
    (machine.course / "tools.txt").unlink()


def without_a_history(machine: Colab) -> None:
    """As `git clone` leaves it before anything has arrived."""
    machine.course.mkdir()
    subprocess.run(["git", "init", "--quiet", machine.course], check=True)


def cut_off_in_the_new_folder(machine: Colab) -> None:
    (machine.course.parent / "course.new" / ".git").mkdir(parents=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "state", [empty, half, without_the_last_file, without_a_history, cut_off_in_the_new_folder]
)
def test_an_empty_or_half_folder_is_noticed_and_replaced(machine, state):
    state(machine)
    there = machine.course.exists()
    if there:
        (machine.course / "mine.json").write_text("{}")
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert "Fetching" in done.stdout and "Installing" in done.stdout and machine.is_whole()
    moved = re.findall(r"What was there is now in (.+)\.\n", done.stdout)
    assert len(moved) == there and all(Path(path, "mine.json").is_file() for path in moved)
    assert machine.run().stdout == "went on\n"


@pytest.mark.slow
def test_a_course_that_cannot_be_fetched_is_told_with_gits_words(machine):
    shutil.rmtree(machine.repository)
    done = machine.run()
    assert done.returncode == 1 and not machine.course.exists() and not machine.told
    assert "RuntimeError: git could not fetch it: " in done.stderr
    assert "does not" in done.stderr and done.stderr.endswith("Run this cell again.\n")


@pytest.mark.slow
def test_a_package_that_was_loaded_and_replaced_restarts_the_session_once_and_says_why(machine):
    machine.order("numpy==2.1.0 pandas==3.0.0")
    done = machine.run()
    assert done.returncode == -signal.SIGKILL and "went on" not in done.stdout
    assert "Replaced: numpy 2.0.0 → 2.1.0, pandas 2.2.3 → 3.0.0\n" in done.stdout
    assert "Restarting the session now: numpy 2.0.0 → 2.1.0 had been loaded" in done.stdout
    assert "Run this cell again" in done.stdout
    assert machine.run().stdout == "went on\n"


@pytest.mark.slow
def test_any_package_is_watched_and_not_numpy_alone(machine):
    machine.order("pandas==3.0.0")
    done = machine.run(before="import pandas")
    assert "Restarting the session now: pandas 2.2.3 → 3.0.0 had" in done.stdout
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_package_that_was_replaced_and_not_loaded_needs_no_restart(machine):
    machine.order("pandas==3.0.0")
    done = machine.run()
    assert "Replaced: pandas 2.2.3 → 3.0.0\nwent on\n" in done.stdout and done.returncode == 0


@pytest.mark.slow
def test_where_nothing_fits_pip_may_replace_what_it_must_and_the_cell_says_so(machine):
    machine.order("refuse_to_keep pandas==3.0.0")
    done = machine.run()
    assert "pip cannot leave all packages as they are:\nERROR: no version of it fits" in done.stdout
    assert done.stdout.endswith("Replaced: pandas 2.2.3 → 3.0.0\nwent on\n")
    assert ["-c " in told for told in machine.told] == [True, False]


@pytest.mark.slow
def test_an_installation_that_fails_is_told_and_tried_again_at_the_next_run(machine):
    machine.order("refuse")
    done = machine.run()
    assert done.returncode == 1 and "went on" not in done.stdout
    assert "could not install the course's packages:\nERROR: no version of it fits" in done.stderr
    machine.order("sae_lens==6.54.0")
    assert machine.run().stdout.endswith("went on\n")


def test_the_cell_and_what_it_calls_need_the_standard_library_only():
    names = imported(ROOT / "course_utils" / "teaching" / "colab.py")
    for name in ("course_utils/__init__.py", "course_utils/teaching/__init__.py"):
        tree = ast.parse((ROOT / name).read_text())
        names |= {alias.name for node in tree.body if isinstance(node, ast.Import)
                  for alias in node.names}  # fmt: skip
    assert names <= sys.stdlib_module_names


def test_the_packages_own_list_is_the_full_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == ["requirements.txt"]
