"""The exercises of notebook 05, their solutions and their checkers.

Where a spliced model is asked, the checkers use the `toy` in its place, whose answers can be worked
out by hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils.circuits.evaluate import Evaluate
from course_utils.circuits.masks import Node, SAEMasks
from course_utils.circuits.masks import without as knock_out
from course_utils.teaching.fixtures import (
    EARLY,
    FIRST,
    HARM,
    IDLE,
    LAST,
    LATE,
    TWIN,
    require_returned,
    require_tensor,
    toy,
    toy_circuit,
    uniform,
    whole_toy,
)
from course_utils.teaching.workbook import Number, Unnamed, Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check

Place = tuple[str, int, int]
"""A node whose position is known: hook point, position, latent."""
Part = Callable[[Tensor], Tensor]
"""Picks a part of an answer: a row, a column, one of its numbers."""


def compare_parts(
    answer: Tensor,
    right: Tensor,
    wrong: Mapping[str, Number],
    parts: Mapping[str, Part],
    of_parts: Mapping[str, Mapping[str, Number]] | None = None,
    *,
    what: str,
) -> None:
    """As `compare`; but where no known mistake fits the whole, each part is compared by itself.

    Args:
        answer, right, wrong, what: as in `compare`.
        parts: which parts there are, by what they are called.
        of_parts: by part: known wrong values of that part.

    Raises:
        Wrong: the answer is wrong.
    """
    try:
        compare(answer, right, wrong, what=what)
    except Unnamed as unnamed:
        if answer.shape != right.shape or not _says_only_where(unnamed):
            raise
        is_right = []
        for name, part in parts.items():
            known = (of_parts or {}).get(name, {})
            known = {f"{name}: {says}": value for says, value in known.items()}
            try:
                compare(part(answer), part(right), known, what=name)
                is_right.append(name)
            except Unnamed as of_part:
                if not _says_only_where(of_part):
                    raise
        if not is_right:
            raise
        is_wrong = [name for name in parts if name not in is_right]
        says = f"{' and '.join(is_right)} right, but not {' and '.join(is_wrong)}."
        raise Unnamed(f"you got {says}") from None


def _says_only_where(wrong: Unnamed) -> bool:
    """Whether a sentence says no more than which numbers are off, and by how much."""
    return "off by up to" in str(wrong) or "along axis" in str(wrong)


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
    given = {
        "M": torch.tensor([4.0, 6.0, 2.0, 5.0]),
        "S": torch.tensor([3.0, 5.0, 2.5, 4.5]),
        "C": torch.tensor([2.0, 4.5, 2.5, 1.0]),
        "∅": torch.tensor([1.0, 0.5, 0.3, -0.2]),
    }
    model, spliced, circuit, empty = given.values()
    m, s, c, e = (row.mean() for row in given.values())
    right = three_faithfulnesses(model, spliced, circuit, empty)
    of_prompts = torch.stack(
        [
            (circuit - empty) / (model - empty),
            (circuit - empty) / (spliced - empty),
            circuit / spliced,
        ]
    )
    against_m, against_s, of_raw = (
        _mistakes_of_a_ratio(c, m, e),
        _mistakes_of_a_ratio(c, s, e),
        _mistakes_of_a_ratio(c, s, torch.tensor(0.0)),
    )
    wrong = {
        "you took the mean of the prompts' ratios. F is a mean over prompts: take the means first, "
        "one ratio of them after. (A prompt whose logit difference is near 0 would rule the mean "
        "of ratios.)": of_prompts.mean(1),
        "you gave one value per prompt; F is the mean over prompts.": of_prompts,
        "your fractions are upside down.": 1 / right,
        "the first two have changed places: the first compares with the model, the second with the "
        "spliced model.": right[[1, 0, 2]],
        "the third does not know F(∅): it is F(C) / F(S), as in the post.": right[[0, 1, 1]],
        "the third compares with the model; it is F(C) / F(S), as in the post.": torch.stack(
            [right[0], right[1], c / m]
        ),
        "the first two are the same: both compare with the model.": right[[0, 0, 2]],
        "the first two are the same: both compare with the spliced model.": right[[1, 1, 2]],
    }
    for says in against_m:
        both = [against_m[says], against_s[says], right[2]]
        wrong[f"in the first two, {says}"] = torch.stack(both)
    for one, other in itertools.combinations(given, 2):
        swapped = {**given, one: given[other], other: given[one]}
        says = f"F({one}) and F({other}) have changed places. The order is M, S, C, ∅."
        wrong[says] = three_faithfulnesses(*swapped.values())
    answer = attempt(model, spliced, circuit, empty)
    require_tensor(answer, "what holds the three")
    parts = {
        "the first": lambda row: row[0],
        "the second": lambda row: row[1],
        "the third": lambda row: row[2],
    }
    raw = {says: value for says, value in of_raw.items() if "F(∅)" not in says}
    of_parts = dict(zip(parts, (against_m, against_s, raw)))
    compare_parts(answer, right, wrong, parts, of_parts, what="the row of three")


def _mistakes_of_a_ratio(c: Tensor, whole: Tensor, e: Tensor) -> dict[str, Tensor]:
    """What (c − e) / (whole − e) becomes by a slip, by a sentence that says which."""
    up, down = c - e, whole - e
    return {
        "F(∅) is missing below the fraction line: both ends of the scale are measured from "
        "nothing.": up / whole,
        "F(∅) is missing above the fraction line: both ends of the scale are measured from "
        "nothing.": c / down,
        "F(∅) is missing.": c / whole,
        "F(∅) is added above the fraction line; it is to be taken off.": (c + e) / down,
        "F(∅) is added below the fraction line; it is to be taken off.": up / (whole + e),
        "F(∅) is added; it is to be taken off.": (c + e) / (whole + e),
        "brackets are missing below the fraction line: a / b − c is (a / b) − c.": up / whole - e,
        "brackets are missing above the fraction line: a − b / c is a − (b / c).": c - e / down,
        "the whole is missing: divide by it.": up,
        "this is the whole alone: the circuit stands above it.": down,
        "the fraction is upside down.": down / up,
        "you multiplied by the whole; divide by it.": up * down,
    }


# ---------------------------------------------------------------------------------------------
# 5.2 The bootstrap
# ---------------------------------------------------------------------------------------------


@book.solution
def paired_gap(
    off_a: Float[Tensor, " n"],
    off_b: Float[Tensor, " n"],
    off_empty: Float[Tensor, " n"],
    n_draws: int,
    seed: int,
) -> Float[Tensor, "3"]:
    """The gap of circuit a minus the gap of circuit b, and the ends of its 95 % interval.

    A circuit's gap is the mean over prompts of |LD_C − LD_S|, divided by the mean over prompts of
    |LD_∅ − LD_S|. The interval says how far the difference would move with other prompts of this
    kind: ``n_draws`` times, draw as many prompts as there are, with replacement, and compute the
    difference again. 95 % of those values lie between the ends, and as many below as above.

    Args:
        off_a, off_b, off_empty: |LD − LD_S| of each prompt, in circuit a, in circuit b, and with
            every latent ablated. The i-th entry of each belongs to the i-th prompt.
        n_draws: how often to draw.
        seed: of the draws (``torch.Generator().manual_seed(seed)``).

    Returns:
        The difference on the prompts as they are, the lower end, the upper end.
    """
    n, generator = len(off_a), torch.Generator().manual_seed(seed)
    rows = torch.randint(n, (n_draws, n), generator=generator)
    a, b, empty = (off[rows].mean(dim=1) for off in (off_a, off_b, off_empty))
    drawn = (a - b) / empty
    value = (off_a.mean() - off_b.mean()) / off_empty.mean()
    return torch.stack([value, drawn.quantile(0.025), drawn.quantile(0.975)])


@book.checker(paired_gap)
def _(attempt: Callable) -> None:
    # What is hard for one circuit is hard for the other, and where ∅ is far off, so is b.
    off_empty = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 2.5, 5.0])
    hard = torch.tensor([0.1, 2.2, 0.2, 1.4, 0.3, 0.2, 3.0, 0.6])
    own = torch.tensor([1.2, -0.4, 0.1, 1.1, -0.5, 0.1, 0.7, -0.4])
    off_b = 0.6 * off_empty + hard + 0.9
    off_a = 0.3 * off_empty + hard + own + 0.6
    n, n_draws, seed = len(off_empty), 20_000, 1
    difference = off_a - off_b
    right = paired_gap(off_a, off_b, off_empty, n_draws, seed)
    value, ends = right[0], right[1:]
    answer = attempt(off_a, off_b, off_empty, n_draws, seed)
    require_tensor(answer, "what holds the difference and the two ends")
    if answer.shape != right.shape:
        raise Wrong(
            f"it has the shape {list(answer.shape)}. Three numbers are wanted: the difference, the "
            "lower end, the upper end."
        )
    a, b, e = (off.mean() for off in (off_a, off_b, off_empty))
    wrong_values = {
        "the sign is turned round: the gap of a minus the gap of b is wanted.": -value,
        "the difference is not divided by the mean of off_empty: a gap is a ratio.": a - b,
        "you took the mean of the prompts' ratios. A gap is a ratio of two means: average first.": (
            (difference / off_empty).mean()
        ),
        "only circuit a is there: take the gap of b off.": a / e,
        "only circuit b is there: take its gap off that of a.": b / e,
        "the two gaps are added: take the second off the first.": (a + b) / e,
        "only the gap of b is divided by the mean of off_empty.": a - b / e,
        "only the gap of a is divided by the mean of off_empty.": a / e - b,
        "the fraction is upside down.": 1 / value,
        "the difference is multiplied by the mean of off_empty: divide by it.": (a - b) * e,
        "this is the mean of off_empty alone.": e,
        "the first number is the lower end. The difference itself comes first.": ends[0],
        "you summed off_empty where its mean is wanted.": value / n,
        "you summed the differences where their mean is wanted.": value * n,
    }
    compare(answer[0], value, wrong_values, what="the difference")
    compare(answer[1:], ends, _wrong_ends(off_a, off_b, off_empty, value), **ENDS)
    if answer[1] > answer[2]:
        raise Wrong("the upper end comes before the lower one.")
    few = attempt(off_a, off_b, off_empty, 200, 2)
    again = attempt(off_a, off_b, off_empty, 200, 3)
    if torch.equal(torch.as_tensor(few), torch.as_tensor(again)):
        raise Wrong("another seed gives the same ends: give your generator the seed.")


ENDS: dict[str, Any] = {"what": "the interval", "tolerance": 0.02}
"""Two ways to draw prompts differ by chance, by less than this share of the larger end."""


def _wrong_ends(
    off_a: Tensor, off_b: Tensor, off_empty: Tensor, value: Tensor
) -> dict[str, Float[Tensor, "2"]]:
    """The ends of a wrong interval, by the sentence that says what is wrong."""
    n, generator = len(off_a), torch.Generator().manual_seed(9)
    one, two, three = torch.randint(n, (3, 20_000, n), generator=generator)

    def means(off: Tensor, rows: Tensor) -> Tensor:
        return off[rows].mean(1)

    def ends(drawn: Tensor, low: float = 0.025, high: float = 0.975) -> Tensor:
        return torch.stack([drawn.quantile(low), drawn.quantile(high)])

    a, b, e = (means(off, one) for off in (off_a, off_b, off_empty))
    drawn = (a - b) / e
    right, spread = ends(drawn), drawn.std()
    fixed = (a - b) / off_empty.mean()
    own = (
        "each circuit got prompts of its own. What is hard about a prompt for both then no longer "
        "cancels: draw prompts once, for all three."
    )
    return {
        own: ends(a / e - means(off_b, two) / means(off_empty, two)),
        f"{own} (The denominator has those of a.)": ends((a - means(off_b, two)) / e),
        f"{own} (The denominator has its own, too.)": ends(
            (a - means(off_b, two)) / means(off_empty, three)
        ),
        f"{own} (The denominator is not drawn again.)": ends(
            (a - means(off_b, two)) / off_empty.mean()
        ),
        "the denominator has prompts of its own: draw prompts once, for all three.": ends(
            (a - b) / means(off_empty, two)
        ),
        "the denominator is not drawn again: it is a mean over the same prompts, and moves with "
        "them.": ends(fixed),
        "both ends are the difference itself: no draw differs from another. Are prompts drawn with "
        "replacement, and averaged within a draw?": value.expand(2),
        "that is how far single prompts spread. The mean over prompts spreads less: draw as many "
        "prompts as there are, and average.": ends((off_a - off_b) / off_empty),
        "you took the mean of the prompts' ratios in each draw. A gap is a ratio of two means: "
        "average first.": ends(means((off_a - off_b) / off_empty, one)),
        "the ends are those of a 90 % interval: 2.5 % of the draws lie on either side of a 95 % "
        "one.": ends(drawn, 0.05, 0.95),
        "the ends are those of a 50 % interval.": ends(drawn, 0.25, 0.75),
        "the lower end is right, and the upper one is too low: it has 97.5 % of the draws below "
        "it.": ends(drawn, 0.025, 0.95),
        "the lower end is at 52.5 %: it has 2.5 % of the draws below it.": ends(drawn, 0.525),
        "the upper end comes before the lower one.": right.flip(0),
        "the ends have the wrong sign: the gap of a minus the gap of b is wanted.": -right,
        "the ends are turned round and have the wrong sign: b minus a.": -right.flip(0),
        "the ends are the standard deviation of the draws, up and down: 95 % lie farther "
        "out.": torch.stack([value - spread, value + spread]),
        "the ends are 1.96 standard deviations of the draws from the difference. That is right "
        "for a bell curve, and these draws are skewed: take their quantiles.": torch.stack(
            [value - 1.96 * spread, value + 1.96 * spread]
        ),
        "the ends are taken from the difference: where the interval begins and ends is "
        "wanted.": right - value,
        "the ends are not divided by the mean of off_empty.": ends(a - b),
        "the ends are multiplied by the mean of off_empty: divide by it.": ends((a - b) * e),
        "the ends are those of circuit a alone.": ends(a / e),
        "the ends are those of circuit b alone.": ends(b / e),
        "the ends are those of the sum of the two gaps.": ends((a + b) / e),
        "the ends are those of the mean of off_empty.": ends(e),
        "only circuit b is divided by the mean of off_empty.": ends(a - b / e),
        "the fraction is upside down in the draws.": ends(e / (a - b)),
        "you summed in the draws where the mean is wanted.": n * right,
    }


# ---------------------------------------------------------------------------------------------
# 5.3 What is left without it
# ---------------------------------------------------------------------------------------------


@book.solution
def left_without(
    evaluate: Evaluate, circuit: SAEMasks, everything: SAEMasks, nothing: SAEMasks
) -> Float[Tensor, ""]:
    """The share of the answer that is left once the circuit is gone.

    0 = nothing is left: all that the spliced model knows of the answer went through the circuit.
    1 = all of it is left: the model does as well without the circuit.

    Args:
        evaluate: ``evaluate(masks)`` gives the logit difference of every prompt with these masks,
            ``[n]``. F is their mean.
        circuit: masks that are 1 at the circuit's nodes (``circuit.nodes()``), and 0 elsewhere.
        everything, nothing: masks that are 1 everywhere; 0 everywhere.
    """
    rest, whole, empty = (
        evaluate(masks).mean()
        for masks in (knock_out(everything, circuit.nodes()), everything, nothing)
    )
    return (rest - empty) / (whole - empty)


@book.checker(left_without)
def _(attempt: Callable) -> None:
    offset = torch.tensor([0.5, -0.2, 1.0, 0.3])  # so that F(∅) is not 0

    def evaluate(masks: SAEMasks) -> Float[Tensor, "4"]:
        return toy(masks) + offset

    circuit, everything, nothing = toy_circuit(FIRST, IDLE), whole_toy(), toy_circuit()
    circuit_ld, whole_ld, empty_ld = (evaluate(one) for one in (circuit, everything, nothing))
    rest_ld = evaluate(knock_out(everything, circuit.nodes()))
    c, s, e, rest = (ld.mean() for ld in (circuit_ld, whole_ld, empty_ld, rest_ld))
    right = left_without(evaluate, circuit, everything, nothing)
    wrong = {
        "the circuit is kept, and all else is gone: that is its faithfulness. Take its nodes out "
        "of the whole.": (c - e) / (s - e),
        "nothing is left: you took the circuit's nodes out of the circuit itself. Take them out of "
        "the whole.": (e - e) / (s - e),
        "all is left: no node is out. Take the circuit's nodes out of the whole.": (s - e)
        / (s - e),
        "this is what is lost, and what is left is wanted.": (s - rest) / (s - e),
        "you divided by what the circuit does, F(C) − F(∅). The answer is that of the whole.": (
            (rest - e) / (c - e)
        ),
        "you divided by F(C). The answer is that of the whole, from F(∅) on.": rest / c,
        "you took the mean of the prompts' shares. F is a mean over prompts: average first.": (
            ((rest_ld - empty_ld) / (whole_ld - empty_ld)).mean()
        ),
        "you gave a share for each prompt: F is a mean over prompts.": (
            (rest_ld - empty_ld) / (whole_ld - empty_ld)
        ),
        "you summed over prompts above the line, and averaged below.": 4 * right,
        "this is F without the circuit. A share of F(S) − F(∅) is wanted.": rest,
        "this is how far the answer falls. A share of F(S) − F(∅) is wanted.": s - rest,
        **_mistakes_of_a_ratio(rest, s, e),
    }
    compare(attempt(evaluate, circuit, everything, nothing), right, wrong, what="the share")
    for nodes, what in (([TWIN], "a spare"), ([FIRST, LAST], "two layers' nodes")):
        circuit = toy_circuit(*nodes)
        answer = attempt(evaluate, circuit, everything, nothing)
        right = left_without(evaluate, circuit, everything, nothing)
        compare(answer, right, what=f"with {what} as the circuit, the share")


# ---------------------------------------------------------------------------------------------
# 5.4 Random subsets
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
    circuit, everything = toy_circuit(FIRST, LAST, HARM), whole_toy()
    subsets = [[], [FIRST], [LAST], [HARM], [FIRST, LAST]]
    answer = attempt(toy, circuit, everything, subsets)
    require_tensor(answer, "the table of points")
    right = completeness_points(toy, circuit, everything, subsets)
    from_circuit, from_everything = right.unbind(1)
    out_so_far = [sum(subsets[: i + 1], []) for i in range(len(subsets))]
    growing = completeness_points(toy, circuit, everything, out_so_far)
    subset_alone = torch.stack([toy(toy_circuit(*subset)).mean() for subset in subsets])
    whole_circuit, whole = (column[0].expand(len(subsets)) for column in right.unbind(1))
    of_prompts = torch.stack(
        [toy(knock_out(masks, subset)) for subset in subsets for masks in (circuit, everything)]
    )
    wrong = {
        "the columns have changed places: the circuit comes first.": right.flip(1),
        "each row knocks out what the rows before it knocked out too. Start from the whole circuit "
        "every time.": growing,
        "the second column is K alone. Wanted is the whole without K: masks that are 1 everywhere "
        "but on K.": torch.stack([from_circuit, subset_alone], 1),
        "the first column is K alone. Wanted is the circuit without K.": torch.stack(
            [subset_alone, from_everything], 1
        ),
        "the second column is the whole with nothing knocked out. K leaves both.": torch.stack(
            [from_circuit, whole], 1
        ),
        "the first column is the circuit with nothing knocked out. K leaves both.": torch.stack(
            [whole_circuit, from_everything], 1
        ),
        "nothing is knocked out.": torch.stack([whole_circuit, whole], 1),
        "both columns are the circuit's. The second is the whole without K.": torch.stack(
            [from_circuit] * 2, 1
        ),
        "both columns are the whole's. The first is the circuit without K.": torch.stack(
            [from_everything] * 2, 1
        ),
        "you give how far each falls from its start; F itself is wanted.": right[0] - right,
        "you give the distance between the two; the points themselves are wanted.": (
            from_circuit - from_everything
        ).abs(),
        "you give the difference of the two; the points themselves are wanted.": (
            from_circuit - from_everything
        ),
        "a point is a row: F(C∖K) and F(S∖K) side by side.": right.T,
        "the points stand in one long row; each K has a row of its own.": right.flatten(),
        "you kept the prompts apart; F is the mean over prompts.": of_prompts.view(5, 2, -1),
    }
    parts = {
        "the first column (F(C∖K))": lambda table: table[:, 0],
        "the second column (F(S∖K))": lambda table: table[:, 1],
    }
    compare_parts(answer, right, wrong, parts, what="the table of points")


# ---------------------------------------------------------------------------------------------
# 5.5 One node at a time
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
    nodes = [FIRST, IDLE, LAST, HARM, TWIN]
    circuit = toy_circuit(*nodes)
    answer = attempt(toy, circuit, nodes)
    require_tensor(answer, "the table of drops")
    right, whole = drop_each(toy, circuit, nodes), toy(circuit)
    gone = [toy_circuit(*nodes[i + 1 :]) for i in range(len(nodes))]
    one_after_the_other = torch.stack([whole - toy(masks) for masks in gone])
    alone = torch.stack([whole - toy(toy_circuit(node)) for node in nodes])
    left = whole - right
    wrong = {
        "the sign is wrong: a node that helps is to be above 0.": -right,
        "the nodes leave one after the other and stay away. One at a time: put each node back "
        "before the next one leaves.": one_after_the_other,
        "you kept one node and dropped the others.": alone,
        "sizes only: a node whose removal *helps* is to be below 0.": right.abs(),
        "you averaged over prompts; the rows keep them, so that "
        "intervals can be drawn.": right.mean(1),
        "you averaged over nodes; each has a row of its own.": right.mean(0),
        "these are the logit differences that are left without each node. Wanted is how far they "
        "fall.": left,
        "you added the two; a drop is a difference.": whole + left,
        "every row is the whole circuit's logit differences: take off what is left without the "
        "node.": whole.expand(len(nodes), -1),
        "the drops are shares of the whole circuit's logit difference; the drops themselves are "
        "wanted.": right / whole,
        "you compared with the mean of the whole circuit; each prompt has its own.": (
            whole.mean() - left
        ),
        "a node is a row and a prompt a column; you have it the other way round.": right.T,
    }
    compare(answer, right, wrong, what="the table of drops")


# ---------------------------------------------------------------------------------------------
# 5.6 Chance
# ---------------------------------------------------------------------------------------------


@book.solution
def chance_jaccard(n_a: int, n_b: int, n: int) -> float:
    """The mean Jaccard index |A∩B| / |A∪B| of two circuits that are drawn at random.

    The exact mean, over all pairs that might be drawn.

    Args:
        n_a, n_b: how many nodes the two circuits have; each is drawn by itself, no node twice.
        n: how many nodes there are to draw from.
    """
    mean = 0.0
    for k in range(max(0, n_a + n_b - n), min(n_a, n_b) + 1):
        probability = math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
        mean += probability * k / (n_a + n_b - k)
    return mean


@book.checker(chance_jaccard)
def _(attempt: Callable) -> None:
    cases = [(2, 3, 5), (1, 2, 4), (4, 2, 9), (4, 3, 5)]  # in the last, two are always shared

    def each(value: Callable[[int, int, int], float]) -> Float[Tensor, " cases"]:
        return torch.tensor([value(*case) for case in cases], dtype=torch.double)

    def overlaps(a: int, b: int, n: int) -> range:
        return range(max(0, a + b - n), min(a, b) + 1)

    def ways(k: int, a: int, b: int, n: int) -> int:
        return math.comb(a, k) * math.comb(n - a, b - k)

    def mean_of(
        value: Callable[[int, int, int], float],
        among: Callable[[int, int, int], Iterable[int]] = overlaps,
        all_ways: Callable[[int, int, int], float] = lambda a, b, n: math.comb(n, b),
    ) -> Float[Tensor, " cases"]:
        """The mean of a function of the overlap k and the two sizes, for each case."""

        def of_case(a: int, b: int, n: int) -> float:
            terms = [ways(k, a, b, n) * value(k, a, b) for k in among(a, b, n)]
            return sum(terms) / all_ways(a, b, n)

        return each(of_case)

    def jaccard(k: int, a: int, b: int) -> float:
        return k / (a + b - k)

    def unweighted(a: int, b: int, n: int) -> list[float]:
        return [jaccard(k, a, b) for k in overlaps(a, b, n)]

    right = mean_of(jaccard)
    mean_overlap, sizes = mean_of(lambda k, a, b: k), mean_of(lambda k, a, b: a + b)
    wrong = {
        "you put the mean overlap into the Jaccard. The mean of a ratio is not the ratio of the "
        "means: go through every overlap k.": mean_overlap / (sizes - mean_overlap),
        "you gave the mean overlap itself. Divide each k by the size of the union that goes with "
        "it.": mean_overlap,
        "you divided by n_a + n_b, which counts shared nodes twice. The "
        "union is smaller.": mean_overlap / sizes,
        "you divided by n_a + n_b + k; shared nodes are counted twice in n_a + n_b, so take k "
        "off.": mean_of(lambda k, a, b: k / (a + b + k)),
        "you divided by the smaller circuit: that is nesting, not the Jaccard.": mean_of(
            lambda k, a, b: k / min(a, b)
        ),
        "you divided by all n nodes. Divide by those that are in one of the two circuits.": (
            mean_overlap / each(lambda a, b, n: n)
        ),
        "the largest overlap is missing: k goes up to min(n_a, n_b), and the end of `range` is "
        "exclusive.": mean_of(jaccard, lambda a, b, n: overlaps(a, b, n)[:-1]),
        "the smallest overlap is missing. It is not always 0: large circuits have to share.": (
            mean_of(jaccard, lambda a, b, n: overlaps(a, b, n)[1:])
        ),
        "only the largest overlap counts in yours. Add up the terms of all.": mean_of(
            jaccard, lambda a, b, n: overlaps(a, b, n)[-1:]
        ),
        "only the smallest overlap counts in yours. Is the return inside the loop?": mean_of(
            jaccard, lambda a, b, n: overlaps(a, b, n)[:1]
        ),
        "you added up the Jaccards of all overlaps, unweighted. Each counts with its P(k).": each(
            lambda a, b, n: sum(unweighted(a, b, n))
        ),
        "every overlap weighs the same in your mean. Each counts with its P(k).": each(
            lambda a, b, n: sum(unweighted(a, b, n)) / len(unweighted(a, b, n))
        ),
        "you added up the P(k) alone, which makes 1. Each goes with its Jaccard.": mean_of(
            lambda k, a, b: 1
        ),
        "your P(k) do not add up to 1: divide the number of ways by C(n, n_b).": mean_of(
            jaccard, all_ways=lambda a, b, n: 1
        ),
        "your P(k) do not add up to 1: you multiplied by C(n, n_b), where it divides.": mean_of(
            jaccard, all_ways=lambda a, b, n: 1 / math.comb(n, b)
        ),
        "your P(k) do not add up to 1: with C(n_a, k) · C(n − n_a, n_b − k) above goes C(n, n_b) "
        "below, and not C(n, n_a).": mean_of(jaccard, all_ways=lambda a, b, n: math.comb(n, a)),
        "you drew with replacement: a node can be in a circuit once.": each(_with_replacement),
    }
    answer = torch.tensor([float(attempt(*case)) for case in cases], dtype=torch.double)
    what = "the expected Jaccard of (2, 3 of 5), (1, 2 of 4), (4, 2 of 9) and (4, 3 of 5) nodes"
    compare(answer, right, wrong, what=what)
    if not abs(attempt(30, 12, 3000) - chance_jaccard(30, 12, 3000)) < 1e-6:
        raise Wrong(
            "small cases are right, but 30 and 12 of 3,000 nodes are not. Whole numbers do not "
            "overflow in Python: stay with math.comb."
        )


def _with_replacement(n_a: int, n_b: int, n: int) -> float:
    """The mean Jaccard if each of ``n_b`` draws hits the first circuit by itself."""
    share, mean = n_a / n, 0.0
    for k in range(min(n_a, n_b) + 1):
        probability = math.comb(n_b, k) * share**k * (1 - share) ** (n_b - k)
        mean += probability * k / (n_a + n_b - k)
    return mean


# ---------------------------------------------------------------------------------------------
# 5.7 Two areas
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
    # From above 0 to below 1, at unequal distances, with a circuit that overshoots.
    fractions, faithfulness = [0.05, 0.15, 0.4, 0.9], [0.2, 0.7, 1.4, 0.9]
    k, f = torch.tensor(fractions).double(), torch.tensor(faithfulness).double()
    widths, distance = k.diff(), (1 - f).abs()
    right = cpr_cmd(fractions, faithfulness)
    cpr, signed = torch.trapezoid(f, k), torch.trapezoid(1 - f, k)
    both = torch.stack([f, distance])  # [2, sizes]
    strips = (both[:, 1:] + both[:, :-1]) / 2 * widths
    from_zero = torch.stack([f[0] / 2, (1 + distance[0]) / 2]) * k[0]
    finely = torch.cat([torch.linspace(a, b, 2001).double()[:-1] for a, b in itertools.pairwise(k)])
    after = torch.searchsorted(k, finely, right=True).clamp(1, len(k) - 1)
    share = (finely - k[after - 1]) / widths[after - 1]
    on_line = f[after - 1] + share * (f[after] - f[after - 1])
    of_either = {
        "you averaged over the sizes, as if they stood at equal distances. Each trapezoid is as "
        "wide as its two sizes are apart.": both.mean(1),
        "you added up the heights without their widths. Each trapezoid is as wide as its two sizes "
        "are apart.": both.sum(1),
        "you averaged over the trapezoids; their areas are to be weighed by their widths.": (
            (both[:, 1:] + both[:, :-1]) / 2
        ).mean(1),
        "your strips are rectangles with the left value; take the mean of both ends.": (
            both[:, :-1] * widths
        ).sum(1),
        "your strips are rectangles with the right value; take the mean of both ends.": (
            both[:, 1:] * widths
        ).sum(1),
        "you divided by the range of sizes. The integral is wanted, not the mean height.": (
            right / (k[-1] - k[0])
        ),
        "your area begins at k = 0. Begin at the smallest size that is given.": right + from_zero,
        "the first trapezoid is missing.": strips[:, 1:].sum(1),
        "the last trapezoid is missing: n sizes have n − 1 trapezoids.": strips[:, :-1].sum(1),
        "there is only the first trapezoid. Is the return inside the loop?": strips[:, 0],
        "there is only the last trapezoid: add them up.": strips[:, -1],
        "each trapezoid is to have its two neighbours for ends; yours skips one.": torch.stack(
            [((k[2:] - k[:-2]) * (row[2:] + row[:-2]) / 2).sum() for row in both]
        ),
        "the width of a trapezoid is k_2 − k_1, and not the sum of the two.": (
            (k[1:] + k[:-1]) * (both[:, 1:] + both[:, :-1]) / 2
        ).sum(1),
        "the mean height of a trapezoid is (left + right) / 2: mind the brackets.": (
            widths * (both[:, :-1] + both[:, 1:] / 2)
        ).sum(1),
    }
    wrong = {
        "you added up the distances with their signs: too much at one size makes up for too little "
        "at another. Take |1 − f| first.": torch.stack([cpr, signed.abs()]),
        "the distances keep their signs: a circuit that overshoots the "
        "model is off, too.": torch.stack([cpr, signed]),
        "the distances have the wrong sign. |1 − f| is never below 0.": right
        * torch.tensor([1, -1]),
        "your CMD is |1 − CPR|: the distance of the area. Wanted is the area of the distances.": (
            torch.stack([cpr, (1 - cpr).abs()])
        ),
        "your CMD is the area of |f|, not of |1 − f|.": torch.stack([cpr, cpr]),
        "your CMD is the area of 1 + f, not of |1 − f|.": torch.stack(
            [cpr, torch.trapezoid(1 + f, k)]
        ),
        "your CMD is the area of the squares (1 − f)². Wanted are sizes, |1 − f|.": torch.stack(
            [cpr, torch.trapezoid(distance**2, k)]
        ),
        "|·| is missing at the left end of each trapezoid of CMD.": torch.stack(
            [cpr, (widths * ((1 - f[:-1]) + distance[1:]) / 2).sum()]
        ),
        "|·| is missing at the right end of each trapezoid of CMD.": torch.stack(
            [cpr, (widths * (distance[:-1] + (1 - f[1:])) / 2).sum()]
        ),
        "you took |1 − f| all along the lines between the sizes. The rule of this exercise takes "
        "it at the given sizes, and draws lines between those.": torch.stack(
            [cpr, torch.trapezoid((1 - on_line).abs(), finely)]
        ),
        "CPR and CMD have changed places.": right.flip(0),
        "sizes and faithfulness have changed places: a trapezoid's width is the difference of two "
        "sizes.": torch.stack([torch.trapezoid(k, f), torch.trapezoid((1 - k).abs(), f)]),
        **of_either,
    }
    answer = attempt(fractions, faithfulness)
    require_tensor(answer, "what holds the two areas")
    parts = {"CPR": lambda pair: pair[0], "CMD": lambda pair: pair[1]}
    of_parts = {
        name: {says: part(value) for says, value in of_either.items()}
        for name, part in parts.items()
    }
    compare_parts(answer, right, wrong, parts, of_parts, what="the pair (CPR, CMD)")


# ---------------------------------------------------------------------------------------------
# 5.8 The other number
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
    f = (uniform(5, 3, 4, seed=0) - 0.3).relu() * torch.arange(1.0, 6)[:, None, None]
    g = (uniform(5, 3, 6, seed=1) - 0.3).relu() * torch.arange(5.0, 0, -1)[:, None, None]
    latents = {EARLY: f, LATE: g + torch.tensor([1.0, 0, 2, 0, 0, 0])}
    nodes = [(EARLY, 1, 2), (LATE, 2, 0), (EARLY, 2, 1)]
    train_is_plural = torch.tensor([True, False, False, True, False])
    is_plural = torch.tensor([False, True, False, True, True, True, False])
    answer = attempt(latents, train_is_plural, is_plural, nodes)
    require_returned(answer, "it")
    if not isinstance(answer, Mapping) or set(answer) != set(nodes):
        raise Wrong(
            "it is to be a dictionary with the nodes as keys: (hook point, position, latent)."
        )
    if any(torch.as_tensor(value).ndim == 0 for value in answer.values()):
        raise Wrong(
            "one value for all sentences; singular and plural ones need different values, so one "
            "per sentence."
        )

    def with_rule(rule: Callable[[Tensor, int, int], Tensor]) -> Float[Tensor, "nodes n"]:
        return torch.stack([rule(latents[name], p, i) for name, p, i in nodes])

    def of_other(values: Float[Tensor, " n_train"], firing_only: bool = False) -> Tensor:
        counts = values > 0 if firing_only else torch.ones_like(train_is_plural)
        singular, plural = (values[counts & of] for of in (~train_is_plural, train_is_plural))
        return torch.where(is_plural, singular.mean(), plural.mean())

    own = torch.stack(list(other_number(latents, train_is_plural, ~is_plural, nodes).values()))
    wrong = {
        "you gave each sentence its own number's value: nothing would flip.": own,
        "you averaged over positions too. A node has one.": with_rule(
            lambda f, p, i: of_other(f[:, :, i].mean(1))
        ),
        "you averaged over latents too. A node has one.": with_rule(
            lambda f, p, i: of_other(f[:, p].mean(1))
        ),
        "you averaged over both numbers: that is an ablation, which leaves "
        "the number open.": with_rule(lambda f, p, i: f[:, p, i].mean().expand(len(is_plural))),
        "position and latent have changed places.": with_rule(lambda f, p, i: of_other(f[:, i, p])),
        "the position is one too small: BOS is position 0.": with_rule(
            lambda f, p, i: of_other(f[:, p - 1, i])
        ),
        "the latent is one too small: latents are numbered from 0.": with_rule(
            lambda f, p, i: of_other(f[:, p, i - 1])
        ),
        "the latent is one too large: latents are numbered from 0.": with_rule(
            lambda f, p, i: of_other(f[:, p, i + 1])
        ),
        "you averaged over the sentences in which the latent fires. A silent one counts too, "
        "with 0.": with_rule(lambda f, p, i: of_other(f[:, p, i], firing_only=True)),
        "every sentence got the value of a singular subject.": with_rule(
            lambda f, p, i: f[~train_is_plural, p, i].mean().expand(len(is_plural))
        ),
        "every sentence got the value of a plural subject.": with_rule(
            lambda f, p, i: f[train_is_plural, p, i].mean().expand(len(is_plural))
        ),
        "every node got the values of the first.": with_rule(
            lambda f, p, i: of_other(latents[EARLY][:, 1, 2])
        ),
    }
    try:
        table = torch.stack([torch.as_tensor(answer[node]) for node in nodes])
    except RuntimeError:
        raise Wrong("the nodes have different numbers of values; one per sentence.") from None
    right = with_rule(lambda f, p, i: of_other(f[:, p, i]))
    parts = {
        "the values for plural subjects": lambda table: table[:, is_plural],
        "the values for singular subjects": lambda table: table[:, ~is_plural],
    }
    of_both = with_rule(lambda f, p, i: f[:, p, i].mean().expand(len(is_plural)))
    says = "they are means over the training sentences of both numbers."
    of_parts = {name: {says: part(of_both)} for name, part in parts.items()}
    compare_parts(table, right, wrong, parts, of_parts, what="the table of values")
