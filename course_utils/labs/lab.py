"""A *lab* is a model with the SAEs to study it.

``lab = load_lab("smollm2")``, or one of your own: ``Lab.from_parts(…)``.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from course_utils.labs import hub
from course_utils.labs.catalog import (
    HubModel,
    LabError,
    Release,
    SAEChoice,
    layer_number,
    placement,
    spec_of,
)
from course_utils.labs.fit import misfit
from course_utils.labs.layers import LayerStack, cannot_run
from course_utils.labs.loading import SAESource, check_source, load_model, load_sae, saes_in
from course_utils.labs.requirements import (
    PROMPTS,
    TOKENS,
    Requirements,
    estimate,
    require_machine,
    requirements_of,
    usual_device,
    without_emulation,
)
from course_utils.labs.weights import cache_dir


class SAEs(Mapping[int, SAE]):
    """SAEs by layer. One that is given as a function is loaded when it is first asked for.

    Args:
        given: the SAEs, or functions that load them.
        check: called with the layer and the SAE before it is handed out; raises if it does not fit.
    """

    def __init__(
        self, given: Mapping[int, SAE | Callable[[], SAE]], check: Callable[[int, SAE], None]
    ):
        self._given, self._check = dict(given), check
        self.loaded: dict[int, SAE] = {}
        """Those that are in memory."""
        for layer, sae in self._given.items():
            if isinstance(sae, SAE):
                self._admit(layer, sae)

    def _admit(self, layer: int, sae: SAE) -> SAE:
        self._check(layer, sae)
        self.loaded[layer] = sae.requires_grad_(False).eval()
        return sae

    def __getitem__(self, layer: int) -> SAE:
        if layer in self.loaded:
            return self.loaded[layer]
        given = self._given[layer]
        return self._admit(layer, given if isinstance(given, SAE) else given())

    def __iter__(self) -> Iterator[int]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


class Lab:
    """A frozen model, its tokenizer, and SAEs on its residual stream.

    Attributes:
        name: for titles and files.
        hf_model: a causal language model of `transformers`; its parameters take no gradient.
        tokenizer: its ``bos_token`` starts every prompt of `load_task`.
        saes: ``{layer: SAE}``; the SAE of layer l reads and writes ``blocks.{l}.hook_resid_post``.
            Some may be loaded on demand: what is given is an SAE or a function that returns one.

    Raises:
        LabError: an SAE that is not known to fit (`fit.misfit` says what is asked of one), or for a
            layer that the model does not have. For an SAE on demand, when it is first used. Or a
            model whose architecture cannot be run layer by layer.
    """

    def __init__(
        self,
        name: str,
        hf_model: PreTrainedModel,
        tokenizer: Any,
        saes: Mapping[int, SAE | Callable[[], SAE]],
    ):
        self.name, self.hf_model, self.tokenizer = name, hf_model, tokenizer
        _require_known(type(hf_model), hf_model.config)
        hf_model.requires_grad_(False)
        hf_model.eval()
        saes = {layer_number(layer): sae for layer, sae in saes.items()}
        unknown = [layer for layer in saes if not 0 <= layer < self.n_layers]
        if unknown:
            raise LabError(
                f"the SAE of layer {unknown[0]}: the model has layers 0 to {self.n_layers - 1}."
            )
        self.saes = SAEs(saes, self._check)

    def _check(self, layer: int, sae: SAE) -> None:
        """Raise `LabError` unless an SAE fits the model and this layer."""
        problem = misfit(sae, layer, self.hf_model)
        if problem is not None:
            raise LabError(f"the SAE of layer {layer} {problem}")

    @classmethod
    def from_parts(
        cls,
        *,
        model: PreTrainedModel | str | Path,
        saes: Mapping[int, SAE | SAESource],
        tokenizer: Any = None,
        name: str | None = None,
        bos_token: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Lab:
        """A lab of your own: a causal language model with SAEs on its residual stream.

        Args:
            model: a model, or the folder or hub name of one.
            saes: ``{layer: SAE}``. An SAE; a folder that SAELens or ``tools/train_saes.py`` saved;
                or ``(release, sae_id)`` of SAELens' registry. All but the first are loaded when
                they are first used, in the model's dtype.
            tokenizer: by default, the one beside the model.
            name: for titles and files; by default, the model's.
            bos_token: what starts every prompt, if it is to be another token than the tokenizer
                says. Without any, give ``has_bos=False`` to `SplicedModel`.
            device, dtype: of a model that is loaded here; by default a GPU where there is one, and
                the dtype that it is stored in (float32 instead of bfloat16 on a GPU that only
                emulates bfloat16).

        Raises:
            LabError: a part is missing or does not fit the others.
        """
        if not saes:
            raise LabError(
                "an SAE for one layer or more is wanted: Lab.from_parts(…, saes={8: sae}), where "
                "sae is an SAE, a folder of one, or (release, sae_id) of SAELens' registry."
            )
        for sae in saes.values():
            if not isinstance(sae, SAE):
                check_source(sae)
        if isinstance(model, str | Path):
            name = name or Path(model).name
            model, tokenizer = _loaded(_model_folder(model), tokenizer, device, dtype)
        if tokenizer is None:
            raise LabError(
                "a model that is an object comes without a tokenizer: "
                "Lab.from_parts(model=…, tokenizer=…, saes=…)."
            )
        if bos_token is not None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.bos_token = bos_token
        weights = next(model.parameters())
        given: dict[int, SAE | Callable[[], SAE]] = {}
        for layer, sae in saes.items():
            if not isinstance(sae, SAE):
                sae = functools.partial(load_sae, sae, weights.device, weights.dtype)
            given[layer] = sae
        name = name or Path(model.config.name_or_path or "my-lab").name
        return cls(name, model, tokenizer, given)

    def estimate(self, *, prompts: int = PROMPTS, tokens: int = TOKENS) -> Requirements:
        """What this lab needs in memory and work: ``print(lab.estimate())``, for mask steps on so
        many prompts of so many tokens, BOS left out.

        SAEs that wait to be loaded are loaded. Before a lab is loaded: `requirements.estimate`.
        """
        widths = {layer: sae.cfg.d_sae for layer, sae in self.saes.items()}
        return requirements_of(
            self.name, self.hf_model, widths, self.dtype, prompts=prompts, tokens=tokens
        )

    @cached_property
    def model(self) -> TransformerBridge:
        """The model as TransformerLens sees it, for hooks: ``lab.model.run_with_hooks(…)``.

        Same weights, no copy. Text that it is given starts with the lab's BOS, as the course's
        prompts do; without one, with nothing.
        """
        twin = _sharing_weights(self.hf_model)  # TransformerLens rewires the model that it is given
        # a model that was made from its config does not say what it is
        twin.config.architectures = [type(twin).__name__]
        name = self.hf_model.config.name_or_path or self.name
        bridge = TransformerBridge.boot_transformers(
            name, hf_model=twin, tokenizer=_prepending_bos(self.tokenizer), device=str(self.device)
        )
        bridge.cfg.default_prepend_bos = self.tokenizer.bos_token_id is not None
        bridge.requires_grad_(False)
        return bridge.eval()

    @cached_property
    def stack(self) -> LayerStack:
        """The model's layers, one by one, after the tokenizer's BOS (if it has one)."""
        return LayerStack(self.hf_model, self.tokenizer.bos_token_id, recompute=self.offloaded)

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
        """Where the work is done."""
        return next(p.device for p in self.hf_model.parameters() if p.device.type != "meta")

    @property
    def offloaded(self) -> bool:
        """Whether some layers wait in main memory until they are called (``device_map``)."""
        return any(p.device.type == "meta" for p in self.hf_model.parameters())

    @property
    def sae_layers(self) -> list[int]:
        """The layers that have an SAE, in order."""
        return sorted(self.saes)

    def __repr__(self) -> str:
        widths = sorted({sae.cfg.d_sae for sae in self.saes.loaded.values()})
        of = f" of {widths} latents" if widths else ""
        return (
            f"Lab({self.name!r}: {self.n_layers} layers of width {self.d_model}, "
            f"SAEs{of} after layers {self.sae_layers})"
        )


def _require_known(kind: type, config: PretrainedConfig) -> None:
    """Raise `LabError` for an architecture that cannot be run layer by layer."""
    problem = cannot_run(kind, config)
    if problem is not None:
        raise LabError(problem)


def _loaded(
    folder: Path, tokenizer: Any, device: str | torch.device | None, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, Any]:
    """The model in a folder and, unless one is given, its tokenizer."""
    try:
        config = AutoConfig.from_pretrained(folder)
        kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        _require_known(kind if isinstance(kind, type) else type(config), config)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    except LabError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise LabError(
            f"the model in {folder} cannot be read: {hub.first_line(error)}. A folder that "
            "save_pretrained wrote is wanted, of a causal language model and its tokenizer."
        ) from error
    runs_on = torch.device(device or usual_device())
    if dtype is None and without_emulation(model.dtype, runs_on) != model.dtype:
        model.float()
    nn.Module.to(model, runs_on)
    return model, tokenizer


def _model_folder(model: str | Path) -> Path:
    """The folder of a model that is named by its folder or by its name on the hub."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        return hub.model_folder(str(model))
    except hub.HubError as error:
        raise LabError(f"no folder {str(model)!r} here, and from the hub: {error}") from error


def _sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Another module tree over the same tensors."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def _prepending_bos(tokenizer: Any) -> Any:
    """A tokenizer for TransformerLens alone: it puts ``tokenizer``'s BOS before a text, if there is
    one.

    TransformerLens changes the tokenizer that it is given. One that does not say ``add_bos_token``
    it reads again from its folder, with the BOS that is written there.
    """
    twin, bos = copy.deepcopy(tokenizer), tokenizer.bos_token_id
    twin.init_kwargs["add_bos_token"] = True
    if twin.is_fast:
        token = {"id": "BOS", "ids": [bos or 0], "tokens": [tokenizer.bos_token or "none"]}
        twin.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A" if bos is None else "BOS $A", special_tokens=[token]
        )
    return twin


def hook_point(layer: int) -> str:
    """The residual stream after ``layer``: ``"blocks.{layer}.hook_resid_post"``."""
    return f"blocks.{layer}.hook_resid_post"


def load_lab(
    name: str = "smollm2",
    *,
    layers: Sequence[int] | None = None,
    saes: Mapping[int, SAEChoice] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    device_map: str | dict | None = None,
) -> Lab:
    """Load a lab by name.

    The first time, this fetches the model's weights. SAEs are fetched and loaded when they are
    first used.

    Args:
        name: one of ``LABS``. ``print(estimate(name))`` says what it needs.
        layers: with the SAEs of these layers. By default, all that are in this repository, or those
            of the course's placement where they come from the hub.
        saes: which public SAEs, from `placement`: ``load_lab("gemma-2-9b",
            saes=placement("gemma-2-9b", gap=7))``.
        device: ``"cuda"`` where there is one, else ``"cpu"``.
        dtype: of the model and the SAEs. By default float32 for small models: logit differences
            want it, since near a logit of 20 bfloat16 knows no difference below 0.125. Large ones
            get what the machine multiplies fast.
        device_map: as `transformers` takes it: ``"auto"`` lets layers that do not fit the GPU wait
            in main memory.

    Raises:
        LabError: unknown name, a layer without an SAE, or a machine that is too small: before
            anything is fetched.
        WeightsError: the weights cannot be had (see `course_utils.labs.weights`).
    """
    spec = spec_of(name)
    runs_on = torch.device(device or usual_device())
    if saes is not None and layers is not None:
        raise LabError("give layers or saes, not both.")
    if layers is not None and not len(layers) or saes is not None and not saes:
        raise LabError(f"an SAE for one layer or more is wanted: load_lab({name!r}, layers=[…]).")
    sources: Mapping[int, SAESource]
    if isinstance(spec.saes, Release):
        chosen = placement(name, layers) if saes is None else saes
        sources = {layer: (spec.saes.name, choice.sae_id) for layer, choice in chosen.items()}
    elif saes is not None:
        raise LabError(f"{name!r} has one SAE a layer: load_lab({name!r}, layers=[…]).")
    else:
        sources = saes_in(spec.saes, layers)
    needs = estimate(name, layers=list(sources), dtype=dtype, device=runs_on)
    if device is not None and runs_on.type == "cpu":
        needs = replace(needs, gpu=False)  # a CPU was asked for by name
    require_machine(
        needs,
        runs_on,
        folder=hub.cache() if isinstance(spec.model, HubModel) else cache_dir(),
        may_offload=device_map is not None,
    )
    model, tokenizer = load_model(name, device=runs_on, dtype=needs.dtype, device_map=device_map)
    given = {
        layer: functools.partial(load_sae, source, runs_on, needs.dtype)
        for layer, source in sources.items()
    }
    return Lab(name, model, tokenizer, given)
