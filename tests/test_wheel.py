"""The wheel: built from this checkout, unpacked into a folder, and used from somewhere else. What
it lacks, users of a cluster find out after an hour in a queue.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import tiny_tokenizer

import course_utils
from course_utils.prompts.tasks import available_tasks

ROOT = Path(__file__).resolve().parent.parent
SAE = "saes/smollm2/layer_5/sae_weights.safetensors"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def link_or_copy(source: str, target: str) -> None:
    """140 MB of SAEs need not be copied where they can be linked."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of a copy of the checkout, to which a room was added."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "checkout"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tree / name)
    for name in ("course_utils", "data", "tests", "tools"):
        shutil.copytree(
            ROOT / name,
            tree / name,
            copy_function=link_or_copy,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    (tree / "course_utils" / "annexe").mkdir()
    (tree / "course_utils" / "annexe" / "__init__.py").write_text('"""A new room."""\n')
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, tree)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def run_elsewhere(code: str, site: Path, cwd: Path) -> dict:
    """What a new Python prints, as JSON, that has the wheel and not the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def files_of(folder: Path) -> dict[str, int]:
    """The files under a folder, and their sizes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_has_every_module_and_all_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {info.filename: info.file_size for info in archive.infolist()}
    info = f"scalable_sae_circuits-{PROJECT['version']}.dist-info/"
    there = {name: size for name, size in packed.items() if not name.startswith(info)}
    modules = {f"course_utils/{name}" for name in files_of(ROOT / "course_utils")}
    data = {f"course_utils/data/{name}": size for name, size in files_of(ROOT / "data").items()}
    assert set(there) == modules | set(data) | {"course_utils/annexe/__init__.py"}
    assert {name: there[name] for name in data} == data


@pytest.mark.slow
def test_the_installed_wheel_has_tasks_and_saes_wherever_it_is_run(site, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    code = f"""
import json
import torch
from transformers import PreTrainedTokenizerFast
import course_utils
from course_utils.labs.catalog import LABS
from course_utils.labs.loading import load_sae, saes_in
from course_utils.prompts.tasks import available_tasks, load_task
from course_utils.prompts.text import load_text

tokenizer = PreTrainedTokenizerFast.from_pretrained({str(tmp_path / "tokenizer")!r})
task = load_task("sva_nounpp", tokenizer, "test", verbose=False)
folders = saes_in(LABS["smollm2"].saes, None)
said = dict(
    file=course_utils.__file__,
    data=str(course_utils.DATA),
    tasks=available_tasks(),
    pair=task.pairs[0].clean_prefix,
    layers=list(folders),
    coder=list(saes_in(LABS["qwen-coder"].saes, None)),
    sum=load_sae(folders[5]).W_dec.sum().item(),
    text=len(load_text(tokenizer, "held_out", seq_len=4)),
    published=[path.name for path in (course_utils.DATA / "published").iterdir()],
)
print(json.dumps(said))
"""
    (tmp_path / "elsewhere").mkdir()
    said = run_elsewhere(code, site, tmp_path / "elsewhere")
    assert Path(said["file"]) == site / "course_utils" / "__init__.py"
    assert Path(said["data"]) == site / "course_utils" / "data"
    assert said["tasks"] == available_tasks() and said["pair"].startswith("The ")
    assert said["layers"] == list(range(2, 30, 3)) and said["coder"] == [5, 11, 18, 25]
    assert said["text"] > 100 and said["published"] == ["gemma-2-9b.json"]
    ours, theirs = ((folder / SAE).read_bytes() for folder in (ROOT / "data", Path(said["data"])))
    assert ours == theirs and said["sum"] != 0


def test_in_a_checkout_data_is_beside_the_package():
    assert course_utils.DATA == ROOT / "data" and course_utils.DATA.is_dir()


def test_the_version_is_said_once_in_two_places():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"(?m)^version: (.+)$", citation) == [PROJECT["version"]]
