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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from course_utils.labs.catalog import hub_file, placement, spec_of
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
    spec = spec_of(name)
    choice = placement(name, [layer])[layer]
    repo, file = hub_file(spec.saes.name, choice.sae_id)
    path = repository(cache, repo) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    W_dec = directions(name, layer, d_sae)
    d_sae, d_in = W_dec.shape
    W = dict(
        W_enc=W_dec.T.contiguous(), W_dec=W_dec, b_enc=torch.zeros(d_sae), b_dec=torch.zeros(d_in)
    )
    thresholds = torch.full((d_sae,), float(threshold))
    if file.endswith("params.npz"):  # Gemma Scope
        np.savez(
            path,
            threshold=thresholds.numpy(),
            **{key.replace("W_", "w_"): value.numpy() for key, value in W.items()},
        )
    elif file.endswith("params.safetensors"):  # Gemma Scope 2
        save_file(
            {"threshold": thresholds, **{key.lower(): value for key, value in W.items()}}, path
        )
    elif file.endswith(".sae.pt"):  # Qwen-Scope: both matrices the other way round
        torch.save(
            {
                key: value.T.contiguous() if key.startswith("W") else value
                for key, value in W.items()
            },
            path,
        )
    else:  # SAELens before version 6
        W["b_enc"] -= threshold
        save_file(W, path)
        config = {"model_name": name, "hook_point": choice.sae_id, "hook_point_layer": layer, "hook_point_head_index": None, "d_in": d_in,
                  "d_sae": d_sae, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}  # fmt: skip
        (path.parent / "cfg.json").write_text(json.dumps(config))
    return {**W, "threshold": thresholds}


@torch.no_grad()
def put_saes(cache: Path, name: str, folder: Path, layers: Sequence[int], l0: int) -> None:
    """Random SAEs for a model in ``folder``, each calibrated to ``l0`` latents a token on what
    reaches it through those before it.
    """
    stack = LayerStack(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    x, done = stack.embed(torch.arange(1000, 1064)[None]), 0
    for layer in layers:
        x, done = stack.run(x, range(done, layer + 1)), layer + 1
        before = x[0, 1:] @ directions(name, layer).T
        W = put_sae(
            cache,
            name,
            layer,
            threshold=before.kthvalue(before.shape[1] - l0, dim=1).values.mean().item(),
        )
        before = x @ W["W_enc"] + W["b_enc"]
        x = (before * (before > (W["threshold"] if not W["b_enc"].any() else 0))) @ W["W_dec"]


def directions(name: str, layer: int, d_sae: int | None = None) -> Tensor:
    """The decoder rows of a random SAE, of length 1."""
    spec = spec_of(name)
    shape = (d_sae or spec.saes.d_sae, spec.config().get_text_config().hidden_size)
    return torch.nn.functional.normalize(
        torch.randn(shape, generator=torch.Generator().manual_seed(layer)), dim=1
    )


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
