"""Controls: what a circuit has to be better than, and other prompts that it has to work on.

Random nodes are an easy control. Most know nothing of the task, sit at other layers and positions
than the circuit, and lose to any node that knows anything. Here are harder ones:

- `same_places`: random nodes, each at the layer and position of one of the circuit's;
- `matched_nodes`: nodes there that tell the groups of prompts apart as well as the circuit's do;
- `best_separators`: those that tell them apart best, wherever they are. What a circuit does and
  these do not is more than knowing.

For completeness, `subsets_of_all_sizes` draws parts of a circuit of every size. For stability,
`split_by` parts prompts into halves that share no noun. And `moved` carries a circuit to prompts of
another shape, to see whether it is one of the behaviour or of the prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils.circuits.masks import Node, SAEMasks, Scores
from course_utils.prompts.tasks import Task

ROUNDING = 1e-6
"""Separations that differ by less are equal."""


# ---------------------------------------------------------------------------------------------
# Subsets of a circuit
# ---------------------------------------------------------------------------------------------


def subsets_of_all_sizes(nodes: Sequence[Node], n_subsets: int, *, seed: int) -> list[list[Node]]:
    """Random subsets whose sizes are drawn evenly from 1 … n − 1, for n nodes.

    Three ways to draw a subset have three distributions of its size. If each node is in it with
    probability 1/2, then sizes cluster at n/2 ± √n/2, and small and large ones are hardly tried.
    `masks.random_subsets` draws sizes evenly on a log scale, so that most are small. Here every
    size is as likely as every other. ∅ and the whole circuit are left out: each is one subset only,
    to be looked at for itself.

    Args:
        nodes: the circuit's.
        n_subsets: how many to draw; one may be drawn twice.
        seed: of the draws.

    Returns:
        Subsets, each in the order of ``nodes``.

    Raises:
        ValueError: fewer than two nodes.
    """
    if len(nodes) < 2:
        raise ValueError(f"a part of a circuit needs two nodes or more; there are {len(nodes)}.")
    generator = torch.Generator().manual_seed(seed)
    subsets = []
    for size in torch.randint(1, len(nodes), (n_subsets,), generator=generator).tolist():
        chosen = torch.randperm(len(nodes), generator=generator)[:size]
        subsets.append([nodes[i] for i in chosen.sort().values.tolist()])
    return subsets


# ---------------------------------------------------------------------------------------------
# Halves of the prompts
# ---------------------------------------------------------------------------------------------


def split_by(task: Task, groups: Sequence[Hashable], *, seed: int) -> tuple[Task, Task]:
    """Two parts of a task that share no group, of nearly the same size.

    Two halves of the *rows* share words, so that circuits learned on them agree partly since they
    saw the same words. Here whole groups go to one half or to the other, such as all prompts with
    one subject noun.

    The groups come in random order, and each goes to the half that has fewer prompts so far. So the
    halves differ by no more prompts than the largest group has.

    Args:
        task: the prompts; in each half they keep their order.
        groups: of each prompt, e.g. its subject noun.
        seed: of the order of the groups.

    Raises:
        ValueError: another number of groups than of prompts; all prompts in one group.
    """
    if len(groups) != len(task):
        raise ValueError(f"give one group per prompt: {len(groups)} groups, {len(task)} prompts.")
    rows_of: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    if len(rows_of) < 2:
        raise ValueError("all prompts are in one group, which cannot be parted.")
    generator = torch.Generator().manual_seed(seed)
    in_turn = list(rows_of.values())
    halves: tuple[list[int], list[int]] = ([], [])
    for i in torch.randperm(len(in_turn), generator=generator).tolist():
        min(halves, key=len).extend(in_turn[i])
    one, other = (task[sorted(half)] for half in halves)
    return one, other


# ---------------------------------------------------------------------------------------------
# Random nodes in the same places
# ---------------------------------------------------------------------------------------------


def same_places(nodes: Sequence[Node], pool: Iterable[Node], *, seed: int) -> list[Node]:
    """For each node a random other node of the pool at its layer and position, none twice.

    Args:
        nodes: the circuit's, which are never drawn.
        pool: what to draw from, e.g. all nodes that fire.
        seed: of the draws.

    Returns:
        A node for each node, in the same order.

    Raises:
        ValueError: the pool has fewer other nodes at a place than are wanted there.
    """
    ours = set(nodes)
    at_place: dict[tuple[str, int | None], list[Node]] = defaultdict(list)
    for node in dict.fromkeys(pool):
        if node not in ours:
            at_place[node[:2]].append(node)
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for place in dict.fromkeys(node[:2] for node in nodes):
        n_wanted, there = sum(node[:2] == place for node in nodes), at_place[place]
        if len(there) < n_wanted:
            raise ValueError(
                f"{_name(place)}: {n_wanted} other nodes are wanted there, and the pool has "
                f"{len(there)}. Give a larger pool."
            )
        drawn[place] = [there[i] for i in torch.randperm(len(there), generator=generator).tolist()]
    return [drawn[node[:2]].pop() for node in nodes]


# ---------------------------------------------------------------------------------------------
# Nodes that know as much
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def separations(
    latents: Mapping[str, Float[Tensor, "n seq d_sae"]], yes: Bool[Tensor, " n"]
) -> dict[str, Float[Tensor, "seq d_sae"]]:
    """How well every node tells two groups of prompts apart: its AUC, with its sign.

    The chance that the node's value on a ``yes`` prompt is above its value on another; ties count
    half. 1 = always above, 0 = always below, 0.5 = it does not care, as a node that never fires. A
    node with 0.1 separates as well as one with 0.9.

    It equals `statistics.auc` of every node, position by position, so that memory holds one
    position of one SAE at a time.

    Args:
        latents: by hook point, as `SplicedModel.run` gives them.
        yes: which prompts are in the first group, e.g. those with a plural subject.

    Returns:
        Separations by hook point, in float32.

    Raises:
        ValueError: a group without prompts; another number of prompts in ``yes`` than in the
            latents.
    """
    n_yes = int(yes.sum())
    if not 0 < n_yes < len(yes):
        raise ValueError(
            f"both groups need at least one prompt: {n_yes} of {len(yes)} prompts are in the first."
        )
    found = {}
    for name, f in latents.items():
        if len(f) != len(yes):
            raise ValueError(f"{name}: latents of {len(f)} prompts, and {len(yes)} in yes.")
        rows = [_auc(position, yes.to(f.device)) for position in f.unbind(1)]
        found[name] = torch.stack(rows)
    return found


def _auc(f: Float[Tensor, "n d_sae"], yes: Bool[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
    """`statistics.auc` of each column: how many of the others lie below each ``yes``."""
    wide = f.float() if f.dtype in (torch.float16, torch.bfloat16) else f
    above, others = (wide[rows].T.contiguous() for rows in (yes, ~yes))  # [d_sae, n of the group]
    others = others.sort(dim=1).values
    below = torch.searchsorted(others, above)
    below_or_equal = torch.searchsorted(others, above, right=True)
    pairs = 2 * above.shape[1] * others.shape[1]
    share = (below + below_or_equal).sum(1).cpu().double() / pairs
    return share.float().to(f.device)


@dataclass(frozen=True)
class Matched:
    """What `matched_nodes` found.

    Attributes:
        nodes: a node for each of the circuit's, in the same order.
        as_good: whether it separates the groups at least as well as the circuit's node, within the
            tolerance. Where False, it is the best that was left at that place.
        own, theirs: how well the circuit's nodes and the matched ones separate the groups, as
            |AUC − 0.5| + 0.5: 0.5 = not at all, 1 = perfectly.
    """

    nodes: list[Node]
    as_good: list[bool]
    own: list[float]
    theirs: list[float]

    @property
    def n_worse(self) -> int:
        """How many of the circuit's nodes have no match that separates as well."""
        return self.as_good.count(False)

    def __str__(self) -> str:
        n = len(self.nodes)
        own, theirs = (sum(values) / max(1, n) for values in (self.own, self.theirs))
        return (
            f"{n - self.n_worse} of {n} nodes have a match that separates the groups as well; "
            f"the mean separation is {theirs:.2f}, and {own:.2f} for the circuit."
        )


def matched_nodes(
    circuit_nodes: Sequence[Node],
    separations: Scores,
    *,
    tolerance: float = 0.0,
    forbidden: Collection[Node] = (),
    seed: int,
) -> Matched:
    """For each node of a circuit another one in its place that separates the groups as well.

    Its layer and position are the same, it is not in the circuit, and its separation is at least as
    far from 0.5. Of those that are good enough, one is drawn at random, and none twice. Where there
    is none, the best that is left there is taken. As many nodes as possible get a match that is
    good enough: those of the circuit that separate best choose first, and those that find none
    choose last.

    Measure separations on the prompts that the circuit was chosen on. The best of thousands of
    nodes look better there than they are, and so do the circuit's own. And mind nodes of the
    circuit that separate nothing: any node is as good, even one that never fires. Forbid those that
    never fire.

    Args:
        circuit_nodes: nodes with a position each.
        separations: the AUC of every node, from `separations`.
        tolerance: how much nearer to 0.5 a match may be and still be as good, in units of the AUC.
        forbidden: nodes that are not to be drawn either, e.g. those of other seeds' circuits.
        seed: of the draws.

    Raises:
        ValueError: a node without a position, or outside the separations; no node left at a place;
            a negative tolerance.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance must be 0 or more, not {tolerance}.")
    strength = {name: (auc - 0.5).abs().cpu() for name, auc in separations.items()}
    own = [_strength_of(node, strength) for node in circuit_nodes]
    free = _Free(strength, {*circuit_nodes, *forbidden})
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[int, Node] = {}
    best_first = sorted(range(len(own)), key=lambda i: -own[i])
    for i in best_first:
        enough = free.at(circuit_nodes[i]) >= own[i] - tolerance - ROUNDING
        candidates = enough.nonzero()[:, 0].tolist()
        if candidates:
            pick = int(torch.randint(len(candidates), (1,), generator=generator))
            chosen[i] = free.take(circuit_nodes[i], candidates[pick])
    as_good = [i in chosen for i in range(len(own))]
    for i in best_first:
        if i not in chosen:
            chosen[i] = free.take(circuit_nodes[i], int(free.at(circuit_nodes[i]).argmax()))
    nodes = [chosen[i] for i in range(len(own))]
    theirs = [_strength_of(node, strength) for node in nodes]
    return Matched(nodes, as_good, [0.5 + x for x in own], [0.5 + x for x in theirs])


def best_separators(separations: Scores, n: int, *, forbidden: Collection[Node] = ()) -> list[Node]:
    """The n nodes that tell the groups of prompts apart best, at any layer and position.

    Args:
        separations: the AUC of every node, from `separations`.
        n: how many.
        forbidden: nodes that are not to be taken, e.g. the circuit's.

    Returns:
        Nodes, best first: those whose AUC is farthest from 0.5, on either side.

    Raises:
        ValueError: fewer than n nodes that are not forbidden.
    """
    strength = {name: (auc - 0.5).abs().cpu() for name, auc in separations.items()}
    free = _Free(strength, forbidden).strength
    if sum(int((values >= 0).sum()) for values in free.values()) < n:
        raise ValueError(f"n={n} nodes were wanted, and fewer are left.")
    found = [
        (value, (name, *divmod(index, values.shape[1])))
        for name, values in free.items()
        for value, index in zip(
            *(part.tolist() for part in values.flatten().topk(min(n, values.numel())))
        )
    ]
    found.sort(key=lambda pair: -pair[0])
    return [node for _, node in found[:n]]


class _Free:
    """How well the nodes that may still be drawn separate the groups; −1 for those that may not."""

    def __init__(self, strength: Scores, taken: Iterable[Node]):
        self.strength = {name: values.clone() for name, values in strength.items()}
        for name, position, latent in taken:
            if name in self.strength:
                where = slice(None) if position is None else position
                self.strength[name][where, latent] = -1

    def at(self, node: Node) -> Float[Tensor, " d_sae"]:
        """All latents at the node's place."""
        name, position, _ = node
        assert position is not None  # `_strength_of` has seen the node
        return self.strength[name][position]

    def take(self, node: Node, latent: int) -> Node:
        """Draw a latent at the node's place, so that nobody else can."""
        if self.at(node)[latent] < 0:
            raise ValueError(f"{_name(node[:2])}: no other node is left there.")
        self.at(node)[latent] = -1
        return (*node[:2], latent)


def _strength_of(node: Node, strength: Scores) -> float:
    """|AUC − 0.5| of a node."""
    name, position, latent = node
    if name not in strength:
        raise ValueError(f"no separations for {name}; there are some for {', '.join(strength)}.")
    seq, d_sae = strength[name].shape
    if position is None:
        raise ValueError(f"{name}, latent {latent}: a match needs a node with a position.")
    if not (0 <= position < seq and 0 <= latent < d_sae):
        raise ValueError(f"{node} lies outside the separations [{seq}, {d_sae}] of its hook point.")
    return float(strength[name][position, latent])


def _name(place: tuple[str, int | None]) -> str:
    """A layer and position for people."""
    return f"{place[0]}, {'every position' if place[1] is None else f'position {place[1]}'}"


# ---------------------------------------------------------------------------------------------
# Prompts of another shape
# ---------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """What `moved` made.

    Attributes:
        masks: for the new prompts.
        n_dropped: nodes whose position the map does not name: they are lost.
        n_merged: nodes that fell on one that was there already: two of the old are one of the new.
    """

    masks: SAEMasks
    n_dropped: int
    n_merged: int


def moved(
    masks: SAEMasks, position_map: Mapping[int, int], seq_len: int, *, has_bos: bool = True
) -> Moved:
    """A circuit of one task, carried to prompts of another shape.

    A circuit per position fits prompts of one shape only. To ask whether the same latents do the
    same work elsewhere, say which position takes the part of which:

        # "The athletes near the car" (subject 2, last 5) → "The athletes" (2 is both)
        moved(circuit, {1: 1, 2: 2, 5: 2}, seq_len=3).masks

    Where several positions go to one, a latent is kept there if it was kept at any of them. Masks
    that are the same at every position, ``[d_sae]``, stay as they are. The means that take the
    place of what is left out belong to the prompts: take those of the new task.

    Args:
        masks: of the old task; they stay as they are.
        position_map: for an old position, the new one; BOS counts. Positions that it does not name
            are dropped.
        seq_len: tokens in a new prompt, BOS included.
        has_bos: whether position 0 of the new prompts is BOS, which is never spliced.

    Raises:
        ValueError: an old position that the masks do not have; a new one outside the prompts, or on
            BOS.
    """
    first = int(has_bos)
    for new in position_map.values():
        if not first <= new < seq_len:
            raise ValueError(
                f"the new position {new}: prompts of {seq_len} tokens have the positions {first} "
                f"to {seq_len - 1}" + (", since position 0 is BOS." if has_bos else ".")
            )
    n_dropped = n_merged = 0
    made = []
    for name, mask in masks.items():
        if mask.ndim == 1:
            made.append(mask.clone())
            continue
        outside = [old for old in position_map if not 0 <= old < len(mask)]
        if outside:
            raise ValueError(
                f"{name}: the masks have the positions 0 to {len(mask) - 1}, not {outside}."
            )
        new_mask = mask.new_zeros(seq_len, mask.shape[1])
        for old, new in position_map.items():
            new_mask[new] = torch.maximum(new_mask[new], mask[old])
        n_named = int((mask[list(position_map)] > 0).sum())
        n_dropped += int((mask > 0).sum()) - n_named
        n_merged += n_named - int((new_mask > 0).sum())
        made.append(new_mask)
    return Moved(SAEMasks(masks.hook_points, made), n_dropped, n_merged)
