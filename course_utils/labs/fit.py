"""Whether an SAE is one that the course can splice.

The course replaces the residual stream x by decode(encode(x)), changes single latents in between,
and cuts an SAE down to some of its latents. Few of the objects that SAELens calls an SAE allow
that. What is accepted is what is known to be right: four classes, the residual stream after a
layer, and no rescaling that is still to be done. Everything else is refused, with what would do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from sae_lens import SAE, GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE, TrainingSAE
from transformers import PreTrainedModel

from course_utils.labs.loading import written_to_residual_stream

SPLICED_CLASSES = (StandardSAE, TopKSAE, GatedSAE, JumpReLUSAE)
"""Each latent has one encoder direction, fires at 0 or above, and adds a fixed direction. SAEs that
were trained by BatchTopK or as Matryoshka SAEs are saved as JumpReLU.
"""


def misfit(sae: SAE, layer: int, model: PreTrainedModel) -> str | None:
    """Why an SAE cannot be spliced after ``layer`` of ``model``, and what would do; None if it can.

    The text goes on from "the SAE of layer 3 ".
    """
    checks: tuple[Callable[[SAE, int, PreTrainedModel], str | None], ...] = (
        _other_class,
        _other_width,
        _other_place,
        _other_tensors,
        _rescaled,
        _wants_centred,
    )
    for check in checks:
        problem = check(sae, layer, model)
        if problem is not None:
            return problem
    return None


def layer_after(hook_name: str) -> int | None:
    """The layer after which a hook point reads the residual stream; None for other places."""
    match = re.fullmatch(
        r"blocks\.(\d+)\.hook_(resid_post|resid_pre|out)|.*\b(?:layers|h)\.(\d+)(?:\.output)?",
        hook_name,
    )
    if match is None or hook_name == "blocks.0.hook_resid_pre":  # that one reads the embedding
        return None
    return int(match[1] or match[3]) - (match[2] == "resid_pre")


def is_centred(model: PreTrainedModel) -> bool:
    """Whether all that the model writes to its residual stream has mean 0 over d_model.

    That is known of GPT-2 only, where `loading.centre_residual_stream` does it; False of others.
    """
    if model.config.model_type != "gpt2":
        return False
    return all(
        weight.mean(-1).abs().max() < 1e-3 * weight.float().square().mean().sqrt() + 1e-6
        for weight in written_to_residual_stream(model)
    )


def _other_class(sae: SAE, layer: int, model: PreTrainedModel) -> str | None:
    kind = type(sae)
    known = ", ".join(known.__name__ for known in SPLICED_CLASSES)
    if kind in SPLICED_CLASSES:
        return None
    if isinstance(sae, TrainingSAE):
        return (
            f"is a {kind.__name__}, the form in which it was trained. Save it for inference, and "
            "give the folder: sae.save_inference_model(folder)."
        )
    if "Transcoder" in kind.__name__:
        return (
            f"is a {kind.__name__}: it reads one place and writes another. An SAE of the residual "
            f"stream is wanted: {known}."
        )
    return (
        f"is a {kind.__name__}. Those that can be spliced, and narrowed to some latents, are "
        f"{known}."
    )


def _other_width(sae: SAE, layer: int, model: PreTrainedModel) -> str | None:
    d_model = model.config.get_text_config().hidden_size
    if sae.cfg.d_in != d_model:
        return (
            f"reads vectors of width {sae.cfg.d_in}, and the model's have {d_model}. "
            "Is it another model's?"
        )
    if sae.W_dec.shape[-1] != d_model or sae.cfg.reshape_activations != "none":
        return (
            "does not write what it reads (it is a transcoder, or of attention heads). An SAE of "
            "the residual stream is wanted."
        )
    return None


def _other_place(sae: SAE, layer: int, model: PreTrainedModel) -> str | None:
    metadata = sae.cfg.metadata
    writes = metadata.hook_name_out or metadata.hf_hook_name_out or metadata.hook_layer_out
    if writes is not None:
        return (
            f"writes to {writes}: it is a transcoder. An SAE that writes what it reads, the "
            "residual stream, is wanted."
        )
    made_for = metadata.hook_name
    if not made_for or layer_after(made_for) == layer:  # without a name: as the user says
        return None
    if layer_after(made_for) is None:
        return (
            f"was made for {made_for}, and the residual stream after a layer is wanted: "
            f"blocks.{layer}.hook_resid_post, or blocks.{layer + 1}.hook_resid_pre."
        )
    return f"was made for {made_for}: give it as layer {layer_after(made_for)}."


def _other_tensors(sae: SAE, layer: int, model: PreTrainedModel) -> str | None:
    weights = list(model.parameters())
    dtype = weights[0].dtype
    device = next(p.device for p in weights if p.device.type != "meta")
    if sae.W_dec.dtype != dtype:
        return f"is {sae.W_dec.dtype}, and the model is {dtype}. Convert one: sae.to(model_dtype)."
    if sae.W_dec.device.type != device.type:
        return f"is on {sae.W_dec.device}, and the model is on {device}. Move one: sae.to(device)."
    return None


def _rescaled(sae: SAE, layer: int, model: PreTrainedModel) -> str | None:
    """A rescaling that is done at each call, or that the caller must do."""
    cfg: Any = sae.cfg
    scaling = cfg.normalize_activations
    if scaling == "expected_average_only_in":
        return (
            "expects activations that were divided by their average norm over √d_model "
            f"({scaling}), which SAELens does not do at a call. Fold that number in: "
            "sae.fold_activation_norm_scaling_factor(d_model**0.5 / average_norm)."
        )
    if scaling == "covariance_whitening":
        return (
            f"expects whitened activations ({scaling}), which SAELens does not make at a call. "
            "Fold the whitening in: sae.fold_activation_whitening(…)."
        )
    if scaling != "none":
        return (
            f"rescales each activation ({scaling}) and needs the one it encoded last to decode: "
            "latents that are masked or put in cannot be decoded by it. An SAE with "
            "normalize_activations='none' is wanted."
        )
    if getattr(cfg, "rescale_acts_by_decoder_norm", False):
        return (
            "multiplies its latents by the decoder's norms at each call "
            "(rescale_acts_by_decoder_norm). Fold them in, which changes no latent and no output: "
            "sae.fold_W_dec_norm(); sae.cfg.rescale_acts_by_decoder_norm = False."
        )
    return None


@torch.no_grad()
def _wants_centred(sae: SAE, layer: int, model: PreTrainedModel) -> str | None:
    metadata = sae.cfg.metadata
    asked = metadata.model_from_pretrained_kwargs or {}
    wants = asked.get("center_writing_weights") or metadata.center_writing_weights
    if not wants or is_centred(model):
        return None
    problem = (
        "expects a residual stream whose mean over d_model is 0 (center_writing_weights), and this "
        "model's is not. "
    )
    if model.config.model_type == "gpt2":
        return problem + (
            "Centre the model before you make the lab; its logits stay what they are: "
            "course_utils.labs.loading.centre_residual_stream(model)."
        )
    return problem + f"The course can centre GPT-2 only, and not {type(model).__name__}."
