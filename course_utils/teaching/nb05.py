"""The exercises of notebook 05, their solutions and their checkers.

The checkers use a toy in a spliced model's place: two hook points of three positions and four
latents, four prompts, and an answer that can be worked out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils.circuits.evaluate import Evaluate
from course_utils.circuits.masks import Node, SAEMasks
from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check

A, B = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"


# ---------------------------------------------------------------------------------------------
# 5.1 Three denominators
# ---------------------------------------------------------------------------------------------


@book.solution
def three_faithfulnesses(
    model: Float[Tensor, " n"],
    spliced: Float[Tensor, " n"],
    circuit: Float[Tensor, " n"],
    empty: Float[Tensor, " n"],
) -> Float[Tensor, "3"]:
    """One circuit's faithfulness in the three ways that papers use, in this order:

    (F(C) − F(∅)) / (F(M) − F(∅)),  (F(C) − F(∅)) / (F(S) − F(∅)),  F(C) / F(S).

    0 = no better than nothing (in the first two), 1 = as good as the model (or the spliced model).

    Args:
        model, spliced, circuit, empty: the logit difference of every prompt in M, S, C and ∅. F is
            the mean over prompts.
    """
    f_model, f_spliced, f_circuit, f_empty = (
        row.mean() for row in (model, spliced, circuit, empty)
    )
    return torch.stack(
        [
            (f_circuit - f_empty) / (f_model - f_empty),
            (f_circuit - f_empty) / (f_spliced - f_empty),
            f_circuit / f_spliced,
        ]
    )


@book.checker(three_faithfulnesses)
def _(attempt):
    model, spliced = torch.tensor([4.0, 6.0, 2.0]), torch.tensor([3.0, 5.0, 2.5])
    circuit, empty = torch.tensor([2.0, 4.5, 2.5]), torch.tensor([1.0, 0.5, 0.3])
    m, s, c, e = (row.mean() for row in (model, spliced, circuit, empty))
    right = three_faithfulnesses(model, spliced, circuit, empty)
    per_prompt = torch.stack(
        [
            (circuit - empty) / (model - empty),
            (circuit - empty) / (spliced - empty),
            circuit / spliced,
        ]
    )
    compare(
        attempt(model, spliced, circuit, empty),
        right,
        {
            "you took the mean of the prompts' ratios. F is a mean over prompts: take the means first, one ratio of them after. "
            "(A prompt whose logit difference is near 0 would rule the mean of ratios.)": per_prompt.mean(
                1
            ),
            "you gave one value a prompt; F is the mean over prompts.": per_prompt,
            "F(∅) is missing below the fraction line in the first two: both ends of the scale are measured from nothing.": torch.stack(
                [(c - e) / m, (c - e) / s, c / s]
            ),
            "F(∅) is missing in the first two.": torch.stack([c / m, c / s, c / s]),
            "your fractions are upside down.": 1 / right,
            "the first two have changed places: the first compares with the model, the second with the spliced model.": right[
                [1, 0, 2]
            ],
            "the third does not know F(∅): it is F(C) / F(S), as in the post.": right[[0, 1, 1]],
        },
        what="the three faithfulnesses",
    )


# ---------------------------------------------------------------------------------------------
# 5.2 Knocking nodes out
# ---------------------------------------------------------------------------------------------


@book.solution
def knock_out(masks: SAEMasks, nodes: Iterable[Node]) -> SAEMasks:
    """New masks that are as ``masks``, but 0 at the given nodes. ``masks`` itself stays as it was.

    Args:
        masks: one mask ``[seq, d_sae]`` a hook point; `masks.items()` gives pairs (hook point,
            mask).
        nodes: (hook point, position, latent) triples.
    """
    copies = {hook_point: mask.clone() for hook_point, mask in masks.items()}
    for hook_point, position, latent in nodes:
        copies[hook_point][position, latent] = 0
    return SAEMasks(list(copies), list(copies.values()))


@book.checker(knock_out)
def _(attempt):
    def given():
        return SAEMasks([A, B], [torch.ones(3, 4), torch.eye(4)[1:]])

    nodes, masks = [(A, 1, 0), (A, 2, 3), (B, 2, 3)], given()
    found = attempt(masks, nodes)
    if found is None:
        raise Wrong("it returns None. Is the return missing?")
    if not isinstance(found, SAEMasks):
        raise Wrong(f"it is to return SAEMasks, not {type(found).__name__}.")
    if found is masks or not _equal(masks, given()):
        raise Wrong(
            "you changed the masks that you were given. Whoever uses them next has another circuit: copy first."
        )
    if found.hook_points != [A, B]:
        raise Wrong(
            f"the new masks are for {found.hook_points}; all of {[A, B]} are wanted, those without a knocked-out node too."
        )
    right = knock_out(masks, nodes)
    everywhere = [mask.clone() for mask in masks.masks]
    kept = [torch.zeros_like(mask) for mask in masks.masks]
    for hook_point, position, latent in nodes:
        everywhere[hook_point == B][:, latent] = 0
        kept[hook_point == B][position, latent] = masks[hook_point][position, latent]
    wrong = {
        "you switched the latents off at every position. A node is one latent at one position (the published code's knock-out "
        "ignores positions too).": everywhere,
        "you kept these nodes and knocked out all others; it is the other way round.": kept,
        "nothing is knocked out.": masks.masks,
    }
    compare(
        torch.cat([mask.flatten() for mask in found.masks]),
        torch.cat([mask.flatten() for mask in right.masks]),
        {says: torch.cat([mask.flatten() for mask in value]) for says, value in wrong.items()},
        what="the new mask",
    )


def _equal(a: SAEMasks, b: SAEMasks) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.masks, b.masks))


# ---------------------------------------------------------------------------------------------
# The toy: the answer needs LAST, and one of FIRST and TWIN. Either will do.
# ---------------------------------------------------------------------------------------------

FIRST, TWIN, LAST, IDLE, HARM = (A, 1, 0), (A, 1, 1), (B, 2, 3), (B, 1, 2), (B, 2, 0)
PROMPTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def toy(masks: SAEMasks) -> Float[Tensor, "4"]:
    """The toy's logit differences: `HARM` takes half a point away, `IDLE` does nothing."""
    on = {node: masks[node[0]][node[1], node[2]] for node in (FIRST, TWIN, LAST, HARM)}
    return torch.maximum(on[FIRST], 0.8 * on[TWIN]) * (0.2 + on[LAST]) * PROMPTS - 0.5 * on[HARM]


def toy_circuit(*nodes: Node) -> SAEMasks:
    """The toy's masks with these nodes on."""
    masks = {A: torch.zeros(3, 4), B: torch.zeros(3, 4)}
    for hook_point, position, latent in nodes:
        masks[hook_point][position, latent] = 1
    return SAEMasks(list(masks), list(masks.values()))


# ---------------------------------------------------------------------------------------------
# 5.3 Completeness
# ---------------------------------------------------------------------------------------------


@book.solution
def completeness_points(
    evaluate: Evaluate, circuit: SAEMasks, everything: SAEMasks, subsets: Iterable[Iterable[Node]]
) -> Float[Tensor, "n_subsets 2"]:
    """A row for each subset K of the circuit's nodes: F(C∖K), then F(S∖K).

    Args:
        evaluate: ``evaluate(masks)`` gives the logit difference of every prompt with these masks,
            ``[n]``.
        circuit: C.
        everything: masks that are 1 everywhere: the whole, S.
        subsets: the sets K, each a list of nodes.
    """
    points = []
    for subset in subsets:
        from_circuit = evaluate(knock_out(circuit, subset)).mean()
        from_model = evaluate(knock_out(everything, subset)).mean()
        points.append(torch.stack([from_circuit, from_model]))
    return torch.stack(points)


@book.checker(completeness_points)
def _(attempt):
    circuit = toy_circuit(FIRST, LAST)
    everything = SAEMasks([A, B], [torch.ones(3, 4), torch.ones(3, 4)])
    subsets = [[], [FIRST], [LAST], [FIRST, LAST]]
    right = completeness_points(toy, circuit, everything, subsets)
    found = attempt(toy, circuit, everything, subsets)
    if not _equal(circuit, toy_circuit(FIRST, LAST)):
        raise Wrong(
            "the circuit was changed on the way: each subset is to be taken out of the whole circuit, not of what is left of it."
        )
    growing, gone = [], []
    for subset in subsets:
        gone = [*gone, *subset]
        growing.append(
            torch.stack([toy(knock_out(masks, gone)).mean() for masks in (circuit, everything)])
        )
    alone = torch.stack(
        [
            torch.stack([toy(knock_out(circuit, k)).mean(), toy(toy_circuit(*k)).mean()])
            for k in subsets
        ]
    )
    compare(
        found,
        right,
        {
            "the columns have changed places: the circuit comes first.": right.flip(1),
            "each row knocks out what the rows before it knocked out too. Start from the whole circuit every time.": torch.stack(
                growing
            ),
            "the second column is K alone. Wanted is the whole without K: masks that are 1 everywhere but on K.": alone,
            "the second column is the whole with nothing knocked out. K leaves both.": torch.stack(
                [right[:, 0], right[0, 1].expand(len(subsets))], dim=1
            ),
            "you give the distance between the two; the points themselves are wanted.": (
                right[:, 0] - right[:, 1]
            ).abs(),
        },
        what="the table of points",
    )


# ---------------------------------------------------------------------------------------------
# 5.4 Minimality
# ---------------------------------------------------------------------------------------------


@book.solution
def drop_each(
    evaluate: Evaluate, circuit: SAEMasks, nodes: Sequence[Node]
) -> Float[Tensor, "n_nodes n"]:
    """How far each prompt's logit difference falls when one node leaves the circuit (above 0: the
    node helped this prompt).

    Row i is LD_C − LD_{C∖v} for v = ``nodes[i]``: one node out at a time, all others in place.

    Args:
        evaluate: ``evaluate(masks)`` gives the logit difference of every prompt with these masks,
            ``[n]``.
        circuit: C.
        nodes: which of its nodes to try.
    """
    whole = evaluate(circuit)
    return torch.stack([whole - evaluate(knock_out(circuit, [node])) for node in nodes])


@book.checker(drop_each)
def _(attempt):
    nodes = [FIRST, IDLE, LAST, HARM]
    circuit = toy_circuit(*nodes)
    right = drop_each(toy, circuit, nodes)
    found = attempt(toy, circuit, nodes)
    if not _equal(circuit, toy_circuit(*nodes)):
        raise Wrong(
            "the circuit was changed on the way: put each node back before the next one leaves."
        )
    whole = toy(circuit)
    one_by_one = torch.stack(
        [whole - toy(knock_out(circuit, nodes[: i + 1])) for i in range(len(nodes))]
    )
    alone = torch.stack([whole - toy(toy_circuit(node)) for node in nodes])
    compare(
        found,
        right,
        {
            "the sign is wrong: a node that helps is to be above 0.": -right,
            "the nodes leave one after the other and stay away. One at a time: the others are in place.": one_by_one,
            "you kept one node and dropped the others.": alone,
            "sizes only: a node whose removal *helps* is to be below 0.": right.abs(),
            "you averaged over prompts; the rows keep them, so that intervals can be drawn.": right.mean(
                1
            ),
        },
        what="the table of drops",
    )


# ---------------------------------------------------------------------------------------------
# 5.5 Chance
# ---------------------------------------------------------------------------------------------


@book.solution
def chance_jaccard(n_a: int, n_b: int, n: int) -> float:
    """The mean Jaccard |A∩B| / |A∪B| of two circuits of ``n_a`` and ``n_b`` nodes that are drawn at
    random from ``n`` nodes.

    The overlap k = |A∩B| is hypergeometric: P(k) = C(n_a, k) · C(n − n_a, n_b − k) / C(n, n_b),
    with k from max(0, n_a + n_b − n) to min(n_a, n_b). (`math.comb(n, k)` is C(n, k).)
    """
    mean = 0.0
    for k in range(max(0, n_a + n_b - n), min(n_a, n_b) + 1):
        probability = math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
        mean += probability * k / (n_a + n_b - k)
    return mean


@book.checker(chance_jaccard)
def _(attempt):
    cases = [(2, 3, 5), (1, 1, 4), (4, 2, 9)]

    def all_of(rule):
        return torch.tensor([rule(*case) for case in cases], dtype=torch.double)

    def moment(a, b, n, value):
        ks = range(max(0, a + b - n), min(a, b) + 1)
        return sum(
            math.comb(a, k) * math.comb(n - a, b - k) / math.comb(n, b) * value(k) for k in ks
        )

    compare(
        torch.tensor([float(attempt(*case)) for case in cases], dtype=torch.double),
        all_of(chance_jaccard),
        {
            "you put the mean overlap into the Jaccard. The mean of a ratio is not the ratio of the means: go through every overlap k.": all_of(
                lambda a, b, n: (a * b / n) / (a + b - a * b / n)
            ),
            "you gave the mean overlap itself. Divide each k by the size of the union that goes with it.": all_of(
                lambda a, b, n: moment(a, b, n, float)
            ),
            "you divided by n_a + n_b, which counts shared nodes twice. The union is smaller.": all_of(
                lambda a, b, n: moment(a, b, n, lambda k: k / (a + b))
            ),
            "you divided by the smaller circuit: that is nesting, not the Jaccard.": all_of(
                lambda a, b, n: moment(a, b, n, lambda k: k / min(a, b))
            ),
        },
        what="the expected Jaccard of (2, 3 of 5), (1, 1 of 4) and (4, 2 of 9) nodes",
    )
    if not abs(attempt(30, 12, 3000) - chance_jaccard(30, 12, 3000)) < 1e-6:
        raise Wrong(
            "small cases are right, but 30 and 12 of 3,000 nodes are not. Whole numbers do not overflow in Python: stay with math.comb."
        )


# ---------------------------------------------------------------------------------------------
# 5.6 CPR and CMD
# ---------------------------------------------------------------------------------------------


@book.solution
def cpr_cmd(fractions: Sequence[float], faithfulness: Sequence[float]) -> Float[Tensor, "2"]:
    """CPR and CMD of a method, by the trapezoid rule between the circuit sizes given.

    CPR = ∫ f(C_k) dk (higher is better),  CMD = ∫ |1 − f(C_k)| dk (0 is best).

    Args:
        fractions: rising circuit sizes k, as shares of all nodes.
        faithfulness: f(C_k) at each of them.
    """
    cpr, cmd = 0.0, 0.0
    points = list(zip(fractions, faithfulness))
    for (k_1, f_1), (k_2, f_2) in zip(points, points[1:]):
        cpr += (k_2 - k_1) * (f_1 + f_2) / 2
        cmd += (k_2 - k_1) * (abs(1 - f_1) + abs(1 - f_2)) / 2
    return torch.tensor([cpr, cmd])


@book.checker(cpr_cmd)
def _(attempt):
    fractions, f = [0.0, 0.1, 0.3, 1.0], [0.0, 0.7, 1.4, 0.9]
    k, y = torch.tensor(fractions, dtype=torch.double), torch.tensor(f, dtype=torch.double)
    d = (1 - y).abs()
    right = cpr_cmd(fractions, f)
    signed = torch.trapezoid(1 - y, k)
    compare(
        attempt(fractions, f),
        right,
        {
            "you added up the distances with their signs: too much at one size makes up for too little at another. Take |1 − f| first.": torch.stack(
                [torch.trapezoid(y, k), signed.abs()]
            ),
            "the distances keep their signs: a circuit that overshoots the model is off, too.": torch.stack(
                [torch.trapezoid(y, k), signed]
            ),
            "you averaged over the sizes, as if they stood at equal distances. Each trapezoid is as wide as its two sizes are apart.": torch.stack(
                [y.mean(), d.mean()]
            ),
            "your strips are rectangles with the left value; take the mean of both ends.": torch.stack(
                [(y[:-1] * k.diff()).sum(), (d[:-1] * k.diff()).sum()]
            ),
            "your strips are rectangles with the right value; take the mean of both ends.": torch.stack(
                [(y[1:] * k.diff()).sum(), (d[1:] * k.diff()).sum()]
            ),
            "CPR and CMD have changed places.": right.flip(0),
        },
        what="(CPR, CMD)",
    )


# ---------------------------------------------------------------------------------------------
# 5.7 The other number
# ---------------------------------------------------------------------------------------------


@book.solution
def other_number(
    latents: Mapping[str, Float[Tensor, "n_train seq d_sae"]],
    train_is_plural: Bool[Tensor, " n_train"],
    is_plural: Bool[Tensor, " n"],
    nodes: Iterable[Node],
) -> dict[Node, Float[Tensor, " n"]]:
    """What each node would be if the sentence's subject had the other number: one value for each
    sentence.

    For a sentence with a plural subject that is the node's mean over the training sentences with a
    singular one, and the other way round.

    Args:
        latents: what fires in the training sentences, by hook point.
        train_is_plural: whether the subject of each training sentence is plural.
        is_plural: the same for the sentences that values are wanted for.
        nodes: (hook point, position, latent) triples.
    """
    values = {}
    for hook_point, position, latent in nodes:
        f = latents[hook_point][:, position, latent]
        singular, plural = f[~train_is_plural].mean(), f[train_is_plural].mean()
        values[hook_point, position, latent] = torch.where(is_plural, singular, plural)
    return values


@book.checker(other_number)
def _(attempt):
    f = (
        torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0))
        * torch.arange(1.0, 6)[:, None, None]
    )
    latents, nodes = {A: f, B: f.flip(0) + 1}, [(A, 1, 2), (B, 2, 0)]
    train_is_plural, is_plural = (
        torch.tensor([True, False, False, True, False]),
        torch.tensor([False, True, False]),
    )
    right = other_number(latents, train_is_plural, is_plural, nodes)
    found = attempt(latents, train_is_plural, is_plural, nodes)
    if found is None:
        raise Wrong("it returns None. Is the return missing?")
    if not isinstance(found, Mapping) or list(found) != nodes:
        raise Wrong("it is to be a dictionary with the nodes as keys, in their order.")

    def with_rule(rule):
        return torch.stack([rule(latents[h], p, i) for h, p, i in nodes])

    def choose(values):
        return torch.where(
            is_plural, values[~train_is_plural].mean(), values[train_is_plural].mean()
        )

    scalars = [value for value in found.values() if torch.as_tensor(value).ndim == 0]
    if scalars:
        raise Wrong(
            "one value for all sentences; singular and plural ones need different values, so one a sentence."
        )
    compare(
        torch.stack([torch.as_tensor(value) for value in found.values()]),
        torch.stack(list(right.values())),
        {
            "you gave each sentence its own number's value: nothing would flip.": with_rule(
                lambda f, p, i: torch.where(
                    is_plural, f[train_is_plural, p, i].mean(), f[~train_is_plural, p, i].mean()
                )
            ),
            "you averaged over positions too. A node has one.": with_rule(
                lambda f, p, i: choose(f[:, :, i].mean(1))
            ),
            "you averaged over both numbers: that is an ablation, which leaves the number open.": with_rule(
                lambda f, p, i: f[:, p, i].mean().expand(len(is_plural))
            ),
            "position and latent have changed places.": with_rule(
                lambda f, p, i: choose(f[:, i % f.shape[1], p])
            ),
        },
        what="the table of values",
    )
