"""Run a notebook's own cells, and count what the plain recipe would have had to do in their
place.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from course_utils.circuits import attribution, frontier, optimize
from course_utils.circuits.attribution import AttributionSettings
from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.sparsification import MaskSettings
from course_utils.circuits.splice import SplicedModel
from course_utils.prompts.tasks import Task

ROOT = Path(__file__).resolve().parent.parent


class PlainPasses:
    """How many prompts the plain recipe would have to run for what the library is asked to do.

    Attributes:
        counts: ``counts[length][kind]``, with prompts of a length that go through a step of
            learning a mask (``"step"``, masked and unmasked), forward and back (``"both"``),
            forward (``"fwd"``), or forward one at a time (``"single"``).
    """

    def __init__(self) -> None:
        self.counts: dict[int, Counter[str]] = defaultdict(Counter)
        self._inside = False

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count while this is open, whoever calls; a call inside another is part of that one."""
        counted: list[tuple[Any, str, Callable[..., None]]] = [
            (SplicedModel, "patch_means", self._patch_means),
            (Evaluation, "__init__", self._evaluation),
            (Evaluation, "faithfulness", self._faithfulness),
            (frontier.Frontier, "judge", self._judge),
            (optimize, "learn_masks", self._learn_masks),
            (attribution, "atp", self._atp),
            (attribution, "integrated_gradients", self._integrated_gradients),
            (attribution, "variants", self._variants),
            (attribution, "activation_patching", self._activation_patching),
            (attribution, "largest_change", self._both_prompts_of),
            (attribution, "random_scores", self._both_prompts_of),
        ]
        with ExitStack() as stack:
            for owner, name, count in counted:
                new = self._with_count(getattr(owner, name), count)
                stack.enter_context(mock.patch.object(owner, name, new))
            yield

    def _with_count(self, work: Callable, count: Callable[..., None]) -> Callable:
        @functools.wraps(work)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return work(*args, **kwargs)
            self._inside = True
            try:
                count(*args, **kwargs)
                return work(*args, **kwargs)
            finally:
                self._inside = False

        return call

    def _add(self, tokens: torch.Tensor, **per_prompt: int) -> None:
        for kind, passes in per_prompt.items():
            self.counts[tokens.shape[1]][kind] += passes * len(tokens)

    def _patch_means(self, spliced: SplicedModel, tokens: torch.Tensor, *args, **kwargs) -> None:
        self._add(tokens, single=1)

    def _evaluation(self, evaluation, spliced: SplicedModel, task: Task, *args, **kwargs) -> None:
        self._add(task.clean, fwd=1)  # F(M)

    def _faithfulness(self, evaluation: Evaluation, *args, **kwargs) -> None:
        self._add(evaluation.task.clean, fwd=3)  # F(C), F(S), F(∅)

    def _judge(self, on, method: str, masks, evaluation: Evaluation, **kwargs) -> None:
        self._faithfulness(evaluation)

    def _learn_masks(
        self, spliced: SplicedModel, task: Task, *, settings=None, means=None, resume=None,
        progress=True, **changes,
    ) -> None:  # fmt: skip
        settings = replace(settings or MaskSettings(), **changes)
        self._add(task.clean[:1], step=settings.steps * settings.batch_size)

    def _atp(self, spliced: SplicedModel, task: Task, **settings) -> None:
        self._add(task.clean, both=1)
        self._latents_of(task, **settings)

    def _integrated_gradients(self, spliced: SplicedModel, task: Task, **settings) -> None:
        steps = settings.get("steps", AttributionSettings.steps)
        self._add(task.clean, both=steps * len(spliced.layers), fwd=1)
        self._latents_of(task, **settings)

    def _variants(self, spliced: SplicedModel, task: Task, **settings) -> None:
        for baseline in ("patch", "mean"):
            self._atp(spliced, task, baseline=baseline)
            self._integrated_gradients(spliced, task, **{**settings, "baseline": baseline})

    def _latents_of(self, task: Task, *, baseline: str = "patch", **settings) -> None:
        self._add(task.clean, fwd=1 if baseline == "patch" else 0)

    def _activation_patching(self, spliced: SplicedModel, task: Task, nodes, **settings) -> None:
        self._add(task.clean, fwd=len(list(nodes)) + 2)

    def _both_prompts_of(self, spliced: SplicedModel, task: Task, **settings) -> None:
        self._add(task.clean, fwd=2)


def run_cells(cells: Iterable[str], **names: Any) -> None:
    """Run a notebook's code cells in their folder, with some names given, and show nothing; what
    they save goes to build/.
    """
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(config=config, user_ns=dict(names))  # `display` asks for one
    try:
        with (
            mock.patch.object(frontier, "MASKS_DIR", ROOT / "build" / "benchmark" / "masks"),
            mock.patch.dict("os.environ", {"MPLBACKEND": "agg"}),
            chdir(ROOT / "solutions"),
            capture_output(),
        ):
            for cell in cells:
                shell.run_cell(cell).raise_error()
    finally:
        InteractiveShell.clear_instance()
