"""What a lab needs (download, memory, work), and whether this machine has it: before anything is
fetched. ``python -m course_utils.labs.requirements`` prints the README's table.
"""

from __future__ import annotations

import functools
import json
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from course_utils.labs import hub
from course_utils.labs.catalog import (
    LABS,
    HubModel,
    LabError,
    LabSpec,
    Release,
    hub_file,
    placement,
    spec_of,
)
from course_utils.labs.memory import free_memory
from course_utils.labs.weights import (
    CACHE_VARIABLE,
    WeightFile,
    cannot_write,
    is_at_hand,
    is_converted,
)

GB = 1e9
PROMPTS, TOKENS = 16, 24
"""A step of learning a mask is estimated for this many prompts of this many tokens, BOS left out,
where nothing else is said: as in most of the course.
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
        to_write: on disk, before it runs: what is missing, and the converted copy of a model that
            comes as GGUF.
        weights, saes: in memory.
        step: memory for the activations of a mask step on ``prompts`` prompts of ``tokens`` tokens,
            BOS left out.
        gflop_per_step: the floating-point operations of such a step, in billions.
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
    to_write: float = 0.0
    prompts: int = PROMPTS
    tokens: int = TOKENS

    @property
    def memory(self) -> float:
        """What model, SAEs and a step take together, on the GPU or in main memory."""
        return self.weights + self.saes + self.step

    def seconds_per_step(self, device: str | torch.device = "cpu") -> float:
        """How long a mask step will take on this machine, if it comes to half of the speed of a
        large matrix product.
        """
        return self.seconds(1, device)

    def seconds(self, steps: int, device: str | torch.device = "cpu") -> float:
        """How long so many mask steps will take, likewise."""
        return steps * self.gflop_per_step / (0.5 * matrix_rate(self.dtype, device))

    def __str__(self) -> str:
        where = "a GPU" if self.gpu else "a CPU or a GPU"
        parts = f"model {self.weights:.1f}, SAEs {self.saes:.1f}, a mask step {self.step:.1f}"
        return "\n".join(
            [
                f"{self.name}: {self.parameters / 1e6:,.0f} M parameters in {_short(self.dtype)}, "
                f"on {where}",
                f"  to fetch    {self.download:6.1f} GB "
                f"({self.missing:.1f} GB of it still missing here)",
                f"  memory      {self.memory:6.1f} GB ({parts}), and {PROCESS_GB} GB for Python",
                f"  work        {self.gflop_per_step:6.0f} GFLOP for a mask step on "
                f"{self.prompts} prompts of {self.tokens} tokens",
            ]
        )


def _short(dtype: torch.dtype) -> str:
    """A dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------
# What a lab needs
# ---------------------------------------------------------------------------------------------


def estimate(
    name: str,
    *,
    layers: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    prompts: int = PROMPTS,
    tokens: int = TOKENS,
) -> Requirements:
    """What a lab of the course needs. Nothing is loaded or fetched:
    ``print(estimate("gemma-2-9b"))``.

    Args:
        name: one of ``LABS``.
        layers: with SAEs after these layers; by default, those of the course.
        dtype: by default, what `load_lab` would take on ``device``.
        device: by default, what `load_lab` would take.
        prompts, tokens: of a mask step: prompts at once, and tokens of each, BOS left out.

    Raises:
        LabError: no such lab, or a layer without an SAE.
        ValueError: no prompts, or none of their tokens.
    """
    spec = spec_of(name)
    layers = list(spec.placement if layers is None else layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(spec.config())
    runs_on = torch.device(device or usual_device())
    if dtype is None and spec.gpu:
        dtype = without_emulation(torch.bfloat16, runs_on)
    if dtype is None:
        dtype = usual_dtype(_parameters(model), runs_on)
    widths = dict.fromkeys(layers, _width(spec))
    needs = requirements_of(name, model, widths, dtype, prompts=prompts, tokens=tokens)
    download, missing = _to_fetch(name, needs.parameters, layers)
    to_write = missing + _to_convert(spec.model, needs.parameters)
    return replace(needs, download=download, missing=missing, to_write=to_write, gpu=spec.gpu)


def requirements_of(
    name: str,
    model: PreTrainedModel,
    widths: Mapping[int, int],
    dtype: torch.dtype,
    *,
    prompts: int = PROMPTS,
    tokens: int = TOKENS,
) -> Requirements:
    """What a model needs with SAEs of some widths: ``{layer: d_sae}``. The model may be on the meta
    device: only its shape counts.

    Raises:
        ValueError: no prompts, or none of their tokens.
    """
    if min(prompts, tokens) < 1:
        raise ValueError(f"one prompt and one token or more: {prompts} prompts of {tokens} tokens.")
    config = model.config.get_text_config()
    parameters = _parameters(model)
    n_layers, d_model = config.num_hidden_layers, config.hidden_size
    n_after = n_layers - (min(widths, default=-1) + 1)  # layers after the first SAE
    latents = sum(widths.values())
    numbers = numbers_per_token(config, n_after, latents, gradient=True)

    # the layers after the first SAE, forward and back; each SAE's encoder, once over all latents
    body = parameters - _embedding_parameters(model)
    flop_per_token = 4 * body * n_after / n_layers + 2 * latents * d_model
    at_once = prompts * tokens
    return Requirements(
        name=name,
        dtype=dtype,
        parameters=parameters,
        download=0.0,
        missing=0.0,
        weights=parameters * dtype.itemsize / GB,
        saes=2 * latents * d_model * dtype.itemsize / GB,
        step=at_once * numbers * dtype.itemsize / GB,
        gflop_per_step=at_once * flop_per_token / 1e9,
        prompts=prompts,
        tokens=tokens,
    )


def numbers_per_token(
    config: PretrainedConfig, layers: int, latents: int, *, gradient: bool
) -> int:
    """Numbers that a forward pass keeps for each token: with a graph, of every layer and SAE;
    without, of one layer at a time.

    ``latents`` counts those of all SAEs together.
    """
    d_mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    per_layer = 16 * config.hidden_size + 4 * d_mlp
    if gradient:
        return layers * per_layer + 8 * latents
    return per_layer + 3 * latents


def _parameters(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def _embedding_parameters(model: PreTrainedModel) -> int:
    """Of the embedding and the unembedding; tied ones count once."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = [module.get_parameter("weight") for module in modules if module is not None]
    return sum({id(weight): weight.numel() for weight in weights}.values())


def _width(spec: LabSpec) -> int:
    """The number of latents of a lab's SAEs; all have the same."""
    if isinstance(spec.saes, Release):
        return spec.saes.d_sae
    config = next(spec.saes.glob("layer_*/cfg.json"), None)
    if config is None:
        raise LabError(
            f"no SAE in {spec.saes}: folders layer_8 (say) with a cfg.json each are wanted. Get "
            "the course's folder data/saes again."
        )
    return json.loads(config.read_text())["d_sae"]


def _to_fetch(name: str, parameters: int, layers: Sequence[int]) -> tuple[float, float]:
    """Gigabytes of a lab's downloads, and of those that are not on this machine yet."""
    spec = spec_of(name)
    downloads = [_model_download(spec.model, parameters)]
    if isinstance(spec.saes, Release):
        d_model = spec.config().get_text_config().hidden_size
        size = 2 * d_model * spec.saes.d_sae * 4  # two matrices of float32
        for choice in placement(name, layers).values():
            here = hub.has_file(*hub_file(spec.saes.name, choice.sae_id))
            downloads.append((size, here))
    total = sum(size for size, _ in downloads)
    missing = sum(size for size, here in downloads if not here)
    return total / GB, missing / GB


def _model_download(model: WeightFile | HubModel, parameters: int) -> tuple[int, bool]:
    """The bytes of a model's files, and whether they are on this machine."""
    if isinstance(model, HubModel):
        return parameters * model.stored_bytes, hub.local_model(model.repo) is not None
    return model.size, is_at_hand(model)


def _to_convert(model: WeightFile | HubModel, parameters: int) -> float:
    """Gigabytes of a GGUF model's copy as safetensors (bfloat16), unless it is there."""
    if isinstance(model, HubModel) or is_converted(model):
        return 0.0
    return parameters * torch.bfloat16.itemsize / GB


def table() -> str:
    """The labs of the course and what they need, for the README. In Markdown."""
    rows = [
        "| lab | model | SAEs after layers | to fetch | memory | a mask step | runs on |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, spec in LABS.items():
        needs = estimate(name, dtype=torch.bfloat16 if spec.gpu else torch.float32)
        saes = spec.saes.name if isinstance(spec.saes, Release) else "ours"
        layers = ", ".join(map(str, spec.placement))
        cells = [
            f"`{name}`",
            _model_name(spec.model),
            f"{saes}: {layers}",
            f"{needs.download:.1f} GB",
            f"{needs.memory:.1f} GB ({_short(needs.dtype)})",
            f"{needs.gflop_per_step:,.0f} GFLOP",
            "a GPU" if spec.gpu else "CPU or GPU",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _model_name(model: WeightFile | HubModel) -> str:
    """A model's name without its owner, or without what follows it in a file's name."""
    if isinstance(model, WeightFile):
        return re.split(r"[.-]q\d", model.name, flags=re.IGNORECASE)[0]
    name = model.repo.split("/")[1]
    return f"{name}, licence to accept" if model.gated else name


# ---------------------------------------------------------------------------------------------
# Whether this machine has it
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
        LabError: a CPU where a GPU is needed, a folder that cannot be written to, or too little
            memory or disk: each with what to do.
    """
    device = torch.device(device)
    _require_disk(needs, folder)
    if needs.gpu and device.type == "cpu":
        raise LabError(
            f"{needs.name} wants a GPU with {needs.memory:.0f} GB or more (in Colab: Runtime, "
            "Change runtime type, A100), and is to run on a CPU. There, one step of learning a "
            f"mask is {needs.gflop_per_step:,.0f} GFLOP. Take a smaller lab ('smollm2' runs "
            "anywhere), or say that you mean it: load_lab(…, device='cpu')."
        )
    if not may_offload:
        _require_memory(needs, device)


def _require_disk(needs: Requirements, folder: Path) -> None:
    """Check that what is missing can be written to ``folder``."""
    if not needs.to_write:
        return
    variable = "HF_HOME" if folder == hub.cache() else CACHE_VARIABLE
    advice = f"before you start Python: export {variable}=/path/to/folder"
    why = cannot_write(folder)
    if why is not None:
        raise LabError(
            f"{needs.name} has {needs.to_write:.1f} GB to write to {folder}, and {why}. Name "
            f"another folder {advice}"
        )
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GB
    if needs.to_write > 0.95 * free:
        copy = needs.to_write - needs.missing
        converted = f" and {copy:.1f} GB to write as a converted copy" if copy else ""
        raise LabError(
            f"{needs.name} has {needs.missing:.1f} GB to fetch{converted}, and {folder} has "
            f"{free:.1f} GB left. Make room, or name a folder on another disk {advice}"
        )


def _require_memory(needs: Requirements, device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    if on_gpu:
        wanted, free = needs.memory, torch.cuda.mem_get_info(device)[0] / GB
        limited_by = "this machine"
    else:
        wanted, (free, limited_by) = needs.memory + PROCESS_GB, free_memory()
        free /= GB
    if wanted <= free:
        return
    advice = []
    if limited_by != "this machine":
        advice.append(f"What limits it is {limited_by}: ask for more there.")
    if needs.dtype == torch.float32 and wanted / 2 < free:
        advice.append("Half of that is enough with dtype=torch.bfloat16.")
    if on_gpu:
        advice.append("Layers that do not fit can wait in main memory: device_map='auto'.")
    advice.append(
        "Fewer SAEs (layers=[…]) or a smaller lab need less; other notebooks that are still "
        "running hold memory too."
    )
    raise LabError(
        f"{needs.name} needs {wanted:.1f} GB of memory in {_short(needs.dtype)}, and {device} has "
        f"{free:.1f} GB free. {' '.join(advice)}"
    )


def usual_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ---------------------------------------------------------------------------------------------
# How fast this machine multiplies
# ---------------------------------------------------------------------------------------------


def matrix_rate(
    dtype: torch.dtype, device: str | torch.device = "cpu", n: int | None = None
) -> float:
    """GFLOP/s of a product of two matrices of n × n (the best of three)."""
    device = torch.device(device)
    n = n or (1024 if device.type == "cpu" else 8192)
    return 2 * n**3 / min(_product_seconds(dtype, device, n) for _ in range(3)) / 1e9


def usual_dtype(parameters: int, device: str | torch.device) -> torch.dtype:
    """float32 for models below 500 million parameters; above, what the machine multiplies fast."""
    return torch.float32 if parameters < 5e8 else fast_dtype(device)


def without_emulation(dtype: torch.dtype, device: str | torch.device) -> torch.dtype:
    """``dtype``, or float32 in place of bfloat16 on a GPU that only emulates it (a T4, say).

    Not float16: its largest number is 65,504, and residual streams go beyond.
    """
    device = torch.device(device)
    emulated = device.type == "cuda" and has_bfloat16(device) is False
    return torch.float32 if emulated and dtype == torch.bfloat16 else dtype


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the machine has instructions for it and multiplies it at least 1.5 times as
    fast as float32; float32 elsewhere.

    It is found out once for each device in a process, in some hundredths of a second, and
    remembered: two labs of one process have one dtype.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _fast_dtype(torch.device("cpu") if device.type == "cpu" else device)


@functools.cache
def _fast_dtype(device: torch.device) -> torch.dtype:
    if has_bfloat16(device) is False:
        return torch.float32
    # On a small product first: where bfloat16 is emulated, a large one would take seconds.
    if _bfloat16_speedup(device, 128) < 0.1:
        return torch.float32
    n = 2048 if device.type == "cuda" else 768
    return torch.bfloat16 if _bfloat16_speedup(device, n) >= 1.5 else torch.float32


def has_bfloat16(device: torch.device) -> bool | None:
    """Whether a device has instructions that multiply bfloat16; None where that is not known.

    (``torch.cuda.is_bf16_supported()`` is True also for GPUs that emulate it, such as a T4.)
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return _cpu_has_bfloat16(platform.machine().lower())
    return None


def _cpu_has_bfloat16(machine: str) -> bool | None:
    """What torch says of the processor. Before it had ``torch.cpu.get_capabilities``, it had two
    private functions, for x86 only. A test names the version in which neither is there.
    """
    x86 = machine in ("x86_64", "amd64")
    if not x86 and machine not in ("aarch64", "arm64"):
        return None
    if hasattr(torch.cpu, "get_capabilities"):
        names = ("amx_bf16", "avx512_bf16") if x86 else ("bf16", "sve_bf16")
        said = torch.cpu.get_capabilities()
        return any(said.get(name, False) for name in names)
    private = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if x86 and all(hasattr(torch.cpu, name) for name in private):
        return any(getattr(torch.cpu, name)() for name in private)
    return None


def _bfloat16_speedup(device: torch.device, n: int, runs: int = 5) -> float:
    """How many times faster bfloat16 is than float32: the best of some runs of each, in turn, so
    that whatever else the machine does meets both.
    """
    pairs = [
        [_product_seconds(dtype, device, n) for dtype in (torch.float32, torch.bfloat16)]
        for _ in range(runs)
    ]
    float32, bfloat16 = (min(seconds) for seconds in zip(*pairs))
    return float32 / bfloat16


def _product_seconds(dtype: torch.dtype, device: torch.device, n: int) -> float:
    a = torch.ones(n, n, device=device, dtype=dtype)
    (a @ a).sum().item()
    start = time.perf_counter()
    (a @ a).sum().item()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(table())
