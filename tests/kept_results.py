"""Results that the tests' notebooks share: what one has computed, another reads.

A reader's copy runs the same passes as its solution. In a test session, the slowest of them are
computed once: their results are kept in a folder of the session, under a hash of all that they
depend on, and the same call from another kernel reads them there. The cells of both notebooks run
as they are.

`tests/conftest.py` names this module as an extension to the kernels of its session. An extension
puts no name into a notebook, which might forget to import it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER_VARIABLE = "COURSE_KEPT_RESULTS"

HERE = str(Path(__file__).parent)


def configure_kernels(folder: str | Path) -> None:
    """Have all kernels that are started from here share their results in a folder of this session.

    They find it, and the settings that load this extension, by the environment.
    """
    profile = Path(folder) / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text(
        f"import sys\nsys.path.insert(0, {HERE!r})\n"
        f"get_config().InteractiveShellApp.extensions = [{Path(__file__).stem!r}]\n"
    )
    os.environ["IPYTHONDIR"] = str(profile.parent)
    os.environ[FOLDER_VARIABLE] = str(folder)


def load_ipython_extension(shell: Any) -> None:
    """Called by a kernel when it starts. The course is imported before the first cell only, since
    a kernel is expected to answer within a minute.
    """
    sys.path.remove(HERE)

    def before_the_first_cell(info: Any) -> None:
        shell.events.unregister("pre_run_cell", before_the_first_cell)
        keep_results(os.environ[FOLDER_VARIABLE])

    shell.events.register("pre_run_cell", before_the_first_cell)


def keep_results(folder: str | Path) -> None:
    """Keep the results of the course's slowest functions; call it before they are imported."""
    from course_utils.circuits import attribution, optimize
    from course_utils.circuits.splice import SplicedModel

    slow: list[tuple[Any, str]] = [
        (optimize, "learn_masks"),
        (attribution, "atp"),
        (attribution, "integrated_gradients"),
        (attribution, "variants"),
        (attribution, "activation_patching"),
        (attribution, "random_scores"),
        (SplicedModel, "patch_means"),
        (SplicedModel, "logit_diff_from"),
        (SplicedModel, "model_logit_diff"),
    ]
    for owner, name in slow:
        setattr(owner, name, kept(getattr(owner, name), Path(folder)))


def kept(function: Callable, folder: Path) -> Callable:
    """The function, which reads its results from a folder where they are there."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs_that_matter = {name: x for name, x in kwargs.items() if name != "progress"}
        try:
            key = fingerprint([function.__qualname__, list(args), kwargs_that_matter])
        except TypeError:  # something that has no fingerprint: nothing is kept
            return function(*args, **kwargs)
        path = folder / key
        if path.exists():
            return pickle.loads(path.read_bytes())  # written by this session
        result = function(*args, **kwargs)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(pickle.dumps(result))
        unfinished.rename(path)
        return result

    return call


_of_modules: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def fingerprint(value: Any) -> str:
    """A hash of all numbers and names in a value.

    Raises:
        TypeError: a kind of value that is not known here, such as a function.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(value, digest)
    return digest.hexdigest()


def _add(value: Any, digest: Any) -> None:
    from course_utils.circuits.masks import SAEMasks
    from course_utils.circuits.splice import SplicedModel

    digest.update(type(value).__name__.encode() + b":")
    if value is None or isinstance(value, (bool, int, float, str, slice, torch.dtype)):
        digest.update(repr(value).encode())
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {list(value.shape)} {value.requires_grad}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        _add([[name, x] for name, x in value.items()], digest)
    elif isinstance(value, (list, tuple, range)):
        digest.update(f"{len(value)}".encode())
        for x in value:
            _add(x, digest)
    elif isinstance(value, SAEMasks):
        _add(dict(value.items()), digest)
    elif isinstance(value, SplicedModel):
        lab = value.lab
        saes = {name: _of_module(sae) for name, sae in value.saes.items()}
        model = _of_module(lab.hf_model)
        _add([model, lab.dtype, value.layers, value.error, value.first, saes], digest)
    elif is_dataclass(value) and not isinstance(value, type):
        _add({field.name: getattr(value, field.name) for field in fields(value)}, digest)
    else:
        raise TypeError(f"{type(value).__name__} has no fingerprint.")
    digest.update(b";")


def _of_module(module: torch.nn.Module) -> str:
    """That of an SAE's or a model's weights: of 4096 numbers of each, evenly spread. They do not
    change once an SAE is spliced.
    """
    if module not in _of_modules:
        some = {
            name: x.detach().flatten()[:: max(1, x.numel() // 4096)]
            for name, x in module.named_parameters()
        }
        shapes = {name: list(x.shape) for name, x in module.named_parameters()}
        _of_modules[module] = fingerprint([type(module).__name__, shapes, some])
    return _of_modules[module]
