"""The forward pass with SAEs in the residual stream.

At each chosen layer the residual stream is encoded, masked, decoded and put back, so that what the
next layers read has passed through the latents that the mask keeps:

    x → f = SAE.encode(x) → f' = ablation + (f − ablation) · mask → SAE.decode(f') + error → layers

An SAE does not rebuild x exactly. What happens to the rest of it is the *error policy*:

- ``"drop"``: it is lost (the post). What the model can still do, it does through latents.
- ``"mean"``: its mean over the patch prompts takes its place: the same for every prompt.
- ``"keep"``: the clean run's own error is put back. With no mask that is the model itself.

BOS is never spliced: its residual stream is the same in every prompt, and an outlier in norm.

The textbook way to do this is a hook at each layer, on the whole model. `SplicedModel` computes the
same numbers with less: what comes before the first SAE is run once per prompt
(`SplicedModel.prefix`), and the rest from there.

Positions count the columns of the tokens, BOS included, in masks, means and latents alike. Only the
residual stream in a `Prefix` leaves BOS out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from course_utils.circuits.masks import SAEMasks, ablate
from course_utils.circuits.saes import decode, encode, narrow_sae
from course_utils.labs.catalog import LabError
from course_utils.labs.lab import Lab, hook_point
from course_utils.labs.layers import LayerStack
from course_utils.labs.memory import free_memory
from course_utils.labs.requirements import numbers_per_token
from course_utils.prompts.tasks import Task

ErrorPolicy = Literal["drop", "mean", "keep"]

ChangeLatents = Callable[[Float[Tensor, "batch seq d_sae"]], Float[Tensor, "batch seq d_sae"]]
"""What to make of the latents that an SAE finds, e.g. from `interventions.holding`."""


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

    def narrow(self, kept: Mapping[str, Int[Tensor, " kept"]]) -> PatchMeans:
        """The means of some latents only, by hook point; other hook points keep all of theirs."""
        latents = {
            name: f[:, kept[name]] if name in kept else f for name, f in self.latents.items()
        }
        return replace(self, latents=latents)


@dataclass(frozen=True)
class Prefix:
    """Forward passes that were stopped before an SAE, to go on from there as often as wanted.

    Attributes:
        layer: the SAE's layer.
        resid: ``[batch, seq, d_model]``, the residual stream that it is to read, without BOS.
        errors: by hook point, ``[batch, seq, d_model]``, without BOS: what the error policy
            ``"keep"`` puts back.
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
        """logit(clean answer) − logit(patch answer), in float32, without all other logits."""
        device = self.normed.device
        clean = self.stack.logits_of(self.normed, task.clean_answers.to(device))
        return clean - self.stack.logits_of(self.normed, task.patch_answers.to(device))


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
        LabError: a layer without an SAE; no layer at all.
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
        self.lab, self.error = lab, error
        self.layers = lab.sae_layers if layers is None else sorted(set(layers))
        missing = [str(layer) for layer in self.layers if layer not in lab.saes]
        if missing:
            raise LabError(
                f"layers: no SAE for layer {', '.join(missing)}; this lab has SAEs for "
                f"{lab.sae_layers}."
            )
        if not self.layers:
            raise LabError(
                "layers: none, and a spliced model needs one SAE or more; this lab has SAEs for "
                f"{lab.sae_layers}. Without SAEs, use lab.hf_model or lab.model."
            )
        if error not in get_args(ErrorPolicy):
            raise ValueError(f"error must be 'drop', 'mean' or 'keep', not {error!r}.")
        if has_bos and lab.tokenizer.bos_token_id is None:
            raise ValueError(
                f"the tokenizer of {lab.name!r} has no BOS token: SplicedModel(…, has_bos=False)."
            )
        self.saes = {hook_point(layer): lab.saes[layer] for layer in self.layers}
        self.stack = _stack(lab, has_bos, lab.offloaded if recompute is None else recompute)

    @property
    def first(self) -> int:
        """The first column of the tokens that is spliced: 1 where column 0 is BOS, else 0."""
        return self.stack.first

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
        """Run prompts up to the first SAE: all that no mask can change.

        Give it to `run` in the tokens' place.

        Args:
            tokens: prompts of one length, or padded on the right.
            lengths: tokens in each prompt, BOS included, if they are padded.
            clean_tokens: the prompts whose errors ``"keep"`` puts back; ``tokens`` by default.

        Raises:
            ValueError: column 0 is not BOS, though the model was told so.
        """
        self._check_bos(tokens)
        size = self.batch_size(tokens.shape[1])
        resid = torch.cat([self._before_first_sae(batch) for batch in tokens.split(size)])
        errors = {}
        if self.error == "keep":
            if clean_tokens is None:
                streams = resid.split(size)
            else:
                streams = [self._before_first_sae(batch) for batch in clean_tokens.split(size)]
            pieces = [self._errors_from(stream) for stream in streams]
            errors = {name: torch.cat([piece[name] for piece in pieces]) for name in self.saes}
        lengths = None if lengths is None else lengths.to(resid.device)
        return Prefix(self.layers[0], resid, errors, lengths)

    def run(
        self,
        prompts: Int[Tensor, "batch seq"] | Prefix,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        latents: Mapping[str, Float[Tensor, "batch seq d_sae"] | ChangeLatents] | None = None,
        outputs: Mapping[str, Float[Tensor, "batch seq d_model"]] | None = None,
        track_latents: bool = False,
        keep_latents: bool = True,
    ) -> Run:
        """One forward pass; gradients flow to masks, latents and outputs that ask for them.

        Args:
            prompts: tokens of prompts of one length, or a `Prefix` of them (made by `prefix`, which
                also takes padded prompts).
            masks: what to keep; everything by default.
            means: what takes the place of what is not kept (zero by default). The error policy
                ``"mean"`` needs it.
            latents: put these in place of what the SAE finds at a hook point, before masking; or a
                function that makes them from what it finds there. Row 0 is ignored where BOS is.
            outputs: put these in place of what the SAE decodes at a hook point; no mask acts there.
                Row 0 is ignored where BOS is.
            track_latents: build the graph from every SAE's latents on, so that they have gradients.
            keep_latents: put latents and prefixes into the result. Without them, SAEs are narrowed
                to the latents that fire, and one after the last layer is run at the last position
                only, since no other reaches the logits.

        Raises:
            ValueError: column 0 is not BOS, though the model was told so; ``error="mean"`` without
                ``means``.
        """
        if self.error == "mean" and means is None:
            raise ValueError(
                "error='mean' puts back the mean error over patch prompts: give "
                "means=spliced.patch_means(task.patch)."
            )
        prefix = prompts if isinstance(prompts, Prefix) else self.prefix(prompts)
        mean_errors = means.errors if means is not None and self.error == "mean" else {}
        changes = _Changes(
            masks=masks,
            mean_latents=None if means is None else means.latents,
            errors=prefix.errors
            or {name: error[self.first :] for name, error in mean_errors.items()},
            latents=latents or {},
            outputs=outputs or {},
        )
        return self._run(prefix, changes, track_latents=track_latents, keep_latents=keep_latents)

    def _run(
        self, prefix: Prefix, changes: _Changes, *, track_latents: bool = False, keep_latents: bool
    ) -> Run:
        run = Run(torch.empty(0, prefix.resid.shape[-1]), self.stack)
        whole = keep_latents or track_latents
        x, done = prefix.resid, prefix.layer
        for layer in self.layers[self.layers.index(prefix.layer) :]:
            name = hook_point(layer)
            x, done = self.stack.run(x, range(done + 1, layer + 1)), layer
            if keep_latents:
                run.prefixes[name] = Prefix(layer, x, prefix.errors, prefix.lengths)
            at_last_layer = layer == self.stack.n_layers - 1
            only_last = at_last_layer and not whole and prefix.lengths is None
            rows = slice(-1, None) if only_last else slice(None)
            if changes.masks is not None and name not in changes.outputs:
                seq, d_sae = x.shape[1] + self.first, self.saes[name].cfg.d_sae
                changes.masks.check(name, seq=seq, d_sae=d_sae)
            if name in changes.outputs:
                x_hat = changes.outputs[name][:, self.first :][:, rows]
            elif whole:
                x_hat = self._pass_through(name, x, changes, prefix.lengths, run, track_latents)
            else:
                x_hat = self._pass_through_narrow(name, x, changes, prefix.lengths, rows)
            if name in changes.errors:
                x_hat = x_hat + changes.errors[name][..., rows, :]
            x = x_hat.to(x.dtype)
        run.normed = self.stack.finish(x, done, prefix.lengths)
        return run

    def _pass_through(
        self,
        name: str,
        x: Float[Tensor, "batch seq d_model"],
        changes: _Changes,
        lengths: Int[Tensor, " batch"] | None,
        run: Run,
        track_latents: bool,
    ) -> Float[Tensor, "batch seq d_model"]:
        """What an SAE makes of the residual stream; its latents are kept in ``run``."""
        sae = self.saes[name]
        f = self._with_bos_row(self._given_latents(name, x, changes, lengths))
        if track_latents and not f.requires_grad:
            f.requires_grad_()
        run.latents[name] = f
        return decode(sae, self._masked(name, f[:, self.first :], changes))

    def _pass_through_narrow(
        self,
        name: str,
        x: Float[Tensor, "batch seq d_model"],
        changes: _Changes,
        lengths: Int[Tensor, " batch"] | None,
        rows: slice,
    ) -> Float[Tensor, "batch rows d_model"]:
        """The same at some positions (``rows``) and with no more latents than can matter."""
        if name in changes.latents:
            f = self._given_latents(name, x, changes, lengths)[:, rows]
            return decode(self.saes[name], self._masked(name, f, changes, rows))
        sae, f, kept = self._encode_what_fires(name, x[:, rows], changes)
        f = self._without_padding(f, lengths)
        return decode(sae, self._masked(name, f, changes, rows, kept))

    def _given_latents(
        self,
        name: str,
        x: Float[Tensor, "batch seq d_model"],
        changes: _Changes,
        lengths: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch seq d_sae"]:
        """An SAE's latents, or what is to be put in their place; without BOS, 0 at padding."""
        given = changes.latents.get(name)
        if given is None:
            f = encode(self.saes[name], x)
        elif callable(given):
            f = given(self._with_bos_row(encode(self.saes[name], x)))[:, self.first :]
        else:
            f = given[:, self.first :]
        return self._without_padding(f, lengths)

    def _with_bos_row(
        self, f: Float[Tensor, "batch seq_without_bos d"]
    ) -> Float[Tensor, "batch seq d"]:
        """Positions as the tokens have them: a row of 0 in front where BOS is."""
        return torch.nn.functional.pad(f, (0, 0, self.first, 0))

    def _without_padding(
        self, f: Float[Tensor, "batch seq d_sae"], lengths: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch seq d_sae"]:
        """Latents without BOS, and 0 where a prompt has ended."""
        if lengths is None:
            return f
        positions = torch.arange(f.shape[1], device=f.device) + self.first
        return f * (positions < lengths[:, None])[..., None]

    def _masked(
        self,
        name: str,
        f: Float[Tensor, "batch rows kept"],
        changes: _Changes,
        rows: slice = slice(None),
        kept: Int[Tensor, " kept"] | None = None,
    ) -> Float[Tensor, "batch rows kept"]:
        """Latents with what the mask leaves out replaced by its mean, or by 0 without means."""
        if changes.masks is None:
            return f
        mask = self._part(changes.masks[name], rows, kept)
        mean = None
        if changes.mean_latents is not None:
            mean = self._part(changes.mean_latents[name], rows, kept)
        return ablate(f, mask, mean)

    def _part(self, values: Tensor, rows: slice, kept: Tensor | None) -> Tensor:
        """Some rows and latents of a mask or mean, ``[seq, d_sae]`` or ``[d_sae]``, after BOS."""
        if values.ndim == 2:
            values = values[self.first :][rows]
        return values if kept is None else values[..., kept]

    def _encode_what_fires(
        self, name: str, x: Float[Tensor, "batch seq d_model"], changes: _Changes
    ) -> tuple[SAE, Float[Tensor, "batch seq kept"], Int[Tensor, " kept"] | None]:
        """An SAE narrowed to the latents that can matter, its latents, and which they are.

        Those are the latents that are not 0 on ``x`` or, where there is a mask, in the means. All
        others stay 0 whatever the mask, and pass no gradient, so that decoding and the way back can
        do without them. Where most latents are left, the SAE stays whole (None).
        """
        sae = self.saes[name]
        with torch.no_grad():
            f = encode(sae, x.detach())
            fires = (f != 0).flatten(0, 1).any(0)
            if changes.masks is not None and changes.mean_latents is not None:
                fires |= (changes.mean_latents[name] != 0).any(0)
            kept = fires.nonzero()[:, 0]
        at_least = getattr(sae.cfg, "k", 1)  # a TopK SAE cannot choose k of fewer
        if not at_least <= len(kept) <= sae.cfg.d_sae // 2:
            return sae, encode(sae, x) if x.requires_grad else f, None
        small = narrow_sae(sae, kept)
        return small, encode(small, x) if x.requires_grad else f[..., kept], kept

    def _check_bos(self, tokens: Int[Tensor, "batch seq"]) -> None:
        bos = self.stack.bos
        if bos is not None and (tokens[:, 0] != bos).any():
            raise ValueError(
                f"column 0 is to be left alone as BOS (token {bos}), but holds "
                f"{tokens[:, 0].unique().tolist()[:5]}. Put BOS first (load_task does), or make "
                "SplicedModel(…, has_bos=False)."
            )

    # -- the model without SAEs ----------------------------------------------------------------

    def model_run(
        self, tokens: Int[Tensor, "batch seq"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Run:
        """The unspliced model's forward pass; its latents and prefixes are empty."""
        normed = self.stack.finish(self.stack.embed(tokens), after=-1, lengths=lengths)
        return Run(normed, self.stack)

    def model_logits(
        self, tokens: Int[Tensor, "batch seq"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """The unspliced model's logits at the last position."""
        return self.model_run(tokens, lengths).logits

    @torch.no_grad()
    def errors(
        self, tokens: Int[Tensor, "batch seq"]
    ) -> dict[str, Float[Tensor, "batch seq d_model"]]:
        """What each SAE leaves out, x − SAE(x), of the unspliced model's residual stream.

        Row 0 is 0 where BOS is.
        """
        errors = self._errors_from(self._before_first_sae(tokens))
        return {name: self._with_bos_row(error) for name, error in errors.items()}

    def _before_first_sae(
        self, tokens: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch after_bos d_model"]:
        return self.stack.run(self.stack.embed(tokens), range(self.layers[0] + 1))

    def _errors_from(
        self, x: Float[Tensor, "batch seq d"]
    ) -> dict[str, Float[Tensor, "batch seq d"]]:
        """x − SAE(x) at each SAE, from the residual stream before the first; without BOS."""
        errors = {}
        for layer, stream in self.stack.walk_on(x, self.layers[0], self.layers):
            sae = self.saes[hook_point(layer)]
            errors[hook_point(layer)] = stream - decode(sae, encode(sae, stream))
        return errors

    # -- over many prompts ---------------------------------------------------------------------

    def batch_size(self, seq: int, *, gradient: bool = False) -> int:
        """How many prompts of ``seq`` tokens to run at once: what fits a quarter of free memory.

        More than a few thousand tokens at once make nothing faster on a CPU, so that is the most
        there.
        """
        config = self.lab.hf_model.config.get_text_config()
        latents = sum(sae.cfg.d_sae for sae in self.saes.values())
        numbers = numbers_per_token(config, self.stack.n_layers, latents, gradient=gradient)
        device = self.lab.device
        if device.type == "cuda":
            free, most = torch.cuda.mem_get_info(device)[0], 65536
        else:
            free, most = free_memory().bytes, 4096
        bytes_per_token = 4 * numbers
        return max(1, int(min(free / 4 / bytes_per_token, most) // seq))

    @torch.no_grad()
    def patch_means(
        self,
        tokens: Int[Tensor, "n seq"],
        batch_size: int | None = None,
        *,
        lengths: Int[Tensor, " n"] | None = None,
    ) -> PatchMeans:
        """Mean latents (and, for the policy ``"mean"``, mean errors) over prompts.

        Position by position; with ``lengths``, the mean at a position is over the prompts that have
        it.
        """
        n, seq = tokens.shape
        size = batch_size or self.batch_size(seq)
        all_lengths = torch.full((n,), seq) if lengths is None else lengths.cpu()
        has_position = torch.arange(seq) < all_lengths[:, None]  # [n, seq]
        count = has_position.sum(0).clamp(min=1)[:, None].to(self.lab.device)

        errors: dict[str, Tensor] = {}
        if self.error == "mean":
            pieces = zip(tokens.split(size), has_position.split(size), strict=True)
            for batch, valid in pieces:
                valid = valid[..., None].to(self.lab.device)
                for name, error in self.errors(batch).items():
                    errors[name] = errors.get(name, 0) + (error * valid).sum(0) / count

        changes = _Changes(errors={name: error[self.first :] for name, error in errors.items()})
        latents: dict[str, Tensor] = {}
        for batch, length in zip(tokens.split(size), all_lengths.split(size), strict=True):
            padded = bool((length < seq).any())
            prefix = self.prefix(batch, lengths=length if padded else None)
            if self.error == "keep":
                changes = _Changes(errors=prefix.errors)
            run = self._run(prefix, changes, keep_latents=True)
            for name, f in run.latents.items():
                latents[name] = latents.get(name, 0) + f.float().sum(0) / count
        return PatchMeans(latents, errors, n)

    def logit_diff(
        self,
        task: Task,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, " n"]:
        """Logit difference of every prompt pair's clean prompt in the spliced model (no gradient).

        To ask many masks about the same prompts, use `evaluate.Evaluation`.
        """
        prefix = self.prefix(task.clean, lengths=task.lengths)
        return self.logit_diff_from(prefix, task, masks=masks, means=means, batch_size=batch_size)

    @torch.no_grad()
    def logit_diff_from(
        self,
        prefix: Prefix,
        task: Task,
        *,
        masks: SAEMasks | None = None,
        means: PatchMeans | None = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, " n"]:
        """`logit_diff` from a prefix of the same prompts, in batches."""
        size = batch_size or self.batch_size(task.seq_len)
        values = []
        for first in range(0, len(task), size):
            rows = slice(first, first + size)
            run = self.run(prefix[rows], masks=masks, means=means, keep_latents=False)
            values.append(run.logit_diff(task[rows]))
        return torch.cat(values)

    @torch.no_grad()
    def model_logit_diff(self, task: Task) -> Float[Tensor, " n"]:
        """Logit difference of every prompt pair's clean prompt in the model (no gradient)."""
        runs = (
            self.model_run(batch.clean, batch.lengths).logit_diff(batch)
            for batch in batches(task, self.batch_size(task.seq_len))
        )
        return torch.cat(list(runs))

    # -- fewer latents -------------------------------------------------------------------------

    def narrow(self, kept: Mapping[str, Int[Tensor, " kept"]]) -> SplicedModel:
        """The same spliced model without some latents, as if those never fired.

        Where they never do, it gives the same numbers for less work.

        Args:
            kept: the latents that stay, by hook point; the SAEs of other hook points stay whole.
        """
        small = copy.copy(self)
        small.saes = {
            name: narrow_sae(sae, kept[name]) if name in kept else sae
            for name, sae in self.saes.items()
        }
        return small


@dataclass(frozen=True)
class _Changes:
    """What a forward pass does to the SAEs' latents and outputs, by hook point.

    ``errors`` ([batch, seq, d_model] or [seq, d_model], without BOS) are added to what SAEs decode.
    """

    masks: SAEMasks | None = None
    mean_latents: Mapping[str, Float[Tensor, "seq d_sae"]] | None = None
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    latents: Mapping[str, Tensor | ChangeLatents] = field(default_factory=dict)
    outputs: Mapping[str, Float[Tensor, "batch seq d_model"]] = field(default_factory=dict)


def _stack(lab: Lab, has_bos: bool, recompute: bool) -> LayerStack:
    """The lab's own stack, where it fits: it remembers what it has recorded."""
    if has_bos and recompute == lab.stack.recompute:
        return lab.stack
    return LayerStack(
        lab.hf_model, lab.tokenizer.bos_token_id if has_bos else None, recompute=recompute
    )


def logit_diff(logits: Float[Tensor, "batch vocab"], task: Task) -> Float[Tensor, " batch"]:
    """logit(clean answer) − logit(patch answer)."""
    rows = torch.arange(len(task), device=logits.device)
    clean, patch = task.clean_answers.to(logits.device), task.patch_answers.to(logits.device)
    return logits[rows, clean] - logits[rows, patch]


def batches(task: Task, size: int) -> Iterator[Task]:
    """The task in pieces of at most ``size`` prompt pairs."""
    for first in range(0, len(task), size):
        yield task[first : first + size]
