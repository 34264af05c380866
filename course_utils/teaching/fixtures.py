"""What the checkers of several notebooks work on: random tensors, a tiny SAE, a toy circuit.

The tensors are small and seeded, and such that the usual mistakes give other numbers than the right
way does.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor

from course_utils.circuits.masks import SAEMasks
from course_utils.teaching.workbook import Number, Wrong

EARLY, LATE = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"
"""Hook points of masks that belong to no model."""


# ---------------------------------------------------------------------------------------------
# Tensors
# ---------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int) -> Tensor:
    """Numbers from a standard normal distribution, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int) -> Tensor:
    """Numbers between 0 and 1, the same for the same seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def flags(text: str) -> Bool[Tensor, " n"]:
    """Yes and no as text: ``"x."`` is [True, False]."""
    return torch.tensor([letter == "x" for letter in text])


def pair(first: Number, second: Number) -> Float[Tensor, "2"]:
    """Two numbers as one tensor, in double precision."""
    return torch.stack([torch.as_tensor(number).double() for number in (first, second)])


def keep_bos(
    x: Float[Tensor, "batch seq d_model"], x_hat: Float[Tensor, "batch seq d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """``x_hat``, with ``x`` at position 0."""
    return torch.cat([x[:, :1], x_hat[:, 1:]], dim=1)


def bos_row_off(rows: Float[Tensor, "seq d"]) -> Float[Tensor, "seq d"]:
    """A copy with 0 in row 0, which is BOS'."""
    return torch.cat([torch.zeros_like(rows[:1]), rows[1:]])


# ---------------------------------------------------------------------------------------------
# An SAE
# ---------------------------------------------------------------------------------------------


def tiny_sae(d_in: int = 6, d_sae: int = 8, *, b_enc: float = 0.0) -> SAE:
    """An SAE small enough to check by hand; with a large ``b_enc`` nearly every latent fires."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=True))
    sae.load_state_dict(
        {
            "W_enc": normal(d_in, d_sae, seed=1) / d_in**0.5,
            "b_enc": torch.full((d_sae,), b_enc),
            "W_dec": normal(d_sae, d_in, seed=2) / d_sae**0.5,
            "b_dec": 0.3 * normal(d_in, seed=3),
            "threshold": torch.full((d_sae,), 0.1),
        }
    )
    return sae.requires_grad_(False).eval()


def residual_stream(
    batch: int = 3, seq: int = 5, d_model: int = 6, *, seed: int = 4
) -> Float[Tensor, "batch seq d_model"]:
    """A residual stream in which position 0 is far longer than the others, as BOS is."""
    x = normal(batch, seq, d_model, seed=seed)
    x[:, 0] *= 10
    return x


# ---------------------------------------------------------------------------------------------
# A toy in a spliced model's place: two hook points of three positions and four latents
# ---------------------------------------------------------------------------------------------

FIRST, TWIN, LAST = (EARLY, 1, 0), (EARLY, 1, 1), (LATE, 2, 3)
IDLE, HARM = (LATE, 1, 2), (LATE, 2, 0)
"""Nodes of the `toy`: the answer needs `LAST`, and one of `FIRST` and `TWIN`. Either will do.
`HARM` takes half a point away, and `IDLE` does nothing.
"""
PROMPTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
"""How large the toy's answer is on each of its four prompts."""


def toy(masks: SAEMasks) -> Float[Tensor, "4"]:
    """The toy's logit difference on each of its prompts, with the nodes of these masks."""
    first, twin, last, harm = (
        masks[hook_point][position, latent]
        for hook_point, position, latent in (FIRST, TWIN, LAST, HARM)
    )
    return torch.maximum(first, 0.8 * twin) * (0.2 + last) * PROMPTS - 0.5 * harm


def toy_circuit(*nodes: tuple[str, int, int]) -> SAEMasks:
    """The toy's masks with these nodes on, and no others."""
    masks = {EARLY: torch.zeros(3, 4), LATE: torch.zeros(3, 4)}
    for hook_point, position, latent in nodes:
        masks[hook_point][position, latent] = 1
    return SAEMasks(list(masks), list(masks.values()))


def whole_toy() -> SAEMasks:
    """The toy's masks with every node on."""
    return SAEMasks([EARLY, LATE], [torch.ones(3, 4), torch.ones(3, 4)])


# ---------------------------------------------------------------------------------------------
# What an answer has to be
# ---------------------------------------------------------------------------------------------


def require_tensor(answer: Any, what: str) -> None:
    """Raise `Wrong` unless an answer is a tensor: a notebook goes on with what tensors can do."""
    require_returned(answer, what)
    if not isinstance(answer, Tensor):
        raise Wrong(f"{what} is to be a tensor, not {type(answer).__name__}.")


def require_masks(answer: Any) -> None:
    """Raise `Wrong` unless an answer is an `SAEMasks`."""
    require_returned(answer, "it")
    if not isinstance(answer, SAEMasks):
        raise Wrong(f"it is to return SAEMasks, not {type(answer).__name__}.")


def require_two(answer: Any, says: str) -> None:
    """Raise `Wrong` with these words unless an answer is two things."""
    if not (isinstance(answer, tuple | list) and len(answer) == 2):
        raise Wrong(says)


def require_returned(answer: Any, what: str) -> None:
    """Raise `Wrong` if an answer is None."""
    if answer is None:
        raise Wrong(f"{what} is None. Is the return missing?")
