"""SAEs on many tokens at once: encode, decode, and an SAE narrowed to some of its latents."""

from __future__ import annotations

import copy
from dataclasses import replace

from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor, nn


def encode(sae: SAE, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
    """The SAE's latents.

    All tokens go through as one matrix: for a batch of slices, PyTorch makes many small products.
    """
    f = sae.encode(x.reshape(-1, x.shape[-1]))
    return f.reshape(*x.shape[:-1], f.shape[-1])


def decode(sae: SAE, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_model"]:
    """What the SAE makes of latents, in its own dtype."""
    x = sae.decode(f.to(sae.W_dec.dtype).reshape(-1, f.shape[-1]))
    return x.reshape(*f.shape[:-1], x.shape[-1])


def narrow_sae(sae: SAE, kept: Int[Tensor, " kept"]) -> SAE:
    """An SAE with some of the latents of ``sae``, which fire and write as they do there.

    ``sae`` stays as it is. The new SAE is made without its constructor, which would draw random
    weights at every call: that takes nn.Module's own table of parameters.
    """
    small = copy.copy(sae)
    small.cfg = replace(sae.cfg, d_sae=len(kept))
    small._parameters = {
        name: _narrowed(name, value, kept) for name, value in sae.named_parameters()
    }
    return small


def _narrowed(name: str, value: nn.Parameter, kept: Int[Tensor, " kept"]) -> nn.Parameter:
    """The rows (or columns) of one parameter that belong to some latents."""
    if name == "b_dec":
        return value
    latent_dim = 1 if name == "W_enc" else 0
    return nn.Parameter(value.index_select(latent_dim, kept), requires_grad=False)
