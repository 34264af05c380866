"""A lab from the model hub with random weights: every repository and file where the hub's cache
would have them.

    python -m tools.random_hub gemma-3-270m /tmp/hub
    HF_HUB_CACHE=/tmp/hub HF_HUB_OFFLINE=1 papermill -p LAB gemma-3-270m -p PROFILE quick
    solutions/04_masks_vs_ig.ipynb out.ipynb

Names, formats and shapes are those of the real ones, so that loading, memory and time are real, and
what comes out means nothing. The tokenizer is SmolLM2's. For machines that cannot reach the hub,
and for the tests, which make the models smaller.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from course_utils.labs.catalog import (
    HubModel,
    LabError,
    hub_file,
    placement,
    release_of,
    spec_of,
)
from course_utils.labs.lab import load_lab
from course_utils.labs.layers import LayerStack

COMMIT = "0" * 40


def repository(cache: Path, repo: str) -> Path:
    """The folder of a repository's files, as `huggingface_hub` keeps them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for path in (folder / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def put_model(
    cache: Path, name: str, tokenizer: Any, *, dtype: torch.dtype = torch.bfloat16, **smaller: Any
) -> Path:
    """A model of the lab's shape, but for what ``smaller`` says, and its tokenizer; returns the
    folder.
    """
    spec = spec_of(name)
    if not isinstance(spec.model, HubModel):
        raise LabError(f"the model of {name!r} is not in a repository of its own on the hub.")
    torch.manual_seed(0)
    config = type(spec.config())(**{**spec.shape, **smaller}, dtype=dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    folder = repository(cache, spec.model.repo)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def put_sae(
    cache: Path, name: str, layer: int, *, threshold: float, d_sae: int | None = None
) -> dict[str, Tensor]:
    """An SAE in the format of the lab's release, with random directions. Returns its weights, named
    and turned as SAELens has them.

    ``threshold``: what a latent must exceed to fire; a negative bias says it in formats that have
        no threshold.
    """
    choice = placement(name, [layer])[layer]
    repo, file = hub_file(release_of(name).name, choice.sae_id)
    path = repository(cache, repo) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    W_dec = directions(name, layer, d_sae)
    d_sae, d_in = W_dec.shape
    weights = {
        "W_enc": W_dec.T.contiguous(),
        "W_dec": W_dec,
        "b_enc": torch.zeros(d_sae),
        "b_dec": torch.zeros(d_in),
        "threshold": torch.full((d_sae,), float(threshold)),
    }
    if file.endswith("params.npz"):
        write_gemma_scope(path, weights)
    elif file.endswith("params.safetensors"):
        write_gemma_scope_2(path, weights)
    elif file.endswith(".sae.pt"):
        write_qwen_scope(path, weights)
    else:
        weights["b_enc"] -= threshold
        write_saelens(path, weights, model_name=name, hook_point=choice.sae_id, layer=layer)
    return weights


def write_gemma_scope(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Gemma Scope: a numpy archive."""
    arrays: dict[str, Any] = {
        key.replace("W_", "w_"): value.numpy() for key, value in weights.items()
    }
    np.savez(path, **arrays)


def write_gemma_scope_2(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Gemma Scope 2: safetensors with names in small letters."""
    save_file({key.lower(): value for key, value in weights.items()}, path)


def write_qwen_scope(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Qwen-Scope: a dict, pickled, with both matrices the other way round and no threshold."""
    tensors = {
        "W_enc": weights["W_enc"].T.contiguous(),
        "W_dec": weights["W_dec"].T.contiguous(),
        "b_enc": weights["b_enc"],
        "b_dec": weights["b_dec"],
    }
    torch.save(tensors, path)


def write_saelens(
    path: Path, weights: Mapping[str, Tensor], *, model_name: str, hook_point: str, layer: int
) -> None:
    """SAELens before version 6: safetensors without a threshold, and a configuration beside it."""
    d_in, d_sae = weights["W_enc"].shape
    config = {
        "model_name": model_name,
        "hook_point": hook_point,
        "hook_point_layer": layer,
        "hook_point_head_index": None,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
    }
    save_file({key: value for key, value in weights.items() if key != "threshold"}, path)
    (path.parent / "cfg.json").write_text(json.dumps(config))


@torch.no_grad()
def put_saes(cache: Path, name: str, folder: Path, layers: Sequence[int], l0: int) -> None:
    """Random SAEs for a model in ``folder``, each calibrated to ``l0`` latents a token on what
    reaches it through those before it.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stack = LayerStack(model.eval())
    x, done = stack.embed(torch.arange(1000, 1064)[None]), 0
    for layer in layers:
        x, done = stack.run(x, range(done, layer + 1)), layer + 1
        before = x[0, 1:] @ directions(name, layer).T
        nth = before.shape[1] - l0  # the smallest that is not to fire
        threshold = before.kthvalue(nth, dim=1).values.mean().item()
        W = put_sae(cache, name, layer, threshold=threshold)
        before = x @ W["W_enc"] + W["b_enc"]
        said_by_bias = bool(W["b_enc"].any())
        x = (before * (before > (0 if said_by_bias else W["threshold"]))) @ W["W_dec"]


def directions(name: str, layer: int, d_sae: int | None = None) -> Tensor:
    """The decoder rows of a random SAE, of norm 1."""
    width = release_of(name).d_sae if d_sae is None else d_sae
    d_model = spec_of(name).config().get_text_config().hidden_size
    rows = torch.randn(width, d_model, generator=torch.Generator().manual_seed(layer))
    return torch.nn.functional.normalize(rows, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="the lab")
    parser.add_argument("cache", type=Path, help="the folder to make, for HF_HUB_CACHE")
    parser.add_argument(
        "--l0", type=int, default=100, help="how many latents of an SAE are to fire on a token"
    )
    args = parser.parse_args()
    spec = spec_of(args.name)
    folder = put_model(args.cache, args.name, load_lab("smollm2", layers=[5]).tokenizer)
    put_saes(args.cache, args.name, folder, spec.placement, args.l0)
    print(f"wrote {args.name} with random weights to {args.cache}")


if __name__ == "__main__":
    main()
