"""A circuit as a graph: nodes with what is known of each, and edges with signed weights.

A `CircuitGraph` says nothing about how it is drawn. Its nodes are latents at positions, or anything
else that stands in a row and a column: tokens, error terms, an answer. So an attribution graph is
one too. `measured_graph` makes the graph of a circuit of SAE latents from the model itself, and
`latent_graph` makes it from parts that were measured before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.circuits.explain import Context, LatentCard, contexts_by_layer, logit_lens
from course_utils.circuits.interventions import edge_effects, intervene
from course_utils.circuits.masks import Node
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import auc
from course_utils.prompts.tasks import Task

ANSWER = "answer"
"""The kind of the node on top: the logit difference."""
NO_KIND = "neither clearly"
"""The kind of a latent that no contrast tells apart."""
CLEAR = 0.8
"""From this separation on, or from 1 minus it down, a latent responds to a contrast."""
PLACED_LATENT = "latent {latent} · after layer {layer}"

PlacedNode = tuple[str, int, int]
"""(hook point, position, latent): a `Node` that has a position."""


# ---------------------------------------------------------------------------------------------
# The graph
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GraphNode:
    """A node, and what is known of it.

    Attributes:
        name: short, such as ``"3077"``; it is written beside the node.
        row, column: where it stands: indices of the graph's rows and columns.
        kind: what it is or responds to. Nodes of one kind look alike.
        words: a few words on it, written below its name.
        title: its full name; by default ``name``.
        effect: what it does to the answer (see `CircuitGraph.effect_means`); None if unmeasured.
        prompts: prompts with the node's value at each token, by what they are (``"this prompt"``);
            the peak is the node's own position.
        card: what is known of a latent whatever the prompt.
    """

    name: str
    row: int
    column: int
    kind: str
    words: str = ""
    title: str = ""
    effect: float | int | None = None
    prompts: Mapping[str, Context] = field(default_factory=dict)
    card: LatentCard | None = None

    @property
    def full_name(self) -> str:
        return self.title or self.name


@dataclass(frozen=True)
class GraphEdge:
    """What one node passes on to another.

    Attributes:
        source, target: indices of the graph's nodes.
        weight: with its sign; see `CircuitGraph.weight_means`.
    """

    source: int
    target: int
    weight: float | int


@dataclass(frozen=True)
class CircuitGraph:
    """Nodes in rows and columns, and edges between them.

    Attributes:
        rows: names of the rows, from the bottom up, such as ``"after layer 5"``.
        columns: names of the columns, from left to right, such as the tokens of a prompt. Columns
            without nodes are not drawn.
        nodes, edges: at least one node.
        weight_means: what an edge's weight is, with its unit.
        effect_means: what a node's effect is, with its unit.

    Raises:
        ValueError: no nodes; a node outside the rows or columns; an edge between nodes that do not
            exist, or from a node to itself; a weight that is no finite number.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...] = ()
    weight_means: str = "weight"
    effect_means: str = "effect"

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("nodes: the circuit has none, so there is nothing to draw.")
        for node in self.nodes:
            for place, names, what in (
                (node.row, self.rows, "row"),
                (node.column, self.columns, "column"),
            ):
                if not 0 <= place < len(names):
                    raise ValueError(
                        f"{node.full_name}: {what} {place}, and there are names for {len(names)}. "
                        f"Give a name for each {what}."
                    )
        for edge in self.edges:
            ends = {edge.source, edge.target}
            if len(ends) < 2 or not ends <= set(range(len(self.nodes))):
                raise ValueError(
                    f"an edge from node {edge.source} to node {edge.target}: it needs two "
                    f"different nodes from 0 to {len(self.nodes) - 1}."
                )
            if not math.isfinite(edge.weight):
                raise ValueError(
                    f"the edge from {self.nodes[edge.source].full_name} to "
                    f"{self.nodes[edge.target].full_name} has the weight {edge.weight}: leave such "
                    "edges out."
                )

    @property
    def kinds(self) -> list[str]:
        """Each kind once, the one with the most nodes first; `NO_KIND` and `ANSWER` come last."""
        counts = Counter(node.kind for node in self.nodes)
        return sorted(counts, key=lambda kind: (kind in (NO_KIND, ANSWER), -counts[kind], kind))

    def inputs(self, node: int) -> list[GraphEdge]:
        """The edges into a node, the strongest first."""
        return _by_strength(edge for edge in self.edges if edge.target == node)

    def outputs(self, node: int) -> list[GraphEdge]:
        """The edges out of a node, the strongest first."""
        return _by_strength(edge for edge in self.edges if edge.source == node)


def _by_strength(edges: Iterable[GraphEdge]) -> list[GraphEdge]:
    return sorted(edges, key=lambda edge: -abs(edge.weight))


# ---------------------------------------------------------------------------------------------
# What a latent responds to
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """Two groups of prompts that a latent may tell apart.

    Attributes:
        higher, lower: what the first and the second group have, such as ``"plural subject"`` and
            ``"singular subject"``.
        yes: which prompts are in the first group.
    """

    higher: str
    lower: str
    yes: Bool[Tensor, " n"]


def contrasts_of(task: Task, roles: Sequence[str]) -> list[Contrast]:
    """Contrasts from the task's cases, such as ``"plural_singular"``.

    Args:
        roles: what each part of a case is of, such as ``["subject", "distractor"]``.

    Raises:
        ValueError: a case with another number of parts; a part without exactly two values.
    """
    cases = [pair.case.split("_") for pair in task.pairs]
    wrong = [case for case in cases if len(case) != len(roles)]
    if wrong:
        raise ValueError(f"the case {'_'.join(wrong[0])!r} has not {len(roles)} parts: {roles}.")
    contrasts = []
    for place, role in enumerate(roles):
        values = sorted({case[place] for case in cases})
        if len(values) != 2:
            raise ValueError(
                f"{role}: two values are wanted in the task's cases, and there are {values}. "
                "Take more prompts."
            )
        first, second = values
        yes = torch.tensor([case[place] == first for case in cases])
        contrasts.append(Contrast(f"{first} {role}", f"{second} {role}", yes))
    return contrasts


def kind_of(values: Float[Tensor, " n"], contrasts: Sequence[Contrast]) -> str:
    """What a latent responds to: the first contrast whose separation is clear (`CLEAR`).

    Args:
        values: of the latent on each prompt.
    """
    for contrast in contrasts:
        separation = auc(values, contrast.yes)
        if separation >= CLEAR:
            return contrast.higher
        if separation <= 1 - CLEAR:
            return contrast.lower
    return NO_KIND


# ---------------------------------------------------------------------------------------------
# Of SAE latents
# ---------------------------------------------------------------------------------------------


def latent_graph(
    nodes: Sequence[Node],
    kinds: Sequence[str],
    words: Sequence[str],
    columns: Sequence[str],
    edges: Float[Tensor, "nodes nodes"],
    *,
    cards: Sequence[LatentCard] | None = None,
    prompts: Sequence[Mapping[str, Context]] | None = None,
    effects: Float[Tensor, " nodes"] | None = None,
    least: float | int = 0.1,
    answer: str = "",
) -> CircuitGraph:
    """The graph of a circuit of latents, from what was measured of them.

    A row for each layer. An edge joins nodes of neighbouring rows only, so that no edge is a detour
    through another SAE.

    Args:
        nodes: of masks per position.
        kinds, words: of each node; see `GraphNode`.
        columns: a label for every position of the prompts, BOS included.
        edges: entry (v, w) is what v passes on to w: see `interventions.edge_effects`.
        cards, prompts: of each node.
        effects: of each node on the answer: see `answer_effects`. With them there is one more node
            on top, the answer, and edges to it from the last row.
        least: edges of a smaller size are left out.
        answer: what is written below "logit difference", the name of the answer.

    Raises:
        ValueError: no nodes; a node without a position, or beyond the labels.
    """
    placed = _placed(nodes)
    layers = sorted({_layer_of(name) for name, _, _ in placed})
    rows = [f"after layer {layer}" for layer in layers]
    made = []
    for i, (name, position, latent) in enumerate(placed):
        title = PLACED_LATENT.format(latent=latent, layer=_layer_of(name))
        made.append(
            GraphNode(
                name=str(latent),
                row=layers.index(_layer_of(name)),
                column=position,
                kind=kinds[i],
                words=words[i],
                title=title,
                effect=None if effects is None else effects[i].item(),
                prompts={} if prompts is None else prompts[i],
                card=None if cards is None else cards[i],
            )
        )
    joined = [
        GraphEdge(v, w, edges[v, w].item())
        for v, w in (edges.abs() >= least).nonzero().tolist()
        if made[w].row == made[v].row + 1
    ]
    if effects is not None:
        rows.append("answer")
        top = len(layers), len(columns) - 1
        made.append(GraphNode("logit difference", *top, ANSWER, words=answer))
        joined += [
            GraphEdge(v, len(placed), effects[v].item())
            for v in range(len(placed))
            if made[v].row == len(layers) - 1 and abs(effects[v].item()) >= least
        ]
    return CircuitGraph(
        tuple(rows),
        tuple(columns),
        tuple(made),
        tuple(joined),
        weight_means="share of the receiver's change that an edge passes on",
        effect_means="share of the answer's change that the node makes alone",
    )


def measured_graph(
    spliced: SplicedModel,
    task: Task,
    nodes: Sequence[Node],
    texts: Int[Tensor, "n seq"],
    contrasts: Sequence[Contrast],
    *,
    columns: Sequence[str] | None = None,
    least: float | int = 0.1,
    answer: str = "",
) -> CircuitGraph:
    """The graph of a circuit: kinds, contexts, logit lens, values and edges, all measured here.

    Args:
        spliced: the model with its SAEs.
        task: what edges, kinds and values are measured on; its first prompt is the one shown.
        nodes: the circuit, of masks per position.
        texts: running text to look for contexts in, BOS first.
        contrasts: what a latent may respond to: see `contrasts_of`.
        columns: a label for each position; by default the task's.
        least: edges of a smaller size are left out.
        answer: what is written below "logit difference", the name of the answer.

    Raises:
        ValueError: no nodes; a node without a position, or beyond the labels.
    """
    placed = _placed(nodes)
    latents = spliced.run(task.clean).latents
    values = torch.stack([latents[name][:, p, i].cpu() for name, p, i in placed])
    kinds = [kind_of(row, contrasts) for row in values]
    by_layer: dict[int, list[int]] = {}
    for name, _, latent in placed:
        alike = by_layer.setdefault(_layer_of(name), [])
        if latent not in alike:
            alike.append(latent)
    contexts = contexts_by_layer(spliced.lab, by_layer, texts, k=3, skip=3)
    lens = {
        (layer, latent): tokens
        for layer, some in by_layer.items()
        for latent, tokens in logit_lens(spliced.lab, layer, some, k=6).items()
    }
    columns = list(task.position_labels) if columns is None else list(columns)
    cards, words = [], []
    last = max(by_layer)
    for (name, position, latent), kind in zip(placed, kinds):
        layer = _layer_of(name)
        title = PLACED_LATENT.format(latent=latent, layer=layer)
        says = f"At “{_one_line(columns[position])}” it responds to: {kind}."
        found, tokens = contexts[layer, latent], lens[layer, latent]
        cards.append(LatentCard(title, says, found, tokens["promotes"], tokens["suppresses"]))
        words.append(few_words(found, tokens["promotes"], last=layer == last))
    return latent_graph(
        placed,
        kinds,
        words,
        columns,
        edge_effects(spliced, task.clean, task.patch, placed),
        cards=cards,
        prompts=values_on_prompts(spliced, task, placed),
        effects=answer_effects(spliced, task, placed),
        least=least,
        answer=answer,
    )


def few_words(contexts: Sequence[Context], promotes: Sequence[str], *, last: bool) -> str:
    """Two words on a latent: those at which it fires most, or, after the last layer, two tokens
    that it promotes, behind an arrow.
    """
    if last:
        return "→ " + ", ".join(token.strip() for token in promotes[:2])
    peaks = dict.fromkeys(context.word for context in contexts)
    return ", ".join(list(peaks)[:2])


@torch.no_grad()
def answer_effects(
    spliced: SplicedModel, task: Task, nodes: Sequence[PlacedNode]
) -> Float[Tensor, " nodes"]:
    """The total effect of each node on the answer.

    Give a node alone its patch value, let what comes after it follow, and see how far the logit
    difference moves towards its own value on the patch prompts: Σ Δ·δ / Σ δ² over prompts, where δ
    is its whole change and Δ what it moves. 0 = not at all, 1 = all the way; below 0, the other
    way. The same measure as that of `interventions.edge_effects`.
    """
    clean, patch = spliced.run(task.clean), spliced.run(task.patch)
    before = clean.logit_diff(task).double()
    whole = patch.logit_diff(task).double() - before
    effects = []
    for name, position, latent in nodes:
        value = patch.latents[name][:, position, latent]
        run = intervene(spliced, clean.prefixes[name], {(name, position, latent): value})
        moved = run.logit_diff(task).double() - before
        effects.append((moved * whole).sum() / whole.pow(2).sum().clamp(min=1e-12))
    return torch.stack(effects).float().cpu()


@torch.no_grad()
def values_on_prompts(
    spliced: SplicedModel, task: Task, nodes: Sequence[PlacedNode]
) -> list[dict[str, Context]]:
    """Each latent's values on the first prompt of a task and on its patch prompt, token by token.

    BOS is left out.
    """
    first, both = spliced.first, {"this prompt": task.clean[:1], "its twin": task.patch[:1]}
    runs = {name: spliced.run(tokens).latents for name, tokens in both.items()}
    texts = {
        name: [spliced.lab.tokenizer.decode([token]) for token in tokens[0, first:].tolist()]
        for name, tokens in both.items()
    }
    found = []
    for hook_point, position, latent in nodes:
        values = {name: run[hook_point][0, first:, latent].tolist() for name, run in runs.items()}
        found.append(
            {name: Context(texts[name], values[name], position - first) for name in values}
        )
    return found


def _placed(nodes: Sequence[Node]) -> list[PlacedNode]:
    """The same nodes, each of which has a position."""
    placed = [(name, p, latent) for name, p, latent in nodes if p is not None]
    if not placed or len(placed) < len(nodes):
        raise ValueError(
            "nodes: a circuit of one node or more is wanted, each with a position. Learn masks per "
            "position, or give each node one."
        )
    return placed


def _layer_of(hook_point: str) -> int:
    return int(hook_point.split(".")[1])


def _one_line(label: str) -> str:
    return " ".join(label.split())
