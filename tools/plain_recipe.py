"""The published recipe, with nothing but hooks: the textbook that `course_utils` is measured and
tested against.

Written from the description in the post: the whole model in every pass, a hook at every SAE, all
logits of all positions; mean latents prompt by prompt; two forward passes in every step of learning
a mask; ten passes per SAE, each from the embedding, for integrated gradients. Slow, short, and easy
to check by eye.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.optimize import MaskSettings, batch_rows, temperature
from course_utils.circuits.splice import PatchMeans
from course_utils.labs.lab import Lab, hook_point
from course_utils.prompts.tasks import Task


@dataclass
class PlainSplice:
    """A lab's model with hooks at some layers. ``latents`` holds what the SAEs found in the last
    pass.
    """

    lab: Lab
    layers: Sequence[int]
    error: str = "drop"
    has_bos: bool = True
    latents: dict[str, Tensor] = field(default_factory=dict)

    def logit_diff(
        self,
        tokens: Int[Tensor, "batch seq"],
        task: Task,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        put_in: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Logit difference of prompts, from the logits of every position."""
        errors = (
            self._errors(tokens)
            if self.error == "keep"
            else means.errors
            if self.error == "mean"
            else {}
        )

        def hook(x, hook):
            name = hook.name.replace("hook_out", "hook_resid_post")
            sae = self.lab.saes[int(name.split(".")[1])]
            f = sae.encode(x)
            if put_in and name in put_in:
                f = put_in[name]
            self.latents[name] = f
            if masks is not None:
                f = masks(f, name, means.latents[name] if means else None)
            x_hat = sae.decode(f)
            if name in errors:
                x_hat = x_hat + errors[name]
            return torch.cat([x[:, :1], x_hat[:, 1:]], dim=1) if self.has_bos else x_hat

        hooks = [(hook_point(layer), hook) for layer in self.layers]
        logits = self.lab.model.run_with_hooks(tokens.to(self.lab.device), fwd_hooks=hooks)
        return self._difference(logits, task)

    def model_logit_diff(self, task: Task) -> Float[Tensor, " batch"]:
        """Logit difference without SAEs."""
        return self._difference(self.lab.model(task.clean.to(self.lab.device)), task)

    def _difference(
        self, logits: Float[Tensor, "batch seq vocab"], task: Task
    ) -> Float[Tensor, " batch"]:
        n, seq = logits.shape[:2]
        last = torch.full((n,), seq - 1) if task.lengths is None else task.lengths - 1
        rows = torch.arange(n)
        return logits[rows, last, task.clean_answers] - logits[rows, last, task.patch_answers]

    @torch.no_grad()
    def _errors(self, tokens: Tensor) -> dict[str, Tensor]:
        found = {}

        def hook(x, hook):
            name = hook.name.replace("hook_out", "hook_resid_post")
            found[name] = x - self.lab.saes[int(name.split(".")[1])](x)

        self.lab.model.run_with_hooks(
            tokens.to(self.lab.device),
            fwd_hooks=[(hook_point(layer), hook) for layer in self.layers],
        )
        return found

    @torch.no_grad()
    def patch_means(self, task: Task) -> PatchMeans:
        """Running means over patch prompts, one prompt at a time."""
        latents: dict[str, Tensor] = {}
        errors: dict[str, Tensor] = {}
        lengths = [task.seq_len] * len(task) if task.lengths is None else task.lengths.tolist()
        seen = torch.zeros(task.seq_len, 1, device=self.lab.device)
        if self.error == "mean":
            for i, length in enumerate(lengths):
                has = (torch.arange(task.seq_len) < length)[:, None].to(seen)
                seen += has
                for name, error in self._errors(task.patch[i : i + 1]).items():
                    if self.has_bos:
                        error[:, 0] = 0
                    old = errors.setdefault(name, torch.zeros_like(error[0]))
                    errors[name] = old + has * (error[0] - old) / seen.clamp(min=1)
            seen.zero_()
        for i, length in enumerate(lengths):
            has = (torch.arange(task.seq_len) < length)[:, None].to(seen)
            seen += has
            self.logit_diff(task.patch[i : i + 1], task[i], means=PatchMeans({}, errors, i))
            for name, f in self.latents.items():
                if self.has_bos:
                    f = torch.cat([torch.zeros_like(f[:, :1]), f[:, 1:]], dim=1)
                old = latents.setdefault(name, torch.zeros_like(f[0]))
                latents[name] = old + has * (f[0] - old) / seen.clamp(min=1)
        return PatchMeans(latents, errors, len(task))

    def learn_masks(
        self, task: Task, means: PatchMeans, settings: MaskSettings, *, whole_once: bool = False
    ) -> tuple[SAEMasks, list[float]]:
        """Continuous sparsification; the masks, and the faithfulness loss at every step.

        ``whole_once`` takes one thing away from the recipe: the unmasked pass is run once per
        prompt, not at every step.
        """
        if whole_once:
            with torch.no_grad():
                pieces = [
                    task[i : i + settings.batch_size]
                    for i in range(0, len(task), settings.batch_size)
                ]
                all_whole = torch.cat(
                    [self.logit_diff(piece.clean, piece, means=means) for piece in pieces]
                )
        theta = {
            name: torch.full_like(f, settings.theta_init).requires_grad_()
            for name, f in means.latents.items()
        }
        optimizer = torch.optim.Adam(theta.values(), lr=settings.lr)
        losses = []
        for step in range(settings.steps):
            rows = batch_rows(len(task), step, settings)
            batch = task[rows]
            masks = SAEMasks(
                list(theta),
                [torch.sigmoid(temperature(step, settings) * value) for value in theta.values()],
            )
            with torch.no_grad():
                whole = (
                    all_whole[rows]
                    if whole_once
                    else self.logit_diff(batch.clean, batch, means=means)
                )
            loss = (
                (whole - self.logit_diff(batch.clean, batch, masks=masks, means=means)).abs().mean()
            )
            losses.append(loss.item())
            loss = loss + settings.sparsity * sum(mask.sum() for mask in masks.masks) / len(theta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        on = {name: (value > 0).float() for name, value in theta.items()}
        for mask in on.values():
            mask[: int(self.has_bos)] = 0
        return SAEMasks(list(on), list(on.values())), losses

    def integrated_gradients(
        self, task: Task, steps: int = 10, batch_size: int = 16, means: PatchMeans | None = None
    ) -> dict[str, Tensor]:
        """Per SAE: mean gradient over points from clean to patch, times (clean − patch), averaged
        over prompts.
        """
        scores = {hook_point(layer): 0 for layer in self.layers}
        for start in range(0, len(task), batch_size):
            batch = task[start : start + batch_size]
            with torch.no_grad():
                self.logit_diff(batch.patch, batch, means=means)
                patch = dict(self.latents)
                self.logit_diff(batch.clean, batch, means=means)
                clean = dict(self.latents)
            for name in scores:
                gradient = torch.zeros_like(clean[name])
                for j in range(steps):
                    point = (clean[name] + (patch[name] - clean[name]) * j / steps).requires_grad_()
                    self.logit_diff(
                        batch.clean, batch, put_in={name: point}, means=means
                    ).sum().backward()
                    gradient += point.grad / steps
                score = gradient * (clean[name] - patch[name])
                if self.has_bos:
                    score[:, 0] = 0
                scores[name] = scores[name] + score.sum(0) / len(task)
        return scores

    @torch.no_grad()
    def faithfulness(self, task: Task, masks: SAEMasks, means: PatchMeans) -> float:
        """(F(C) − F(∅)) / (F(S) − F(∅)), each over all prompts."""
        empty = SAEMasks.full(means.latents, 0.0, has_bos=self.has_bos)
        circuit, nothing, whole = (
            self.logit_diff(task.clean, task, masks=m, means=means).mean()
            for m in (masks, empty, None)
        )
        return ((circuit - nothing) / (whole - nothing)).item()


@contextmanager
def weights_with_gradients(lab: Lab) -> Iterator[None]:
    """As a model comes out of the box: every weight takes part in the graph, and collects a
    gradient.
    """
    parameters = [
        *lab.hf_model.parameters(),
        *(p for sae in lab.saes.values() for p in sae.parameters()),
    ]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
