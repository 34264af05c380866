"""The exercises of notebook 05, their solutions and their checkers.

Where a spliced model is asked, the checkers use the `toy` in its place, whose answers can be worked
out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils.circuits.evaluate import Evaluate
from course_utils.circuits.masks import Node, SAEMasks
from course_utils.teaching.fixtures import (
    EARLY,
    FIRST,
    HARM,
    IDLE,
    LAST,
    LATE,
    require_masks,
    require_returned,
    toy,
    toy_circuit,
    uniform,
    whole_toy,
)
from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 5.1 Three faithfulnesses
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
def _(attempt: Callable) -> None:
    model, spliced = torch.tensor([4.0, 6.0, 2.0]), torch.tensor([3.0, 5.0, 2.5])
    circuit, empty = torch.tensor([2.0, 4.5, 2.5]), torch.tensor([1.0, 0.5, 0.3])
    m, s, c, e = (row.mean() for row in (model, spliced, circuit, empty))
    right = three_faithfulnesses(model, spliced, circuit, empty)
    over_model, over_spliced = (
        (circuit - empty) / (model - empty),
        (circuit - empty) / (spliced - empty),
    )
    of_prompts = torch.stack([over_model, over_spliced, circuit / spliced])
    not_below = torch.stack([(c - e) / m, (c - e) / s, c / s])
    not_at_all = torch.stack([c / m, c / s, c / s])
    wrong = {
        "you took the mean of the prompts' ratios. F is a mean over prompts: take the means first, "
        "one ratio of them after. (A prompt whose logit difference is near 0 would rule the mean "
        "of ratios.)": of_prompts.mean(1),
        "you gave one value a prompt; F is the mean over prompts.": of_prompts,
        "F(∅) is missing below the fraction line in the first two: both ends of the scale are "
        "measured from nothing.": not_below,
        "F(∅) is missing in the first two.": not_at_all,
        "your fractions are upside down.": 1 / right,
        "the first two have changed places: the first compares with the model, the second with the "
        "spliced model.": right[[1, 0, 2]],
        "the third does not know F(∅): it is F(C) / F(S), as in the post.": right[[0, 1, 1]],
    }
    answer = attempt(model, spliced, circuit, empty)
    compare(answer, right, wrong, what="the three faithfulnesses")


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
def _(attempt: Callable) -> None:
    def given() -> SAEMasks:
        return SAEMasks([EARLY, LATE], [torch.ones(3, 4), torch.eye(4)[1:]])

    nodes, masks = [(EARLY, 1, 0), (EARLY, 2, 3), (LATE, 2, 3)], given()
    answer = attempt(masks, nodes)
    require_masks(answer)
    if answer is masks or not _equal(masks, given()):
        raise Wrong(
            "you changed the masks that you were given. Whoever uses them next has another "
            "circuit: copy first."
        )
    if answer.hook_points != [EARLY, LATE]:
        raise Wrong(
            f"the new masks are for {answer.hook_points}; all of {[EARLY, LATE]} are wanted, those "
            "without a knocked-out node too."
        )
    at_no_position = {hook_point: mask.clone() for hook_point, mask in masks.items()}
    alone = {hook_point: torch.zeros_like(mask) for hook_point, mask in masks.items()}
    for hook_point, position, latent in nodes:
        at_no_position[hook_point][:, latent] = 0
        alone[hook_point][position, latent] = masks[hook_point][position, latent]
    wrong = {
        "you switched the latents off at every position. A node is one latent at one position (the "
        "published code's knock-out ignores positions too).": _flat(at_no_position.values()),
        "you kept these nodes and knocked out all others; it is the other way round.": _flat(
            alone.values()
        ),
        "nothing is knocked out.": _flat(masks.masks),
    }
    right = _flat(knock_out(masks, nodes).masks)
    compare(_flat(answer.masks), right, wrong, what="the new mask")


def _flat(masks: Iterable[Tensor]) -> Float[Tensor, " numbers"]:
    return torch.cat([mask.flatten() for mask in masks])


def _equal(a: SAEMasks, b: SAEMasks) -> bool:
    return torch.equal(_flat(a.masks), _flat(b.masks))


# ---------------------------------------------------------------------------------------------
# 5.3 Random subsets
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
def _(attempt: Callable) -> None:
    circuit, everything = toy_circuit(FIRST, LAST), whole_toy()
    subsets = [[], [FIRST], [LAST], [FIRST, LAST]]
    answer = attempt(toy, circuit, everything, subsets)
    if not _equal(circuit, toy_circuit(FIRST, LAST)):
        raise Wrong(
            "the circuit was changed on the way: each subset is to be taken out of the whole "
            "circuit, not of what is left of it."
        )
    right = completeness_points(toy, circuit, everything, subsets)
    from_circuit, from_everything = right.unbind(1)
    out_so_far = [sum(subsets[: i + 1], []) for i in range(len(subsets))]
    growing = completeness_points(toy, circuit, everything, out_so_far)
    subset_alone = torch.stack([toy(toy_circuit(*subset)).mean() for subset in subsets])
    distance = (from_circuit - from_everything).abs()
    whole = from_everything[0].expand(len(subsets))
    wrong = {
        "the columns have changed places: the circuit comes first.": right.flip(1),
        "each row knocks out what the rows before it knocked out too. Start from the whole circuit "
        "every time.": growing,
        "the second column is K alone. Wanted is the whole without K: masks that are 1 everywhere "
        "but on K.": torch.stack([from_circuit, subset_alone], 1),
        "the second column is the whole with nothing knocked out. K leaves both.": torch.stack(
            [from_circuit, whole], 1
        ),
        "you give the distance between the two; the points themselves are wanted.": distance,
    }
    compare(answer, right, wrong, what="the table of points")


# ---------------------------------------------------------------------------------------------
# 5.4 One node at a time
# ---------------------------------------------------------------------------------------------


@book.solution
def drop_each(
    evaluate: Evaluate, circuit: SAEMasks, nodes: Sequence[Node]
) -> Float[Tensor, "n_nodes n"]:
    """How far each prompt's logit difference falls when one node leaves the circuit.

    Above 0: the node helped this prompt.
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
def _(attempt: Callable) -> None:
    nodes = [FIRST, IDLE, LAST, HARM]
    circuit = toy_circuit(*nodes)
    answer = attempt(toy, circuit, nodes)
    if not _equal(circuit, toy_circuit(*nodes)):
        raise Wrong(
            "the circuit was changed on the way: put each node back before the next one leaves."
        )
    right, whole = drop_each(toy, circuit, nodes), toy(circuit)
    left = [toy_circuit(*nodes[i + 1 :]) for i in range(len(nodes))]
    one_after_the_other = torch.stack([whole - toy(masks) for masks in left])
    alone = torch.stack([whole - toy(toy_circuit(node)) for node in nodes])
    wrong = {
        "the sign is wrong: a node that helps is to be above 0.": -right,
        "the nodes leave one after the other and stay away. One at a time: the "
        "others are in place.": one_after_the_other,
        "you kept one node and dropped the others.": alone,
        "sizes only: a node whose removal *helps* is to be below 0.": right.abs(),
        "you averaged over prompts; the rows keep them, so that "
        "intervals can be drawn.": right.mean(1),
    }
    compare(answer, right, wrong, what="the table of drops")


# ---------------------------------------------------------------------------------------------
# 5.5 Chance
# ---------------------------------------------------------------------------------------------


@book.solution
def chance_jaccard(n_a: int, n_b: int, n: int) -> float:
    """The mean Jaccard |A∩B| / |A∪B| of two circuits of ``n_a`` and ``n_b`` nodes of ``n``.

    They are drawn at random.
    The overlap k = |A∩B| is hypergeometric: P(k) = C(n_a, k) · C(n − n_a, n_b − k) / C(n, n_b),
    with k from max(0, n_a + n_b − n) to min(n_a, n_b). (`math.comb(n, k)` is C(n, k).)
    """
    mean = 0.0
    for k in range(max(0, n_a + n_b - n), min(n_a, n_b) + 1):
        probability = math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
        mean += probability * k / (n_a + n_b - k)
    return mean


@book.checker(chance_jaccard)
def _(attempt: Callable) -> None:
    cases = [(2, 3, 5), (1, 1, 4), (4, 2, 9)]

    def mean_of(value: Callable[[int, int, int], float]) -> Float[Tensor, " cases"]:
        """The mean of a function of the overlap k and the two sizes, for each case."""
        means = []
        for a, b, n in cases:
            mean = 0.0
            for k in range(max(0, a + b - n), min(a, b) + 1):
                ways = math.comb(a, k) * math.comb(n - a, b - k)
                mean += ways / math.comb(n, b) * value(k, a, b)
            means.append(mean)
        return torch.tensor(means, dtype=torch.double)

    right = mean_of(lambda k, a, b: k / (a + b - k))
    mean_overlap, sizes = mean_of(lambda k, a, b: k), mean_of(lambda k, a, b: a + b)
    of_mean_overlap = mean_overlap / (sizes - mean_overlap)
    nesting = mean_of(lambda k, a, b: k / min(a, b))
    wrong = {
        "you put the mean overlap into the Jaccard. The mean of a ratio is not the ratio of the "
        "means: go through every overlap k.": of_mean_overlap,
        "you gave the mean overlap itself. Divide each k by the size of the union that goes with "
        "it.": mean_overlap,
        "you divided by n_a + n_b, which counts shared nodes twice. The "
        "union is smaller.": mean_overlap / sizes,
        "you divided by the smaller circuit: that is nesting, not the Jaccard.": nesting,
    }
    answer = torch.tensor([float(attempt(*case)) for case in cases], dtype=torch.double)
    what = "the expected Jaccard of (2, 3 of 5), (1, 1 of 4) and (4, 2 of 9) nodes"
    compare(answer, right, wrong, what=what)
    if not abs(attempt(30, 12, 3000) - chance_jaccard(30, 12, 3000)) < 1e-6:
        raise Wrong(
            "small cases are right, but 30 and 12 of 3,000 nodes are not. Whole numbers do not "
            "overflow in Python: stay with math.comb."
        )


# ---------------------------------------------------------------------------------------------
# 5.6 Two areas
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
def _(attempt: Callable) -> None:
    fractions, faithfulness = [0.0, 0.1, 0.3, 1.0], [0.0, 0.7, 1.4, 0.9]
    k, f = torch.tensor(fractions).double(), torch.tensor(faithfulness).double()
    widths, distance = k.diff(), (1 - f).abs()
    right = cpr_cmd(fractions, faithfulness)
    cpr, signed = torch.trapezoid(f, k), torch.trapezoid(1 - f, k)
    left_ends = torch.stack([(f[:-1] * widths).sum(), (distance[:-1] * widths).sum()])
    right_ends = torch.stack([(f[1:] * widths).sum(), (distance[1:] * widths).sum()])
    wrong = {
        "you added up the distances with their signs: too much at one size makes up for too little "
        "at another. Take |1 − f| first.": torch.stack([cpr, signed.abs()]),
        "the distances keep their signs: a circuit that overshoots the "
        "model is off, too.": torch.stack([cpr, signed]),
        "you averaged over the sizes, as if they stood at equal distances. Each trapezoid is as "
        "wide as its two sizes are apart.": torch.stack([f.mean(), distance.mean()]),
        "your strips are rectangles with the left value; take the mean of both ends.": left_ends,
        "your strips are rectangles with the right value; take the mean of both ends.": right_ends,
        "CPR and CMD have changed places.": right.flip(0),
    }
    compare(attempt(fractions, faithfulness), right, wrong, what="(CPR, CMD)")


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
    """What each node would be if the subject had the other number: one value for each sentence.

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
def _(attempt: Callable) -> None:
    f = uniform(5, 3, 4, seed=0) * torch.arange(1.0, 6)[:, None, None]
    latents, nodes = {EARLY: f, LATE: f.flip(0) + 1}, [(EARLY, 1, 2), (LATE, 2, 0)]
    train_is_plural = torch.tensor([True, False, False, True, False])
    is_plural = torch.tensor([False, True, False])
    answer = attempt(latents, train_is_plural, is_plural, nodes)
    require_returned(answer, "it")
    if not isinstance(answer, Mapping) or list(answer) != nodes:
        raise Wrong("it is to be a dictionary with the nodes as keys, in their order.")
    if any(torch.as_tensor(value).ndim == 0 for value in answer.values()):
        raise Wrong(
            "one value for all sentences; singular and plural ones need different values, so one a "
            "sentence."
        )

    def with_rule(rule: Callable[[Tensor, int, int], Tensor]) -> Float[Tensor, "nodes n"]:
        return torch.stack([rule(latents[name], p, i) for name, p, i in nodes])

    def of_other(values: Float[Tensor, " n_train"]) -> Float[Tensor, " n"]:
        singular, plural = values[~train_is_plural].mean(), values[train_is_plural].mean()
        return torch.where(is_plural, singular, plural)

    own = torch.stack(list(other_number(latents, train_is_plural, ~is_plural, nodes).values()))
    over_positions = with_rule(lambda f, p, i: of_other(f[:, :, i].mean(1)))
    over_numbers = with_rule(lambda f, p, i: f[:, p, i].mean().expand(len(is_plural)))
    swapped = with_rule(lambda f, p, i: of_other(f[:, i % f.shape[1], p]))
    wrong = {
        "you gave each sentence its own number's value: nothing would flip.": own,
        "you averaged over positions too. A node has one.": over_positions,
        "you averaged over both numbers: that is an ablation, which leaves "
        "the number open.": over_numbers,
        "position and latent have changed places.": swapped,
    }
    table = torch.stack([torch.as_tensor(value) for value in answer.values()])
    right = with_rule(lambda f, p, i: of_other(f[:, p, i]))
    compare(table, right, wrong, what="the table of values")
