"""What a lab needs (download, memory, work), and whether this machine has it: before anything is
fetched.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from course_utils.labs import hub
from course_utils.labs.catalog import (
    LABS,
    HubModel,
    LabError,
    LabSpec,
    Release,
    SAEChoice,
    hub_file,
    placement,
    spec_of,
)
from course_utils.labs.weights import is_at_hand

GB = 1e9
PROMPTS, TOKENS = 16, 24
"""A step of learning a mask is reckoned for this many prompts of this many tokens, BOS left out: as
in the course.
"""
PROCESS_GB = 1.5
"""What Python, torch and the libraries take by themselves."""


@dataclass(frozen=True)
class Requirements:
    """What a lab needs. Sizes are in gigabytes (10⁹ bytes).

    Attributes:
        name: the lab's.
        dtype: of model and SAEs in memory.
        parameters: of the model.
        download: what is fetched the first time.
        missing: the part of that which is not on this machine yet.
        weights, saes: in memory.
        step: memory for the activations of a mask step on `PROMPTS` prompts of `TOKENS` tokens.
        gflop_per_step: the floating-point operations of such a step, in thousands of millions.
        gpu: whether a CPU is no good.
    """

    name: str
    dtype: torch.dtype
    parameters: int
    download: float
    missing: float
    weights: float
    saes: float
    step: float
    gflop_per_step: float
    gpu: bool = False

    @property
    def memory(self) -> float:
        """What model, SAEs and a step take together, on the GPU or in main memory."""
        return self.weights + self.saes + self.step

    def seconds_per_step(self, device: str | torch.device = "cpu") -> float:
        """How long a mask step will take on this machine, if it comes to half of the speed of a
        large matrix product.
        """
        return self.gflop_per_step / (0.5 * matrix_rate(self.dtype, device))

    def __str__(self) -> str:
        where = "a GPU" if self.gpu else "a CPU or a GPU"
        return (
            f"{self.name}: {self.parameters / 1e6:,.0f} M parameters in {str(self.dtype).removeprefix('torch.')}, on {where}\n"
            f"  to fetch    {self.download:6.1f} GB ({self.missing:.1f} GB of it still missing here)\n"
            f"  memory      {self.memory:6.1f} GB (model {self.weights:.1f}, SAEs {self.saes:.1f}, a mask step {self.step:.1f})\n"
            f"  work        {self.gflop_per_step:6.0f} GFLOP for a mask step on {PROMPTS} prompts of {TOKENS} tokens"
        )


def estimate(
    name: str,
    *,
    layers: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Requirements:
    """What a lab of the course needs. Nothing is loaded or fetched:
    ``print(estimate("gemma-2-9b"))``.

    Args:
        name: one of ``LABS``.
        layers: with SAEs after these layers; by default, those of the course.
        dtype: by default, what `load_lab` would take on ``device``.
        device: by default, what `load_lab` would take.

    Raises:
        LabError: no such lab, or a layer without an SAE.
    """
    spec = spec_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(spec.config())
    parameters = sum(p.numel() for p in model.parameters())
    layers = list(spec.placement if layers is None else layers)
    saes = placement(name, layers) if isinstance(spec.saes, Release) else None
    dtype = dtype or (
        torch.bfloat16 if spec.gpu else usual_dtype(parameters, device or usual_device())
    )
    download, missing = _to_fetch(spec, parameters, saes)
    needs = requirements_of(name, model, dict.fromkeys(layers, _width(spec)), dtype)
    return replace(needs, download=download, missing=missing, gpu=spec.gpu)


def requirements_of(
    name: str, model: nn.Module, widths: Mapping[int, int], dtype: torch.dtype
) -> Requirements:
    """What a model needs with SAEs of some widths: ``{layer: d_sae}``. The model may be on the meta
    device: only its shape counts.
    """
    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    embeddings = {
        id(m.weight): m.weight.numel()
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    body = parameters - sum(embeddings.values())
    after = 1 - (min(widths, default=-1) + 1) / config.num_hidden_layers
    tokens, d_model, latents = PROMPTS * TOKENS, config.hidden_size, sum(widths.values())
    numbers = numbers_per_token(
        config, round(after * config.num_hidden_layers), latents, gradient=True
    )
    return Requirements(
        name=name,
        dtype=dtype,
        parameters=parameters,
        download=0.0,
        missing=0.0,
        weights=parameters * dtype.itemsize / GB,
        saes=2 * latents * d_model * dtype.itemsize / GB,
        step=tokens * numbers * dtype.itemsize / GB,
        # the layers after the first SAE forward and back, and each SAE's encoder once over all
        # latents
        gflop_per_step=tokens * (4 * after * body + 2 * latents * d_model) / 1e9,
    )


def numbers_per_token(
    config: PretrainedConfig, layers: int, latents: int, *, gradient: bool
) -> int:
    """Numbers that a forward pass keeps for each token: with a graph, of every layer and SAE;
    without, of one layer at a time.

    ``latents`` counts those of all SAEs together.
    """
    per_layer = 16 * config.hidden_size + 4 * (
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    )
    return per_layer * (layers if gradient else 1) + latents * (8 if gradient else 3)


def _width(spec: LabSpec) -> int:
    if isinstance(spec.saes, Release):
        return spec.saes.d_sae
    return json.loads(next(spec.saes.glob("layer_*/cfg.json")).read_text())["d_sae"]


def _to_fetch(
    spec: LabSpec, parameters: int, saes: Mapping[int, SAEChoice] | None
) -> tuple[float, float]:
    """Gigabytes of a lab's downloads, and of those that are not on this machine yet.

    ``saes`` as from `placement`; None where they are in this repository.
    """
    if isinstance(spec.model, HubModel):
        sizes = {spec.model.repo: parameters * spec.model.stored_bytes}
        here = {spec.model.repo: hub.local_model(spec.model.repo) is not None}
    else:
        sizes, here = {spec.model.name: spec.model.size}, {spec.model.name: is_at_hand(spec.model)}
    for choice in (saes or {}).values():
        file = hub_file(spec.saes.name, choice.sae_id)
        sizes[file] = 2 * 4 * spec.saes.d_sae * spec.config().get_text_config().hidden_size
        here[file] = hub.has_file(*file)
    return sum(sizes.values()) / GB, sum(
        size for what, size in sizes.items() if not here[what]
    ) / GB


def table() -> str:
    """The labs of the course and what they need, for the README. In Markdown."""
    rows = [
        "| lab | model | SAEs after layers | to fetch | memory | a mask step | runs on |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, spec in LABS.items():
        needs = estimate(name, dtype=torch.bfloat16 if spec.gpu else torch.float32)
        model = (
            spec.model.repo.split("/")[1]
            if isinstance(spec.model, HubModel)
            else re.split(r"[.-]q\d", spec.model.name, flags=re.IGNORECASE)[0]
        )
        saes = spec.saes.name if isinstance(spec.saes, Release) else "ours"
        gated = (
            ", licence to accept" if isinstance(spec.model, HubModel) and spec.model.gated else ""
        )
        rows.append(
            f"| `{name}` | {model}{gated} | {saes}: {', '.join(map(str, spec.placement))} | {needs.download:.1f} GB | {needs.memory:.1f} GB "
            f"({str(needs.dtype).removeprefix('torch.')}) | {needs.gflop_per_step:,.0f} GFLOP | {'a GPU' if spec.gpu else 'CPU or GPU'} |"
        )
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------
# This machine
# ---------------------------------------------------------------------------------------------


def require_machine(
    needs: Requirements, device: str | torch.device, *, folder: Path, may_offload: bool = False
) -> None:
    """Check that a lab fits this machine.

    Args:
        device: where it is to run.
        folder: where what is fetched will be kept.
        may_offload: layers that do not fit the GPU may wait in main memory (``device_map="auto"``).

    Raises:
        LabError: a CPU where a GPU is needed, or too little memory or disk: each with what to do.
    """
    device = torch.device(device)
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free / GB
    if needs.missing > 0.95 * disk:
        raise LabError(
            f"{needs.name} has {needs.missing:.1f} GB to fetch, and {folder} has {disk:.1f} GB left. Make room, or name a folder on "
            "another disk before you start Python: export HF_HOME=/path/to/folder"
        )
    if needs.gpu and device.type == "cpu":
        raise LabError(
            f"{needs.name} wants a GPU with {needs.memory:.0f} GB or more (in Colab: Runtime, Change runtime type, A100), and is to run on a "
            f"CPU. There, one step of learning a mask is {needs.gflop_per_step:,.0f} GFLOP. Take a smaller lab ('smollm2' runs anywhere), "
            "or say that you mean it: load_lab(…, device='cpu')."
        )
    free = (
        torch.cuda.mem_get_info(device)[0] / GB
        if device.type == "cuda"
        else psutil.virtual_memory().available / GB
    )
    wanted = needs.memory + (0 if device.type == "cuda" else PROCESS_GB)
    if wanted > free and not may_offload:
        half = (
            " Half of that is enough with dtype=torch.bfloat16."
            if needs.dtype == torch.float32 and wanted / 2 < free
            else ""
        )
        offload = (
            " Layers that do not fit can wait in main memory: device_map='auto'."
            if device.type == "cuda"
            else ""
        )
        raise LabError(
            f"{needs.name} needs {wanted:.1f} GB of memory in {str(needs.dtype).removeprefix('torch.')}, and {device} has {free:.1f} GB "
            f"free.{half}{offload} Fewer SAEs (layers=[…]) or a smaller lab need less; other notebooks that are still running hold memory too."
        )


def usual_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usual_dtype(parameters: int, device: str | torch.device) -> torch.dtype:
    """float32 for models below half a thousand million parameters; above, what the machine
    multiplies fast.
    """
    return torch.float32 if parameters < 5e8 else fast_dtype(device)


def matrix_rate(
    dtype: torch.dtype, device: str | torch.device = "cpu", n: int | None = None
) -> float:
    """GFLOP/s of a large matrix product (the best of three)."""
    device = torch.device(device)
    n = n or (1024 if device.type == "cpu" else 8192)
    return 2 * n**3 / min(_product_seconds(dtype, device, n) for _ in range(3)) / 1e9


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the machine multiplies it at least 1.5 times as fast as float32; float32
    elsewhere.

    Processors differ a thousandfold: with matrix units for bfloat16 it is up to ten times faster,
    without them it can be hundreds of times slower. This takes some hundredths of a second to find
    out.
    """
    device = torch.device(device)
    if _product_seconds(torch.bfloat16, device, 128) > 10 * _product_seconds(
        torch.float32, device, 128
    ):
        return torch.float32  # found out on a small product: a large one would take seconds
    n = 2048 if device.type == "cuda" else 768
    if _product_seconds(torch.bfloat16, device, n) * 1.5 > _product_seconds(
        torch.float32, device, n
    ):
        return torch.float32
    return torch.bfloat16


def _product_seconds(dtype: torch.dtype, device: torch.device, n: int) -> float:
    a = torch.ones(n, n, device=device, dtype=dtype)
    (a @ a).sum().item()
    start = time.perf_counter()
    (a @ a).sum().item()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(table())
