"""The forward pass with SAEs in the residual stream.

At each chosen layer the residual stream is encoded, masked, decoded and put back, so that what the next
layers read has passed through the latents that the mask keeps:

    x → f = SAE.encode(x) → f' = ablation + (f − ablation) · mask → SAE.decode(f') + error → next layer

An SAE does not rebuild x exactly. What happens to the rest of it is the *error policy*:

- ``"drop"``: it is lost (the post). What the model can still do, it does through latents.
- ``"mean"``: its mean over the patch prompts takes its place: the same for every prompt.
- ``"keep"``: the clean run's own error is put back. With no mask that is the model itself.

BOS is never spliced: its residual stream is alike in every prompt, and a hundred times longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.labs import Lab, LabError, hook_point
from course_utils.masks import SAEMasks
from course_utils.tasks import Task

ErrorPolicy = Literal["drop", "mean", "keep"]


@dataclass(frozen=True)
class PatchMeans:
    """Means over patch prompts, by hook point: what stands in for an ablated latent.

    Attributes:
        latents: ``[seq, d_sae]``, in the spliced model with nothing masked. Row 0 is 0 where BOS is.
        errors: ``[seq, d_model]``, what the SAE leaves out of the unspliced model's residual stream.
        n: how many prompts the means are over.
    """

    latents: dict[str, Float[Tensor, "seq d_sae"]]
    errors: dict[str, Float[Tensor, "seq d_model"]]
    n: int


@dataclass
class Run:
    """What one forward pass of `SplicedModel.run` saw.

    Attributes:
        logits: ``[batch, vocab]`` at the last position.
        latents: ``[batch, seq, d_sae]`` by hook point, before the mask; row 0 is 0 where BOS is.
    """

    logits: Float[Tensor, "batch vocab"]
    latents: dict[str, Float[Tensor, "batch seq d_sae"]] = field(default_factory=dict)


class SplicedModel:
    """A lab's model with the SAEs of some layers spliced into its residual stream.

    Args:
        lab: the model and its SAEs.
        layers: where to splice; every layer with an SAE by default.
        error: ``"drop"``, ``"mean"`` or ``"keep"`` (see the module's docstring).
        has_bos: whether column 0 of the tokens is BOS, and so is left alone.

    Raises:
        LabError: a layer without an SAE.
        ValueError: an unknown error policy.
    """

    def __init__(self, lab: Lab, layers: Sequence[int] | None = None, error: ErrorPolicy = "drop", *, has_bos: bool = True):
        layers = lab.sae_layers if layers is None else sorted(set(layers))
        missing = [layer for layer in layers if layer not in lab.saes]
        if missing:
            raise LabError(f"layers: no SAE for layer {', '.join(map(str, missing))}; this lab has SAEs for {lab.sae_layers}.")
        if error not in get_args(ErrorPolicy):
            raise ValueError(f"error must be 'drop', 'mean' or 'keep', not {error!r}.")
        self.lab, self.layers, self.error = lab, layers, error
        self.saes = {hook_point(layer): lab.saes[layer] for layer in layers}
        self.first = 1 if has_bos else 0

    @property
    def hook_points(self) -> list[str]:
        """Where the SAEs are, in order."""
        return list(self.saes)

    def __repr__(self) -> str:
        return f"SplicedModel({self.lab.name!r}, layers={self.layers}, error={self.error!r})"

    # -- one forward pass ----------------------------------------------------------------------

    def run(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        latents: Mapping[str, Float[Tensor, "batch seq d_sae"]] | None = None,
        clean_tokens: Int[Tensor, "batch seq"] | None = None,
        track_latents: bool = False,
    ) -> Run:
        """One forward pass; gradients flow to masks and latents that ask for them.

        Args:
            tokens: prompts of one length.
            masks: what to keep; everything by default.
            means: what takes the place of what is not kept (zero by default). The error policy
                ``"mean"`` needs it.
            latents: put these in place of what the SAE finds at a hook point, before masking.
            clean_tokens: the prompts whose errors ``"keep"`` puts back; ``tokens`` by default.
            track_latents: build the graph from every SAE's latents on, so that they have gradients.

        Raises:
            ValueError: column 0 is not BOS, though the model was told so; ``error="mean"`` without ``means``.
            RuntimeError: a hook did not fire, so that the numbers would not be those of the spliced model.
        """
        bos = self.lab.tokenizer.bos_token_id
        if self.first and bos is not None and (tokens[:, 0] != bos).any():
            raise ValueError(
                f"column 0 is to be left alone as BOS (token {bos}), but holds {tokens[:, 0].unique().tolist()[:5]}. Put BOS first "
                "(load_task does), or make SplicedModel(…, has_bos=False)."
            )
        if self.error == "mean" and means is None:
            raise ValueError("error='mean' puts back the mean error over patch prompts: give means=spliced.patch_means(task.patch).")
        errors = self._errors(tokens if clean_tokens is None else clean_tokens, means)
        run = Run(logits=torch.empty(0))

        def splice(x: Float[Tensor, "batch seq d_model"], hook) -> Float[Tensor, "batch seq d_model"]:
            name = hook.name if hook.name in self.saes else self._canonical[hook.name]
            sae = self.saes[name]
            if latents is not None and name in latents:
                f = latents[name]
            else:
                f = torch.nn.functional.pad(sae.encode(x[:, self.first :]), (0, 0, self.first, 0))
            if track_latents and not f.requires_grad:
                f.requires_grad_()
            run.latents[name] = f
            if masks is not None:
                f = masks(f, name, None if means is None else means.latents[name])
            x_hat = sae.decode(f[:, self.first :])
            if name in errors:
                x_hat = x_hat + errors[name][..., self.first :, :]
            return torch.cat([x[:, : self.first], x_hat.to(x)], dim=1)

        run.logits = self._with_hooks(tokens, splice)
        missing = set(self.saes) - set(run.latents)
        if missing:
            raise RuntimeError(f"the hooks at {sorted(missing)} did not fire: the model ran without these SAEs.")
        return run

    def model_logits(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch vocab"]:
        """The unspliced model's logits at the last position."""
        return self.lab.model(tokens.to(self.lab.device), logits_to_keep=1)[:, -1]

    @property
    def _canonical(self) -> dict[str, str]:
        """TransformerLens calls the same place ``blocks.N.hook_out`` too."""
        return {name.replace("hook_resid_post", "hook_out"): name for name in self.saes}

    def _with_hooks(self, tokens: Tensor, hook: Callable) -> Float[Tensor, "batch vocab"]:
        hooks = [(name, hook) for name in self.saes]
        return self.lab.model.run_with_hooks(tokens.to(self.lab.device), fwd_hooks=hooks, logits_to_keep=1)[:, -1]

    def _errors(self, tokens: Tensor, means: PatchMeans | None) -> Mapping[str, Tensor]:
        if self.error == "mean":
            return means.errors
        return self.errors(tokens) if self.error == "keep" else {}

    @torch.no_grad()
    def errors(self, tokens: Int[Tensor, "batch seq"]) -> dict[str, Float[Tensor, "batch seq d_model"]]:
        """What each SAE leaves out, x − SAE(x), of the unspliced model's residual stream."""
        found = {}

        def catch(x, hook):
            name = hook.name if hook.name in self.saes else self._canonical[hook.name]
            found[name] = x - self.saes[name].decode(self.saes[name].encode(x))

        self._with_hooks(tokens, catch)
        return found

    # -- over many prompts ---------------------------------------------------------------------

    @torch.no_grad()
    def patch_means(self, tokens: Int[Tensor, "n seq"], batch_size: int = 64) -> PatchMeans:
        """Mean latents and mean errors over prompts, position by position."""
        latents: dict[str, Tensor] = {}
        errors: dict[str, Tensor] = {}
        n = len(tokens)
        for batch in tokens.split(batch_size):
            for name, error in self.errors(batch).items():
                errors[name] = errors.get(name, 0) + error.sum(0) / n
        for batch in tokens.split(batch_size):
            for name, f in self.run(batch, means=PatchMeans({}, errors, n)).latents.items():
                latents[name] = latents.get(name, 0) + f.sum(0) / n
        return PatchMeans(latents, errors, n)

    def logit_diff(
        self,
        task: Task,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        batch_size: int = 64,
    ) -> Float[Tensor, " n"]:
        """Logit difference of every prompt pair's clean prompt in the spliced model (no gradient)."""
        with torch.no_grad():
            return torch.cat([logit_diff(self.run(b.clean, masks=masks, means=means).logits, b) for b in batches(task, batch_size)])

    def model_logit_diff(self, task: Task, *, batch_size: int = 64) -> Float[Tensor, " n"]:
        """Logit difference of every prompt pair's clean prompt in the model itself (no gradient)."""
        with torch.no_grad():
            return torch.cat([logit_diff(self.model_logits(b.clean), b) for b in batches(task, batch_size)])


def logit_diff(logits: Float[Tensor, "batch vocab"], task: Task) -> Float[Tensor, " batch"]:
    """logit(clean answer) − logit(patch answer)."""
    rows = torch.arange(len(task), device=logits.device)
    return logits[rows, task.clean_answers.to(logits.device)] - logits[rows, task.patch_answers.to(logits.device)]


def batches(task: Task, size: int) -> Iterator[Task]:
    """The task in pieces of at most ``size`` prompt pairs."""
    for start in range(0, len(task), size):
        yield task[start : start + size]
