"""The published recipe, with nothing but hooks: what `course_utils` is measured and tested against.

Written from the description in the post, with the passes of the scripts that came with it: the
whole model in every pass, a hook at every SAE, all logits of all positions; mean latents prompt by
prompt; all else in batches of 16; two forward passes in every step of learning a mask; ten passes
per SAE, each from the embedding, for integrated gradients. Slow, short, and easy to check by eye.
Only the update of θ is the library's (`sparsification`); the tests of that one write the update
out.

The scripts freeze the weights of the model, and not those of the SAEs (`sae_weights_with_gradients`
does so): the graph then begins at the first SAE in every pass, the unmasked one too, and each way
back works out gradients of the SAEs' weights that nobody reads. What is left out: they call the
garbage collector after every pass, and their integrated gradients score the SAEs' errors too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.sparsification import (
    MaskSettings,
    all_nodes,
    binary_masks,
    sparsification,
    starting_theta,
)
from course_utils.circuits.splice import PatchMeans, batches
from course_utils.labs.lab import Lab, hook_point
from course_utils.prompts.tasks import Task

BATCH = 16
"""Prompts in one pass of the published scripts."""


@dataclass
class PlainSplice:
    """A lab's model with hooks at some layers.

    Attributes:
        lab: the model and its SAEs.
        layers: where the hooks are.
        error: what stands in for the SAEs' errors: ``"drop"``, ``"mean"`` or ``"keep"``.
        has_bos: whether column 0 of the tokens is BOS, which is left alone.
        batch_size: prompts in one pass, where no other size is given.
        latents: what the SAEs found in the last pass, by hook point: ``[batch, seq, d_sae]``.
    """

    lab: Lab
    layers: Sequence[int]
    error: str = "drop"
    has_bos: bool = True
    batch_size: int = BATCH
    latents: dict[str, Tensor] = field(default_factory=dict)

    # -- one forward pass ----------------------------------------------------------------------

    def logit_diff(
        self,
        tokens: Int[Tensor, "batch seq"],
        task: Task,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        put_in: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Logit difference of prompts, from the logits of every position.

        Args:
            tokens: the prompts.
            task: as many prompt pairs, for the answers and the lengths.
            masks: what to keep; everything by default.
            means: what takes the place of what is not kept; zero by default.
            put_in: latents to put in the place of what the SAEs find, by hook point.
        """
        return self._difference(self._logits(tokens, masks, means, put_in), task)

    def model_logit_diff(self, task: Task) -> Float[Tensor, " batch"]:
        """Logit difference without SAEs."""
        return self._difference(self.lab.model(task.clean.to(self.lab.device)), task)

    def _logits(
        self,
        tokens: Int[Tensor, "batch seq"],
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        put_in: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        errors = self._errors_to_add(tokens, means)

        def splice(name: str, sae: SAE, x: Tensor) -> Tensor:
            f = put_in[name] if put_in and name in put_in else sae.encode(x)
            self.latents[name] = f
            if masks is not None:
                f = masks(f, name, None if means is None else means.latents[name])
            x_hat = sae.decode(f)
            if name in errors:
                x_hat = x_hat + errors[name]
            return torch.cat([x[:, :1], x_hat[:, 1:]], dim=1) if self.has_bos else x_hat

        return self._run(tokens, splice)

    def _run(
        self, tokens: Int[Tensor, "batch seq"], at_sae: Callable[[str, SAE, Tensor], Tensor]
    ) -> Float[Tensor, "batch seq vocab"]:
        """The model's logits; at each SAE, ``at_sae`` changes the residual stream."""

        def hook(x: Tensor, hook) -> Tensor:
            name = hook.name.replace("hook_out", "hook_resid_post")
            return at_sae(name, self.lab.saes[int(name.split(".")[1])], x)

        hooks: list[tuple[str | Callable, Callable]] = [
            (hook_point(layer), hook) for layer in self.layers
        ]
        return self.lab.model.run_with_hooks(tokens.to(self.lab.device), fwd_hooks=hooks)

    def _difference(
        self, logits: Float[Tensor, "batch seq vocab"], task: Task
    ) -> Float[Tensor, " batch"]:
        n, seq = logits.shape[:2]
        last = torch.full((n,), seq - 1) if task.lengths is None else task.lengths - 1
        rows = torch.arange(n)
        return logits[rows, last, task.clean_answers] - logits[rows, last, task.patch_answers]

    def _errors_to_add(
        self, tokens: Int[Tensor, "batch seq"], means: PatchMeans | None
    ) -> Mapping[str, Tensor]:
        if self.error == "keep":
            return self._errors(tokens)
        if self.error == "mean":
            if means is None:
                raise ValueError("error='mean' needs means=….")
            return means.errors
        return {}

    @torch.no_grad()
    def _errors(self, tokens: Int[Tensor, "batch seq"]) -> dict[str, Tensor]:
        """x − SAE(x) in the model without SAEs."""
        errors = {}

        def note_error(name: str, sae: SAE, x: Tensor) -> Tensor:
            errors[name] = x - sae(x)
            return x

        self._run(tokens, note_error)
        return errors

    # -- means ---------------------------------------------------------------------------------

    @torch.no_grad()
    def patch_means(self, task: Task) -> PatchMeans:
        """Means over patch prompts, one prompt at a time."""
        errors: dict[str, Tensor] = {}
        if self.error == "mean":
            errors = self._running_means(task, self._errors)
        only_errors = PatchMeans({}, errors, len(task))
        latents = self._running_means(task, lambda tokens: self._latents(tokens, only_errors))
        return PatchMeans(latents, errors, len(task))

    def _running_means(
        self, task: Task, values_of: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Means of ``[1, seq, d]`` over patch prompts: at each position over those that have it."""
        means: dict[str, Tensor] = {}
        lengths = [task.seq_len] * len(task) if task.lengths is None else task.lengths.tolist()
        seen = torch.zeros(task.seq_len, 1, device=self.lab.device)
        for i, length in enumerate(lengths):
            has = (torch.arange(task.seq_len) < length)[:, None].to(seen)
            seen += has
            for name, values in values_of(task.patch[i : i + 1]).items():
                if self.has_bos:
                    values = torch.cat([torch.zeros_like(values[:, :1]), values[:, 1:]], dim=1)
                old = means.setdefault(name, torch.zeros_like(values[0]))
                means[name] = old + has * (values[0] - old) / seen.clamp(min=1)
        return means

    # -- methods -------------------------------------------------------------------------------

    def learn_masks(
        self, task: Task, means: PatchMeans, settings: MaskSettings, *, whole_once: bool = False
    ) -> tuple[SAEMasks, list[float]]:
        """Continuous sparsification; the masks, and the faithfulness loss at every step.

        The unmasked pass of a step has a graph where weights have gradients, and is gone back
        through: the masks get nothing from it. ``whole_once`` takes that pass away from the recipe:
        it is run once per prompt, not at every step.
        """
        whole = self._in_batches(task, means) if whole_once else None
        theta = starting_theta(means.latents, settings)
        nodes = all_nodes(theta, first=int(self.has_bos))
        to_lose = 1.0
        if settings.n_nodes is not None:
            nothing = SAEMasks.full(means.latents, 0.0, has_bos=self.has_bos)
            lost = self._in_batches(task, means, nothing) - self._in_batches(task, means)
            to_lose = lost.abs().mean().item()
        learning = sparsification(theta, nodes, len(task), settings, to_lose=to_lose)
        while not learning.done:
            rows, masks = learning.rows(), learning.soft_masks()
            batch = task[rows]
            if whole is None:
                target = self.logit_diff(batch.clean, batch, means=means)
            else:
                target = whole[rows.to(whole.device)]
            masked = self.logit_diff(batch.clean, batch, masks=masks, means=means)
            learning.update(target - masked, masks)
        losses = [record["faithfulness_loss"] for record in learning.history]
        return binary_masks(learning.theta, nodes), losses

    @torch.no_grad()
    def _in_batches(
        self, task: Task, means: PatchMeans, masks: SAEMasks | None = None
    ) -> Float[Tensor, " n"]:
        """Every prompt's logit difference."""
        differences = [
            self.logit_diff(batch.clean, batch, masks=masks, means=means)
            for batch in batches(task, self.batch_size)
        ]
        return torch.cat(differences)

    def integrated_gradients(
        self, task: Task, steps: int = 10, means: PatchMeans | None = None
    ) -> dict[str, Float[Tensor, "seq d_sae"]]:
        """Per SAE: mean gradient over points from clean to patch × (clean − patch), over prompts.

        The points are clean + (patch − clean) · j/steps for j = 0 … steps − 1.
        """
        scores: dict[str, Tensor] = {}
        for batch in batches(task, self.batch_size):
            patch, clean = self._latents(batch.patch, means), self._latents(batch.clean, means)
            for name in clean:
                gradient = torch.zeros_like(clean[name])
                for j in range(steps):
                    point = clean[name] + (patch[name] - clean[name]) * j / steps
                    point.requires_grad_()
                    put_in = {name: point}
                    ld = self.logit_diff(batch.clean, batch, put_in=put_in, means=means)
                    ld.sum().backward()
                    assert point.grad is not None
                    gradient += point.grad / steps
                    self._forget_gradients()
                score = gradient * (clean[name] - patch[name])
                if self.has_bos:
                    score[:, 0] = 0
                scores[name] = scores.get(name, 0) + score.sum(0) / len(task)
        return scores

    def _forget_gradients(self) -> None:
        """Drop what weights have collected, as the scripts do between the points."""
        for sae in self.lab.saes.values():
            sae.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _latents(
        self, tokens: Int[Tensor, "batch seq"], means: PatchMeans | None
    ) -> dict[str, Tensor]:
        """What the SAEs find, by hook point: ``[batch, seq, d_sae]``."""
        self._logits(tokens, means=means)
        return dict(self.latents)

    @torch.no_grad()
    def faithfulness(self, task: Task, masks: SAEMasks, means: PatchMeans) -> float:
        """(F(C) − F(∅)) / (F(S) − F(∅)), each over all prompts."""
        empty = SAEMasks.full(means.latents, 0.0, has_bos=self.has_bos)
        circuit, nothing, whole = (
            self._in_batches(task, means, which).mean() for which in (masks, empty, None)
        )
        return ((circuit - nothing) / (whole - nothing)).item()


@contextmanager
def sae_weights_with_gradients(lab: Lab) -> Iterator[None]:
    """As in the published scripts: the SAEs' weights take part in the graph and collect gradients;
    the model's are frozen.
    """
    parameters = [parameter for sae in lab.saes.values() for parameter in sae.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
