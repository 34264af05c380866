"""The forward pass with SAEs in the residual stream.

At each chosen layer the residual stream is encoded, masked, decoded and put back, so that what the
next layers read has passed through the latents that the mask keeps:

    x → f = SAE.encode(x) → f' = ablation + (f − ablation) · mask → SAE.decode(f') + error → next
    layer

An SAE does not rebuild x exactly. What happens to the rest of it is the *error policy*:

- ``"drop"``: it is lost (the post). What the model can still do, it does through latents.
- ``"mean"``: its mean over the patch prompts takes its place: the same for every prompt.
- ``"keep"``: the clean run's own error is put back. With no mask that is the model itself.

BOS is never spliced: its residual stream is alike in every prompt, and a hundred times longer.

The textbook way to do this is a hook at each layer, on the whole model. `SplicedModel` computes the
same numbers with less: what comes before the first SAE is run once per prompt
(`SplicedModel.prefix`), and the rest from there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import psutil
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from course_utils.circuits.masks import SAEMasks, ablate
from course_utils.circuits.saes import decode, encode, narrow_sae
from course_utils.labs.catalog import LabError
from course_utils.labs.lab import Lab, hook_point
from course_utils.labs.layers import LayerStack
from course_utils.labs.requirements import numbers_per_token
from course_utils.prompts.tasks import Task

ErrorPolicy = Literal["drop", "mean", "keep"]


@dataclass(frozen=True)
class PatchMeans:
    """Means over patch prompts, by hook point: what stands in for an ablated latent.

    Attributes:
        latents: ``[seq, d_sae]``, in the spliced model with nothing masked. Row 0 is 0 where BOS
            is.
        errors: ``[seq, d_model]``, what the SAE leaves out of the unspliced model's residual
            stream. Only the error policy ``"mean"`` needs them; empty for the others.
        n: how many prompts the means are over.
    """

    latents: dict[str, Float[Tensor, "seq d_sae"]]
    errors: dict[str, Float[Tensor, "seq d_model"]]
    n: int

    def narrow(self, keep: Mapping[str, Int[Tensor, " kept"]]) -> PatchMeans:
        """The means of some latents only."""
        return replace(
            self,
            latents={
                name: f[:, keep[name]] if name in keep else f for name, f in self.latents.items()
            },
        )


@dataclass(frozen=True)
class Prefix:
    """Forward passes that were stopped before an SAE, to go on from there as often as wanted.

    Attributes:
        layer: the SAE's layer.
        resid: ``[batch, seq, d_model]``, the residual stream that it is to read, without BOS.
        errors: by hook point, ``[batch, seq, d_model]``: what the error policy ``"keep"`` puts
            back.
        lengths: ``[batch]``, tokens in each prompt, BOS included; None if all are of one length.
    """

    layer: int
    resid: Float[Tensor, "batch seq d_model"]
    errors: dict[str, Float[Tensor, "batch seq d_model"]]
    lengths: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.resid)

    def __getitem__(self, rows: slice | Tensor) -> Prefix:
        """Some of the prompts."""
        return Prefix(
            self.layer,
            self.resid[rows],
            {name: error[rows] for name, error in self.errors.items()},
            None if self.lengths is None else self.lengths[rows],
        )


@dataclass
class Run:
    """What one forward pass of `SplicedModel.run` saw.

    Attributes:
        normed: ``[batch, d_model]``, the residual stream at the last position after the final norm.
        latents: ``[batch, seq, d_sae]`` by hook point, before the mask; row 0 is 0 where BOS is.
        prefixes: by hook point, the same forward pass stopped before that SAE.
    """

    normed: Float[Tensor, "batch d_model"]
    stack: LayerStack = field(repr=False)
    latents: dict[str, Float[Tensor, "batch seq d_sae"]] = field(default_factory=dict)
    prefixes: dict[str, Prefix] = field(default_factory=dict, repr=False)

    @property
    def logits(self) -> Float[Tensor, "batch vocab"]:
        """Logits of the whole vocabulary at the last position."""
        return self.stack.logits(self.normed)

    def logit_diff(self, task: Task) -> Float[Tensor, " batch"]:
        """logit(clean answer) − logit(patch answer), in float32, without the logits of other
        tokens.
        """
        clean, patch = (
            answers.to(self.normed.device) for answers in (task.clean_answers, task.patch_answers)
        )
        return self.stack.logits_of(self.normed, clean) - self.stack.logits_of(self.normed, patch)


class SplicedModel:
    """A lab's model with the SAEs of some layers spliced into its residual stream.

    Args:
        lab: the model and its SAEs.
        layers: where to splice; every layer with an SAE by default.
        error: ``"drop"``, ``"mean"`` or ``"keep"`` (see the module's docstring).
        has_bos: whether column 0 of the tokens is BOS, and so is left alone.
        recompute: compute activations inside layers again on the way back, instead of keeping them
            (see `LayerStack`). By default, where some of the model's layers wait in main memory.

    Raises:
        LabError: a layer without an SAE.
        LayerError: a model that cannot be run layer by layer.
        ValueError: an unknown error policy; ``has_bos`` with a tokenizer that has no BOS.
    """

    def __init__(
        self,
        lab: Lab,
        layers: Sequence[int] | None = None,
        error: ErrorPolicy = "drop",
        *,
        has_bos: bool = True,
        recompute: bool | None = None,
    ):
        layers = lab.sae_layers if layers is None else sorted(set(layers))
        missing = [layer for layer in layers if layer not in lab.saes]
        if missing:
            raise LabError(
                f"layers: no SAE for layer {', '.join(map(str, missing))}; this lab has SAEs for {lab.sae_layers}."
            )
        if error not in get_args(ErrorPolicy):
            raise ValueError(f"error must be 'drop', 'mean' or 'keep', not {error!r}.")
        bos = lab.tokenizer.bos_token_id
        if has_bos and bos is None:
            raise ValueError(
                f"the tokenizer of {lab.name!r} has no BOS token: SplicedModel(…, has_bos=False)."
            )
        self.lab, self.layers, self.error = lab, layers, error
        self.saes = {hook_point(layer): lab.saes[layer] for layer in layers}
        self.first = 1 if has_bos else 0
        self.stack = LayerStack(
            lab.hf_model,
            bos if has_bos else None,
            recompute=lab.offloaded if recompute is None else recompute,
        )

    @property
    def hook_points(self) -> list[str]:
        """Where the SAEs are, in order."""
        return list(self.saes)

    def __repr__(self) -> str:
        return f"SplicedModel({self.lab.name!r}, layers={self.layers}, error={self.error!r})"

    # -- one forward pass ----------------------------------------------------------------------

    @torch.no_grad()
    def prefix(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        clean_tokens: Int[Tensor, "batch seq"] | None = None,
    ) -> Prefix:
        """Run prompts up to the first SAE: all that no mask can change. Give it to `run` in the
        tokens' place.

        Args:
            tokens: prompts of one length, or padded on the right.
            lengths: tokens in each prompt, BOS included, if they are padded.
            clean_tokens: the prompts whose errors ``"keep"`` puts back; ``tokens`` by default.

        Raises:
            ValueError: column 0 is not BOS, though the model was told so.
        """
        bos = self.stack.bos
        if bos is not None and (tokens[:, 0] != bos).any():
            raise ValueError(
                f"column 0 is to be left alone as BOS (token {bos}), but holds {tokens[:, 0].unique().tolist()[:5]}. Put BOS first "
                "(load_task does), or make SplicedModel(…, has_bos=False)."
            )
        size = self.batch_size(tokens.shape[1])
        resid = torch.cat(
            [
                self.stack.run(self.stack.embed(batch), range(self.layers[0] + 1))
                for batch in tokens.split(size)
            ]
        )
        errors = {}
        if self.error == "keep":
            same = clean_tokens is None
            pieces = (
                [self._errors_of(x) for x in resid.split(size)]
                if same
                else [self._errors_from(b) for b in clean_tokens.split(size)]
            )
            errors = {name: torch.cat([piece[name] for piece in pieces]) for name in self.saes}
        return Prefix(
            self.layers[0], resid, errors, None if lengths is None else lengths.to(resid.device)
        )

    def run(
        self,
        tokens: Int[Tensor, "batch seq"] | Prefix,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        latents: Mapping[str, Float[Tensor, "batch seq d_sae"] | Callable[[Tensor], Tensor]]
        | None = None,
        outputs: Mapping[str, Float[Tensor, "batch seq_without_bos d_model"]] | None = None,
        clean_tokens: Int[Tensor, "batch seq"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        track_latents: bool = False,
        keep_latents: bool = True,
    ) -> Run:
        """One forward pass; gradients flow to masks, latents and outputs that ask for them.

        Args:
            tokens: prompts of one length (or padded on the right, with ``lengths``), or a `Prefix`
                made of them.
            masks: what to keep; everything by default.
            means: what takes the place of what is not kept (zero by default). The error policy
                ``"mean"`` needs it.
            latents: put these in place of what the SAE finds at a hook point, before masking; or a
                function that makes them from what it finds there, ``[batch, seq without BOS,
                d_sae]`` both.
            outputs: put these in place of what the SAE decodes at a hook point; no mask acts there.
            clean_tokens, lengths: as for `start`; a `Prefix` has them already.
            track_latents: build the graph from every SAE's latents on, so that they have gradients.
            keep_latents: put latents and starts into the result. Without them, SAEs are narrowed to
                the latents that fire, and one after the last layer is run at the last position
                only, since no other reaches the logits.

        Raises:
            ValueError: column 0 is not BOS, though the model was told so; ``error="mean"`` without
                ``means``.
        """
        if self.error == "mean" and means is None:
            raise ValueError(
                "error='mean' puts back the mean error over patch prompts: give means=spliced.patch_means(task.patch)."
            )
        start = (
            tokens
            if isinstance(tokens, Prefix)
            else self.prefix(tokens, lengths=lengths, clean_tokens=clean_tokens)
        )
        run = Run(torch.empty(0), self.stack)
        whole = keep_latents or track_latents
        seq, layer, x = start.resid.shape[1], start.layer, start.resid
        valid = (
            None
            if start.lengths is None
            else torch.arange(self.first, seq + self.first, device=x.device)
            < start.lengths[:, None]
        )
        for here in self.layers[self.layers.index(start.layer) :]:
            name = hook_point(here)
            x, layer = self.stack.run(x, range(layer + 1, here + 1)), here
            rows = slice(None)
            if not whole and valid is None and here == self.stack.n_layers - 1:
                rows = slice(-1, None)
            if keep_latents:
                run.prefixes[name] = Prefix(here, x, start.errors, start.lengths)
            if outputs is not None and name in outputs:
                x_hat = outputs[name][:, rows]
            else:
                sae, f, keep = self.saes[name], None, None
                given = None if latents is None else latents.get(name)
                if callable(given):
                    f = given(encode(sae, x))[:, rows]
                elif given is not None:
                    f = given[:, self.first :][:, rows]
                elif whole:
                    f = encode(sae, x)
                else:
                    sae, f, keep = self._encode_what_fires(
                        name, x[:, rows], means if masks is not None else None
                    )
                if valid is not None:
                    f = f * valid[..., None]
                if whole:
                    padded = torch.nn.functional.pad(f, (0, 0, self.first, 0))
                    if track_latents and not padded.requires_grad:
                        padded.requires_grad_()
                    run.latents[name], f = padded, padded[:, self.first :]
                if masks is not None:
                    masks.check(name, seq=seq + self.first, d_sae=self.saes[name].cfg.d_sae)
                    mean = None if means is None else means.latents[name]
                    f = ablate(f, self._part(masks[name], rows, keep), self._part(mean, rows, keep))
                x_hat = decode(sae, f)
            error = (
                means.errors[name][self.first :] if self.error == "mean" else start.errors.get(name)
            )
            x = (x_hat if error is None else x_hat + error[..., rows, :]).to(x.dtype)
        x = self.stack.run(x, range(layer + 1, self.stack.n_layers))
        last = (
            x[:, -1]
            if start.lengths is None
            else x[torch.arange(len(x), device=x.device), start.lengths - 1 - self.first]
        )
        run.normed = self.stack.norm(last, seq)
        return run

    def _encode_what_fires(
        self, name: str, x: Float[Tensor, "batch seq d_model"], means: PatchMeans | None
    ) -> tuple[SAE, Float[Tensor, "batch seq kept"], Int[Tensor, " kept"] | None]:
        """The SAE narrowed to the latents that are not 0 on ``x`` or in the means, its latents, and
        which they are.

        All others stay 0 whatever the mask, and pass no gradient, so that decoding and the way back
        can do without them. Where most latents are left, the SAE stays whole (None).
        """
        sae = self.saes[name]
        with torch.no_grad():
            f = encode(sae, x.detach())
            fires = (f != 0).flatten(0, 1).any(0)
            if means is not None:
                fires |= (means.latents[name] != 0).any(0)
            keep = fires.nonzero()[:, 0]
        if not getattr(sae.cfg, "k", 1) <= len(keep) <= sae.cfg.d_sae // 2:
            return sae, encode(sae, x) if x.requires_grad else f, None
        small = narrow_sae(sae, keep)
        return small, encode(small, x) if x.requires_grad else f[..., keep], keep

    def _part(self, values: Tensor | None, rows: slice, keep: Tensor | None) -> Tensor | None:
        """Of a mask or mean, ``[seq, d_sae]`` or ``[d_sae]``: without BOS, some rows, some
        latents.
        """
        if values is None:
            return None
        values = values if values.ndim == 1 else values[self.first :][rows]
        return values if keep is None else values[..., keep]

    def model_logits(
        self, tokens: Int[Tensor, "batch seq"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """The unspliced model's logits at the last position."""
        return self._model_run(tokens, lengths).logits

    def _model_run(self, tokens: Tensor, lengths: Tensor | None) -> Run:
        x = self.stack.run(self.stack.embed(tokens), range(self.stack.n_layers))
        last = (
            x[:, -1]
            if lengths is None
            else x[torch.arange(len(x), device=x.device), lengths.to(x.device) - 1 - self.first]
        )
        return Run(self.stack.norm(last, x.shape[1]), self.stack)

    # -- what the SAEs leave out ---------------------------------------------------------------

    @torch.no_grad()
    def errors(
        self, tokens: Int[Tensor, "batch seq"]
    ) -> dict[str, Float[Tensor, "batch seq d_model"]]:
        """What each SAE leaves out, x − SAE(x), of the unspliced model's residual stream; 0 at
        BOS.
        """
        return {
            name: torch.nn.functional.pad(error, (0, 0, self.first, 0))
            for name, error in self._errors_from(tokens).items()
        }

    def _errors_from(self, tokens: Tensor) -> dict[str, Tensor]:
        return self._errors_of(self.stack.run(self.stack.embed(tokens), range(self.layers[0] + 1)))

    def _errors_of(self, x: Tensor) -> dict[str, Float[Tensor, "batch seq d_model"]]:
        """The same, from the residual stream after the first spliced layer; without BOS."""
        found, layer = {}, self.layers[0]
        for here, (name, sae) in zip(self.layers, self.saes.items()):
            x, layer = self.stack.run(x, range(layer + 1, here + 1)), here
            found[name] = x - decode(sae, encode(sae, x))
        return found

    # -- over many prompts ---------------------------------------------------------------------

    def batch_size(self, seq: int, *, gradient: bool = False) -> int:
        """How many prompts of ``seq`` tokens go through at once: what fits a quarter of the free
        memory.

        More than a few thousand tokens at once make nothing faster on a CPU, so that is the most
        there.
        """
        config = self.lab.hf_model.config.get_text_config()
        latents = sum(sae.cfg.d_sae for sae in self.saes.values())
        numbers = numbers_per_token(config, self.stack.n_layers, latents, gradient=gradient)
        device = self.lab.device
        free = (
            torch.cuda.mem_get_info(device)[0]
            if device.type == "cuda"
            else psutil.virtual_memory().available
        )
        tokens = min(free / 4 / (4 * numbers), 4096 if device.type == "cpu" else 65536)
        return max(1, int(tokens // seq))

    @torch.no_grad()
    def patch_means(
        self,
        tokens: Int[Tensor, "n seq"],
        batch_size: int | None = None,
        *,
        lengths: Int[Tensor, " n"] | None = None,
    ) -> PatchMeans:
        """Mean latents (and, for the policy ``"mean"``, mean errors) over prompts, position by
        position.

        With ``lengths``, the mean at a position is over the prompts that have it.
        """
        n, seq = tokens.shape
        lengths = torch.full((n,), seq) if lengths is None else lengths.cpu()
        count = (
            (torch.arange(seq) < lengths[:, None]).sum(0).clamp(min=1)[:, None].to(self.lab.device)
        )
        size = batch_size or self.batch_size(seq)
        pieces = list(zip(tokens.split(size), lengths.split(size)))
        latents: dict[str, Tensor] = {}
        errors: dict[str, Tensor] = {}
        if self.error == "mean":
            for batch, length in pieces:
                valid = (torch.arange(seq) < length[:, None])[..., None].to(self.lab.device)
                for name, error in self.errors(batch).items():
                    errors[name] = errors.get(name, 0) + (error * valid).sum(0) / count
        for batch, length in pieces:
            padded = bool((length < seq).any())
            run = self.run(
                batch, means=PatchMeans({}, errors, n), lengths=length if padded else None
            )
            for name, f in run.latents.items():
                latents[name] = latents.get(name, 0) + f.float().sum(0) / count
        return PatchMeans(latents, errors, n)

    @torch.no_grad()
    def logit_diff(
        self,
        task: Task,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        start: Prefix | None = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, " n"]:
        """Logit difference of every prompt pair's clean prompt in the spliced model (no gradient).

        Args:
            start: ``spliced.prefix(task.clean)``, if it is at hand; many circuits on the same
                prompts share it.
            batch_size: prompts at once; by default, `batch_size`.
        """
        size = batch_size or self.batch_size(task.seq_len)
        found = []
        for i, batch in enumerate(batches(task, size)):
            here = (
                self.prefix(batch.clean, lengths=batch.lengths)
                if start is None
                else start[i * size : (i + 1) * size]
            )
            found.append(
                self.run(here, masks=masks, means=means, keep_latents=False).logit_diff(batch)
            )
        return torch.cat(found)

    @torch.no_grad()
    def model_logit_diff(self, task: Task, *, batch_size: int | None = None) -> Float[Tensor, " n"]:
        """Logit difference of every prompt pair's clean prompt in the model itself (no
        gradient).
        """
        size = batch_size or self.batch_size(task.seq_len)
        return torch.cat(
            [
                self._model_run(batch.clean, batch.lengths).logit_diff(batch)
                for batch in batches(task, size)
            ]
        )

    # -- fewer latents -------------------------------------------------------------------------

    def narrow(self, keep: Mapping[str, Int[Tensor, " kept"]]) -> SplicedModel:
        """The same spliced model without some latents, as if those never fired.

        Where they never do, it gives the same numbers for less work.

        Args:
            keep: the latents to keep, by hook point; the SAEs of other hook points stay whole.
        """
        small = copy.copy(self)
        small.saes = {
            name: narrow_sae(sae, keep[name]) if name in keep else sae
            for name, sae in self.saes.items()
        }
        return small


def logit_diff(logits: Float[Tensor, "batch vocab"], task: Task) -> Float[Tensor, " batch"]:
    """logit(clean answer) − logit(patch answer)."""
    rows = torch.arange(len(task), device=logits.device)
    return (
        logits[rows, task.clean_answers.to(logits.device)]
        - logits[rows, task.patch_answers.to(logits.device)]
    )


def batches(task: Task, size: int) -> Iterator[Task]:
    """The task in pieces of at most ``size`` prompt pairs."""
    for start in range(0, len(task), size):
        yield task[start : start + size]


# ---------------------------------------------------------------------------------------------
# SAEs
# ---------------------------------------------------------------------------------------------
