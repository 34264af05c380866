"""From files to objects: a lab's model and its SAEs, in all the formats that they come in.

Nothing is unpickled: a pickle can run any code when it is loaded. Models are safetensors, and SAEs
are safetensors or numpy archives. The exception is Qwen-Scope (the lab `qwen3-1.7b`), whose SAEs
are published as ``.pt`` files, which are pickles, and without a list of their hashes. They are read
by ``torch.load(…, weights_only=True)``: it makes tensors of what is in them, runs nothing, and
refuses a file that holds anything else. (SAELens' registry has other releases of ``.pt`` files. For
a lab of your own with one of those, SAELens reads it, through ``torch.load`` with its defaults:
these are the same, unless the variable ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` is set.)
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from sae_lens import SAE, PretrainedSaeHuggingfaceLoader
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils.labs import hub
from course_utils.labs.catalog import (
    FILES_OF,
    HubModel,
    LabError,
    hub_file,
    layer_number,
    registry,
    spec_of,
)
from course_utils.labs.weights import converted

SAESource = str | Path | tuple[str, str]
"""A folder that SAELens or `tools/train_saes.py` saved; or ``(release, sae_id)`` of SAELens'
registry.
"""


# ---------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------


def load_model(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    device_map: str | dict | None = None,
) -> tuple[Any, Any]:
    """The lab's model and tokenizer as Hugging Face objects, without SAEs.

    Raises:
        LabError: no such lab, or the model is on the hub and cannot be had.
        WeightsError: its weights are a file, and cannot be had.
    """
    spec = spec_of(name)
    if isinstance(spec.model, HubModel):
        try:
            folder = hub.model_folder(spec.model.repo, gated=spec.model.gated)
        except hub.HubError as error:
            raise LabError(f"{name}: {error}") from error
    else:
        folder = converted(spec.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if spec.bos_token is not None:
        tokenizer.bos_token = spec.bos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map)
    if device_map is None:
        model = model.to(device)
    if spec.centred:
        centre_residual_stream(model)
    return model.eval(), tokenizer


@torch.no_grad()
def centre_residual_stream(model: Any) -> None:
    """Make everything that GPT-2 writes to its residual stream have mean 0 over d_model, in place;
    its logits stay what they were.

    GPT-2's LayerNorms take that mean away wherever they read, so it carries nothing. Some SAEs were
    trained without it: on TransformerLens' models, which do the same (``center_writing_weights``).

    Args:
        model: a ``GPT2LMHeadModel``.
    """
    if model.config.tie_word_embeddings:  # the unembedding is to stay as it is
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    for weight in written_to_residual_stream(model):
        weight -= weight.mean(-1, keepdim=True)


def written_to_residual_stream(model: Any) -> list[Float[Tensor, "*rows d_model"]]:
    """GPT-2's parameters that are added to its residual stream: embeddings, output matrices of
    attention and MLP, and their biases.

    Args:
        model: a ``GPT2LMHeadModel``.
    """
    body = model.transformer
    written = [body.wte.weight, body.wpe.weight]
    for block in body.h:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            written += [part.weight, part.bias]
    return written


# ---------------------------------------------------------------------------------------------
# SAEs
# ---------------------------------------------------------------------------------------------


def load_sae(
    source: SAESource,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SAE:
    """An SAE from a folder, or from the hub by ``(release, sae_id)``.

    Raises:
        LabError: it cannot be had or read, or its file holds something else than tensors; the
            message says what to do.
    """
    if isinstance(source, tuple):
        return _load_public_sae(*source, device, dtype)
    check_source(source)
    folder = Path(source).expanduser()
    try:
        architecture = json.loads((folder / "cfg.json").read_text()).get("architecture")
        if architecture in TRAINED_AS:
            raise LabError(
                f"the SAE in {folder} is in the form in which it was trained ({architecture}). "
                "Save it for inference: sae.save_inference_model(folder)."
            )
        sae = SAE.load_from_disk(folder, device=str(device), dtype=_short(dtype))
    except (LabError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever can be wrong with a file
        raise LabError(
            f"the SAE in {folder} cannot be read: {hub.first_line(error)}. Its cfg.json and "
            "sae_weights.safetensors must be as sae.save_model(folder) wrote them: copy or save it "
            "again."
        ) from error
    return _folded(sae)


def check_source(source: SAESource) -> None:
    """Look whether an SAE can be there; nothing is loaded or fetched.

    Raises:
        LabError: no such release or id in SAELens' registry, or a folder that lacks a file.
    """
    if isinstance(source, tuple):
        release, sae_id = source
        entry = registry().get(release)
        if entry is None and "/" not in release:  # with a slash it is a repository's name
            raise LabError(f"SAELens' registry has no release {release!r}.")
        if entry is not None and sae_id not in entry.saes_map:
            some = ", ".join(list(entry.saes_map)[:3])
            raise LabError(
                f"the SAE {sae_id} is not found in release {release}, which has {some}, …"
            )
        return
    folder = Path(source).expanduser()
    if not (folder / "cfg.json").is_file():
        raise LabError(
            f"no SAE in {folder}: a folder with cfg.json and sae_weights.safetensors is wanted."
        )
    if not (folder / "sae_weights.safetensors").is_file():
        raise LabError(
            f"the SAE in {folder} has a cfg.json and no sae_weights.safetensors. Copy that too."
        )


TRAINED_AS = ("batchtopk", "matryoshka_batchtopk")
"""Architectures that SAELens has in training only; it saves them for inference as JumpReLU."""


def _load_public_sae(
    release: str, sae_id: str, device: str | torch.device, dtype: torch.dtype
) -> SAE:
    entry = registry().get(release)
    reader = None if entry is None else READERS.get(entry.conversion_func)
    try:
        sae = SAE.from_pretrained(
            release, sae_id, device=str(device), dtype=_short(dtype), converter=reader
        )
    except ValueError as error:  # SAELens' own (no such release, no such id), or a reader's
        raise LabError(f"the SAE {sae_id} of {release}: {error}") from error
    except Exception as error:
        if _is_here(release, sae_id) and not isinstance(error, hub.LocalEntryNotFoundError):
            raise LabError(
                f"the SAE {sae_id} of {release} is on this machine and cannot be read: "
                f"{hub.first_line(error)}. Delete its file from {hub.cache()} and run this again."
            ) from error
        why = hub.unreachable() or hub.first_line(error)
        raise LabError(
            f"the SAE {sae_id} of {release} is not on this machine and cannot be fetched: {why}. "
            "Connect and run this again; what was fetched is kept."
        ) from error
    return _folded(sae.to(dtype))


def _folded(sae: SAE) -> SAE:
    """The same latents and the same output, without a decoder norm that is to be multiplied in at
    each call.
    """
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        sae.fold_W_dec_norm()
        sae.cfg.rescale_acts_by_decoder_norm = False
    return sae


def _short(dtype: torch.dtype) -> str:
    """A dtype's name without "torch.", as SAELens wants it."""
    return str(dtype).removeprefix("torch.")


def _is_here(release: str, sae_id: str) -> bool:
    """Whether the file of a public SAE is on this machine, as far as its format is known."""
    entry = registry().get(release)
    if entry is None or entry.conversion_func not in FILES_OF:
        return False
    return hub.has_file(*hub_file(release, sae_id))


Read = tuple[dict[str, Any], dict[str, Tensor], None]
"""What SAELens wants of a reader: configuration, weights, and no sparsities."""


def _gemma_scope_2(
    repo_id: str,
    folder_name: str,
    device: str,
    force_download: bool,
    cfg_overrides: dict[str, Any] | None,
) -> Read:
    """Gemma Scope 2's format. SAELens' own reader asks the network for the shapes even when the
    file is here.

    Raises:
        LabError: it is no SAE of the residual stream; nothing is fetched.
    """
    if re.match(r"resid_post(_all)?/", folder_name) is None:
        raise LabError(
            f"{folder_name} in {repo_id} is no SAE of the residual stream. Those are in the "
            "releases whose names end in -res and -res-all."
        )
    path = hf_hub_download(
        repo_id, f"{folder_name}/params.safetensors", force_download=force_download
    )
    tensors = load_file(path, device=device)
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    unknown = sorted(set(tensors) - {name.lower() for name in names})
    if unknown:
        raise LabError(
            f"{path} holds {', '.join(unknown)}, which no SAE of the residual stream has."
        )
    state = {name: tensors[name.lower()] for name in names}
    layer = _number(r"layer_(\d+)", folder_name)
    config = {"architecture": "jumprelu", **_config(state, layer, device)}
    return {**config, **(cfg_overrides or {})}, state, None


def _qwen_scope(
    repo_id: str,
    folder_name: str,
    device: str,
    force_download: bool,
    cfg_overrides: dict[str, Any] | None,
) -> Read:
    """Qwen-Scope's format: a dict of tensors in a ``.pt`` file, both matrices the other way round.
    SAELens' own reader leaves it to torch's defaults whether the pickle is run.
    """
    path = hf_hub_download(repo_id, folder_name, force_download=force_download)
    try:
        tensors = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise LabError(
            f"{path} holds more than tensors: it would run code if it were unpickled. It was not. "
            "Delete it, and fetch it again from where you trust it."
        ) from error
    state = {
        "W_enc": tensors["W_enc"].T.contiguous(),
        "W_dec": tensors["W_dec"].T.contiguous(),
        "b_enc": tensors["b_enc"],
        "b_dec": tensors["b_dec"],
    }
    layer = _number(r"layer(\d+)", folder_name)
    k = _number(r"L0_(\d+)", repo_id)
    config = {"architecture": "topk", "k": k, **_config(state, layer, device)}
    return {**config, **(cfg_overrides or {})}, state, None


def _config(state: dict[str, Tensor], layer: int, device: str) -> dict[str, Any]:
    """What the two formats have in common."""
    d_in, d_sae = state["W_enc"].shape
    return dict(
        d_in=d_in,
        d_sae=d_sae,
        device=device,
        hook_name=f"blocks.{layer}.hook_resid_post",
        prepend_bos=True,
        apply_b_dec_to_input=False,
        normalize_activations="none",
    )


def _number(pattern: str, text: str) -> int:
    """The number in a name."""
    match = re.search(pattern, text)
    if match is None:
        raise LabError(f"{text!r} is not named as its release names its files ({pattern}).")
    return int(match[1])


READERS: dict[str | None, PretrainedSaeHuggingfaceLoader] = {
    "gemma_3": _gemma_scope_2,
    "qwen_scope": _qwen_scope,
}
"""Our own readers, by SAELens' name for the format; SAELens reads the others."""


# ---------------------------------------------------------------------------------------------
# SAEs in a folder
# ---------------------------------------------------------------------------------------------


def saes_in(folder: Path, layers: Sequence[int] | None) -> dict[int, Path]:
    """The folders of the SAEs in ``folder/layer_{l}/``: of all, or of some layers.

    Raises:
        LabError: there is none, or a wanted layer has none; the message lists those that have.
    """
    configs = folder.glob("layer_*/cfg.json")
    there = sorted(int(path.parent.name.removeprefix("layer_")) for path in configs)
    wanted = there if layers is None else [layer_number(layer) for layer in layers]
    if not wanted:
        raise LabError(
            f"no SAE in {folder} is meant: one or more is wanted, each in a folder layer_8 "
            f"(say) with its cfg.json. There are SAEs for layers {there}."
        )
    missing = [str(layer) for layer in wanted if layer not in there]
    if missing:
        raise LabError(
            f"no SAE for layer {', '.join(missing)} in {folder}; there are SAEs for layers {there}."
        )
    return {layer: folder / f"layer_{layer}" for layer in wanted}


def load_saes(
    folder: Path, layers: Sequence[int] | None, *, device: str | torch.device, dtype: torch.dtype
) -> dict[int, SAE]:
    """The SAEs of `saes_in`, loaded."""
    return {layer: load_sae(path, device, dtype) for layer, path in saes_in(folder, layers).items()}
