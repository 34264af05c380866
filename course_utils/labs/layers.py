"""The model's layers, one by one: a forward pass that starts anywhere.

A forward pass of `transformers` begins at the embedding and ends with a logit for every word.
Learning a mask runs it again and again on the same prompts, and most of it comes out the same each
time: all that lies before the first SAE, all that happens at BOS, and all logits but two.
`LayerStack` runs what is left:

    tokens → embed → layers 0 … k → x              once per prompt
    x' in x's place → layers k+1 … n → norm        at every step; gradients flow
    → one column of the unembedding per answer

Layers are called with the arguments that the model itself gives them (masks, rotary angles, …),
recorded once for each length of prompt, so that nothing here knows one architecture from another.
Attention is causal: BOS sees only itself, its keys and values never change, and the other tokens
find them in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class LayerError(RuntimeError):
    """A model that cannot be run layer by layer; the message says what does not fit."""


class LayerStack:
    """The decoder layers, final norm and unembedding of a Hugging Face causal language model.

    Residual streams ``[batch, seq, d_model]`` that go in and come out leave BOS out, where there is
    one.

    Args:
        model: any causal language model of `transformers`.
        bos: the token that every prompt starts with; None if prompts have no first token in common.
        recompute: where gradients are wanted, keep no activations inside layers, and compute them
            again on the way back: a third more work, a fraction of the memory.

    Raises:
        LayerError: the layers, the final norm or the unembedding cannot be found, or running layer
            by layer gives other logits than the model itself.
    """

    def __init__(self, model: nn.Module, bos: int | None = None, *, recompute: bool = False):
        self.model, self.bos, self.recompute = model, bos, recompute
        config = model.config.get_text_config()
        lists = [
            m
            for m in model.modules()
            if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers
        ]
        if len(lists) != 1:
            raise LayerError(
                f"{type(model).__name__}: wanted one list of {config.num_hidden_layers} layers, found {len(lists)}."
            )
        self.layers = lists[0]
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise LayerError(
                f"{type(model).__name__} has no unembedding: a causal language model is wanted."
            )
        self.vocab = self.head.weight.shape[0]
        self.soft_cap = getattr(config, "final_logit_softcapping", None)
        self._bos_cache = None if bos is None else self._cache_bos(bos)
        self._recorded: dict[int, _Recorded] = {}

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    # -- the parts of a forward pass -----------------------------------------------------------

    @torch.no_grad()
    def embed(
        self, tokens: Int[Tensor, "batch seq_with_bos"]
    ) -> Float[Tensor, "batch seq d_model"]:
        """What layer 0 reads."""

        def stop(module, args, kwargs):
            raise _Stop(_split_hidden(args, kwargs)[0])

        handle = self.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._call_model(tokens)
        except _Stop as stopped:
            return stopped.hidden
        finally:
            handle.remove()
        raise LayerError(f"{type(self.model).__name__} ran without calling its first layer.")

    def run(
        self, x: Float[Tensor, "batch seq d_model"], layers: range
    ) -> Float[Tensor, "batch seq d_model"]:
        """Run some layers, e.g. ``range(6, 12)``, on what the first of them reads."""
        for layer in layers:
            if self.recompute and x.requires_grad:
                x = checkpoint(self._run_layer, layer, x, use_reentrant=False)
            else:
                x = self._run_layer(layer, x)
        return x

    def _run_layer(self, layer: int, x: Tensor) -> Tensor:
        args, kwargs = self._record(x.shape[1]).arguments[layer]
        return _hidden_of(self.layers[layer](x, *args, **kwargs))

    def norm(self, x: Float[Tensor, "batch d_model"], seq: int) -> Float[Tensor, "batch d_model"]:
        """The final norm, for prompts of ``seq`` tokens without BOS."""
        return self._record(seq).norm(x)

    def logits(self, normed: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
        """A logit for every token of the vocabulary."""
        return self._capped(self.head(normed))

    def logits_of(
        self, normed: Float[Tensor, "batch d_model"], tokens: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The logit of one token for each prompt, in float32: one row of the unembedding matrix
        each.
        """
        logits = (normed.float() * self.head.weight[tokens].float()).sum(-1)
        if self.head.bias is not None:
            logits = logits + self.head.bias[tokens].float()
        return self._capped(logits)

    def _capped(self, logits: Tensor) -> Tensor:
        return (
            logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)
        )

    # -- what the model gives its layers -------------------------------------------------------

    def _call_model(self, tokens: Int[Tensor, "batch seq_with_bos"]):
        """The model's own forward pass, with BOS in the cache where there is one."""
        tokens = tokens.to(self.device)
        if self._bos_cache is None:
            return self.model(tokens, use_cache=False, logits_to_keep=1)
        return self.model(
            tokens[:, 1:], use_cache=True, past_key_values=self._bos_cache, logits_to_keep=1
        )

    @torch.no_grad()
    def _cache_bos(self, bos: int) -> Cache:
        seen = self.model(
            torch.tensor([[bos]], device=self.device),
            use_cache=True,
            past_key_values=DynamicCache(),
        ).past_key_values
        return Cache(layers=[_OneToken(layer.keys, layer.values) for layer in seen.layers])

    @torch.no_grad()
    def _record(self, seq: int) -> _Recorded:
        """The arguments of every layer, and the final norm, for prompts of ``seq`` tokens without
        BOS.
        """
        if seq in self._recorded:
            return self._recorded[seq]
        arguments: list[Any] = [None] * self.n_layers
        outputs: list[tuple[nn.Module, Tensor]] = []

        def remember_arguments(layer: int):
            def hook(module, args, kwargs):
                arguments[layer] = _split_hidden(args, kwargs)[1:]

            return hook

        def remember_output(module, args, output):
            outputs.append((module, output))

        base = self.model.base_model
        inside = {id(m) for layer in self.layers for m in layer.modules()}
        others = [
            m
            for m in base.modules()
            if id(m) not in inside and m is not base and m is not self.layers
        ]
        handles = [
            layer.register_forward_pre_hook(remember_arguments(i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        handles += [m.register_forward_hook(remember_output) for m in others]
        handles.append(
            base.register_forward_hook(
                lambda module, args, output: outputs.append((None, output[0]))
            )
        )
        tokens = (torch.arange(seq + (self.bos is not None), device=self.device) % self.vocab)[None]
        if self.bos is not None:
            tokens[0, 0] = self.bos
        try:
            self._call_model(tokens)
        finally:
            for handle in handles:
                handle.remove()
        name = type(self.model).__name__
        if any(argument is None for argument in arguments):
            raise LayerError(f"{name} did not call all of its layers.")
        last = outputs[-1][1]
        norms = [
            module
            for module, output in outputs[:-1]
            if isinstance(output, Tensor) and output.data_ptr() == last.data_ptr()
        ]
        if not norms:
            raise LayerError(f"{name}: no norm found between the last layer and the unembedding.")
        self._recorded[seq] = _Recorded(arguments, norms[-1])
        try:
            self._compare_with_the_model(tokens)
        except LayerError:
            del self._recorded[seq]
            raise
        return self._recorded[seq]

    def _compare_with_the_model(self, tokens: Int[Tensor, "1 seq_with_bos"]) -> None:
        expected = self.model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        x = self.run(self.embed(tokens), range(self.n_layers))[:, -1]
        found = self.logits(self.norm(x, tokens.shape[1] - (self.bos is not None))).float()
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error < (1e-3 if expected.dtype == x.dtype else 0.1):
            raise LayerError(
                f"{type(self.model).__name__}, run layer by layer, gives logits that are {error:.1%} away from its own: it does "
                "something between its layers, or to its logits, that is not known here."
            )


@dataclass(frozen=True)
class _Recorded:
    """For one length of prompt: the arguments of each layer besides the residual stream, and the
    final norm.
    """

    arguments: list[tuple[tuple, dict]]
    norm: nn.Module


class _OneToken(DynamicLayer):
    """A layer's cache that holds one token and stays as it is, whatever comes after; for batches of
    any size.
    """

    def __init__(
        self, keys: Float[Tensor, "1 heads 1 d_head"], values: Float[Tensor, "1 heads 1 d_head"]
    ):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        keys, values = (
            x.expand(len(key_states), -1, -1, -1).to(key_states.device)
            for x in (self.keys, self.values)
        )
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class _Stop(Exception):
    """Ends a forward pass early, and carries what the first layer was to read."""

    def __init__(self, hidden: Tensor):
        self.hidden = hidden


def _split_hidden(args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
    """A layer's residual stream, and its other arguments."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


def _hidden_of(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
