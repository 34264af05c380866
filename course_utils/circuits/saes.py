"""SAEs on many tokens at once: encode, decode, and an SAE narrowed to some of its latents."""

from __future__ import annotations

import copy
from dataclasses import replace

from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor, nn


def encode(sae: SAE, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_sae"]:
    """The SAE's latents. All tokens go through as one matrix: for a batch of slices, PyTorch makes
    many small products.
    """
    return sae.encode(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


def decode(sae: SAE, f: Float[Tensor, "batch seq d_sae"]) -> Float[Tensor, "batch seq d_model"]:
    """What the SAE makes of latents."""
    return sae.decode(f.to(sae.W_dec.dtype).reshape(-1, f.shape[-1])).unflatten(0, f.shape[:-1])


def narrow_sae(sae: SAE, keep: Int[Tensor, " kept"]) -> SAE:
    """An SAE with some of the latents of ``sae``, which fire and write as they do there. ``sae``
    stays as it is.
    """
    small = copy.copy(sae)
    small.cfg = replace(sae.cfg, d_sae=len(keep))
    small._parameters = {
        name: value
        if name == "b_dec"
        else nn.Parameter(
            value.index_select(1 if name == "W_enc" else 0, keep), requires_grad=False
        )
        for name, value in sae._parameters.items()
    }
    return small
