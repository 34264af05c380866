"""Attention heads: what they ask, offer and write, to be read and to be changed.

A head at a position asks with a *query*, is answered by *keys*, and what it writes is the mean of
*values*, weighted by its *pattern*:

    pattern = softmax(query · keys / √d_head),   out = pattern @ values,   x ← x + W_O out

Each of them is a node that one can patch: give it, at one position, the value that it has on the
patch prompt, and see how far the logit difference falls (`head_effects`). Where heads share keys
and values (grouped-query attention: SmolLM2 has 9 heads and 3 sets of keys), a key is one node for
all heads that read it.

`Heads` runs the lab's own layers with an attention function of its own in the place of theirs:
`transformers` lets one be registered by name. So it sees queries and keys as they meet in the
softmax: after rotary embeddings, norms and the cache. That the logits are the model's own is
checked at the start.

Positions count the columns of the tokens, BOS included. BOS has keys and values, but no query and
no output that could differ between prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from course_utils.circuits.splice import Run, batches
from course_utils.labs.catalog import LabError
from course_utils.labs.lab import Lab
from course_utils.labs.layers import LayerStack
from course_utils.prompts.tasks import Task

Kind = Literal["out", "query", "key", "value"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NAME = "course_heads"
"""The name of the attention function while it is registered."""


class HeadNode(NamedTuple):
    """One part of one attention head at one position.

    Attributes:
        layer: 0 is the first.
        kind: ``"out"``, what the head writes, before W_O; ``"query"``, ``"key"`` or ``"value"``.
        head: which head; for keys and values, which of the ``n_kv_heads``.
        position: a column of the tokens, BOS included.
    """

    layer: int
    kind: Kind
    head: int
    position: int


@dataclass
class Attention:
    """One layer's attention on a batch of prompts, by head.

    Keys, values and the pattern's last dimension have a row for BOS; queries, outputs and the
    pattern's rows begin at the first token after it.

    Attributes:
        query, out: ``[batch, n_heads, seq, d_head]``; the output is before W_O.
        key, value: ``[batch, n_kv_heads, seq_with_bos, d_head]``.
        pattern: ``[batch, n_heads, seq, seq_with_bos]``; each row sums to 1.
        logits: the same before the softmax, scaled, with −∞ where nothing is seen.
        scaling, softcap: of the logits; see `attention_logits`.
    """

    query: Float[Tensor, "batch n_heads seq d_head"]
    key: Float[Tensor, "batch n_kv_heads seq_with_bos d_head"]
    value: Float[Tensor, "batch n_kv_heads seq_with_bos d_head"]
    logits: Float[Tensor, "batch n_heads seq seq_with_bos"]
    pattern: Float[Tensor, "batch n_heads seq seq_with_bos"]
    out: Float[Tensor, "batch n_heads seq d_head"]
    scaling: float | None = None
    softcap: float | None = None

    def part(self, kind: Kind) -> Tensor:
        """Queries, keys, values or outputs."""
        return getattr(self, kind)


@dataclass
class HeadRun(Run):
    """What a forward pass of `Heads.run` saw, besides what a `Run` has.

    Attributes:
        attention: by layer.
        resid: by layer, ``[batch, seq, d_model]`` without BOS: what the layer reads. After the last
            layer there is one more: what the final norm reads.
    """

    attention: dict[int, Attention] = field(default_factory=dict)
    resid: dict[int, Float[Tensor, "batch seq d_model"]] = field(default_factory=dict, repr=False)


Changes = Mapping[tuple[int, str], Callable[[Tensor], Tensor]]
"""By (layer, kind): what to make of the queries, keys, values, outputs or the ``"pattern"``."""


class Heads:
    """A lab's model, with its attention heads open.

    Args:
        lab: the model. Its SAEs are not used.

    Attributes:
        n_layers, n_heads, n_kv_heads, d_head: of the model.

    Raises:
        LabError: a model whose attention cannot be opened: it does not go through the attention
            functions of `transformers`, or does more than softmax(query · keys) (sinks, biases).
    """

    def __init__(self, lab: Lab):
        self.lab, self.stack = lab, lab.stack
        self.n_layers = self.stack.n_layers
        bos = () if self.stack.bos is None else (self.stack.bos,)
        tokens = torch.tensor([[*bos, 1, 2, 3, 4]])
        run = self.run(tokens)
        known = self.stack.finish(self.stack.embed(tokens), after=-1)
        if len(run.attention) < self.n_layers or not _same(run.normed, known):
            raise LabError(
                f"the attention of {type(lab.hf_model).__name__} cannot be opened: it is not the "
                "softmax of queries and keys that it gives to transformers' attention functions. "
                "Llama, Mistral, Qwen, Gemma, OLMo, StableLM and GPT-NeoX are known to work."
            )
        some = run.attention[0]
        self.n_heads, self.d_head = some.query.shape[1], some.query.shape[3]
        self.n_kv_heads = some.key.shape[1]

    @property
    def first(self) -> int:
        """The first column of the tokens that has queries and outputs: 1 where column 0 is BOS."""
        return self.stack.first

    @property
    def group(self) -> int:
        """How many heads read each set of keys and values."""
        return self.n_heads // self.n_kv_heads

    def run(
        self,
        prompts: Int[Tensor, "batch seq"] | Float[Tensor, "batch seq d_model"],
        *,
        layer: int = 0,
        changes: Changes | None = None,
        track: bool = False,
        keep: bool = True,
    ) -> HeadRun:
        """A forward pass of prompts of one length.

        Args:
            prompts: tokens; or the residual stream that ``layer`` reads, without BOS, to start
                there.
            layer: where to start; 0 for tokens.
            changes: what to change on the way.
            track: build the graph from the start on, so that all that is seen has gradients.
            keep: keep what is seen. Without, only the output is.
        """
        x = prompts if prompts.is_floating_point() else self.stack.embed(prompts)
        run = HeadRun(torch.empty(0, x.shape[-1]), self.stack)
        with torch.set_grad_enabled(track), attending(self.stack, changes, run.attention, keep):
            x = x.detach().requires_grad_() if track and not x.requires_grad else x
            for number in range(layer, self.n_layers):
                if keep:
                    run.resid[number] = x
                x = self.stack.run(x, range(number, number + 1))
            if keep:
                run.resid[self.n_layers] = x
            run.normed = self.stack.finish(x, self.n_layers - 1)
        return run

    def W_O(self, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
        """What each head's output is multiplied with on its way into the residual stream.

        Raises:
            LabError: a layer without an ``o_proj`` of its own, as in GPT-2.
        """
        weight = _projection(self.stack, layer, "o_proj").weight
        return weight.T.reshape(self.n_heads, self.d_head, -1)

    def W_V(self, layer: int) -> Float[Tensor, "n_kv_heads d_model d_head"]:
        """What makes values of the layer's normed input.

        Raises:
            LabError: a layer without a ``v_proj`` of its own, as in GPT-2.
        """
        weight = _projection(self.stack, layer, "v_proj").weight
        return weight.reshape(self.n_kv_heads, -1, weight.shape[1]).transpose(1, 2)

    def nodes(self, kind: Kind, positions: Iterable[int]) -> list[HeadNode]:
        """All nodes of one kind at some positions, layer by layer."""
        n = self.n_kv_heads if kind in ("key", "value") else self.n_heads
        positions = list(positions)
        layers = range(self.n_layers)
        return [
            HeadNode(layer, kind, h, p) for layer in layers for h in range(n) for p in positions
        ]

    def row(self, node: HeadNode) -> int:
        """Where a node's position is among the rows of its part.

        Raises:
            ValueError: no such kind, layer or head; BOS, which is the same in every prompt.
        """
        n = self.n_kv_heads if node.kind in ("key", "value") else self.n_heads
        if node.kind not in KINDS:
            raise ValueError(f"a node is one of {', '.join(KINDS)}, not {node.kind!r}.")
        if not (0 <= node.layer < self.n_layers and 0 <= node.head < n):
            raise ValueError(
                f"{node}: there are layers 0 to {self.n_layers - 1}, with {self.n_heads} heads and "
                f"{self.n_kv_heads} sets of keys and values."
            )
        if node.position < self.first:
            raise ValueError(f"{node}: BOS is the same in every prompt; positions start at 1.")
        return node.position if node.kind in ("key", "value") else node.position - self.first


# ---------------------------------------------------------------------------------------------
# The attention function
# ---------------------------------------------------------------------------------------------


@contextmanager
def attending(
    stack: LayerStack,
    changes: Changes | None = None,
    seen: dict[int, Attention] | None = None,
    keep: bool = True,
) -> Iterator[None]:
    """While this is open, the model's layers attend by `attend`, with changes, and what they see is
    put into ``seen``.
    """
    function = _AttentionFunction(stack, changes or {}, seen if keep else None)
    config = stack.model.config.get_text_config()
    before = config._attn_implementation
    if before == NAME:
        raise RuntimeError("one attention function is in place already: leave its context first.")
    # masks are to be what they were, since the stack keeps them for later
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[before])
    ALL_ATTENTION_FUNCTIONS[NAME] = function
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[NAME]


class _AttentionFunction:
    """What `transformers` calls in a layer's place: attends, shows and changes."""

    def __init__(self, stack: LayerStack, changes: Changes, seen: dict[int, Attention] | None):
        self.changes, self.seen = changes, seen
        self.layer_of: dict[nn.Module, int] = {
            module: number
            for number, layer in enumerate(stack.layers)
            for module in layer.modules()
        }

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        softcap: float | None = None,
        **ignored: Any,
    ) -> tuple[Tensor, Tensor]:
        layer = self.layer_of[module]
        query, key, value = (
            self._changed(layer, kind, part)
            for kind, part in (("query", query), ("key", key), ("value", value))
        )
        logits = attention_logits(query, key, attention_mask, scaling, softcap)
        pattern = self._changed(layer, "pattern", logits.softmax(-1).to(value.dtype))
        out = self._changed(layer, "out", pattern @ per_head(value, query.shape[1]))
        if self.seen is not None:
            seen = Attention(query, key, value, logits, pattern, out, scaling, softcap)
            self.seen[layer] = seen
        return out.transpose(1, 2).contiguous(), pattern

    def _changed(self, layer: int, kind: str, part: Tensor) -> Tensor:
        change = self.changes.get((layer, kind))
        return part if change is None else change(part)


def per_head(shared: Float[Tensor, "batch n_kv_heads seq d"], n_heads: int) -> Tensor:
    """Keys or values, repeated for each head that reads them: ``[batch, n_heads, seq, d]``."""
    return shared.repeat_interleave(n_heads // shared.shape[1], dim=1)


def attention_logits(
    query: Float[Tensor, "batch n_heads seq d_head"],
    key: Float[Tensor, "batch n_kv_heads seq_k d_head"],
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch n_heads seq seq_k"]:
    """What the softmax is taken of, in float32; −∞ where a query does not see a key.

    Args:
        mask: booleans (True: seen) or what is added; None where each query sees the keys up to its
            own, which are the last ones.
        scaling: 1/√d_head by default.
        softcap: Gemma 2's bound on the logits.
    """
    scale: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query @ per_head(key, query.shape[1]).transpose(2, 3)).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None:
        seq, seq_k = logits.shape[-2:]
        mask = torch.ones(seq, seq_k, dtype=torch.bool, device=logits.device).tril(seq_k - seq)
    if mask.dtype != torch.bool:
        mask = mask > -1  # what hides a key adds a very large negative number
    return logits.masked_fill(~mask[..., : logits.shape[-1]], float("-inf"))


def _projection(stack: LayerStack, layer: int, name: str) -> nn.Linear:
    found = [m for n, m in stack.layers[layer].named_modules() if n.split(".")[-1] == name]
    if len(found) != 1 or not isinstance(found[0], nn.Linear):
        raise LabError(
            f"{type(stack.model).__name__} has no {name} per layer. Llama, Mistral, Qwen, "
            "Gemma and OLMo have."
        )
    return found[0]


def _same(found: Tensor, known: Tensor) -> bool:
    error = (found - known).abs().max() / known.abs().max()
    return error.item() < (1e-3 if known.dtype == torch.float32 else 0.1)


# ---------------------------------------------------------------------------------------------
# The truth, node by node
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def head_effects(
    heads: Heads,
    task: Task,
    nodes: Sequence[HeadNode],
    *,
    batch_size: int = 16,
    rows_at_once: int = 128,
    progress: bool = False,
) -> Float[Tensor, "nodes n"]:
    """The exact effect of each node on each prompt: how far LD falls when the node alone has the
    value that it has on the patch prompt (activation patching, Vig et al. 2020; Meng et al. 2022).

    Args:
        nodes: of any kinds. Positive effects mean that the node's clean value raises LD.
        batch_size: prompts that are run together.
        rows_at_once: prompts × nodes in one forward pass, which starts at the nodes' layer.

    Raises:
        ValueError: padded prompts; a node that is not there.
    """
    require_one_length(task)
    rows = [heads.row(node) for node in nodes]
    effects = torch.zeros(len(nodes), len(task))
    by_layer: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        by_layer.setdefault(node.layer, []).append(index)
    bar = tqdm(total=len(nodes) * len(task), desc="heads", unit="prompt", disable=not progress)
    with bar:
        done = 0
        for batch in batches(task, batch_size):
            clean, patch = heads.run(batch.clean), heads.run(batch.patch)
            ld = clean.logit_diff(batch)
            columns = slice(done, done + len(batch))
            for layer, indices in by_layer.items():
                source = patch.attention[layer]
                for some in _pieces(indices, max(1, rows_at_once // len(batch))):
                    patched = [(nodes[i], rows[i]) for i in some]
                    x = clean.resid[layer].repeat(len(some), 1, 1)
                    changes = _patches(patched, source, len(batch))
                    run = heads.run(x, layer=layer, changes=changes, keep=False)
                    repeated = batch[torch.arange(len(batch)).repeat(len(some))]
                    without = run.logit_diff(repeated).view(len(some), -1)
                    effects[some, columns] = (ld - without).float().cpu()
                    bar.update(len(some) * len(batch))
            done += len(batch)
    return effects


@torch.no_grad()
def blend(
    heads: Heads, task: Task, node: HeadNode, alphas: Float[Tensor, " steps"]
) -> tuple[Float[Tensor, "steps n n_heads seq_with_bos"], Float[Tensor, "steps n"]]:
    """Where the heads of a node's layer look from the last position, and the logit difference, as
    the node moves in a straight line from its clean value (0) to its patch value (1).

    Raises:
        ValueError: padded prompts; a node that is not there.
    """
    require_one_length(task)
    row = heads.row(node)
    clean, patch = heads.run(task.clean), heads.run(task.patch)
    start, end = (run.attention[node.layer].part(node.kind) for run in (clean, patch))
    patterns, logit_diffs = [], []
    for alpha in alphas:
        part = start.clone()
        part[:, node.head, row] = torch.lerp(start, end, alpha.to(start))[:, node.head, row]
        changes = {(node.layer, node.kind): lambda _, part=part: part}
        run = heads.run(clean.resid[node.layer], layer=node.layer, changes=changes)
        patterns.append(run.attention[node.layer].pattern[:, :, -1])
        logit_diffs.append(run.logit_diff(task))
    return torch.stack(patterns), torch.stack(logit_diffs)


@torch.no_grad()
def effect_with_layer_held(
    heads: Heads, task: Task, node: HeadNode, layer: int
) -> Float[Tensor, " n"]:
    """A node's true effect on each prompt if one later layer goes on writing what it wrote on the
    clean prompt: one path is cut.

    Raises:
        ValueError: padded prompts; a node that is not there; a layer that is not behind it.
    """
    require_one_length(task)
    row = heads.row(node)
    if not node.layer < layer < heads.n_layers:
        raise ValueError(f"layer {layer} is not behind layer {node.layer}, where the node is.")
    clean, patch = heads.run(task.clean), heads.run(task.patch)
    wrote = clean.resid[layer + 1] - clean.resid[layer]

    def hold(module: nn.Module, args: tuple, output: Any) -> Any:
        held = args[0] + wrote
        return (held, *output[1:]) if isinstance(output, tuple) else held

    handle = heads.stack.layers[layer].register_forward_hook(hold)
    try:
        source = patch.attention[node.layer]
        changes = _patches([(node, row)], source, len(task))
        run = heads.run(clean.resid[node.layer], layer=node.layer, changes=changes, keep=False)
    finally:
        handle.remove()
    return clean.logit_diff(task) - run.logit_diff(task)


def _pieces(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])


def _patches(
    nodes: Sequence[tuple[HeadNode, int]], source: Attention, n: int
) -> dict[tuple[int, str], Callable[[Tensor], Tensor]]:
    """Changes for a batch of copies of ``n`` prompts, one node patched in each copy."""

    def change(kind: Kind) -> Callable[[Tensor], Tensor]:
        values = source.part(kind)

        def patched(part: Tensor) -> Tensor:
            part = part.clone()
            for copy, (node, row) in enumerate(nodes):
                if node.kind == kind:
                    part[copy * n : (copy + 1) * n, node.head, row] = values[:, node.head, row]
            return part

        return patched

    layer = nodes[0][0].layer
    kinds: set[Kind] = {node.kind for node, _ in nodes}
    return {(layer, kind): change(kind) for kind in kinds}


def require_one_length(task: Task) -> None:
    """Raise ValueError for padded prompts."""
    if task.lengths is not None:
        raise ValueError(
            "heads are compared position by position: prompts of one length are wanted, and these "
            "are padded. Load the task without pad=True."
        )
