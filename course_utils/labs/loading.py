"""From files to objects: a lab's model and its SAEs, in all the formats that they come in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from course_utils.labs import hub
from course_utils.labs.catalog import HubModel, LabError, spec_of
from course_utils.labs.weights import converted

SAESource = str | Path | tuple[str, str]
"""A folder that SAELens or `tools/train_saes.py` saved; or ``(release, sae_id)`` of SAELens'
registry.
"""


def load_model(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    device_map: str | dict | None = None,
) -> tuple[Any, Any]:
    """The lab's model and tokenizer as Hugging Face objects, without SAEs."""
    spec = spec_of(name)
    try:
        folder = (
            hub.model_folder(spec.model.repo, gated=spec.model.gated)
            if isinstance(spec.model, HubModel)
            else converted(spec.model)
        )
    except hub.HubError as error:
        raise LabError(f"{name}: {error}") from error
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if spec.bos_token is not None:
        tokenizer.bos_token = spec.bos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map)
    if device_map is None:
        model = model.to(device)
    if spec.centred:
        centre_residual_stream(model)
    return model.eval(), tokenizer


@torch.no_grad()
def centre_residual_stream(model: PreTrainedModel) -> None:
    """Make everything that GPT-2 writes to its residual stream have mean 0 over d_model, in place;
    its logits stay what they were.

    GPT-2's LayerNorms take that mean away wherever they read, so it carries nothing. Some SAEs were
    trained without it: on TransformerLens' models, which do the same (``center_writing_weights``).
    """
    if model.config.tie_word_embeddings:  # the unembedding is to stay as it is
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    body = model.transformer
    written = [body.wte.weight, body.wpe.weight]
    for block in body.h:
        written += [
            w for part in (block.attn.c_proj, block.mlp.c_proj) for w in (part.weight, part.bias)
        ]
    for weight in written:  # the last dimension of each is d_model
        weight -= weight.mean(-1, keepdim=True)


def load_sae(
    source: str | Path | tuple[str, str],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SAE:
    """An SAE from a folder, or from the hub by ``(release, sae_id)``.

    Raises:
        LabError: it cannot be had; the message says what to do.
    """
    short = str(dtype).removeprefix("torch.")
    if not isinstance(source, tuple):
        if not (Path(source) / "cfg.json").is_file():
            raise LabError(
                f"no SAE in {source}: a folder with cfg.json and sae_weights.safetensors is wanted."
            )
        return SAE.load_from_disk(source, device=str(device), dtype=short)
    release, sae_id = source
    try:
        entry = get_pretrained_saes_directory().get(release)
        reader = (
            _gemma_scope_2 if entry is not None and entry.conversion_func == "gemma_3" else None
        )
        sae = SAE.from_pretrained(
            release, sae_id, device=str(device), dtype=short, converter=reader
        )
    except ValueError as error:  # SAELens' own: no such release, no such id
        raise LabError(f"the SAE {sae_id} of {release}: {error}") from error
    except Exception as error:
        why = hub.unreachable() or hub.first_line(error)
        raise LabError(
            f"the SAE {sae_id} of {release} is not on this machine and cannot be fetched: {why}. Connect and run this again; "
            "what was fetched is kept."
        ) from error
    return sae.to(dtype)


def _gemma_scope_2(
    repo_id: str,
    folder_name: str,
    device: str,
    force_download: bool,
    cfg_overrides: dict[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], None]:
    """Gemma Scope 2's format, for SAELens. SAELens' own reader asks the network for the shapes even
    when the file is here.
    """
    tensors = load_file(
        hf_hub_download(
            repo_id, f"{folder_name}/params.safetensors", force_download=force_download
        ),
        device=device,
    )
    d_in, d_sae = tensors["w_enc"].shape
    layer = re.search(r"layer_(\d+)", folder_name)[1]
    config = dict(
        architecture="jumprelu", d_in=d_in, d_sae=d_sae, device=device, hook_name=f"blocks.{layer}.hook_resid_post", prepend_bos=True,
        apply_b_dec_to_input=False, normalize_activations="none",
    )  # fmt: skip
    state = {
        name: tensors[name.lower()] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    }
    return {**config, **(cfg_overrides or {})}, state, None


def saes_in(folder: Path, layers: Sequence[int] | None) -> dict[int, Path]:
    """The folders of the SAEs in ``folder/layer_{l}/``.

    Raises:
        LabError: a wanted layer has no SAE there; the message lists those that have.
    """
    there = sorted(
        int(path.parent.name.removeprefix("layer_")) for path in folder.glob("layer_*/cfg.json")
    )
    layers = there if layers is None else list(layers)
    missing = [layer for layer in layers if layer not in there]
    if missing:
        raise LabError(
            f"no SAE for layer {', '.join(map(str, missing))} in {folder}; there are SAEs for layers {there}."
        )
    return {layer: folder / f"layer_{layer}" for layer in layers}


def load_saes(
    folder: Path, layers: Sequence[int] | None, *, device: str | torch.device, dtype: torch.dtype
) -> dict[int, SAE]:
    """The SAEs of `saes_in`, loaded."""
    return {layer: load_sae(path, device, dtype) for layer, path in saes_in(folder, layers).items()}
