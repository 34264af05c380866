"""The model's layers, one by one: a forward pass that starts anywhere.

A forward pass of `transformers` begins at the embedding and ends with a logit for every word.
Learning a mask runs it again and again on the same prompts, and most of it comes out the same each
time: all that lies before the first SAE, all that happens at BOS, and all logits but two.
`LayerStack` runs what is left:

    tokens → embed → layers 0 … k → x              once per prompt
    x' in x's place → layers k+1 … n → norm        at every step; gradients flow
    → one column of the unembedding per answer

Layers are called with the arguments that the model itself gives them (masks, rotary angles, …),
recorded once for each length of prompt, so that nothing here depends on the architecture. (These
arguments must not depend on the tokens. Each record is checked on tokens other than its own.)
Attention is causal: BOS sees only itself, its keys and values never change, and the other tokens
find them in a cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class LayerError(RuntimeError):
    """A model that cannot be run layer by layer; the message says what does not fit."""


RUNS = (
    "Llama, Mistral, Mixtral, Qwen2, Qwen3 (also their mixtures of experts), Gemma 1 to 3, GPT-2, "
    "GPT-J, GPT-Neo, GPT-NeoX (Pythia), Phi, Phi-3, OLMo 1 to 3, StableLM, SmolLM3, StarCoder2, "
    "Falcon, MPT, DeepSeek-V3 and gpt-oss"
)
"""Architectures that run layer by layer; a test runs each. Others are tried, and checked against
the model's own logits, unless `cannot_run` knows better.
"""

DO_NOT_RUN = {
    "opt": "it calls its decoder without the body, at whose end the final norm is looked for",
    "xglm": "its layers insist on an attention mask of the size of the batch",
    "bloom": "it gives its layers ALiBi's slopes for one batch size",
    "gemma3n": "its layers read embeddings of the tokens besides the residual stream",
    "gemma3n_text": "its layers read embeddings of the tokens besides the residual stream",
}


def cannot_run(kind: type, config: PretrainedConfig) -> str | None:
    """Why models of a class are known not to run layer by layer, and what would; None where nothing
    is known against it.

    Args:
        kind: the model's class.
        config: its configuration.
    """
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    why = DO_NOT_RUN.get(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        why = "it has an encoder and a decoder"
    elif getattr(kind, "_is_stateful", False) or layers & {"conv", "linear_attention", "mamba"}:
        why = (
            "some or all of its layers have a state (SSM, recurrent, convolution, linear attention)"
        )
    if why is None:
        return None
    return (
        f"{kind.__name__} (model type {config.model_type!r}) cannot be run layer by layer: {why}. "
        f"These can: {RUNS}."
    )


class LayerArguments(NamedTuple):
    """What the model gives a layer besides the residual stream."""

    args: tuple
    kwargs: dict[str, Any]


class LayerStack:
    """The decoder layers, final norm and unembedding of a Hugging Face causal language model.

    Residual streams ``[batch, seq, d_model]`` that go in and come out leave BOS out, where there is
    one.

    Args:
        model: a causal language model of `transformers`.
        bos: the token that every prompt starts with; None if prompts have no first token in common.
        recompute: where gradients are wanted, keep no activations inside layers, and compute them
            again on the way back: a third more work, a fraction of the memory.

    Raises:
        LayerError: the layers, the final norm or the unembedding cannot be found, or running layer
            by layer gives other logits than the model itself: the model does something between its
            layers or to its logits, or gives its layers what depends on the tokens.
    """

    def __init__(self, model: PreTrainedModel, bos: int | None = None, *, recompute: bool = False):
        self.model, self.bos, self.recompute = model, bos, recompute
        known = cannot_run(type(model), model.config)
        if known is not None:
            raise LayerError(known)
        config = model.config.get_text_config()
        self.layers = _decoder_layers(model, config.num_hidden_layers)
        self.head = _unembedding(model)
        self.soft_cap: float | None = getattr(config, "final_logit_softcapping", None)
        with _named(model):
            self._bos_cache = None if bos is None else cache_of_one_token(model, bos)
        self._arguments: dict[int, list[LayerArguments]] = {}

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def vocab_size(self) -> int:
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where tokens are embedded."""
        return next(self.model.get_input_embeddings().parameters()).device

    @property
    def first(self) -> int:
        """The column of the tokens at which residual streams begin: 1 where there is a BOS."""
        return 0 if self.bos is None else 1

    # -- the parts of a forward pass -----------------------------------------------------------

    @torch.no_grad()
    def embed(
        self, tokens: Int[Tensor, "batch seq_with_bos"]
    ) -> Float[Tensor, "batch seq d_model"]:
        """What layer 0 reads."""

        def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            raise _Stop(_residual_stream_and_rest(args, kwargs)[0])

        handle = self.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._call_model(tokens)
        except _Stop as stopped:
            return stopped.residual_stream
        finally:
            handle.remove()
        raise LayerError(f"{type(self.model).__name__} ran without calling its first layer.")

    def run(
        self,
        x: Float[Tensor, "batch seq d_model"],
        layers: range,
        arguments: list[LayerArguments] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Run some layers, e.g. ``range(6, 12)``, on what the first of them reads.

        Args:
            arguments: what each of the model's layers is given besides, where that is not what
                prompts of this length get; see `read_on`.
        """
        for layer in layers:
            if self.recompute and x.requires_grad:
                x = checkpoint(self._run_layer, layer, x, arguments, use_reentrant=False)
            else:
                x = self._run_layer(layer, x, arguments)
        return x

    @torch.no_grad()
    def read_on(
        self, tokens: Int[Tensor, "batch seq_with_bos"], n_last: int
    ) -> tuple[Float[Tensor, "batch n_last d_model"], list[LayerArguments]]:
        """Run prompts of one length up to their last tokens; what it takes to run those alone.

        Args:
            n_last: how many tokens are left. BOS cannot be among them.

        Returns:
            What layer 0 reads at the last tokens, and what `run` needs as ``arguments`` to go on:
            the keys and values of all tokens before them, among others.
        """
        before, last = tokens.to(self.device).tensor_split([tokens.shape[1] - n_last], dim=1)
        with _named(self.model):
            cache = frozen_cache(self.model, before)
            calls = self._record_calls(last, cache)
        return calls[0][0], [arguments for _, arguments in calls]

    def walk(
        self, tokens: Int[Tensor, "batch seq_with_bos"], layers: Iterable[int]
    ) -> Iterator[tuple[int, Float[Tensor, "batch seq d_model"]]]:
        """One forward pass that shows the residual stream after some layers: (layer, x), in order.

        No layer after the last of them is run.
        """
        yield from self.walk_on(self.embed(tokens), -1, layers)

    def walk_on(
        self, x: Float[Tensor, "batch seq d_model"], after: int, layers: Iterable[int]
    ) -> Iterator[tuple[int, Float[Tensor, "batch seq d_model"]]]:
        """`walk` from the residual stream after one layer on."""
        for layer in sorted(set(layers)):
            x, after = self.run(x, range(after + 1, layer + 1)), layer
            yield layer, x

    def finish(
        self,
        x: Float[Tensor, "batch seq d_model"],
        after: int,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        """From the residual stream after a layer to the final norm's output at the last position.

        Args:
            after: the layer after which ``x`` stands.
            lengths: tokens in each prompt, BOS included; None if all are of one length.
        """
        x = self.run(x, range(after + 1, self.n_layers))
        return self.norm(self.last(x, lengths))

    def last(
        self, x: Float[Tensor, "batch seq d_model"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch d_model"]:
        """The residual stream at each prompt's last token; ``lengths`` as for `finish`."""
        if lengths is None:
            return x[:, -1]
        rows = torch.arange(len(x), device=x.device)
        return x[rows, lengths.to(x.device) - 1 - self.first]

    def norm(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The final norm."""
        return self.final_norm(x)

    def logits(self, normed: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """A logit for every token of the vocabulary."""
        return self._capped(self.head(normed))

    def logits_of(
        self, normed: Float[Tensor, "batch d_model"], tokens: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The logit of one token per prompt, in float32: one row of the unembedding matrix each."""
        logits = (normed.float() * self.head.weight[tokens].float()).sum(-1)
        if self.head.bias is not None:
            logits = logits + self.head.bias[tokens].float()
        return self._capped(logits)

    def _capped(self, logits: Tensor) -> Tensor:
        if self.soft_cap is None:
            return logits
        return self.soft_cap * torch.tanh(logits / self.soft_cap)

    def _run_layer(
        self, layer: int, x: Tensor, arguments: list[LayerArguments] | None = None
    ) -> Tensor:
        args, kwargs = (arguments or self._arguments_for(x.shape[1]))[layer]
        output = self.layers[layer](x, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    # -- what the model gives its layers -------------------------------------------------------

    def _call_model(self, tokens: Int[Tensor, "batch seq"], cache: Cache | None = None) -> None:
        """The model's own forward pass: after the tokens of a cache; by default, on whole prompts,
        with BOS in the cache where there is one.
        """
        tokens = tokens.to(self.device)
        if cache is None and self._bos_cache is not None:
            tokens, cache = tokens[:, 1:], self._bos_cache
        if cache is None:
            self.model(tokens, use_cache=False, logits_to_keep=1)
        else:
            _run_after(self.model, tokens, cache)

    def _arguments_for(self, seq: int) -> list[LayerArguments]:
        """Each layer's arguments for prompts of ``seq`` tokens without BOS; checked when new."""
        if seq not in self._arguments:
            try:
                with _named(self.model):
                    self._arguments[seq] = self._record_arguments(self._some_tokens(seq))
                    self._compare_with_the_model(seq)
            except BaseException:  # what was not found right is not kept
                self._arguments.pop(seq, None)
                raise
        return self._arguments[seq]

    def _some_tokens(self, seq: int, start: int = 0) -> Int[Tensor, "1 seq_with_bos"]:
        """A prompt of ``seq`` tokens after BOS, which are ``start``, ``start + 1``, …"""
        tokens = (torch.arange(seq + self.first, device=self.device) + start) % self.vocab_size
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens[None]

    def _record_arguments(self, tokens: Int[Tensor, "1 seq_with_bos"]) -> list[LayerArguments]:
        """What the model gives each layer for whole prompts, besides the residual stream."""
        return [arguments for _, arguments in self._record_calls(tokens)]

    @torch.no_grad()
    def _record_calls(
        self, tokens: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> list[tuple[Tensor, LayerArguments]]:
        """Run the model once, as `_call_model` does, and note what it gives each layer."""
        calls: dict[nn.Module, tuple[Tensor, LayerArguments]] = {}

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            calls[module] = _residual_stream_and_rest(args, kwargs)

        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.layers]
        try:
            self._call_model(tokens, cache)
        finally:
            for handle in handles:
                handle.remove()
        if len(calls) < self.n_layers:
            raise LayerError(f"{type(self.model).__name__} did not call all of its layers.")
        return [calls[layer] for layer in self.layers]

    @cached_property
    def final_norm(self) -> nn.Module:
        """The final norm: the module outside the layers whose output is the body's output."""
        body = self.model.base_model
        inside = {module for layer in self.layers for module in layer.modules()}
        outputs: list[tuple[nn.Module, Any]] = []

        def note(module: nn.Module, args: tuple, output: Any) -> None:
            outputs.append((module, output))

        others = [m for m in body.modules() if m not in inside and m is not self.layers]
        handles = [module.register_forward_hook(note) for module in others]
        try:
            with torch.no_grad():
                self._call_model(self._some_tokens(2))
        finally:
            for handle in handles:
                handle.remove()
        [last] = [output[0] for module, output in outputs if module is body]
        norms = [
            module
            for module, output in outputs
            if module is not body
            and isinstance(output, Tensor)
            and output.data_ptr() == last.data_ptr()
        ]
        if not norms:
            name = type(self.model).__name__
            raise LayerError(f"{name}: no norm found between the last layer and the unembedding.")
        return norms[-1]

    def _compare_with_the_model(self, seq: int) -> None:
        """Raise `LayerError` unless the recorded arguments are right for another number of prompts
        than they were recorded on, and for other tokens.
        """
        name, recorded = type(self.model).__name__, self._some_tokens(seq)
        starts = (self.vocab_size // 3, self.vocab_size // 2)
        error = self._error_on(torch.cat([self._some_tokens(seq, start) for start in starts]))
        if error is None:
            return
        if self._error_on(recorded) is None:
            raise LayerError(
                f"{name} gives its layers something that depends on the tokens (as Gemma 3n does "
                "with its embeddings per layer). Run layer by layer, with what was recorded on one "
                f"prompt, its logits for another are {error:.1%} away from its own. Models whose "
                "layers read the residual stream alone can be run."
            )
        raise LayerError(
            f"{name}, run layer by layer, gives logits that are {error:.1%} away from its own: it "
            "does something between its layers, or to its logits, that is not known here."
        )

    @torch.no_grad()
    def _error_on(self, tokens: Int[Tensor, "batch seq_with_bos"]) -> float | None:
        """How far the logits are from the model's own, as a share of the largest; None where that
        is rounding.
        """
        own = self.model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        normed = self.finish(self.embed(tokens), after=-1)
        logits = self.logits(normed).float()
        error = ((logits - own).abs().max() / own.abs().max()).item()
        is_rounding = error < (1e-3 if normed.dtype == torch.float32 else 0.1)
        return None if is_rounding else error


# ---------------------------------------------------------------------------------------------
# Finding the parts
# ---------------------------------------------------------------------------------------------


def _decoder_layers(model: PreTrainedModel, n_layers: int) -> nn.ModuleList:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if len(lists) != 1:
        raise LayerError(
            f"{type(model).__name__}: one list of {n_layers} layers is wanted, and there are "
            f"{len(lists)}."
        )
    return lists[0]


def _unembedding(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise LayerError(
            f"{type(model).__name__} has no unembedding: a causal language model is wanted."
        )
    return head


@contextlib.contextmanager
def _named(model: PreTrainedModel) -> Iterator[None]:
    """Errors of an architecture that nobody tried say which it is. Those that are not about it stay
    as they are: too little memory, and `LayerError`.
    """
    try:
        yield
    except (LayerError, torch.OutOfMemoryError):
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise LayerError(
            f"{type(model).__name__} (model type {model.config.model_type!r}) cannot be run layer "
            f"by layer: {said}. These can: {RUNS}."
        ) from error


class _Stop(Exception):
    """Ends a forward pass early, and carries what the first layer was to read."""

    def __init__(self, residual_stream: Tensor):
        self.residual_stream = residual_stream


def _residual_stream_and_rest(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, LayerArguments]:
    """A layer's residual stream, and its other arguments."""
    if args:
        return args[0], LayerArguments(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), LayerArguments((), rest)


# ---------------------------------------------------------------------------------------------
# What was read, in a cache
# ---------------------------------------------------------------------------------------------


def cache_of_one_token(model: PreTrainedModel, token: int) -> Cache:
    """The keys and values of one token, for batches of any size."""
    device = next(model.get_input_embeddings().parameters()).device
    return frozen_cache(model, torch.tensor([[token]], device=device))


@torch.no_grad()
def frozen_cache(model: PreTrainedModel, tokens: Int[Tensor, "batch seq"]) -> Cache:
    """The keys and values of prompts of one length, in a cache that stays as it is.

    That of a single prompt is for batches of any size. All that the course takes from transformers'
    cache classes is here and in `_Frozen`.
    """
    cache = DynamicCache()
    filled = _run_after(model, tokens, cache).past_key_values
    return Cache(layers=[_Frozen(layer.keys, layer.values) for layer in filled.layers])


def _run_after(model: PreTrainedModel, tokens: Int[Tensor, "batch seq"], cache: Cache) -> Any:
    """Run a model after what is in a cache, for what it puts there and gives its layers.

    One prompt goes through all of the model, so that one which adds something to its layers'
    arguments is found out. Many do not come to the unembedding: for the last token of each of
    them torch would copy it (15 GB for 32 prompts of qwen-coder).
    """
    if len(tokens) == 1:
        return model(tokens, use_cache=True, past_key_values=cache, logits_to_keep=1)
    return model.base_model(tokens, use_cache=True, past_key_values=cache)


class _Frozen(DynamicLayer):
    """A layer's cache that holds what it was given, whatever comes after it."""

    def __init__(
        self,
        keys: Float[Tensor, "batch heads seq d_head"],
        values: Float[Tensor, "batch heads seq d_value"],
    ):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._given = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = (x.expand(len(key_states), -1, -1, -1) for x in self._given)
        keys, values = keys.to(key_states.device), values.to(value_states.device)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
