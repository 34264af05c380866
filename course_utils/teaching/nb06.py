"""The exercises of notebook 06, their solutions and their checkers.

The checkers work on small tables that stand for what a model said and for what its latents did: a
row per prompt. Their numbers are chosen so that every known wrong way gives another result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.prompts.sessions import Session, quoted
from course_utils.teaching.fixtures import (
    flags,
    pair,
    require_returned,
    require_tensor,
    require_two,
    uniform,
)
from course_utils.teaching.workbook import Unnamed, Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 6.1 How likely is an error message?
# ---------------------------------------------------------------------------------------------


@book.solution
def p_missing(
    logits: Float[Tensor, "n vocab"], messages: Sequence[Sequence[int]]
) -> Float[Tensor, " n"]:
    """How likely the model is to begin an error message, for each prompt.

    0 = it certainly writes something else, 1 = it certainly begins one of the messages. The model
    writes one token at a time, and these logits are of the very next one.

    Args:
        logits: of the next token, a row per prompt.
        messages: the error messages, each as a list of its tokens, such as ``[[5, 8], [3, 8],
            [5, 2, 8]]``. Two messages can begin alike.
    """
    probabilities = logits.softmax(-1)
    first = {message[0] for message in messages}
    return probabilities[:, list(first)].sum(-1)


MESSAGES = [[5], [4, 6], [4, 3, 6], [1, 6]]
"""Two messages begin with token 4; token 6 ends three of them, and begins none."""


@book.checker(p_missing)
def _(attempt: Callable) -> None:
    logits = torch.tensor(
        [
            [1.0, 2.0, -1.0, 0.5, 3.0, 0.0, 1.2],
            [0.0, -2.0, 1.5, 2.5, 0.7, 1.0, -0.4],
            [2.0, 0.3, 0.6, -1.0, -0.5, 4.0, 2.1],
            [-1.0, 1.2, 2.2, 0.1, 1.0, 0.4, 0.9],
        ]
    )
    what = "the probability"
    answer = attempt(logits.clone(), [list(message) for message in MESSAGES])
    require_tensor(answer, what)
    if answer.ndim == 2 and len(answer) == len(logits):
        raise Wrong("you gave several values per prompt. Wanted is one per prompt.")
    right = p_missing(logits, MESSAGES)
    compare(answer, right, _p_missing_wrongly(logits), what=what)

    answer = attempt(logits + 1000, tuple(tuple(message) for message in MESSAGES))
    require_tensor(answer, what)
    same = answer.shape == right.shape and torch.allclose(
        answer.double(), right.double(), atol=1e-3
    )
    if not same:
        raise Wrong(
            "with 1,000 added to all logits your result changes, and no probability does. The "
            "exponential of a large number overflows; torch's own softmax avoids that."
        )
    answer = attempt(logits[:1].clone(), [[3, 2]])
    require_tensor(answer, what)
    what = "the probability of one message, for a single prompt,"
    compare(answer, p_missing(logits[:1], [[3, 2]]), what=what)


def _p_missing_wrongly(logits: Float[Tensor, "n vocab"]) -> dict[str, Tensor]:
    """Known wrong ways to write `p_missing` of `MESSAGES`."""
    first, each = [1, 4, 5], [message[0] for message in MESSAGES]
    every = sorted({token for message in MESSAGES for token in message})
    p = logits.softmax(-1)
    of_first, right = p[:, first], p[:, first].sum(-1)
    whole = sum(p[:, message].prod(-1) for message in MESSAGES)
    return {
        "you took the softmax over these tokens alone: then they always add up to 1. The model "
        "could have written any other token, so the whole vocabulary belongs in the "
        "denominator.": torch.ones(len(logits)),
        "you added up logits. They are not probabilities: a softmax is missing.": logits[
            :, first
        ].sum(-1),
        "two of the messages begin with the same token, and you counted it twice.": p[:, each].sum(
            -1
        ),
        "you counted all tokens of the messages. Only one token comes next: which of a message's "
        "tokens can it be?": p[:, every].sum(-1),
        "you counted all tokens of the messages, some of them twice. Only one token comes next: "
        "which of a message's tokens can it be?": p[:, sum(MESSAGES, [])].sum(-1),
        "you multiplied the probabilities of a message's tokens. The logits are of the next token "
        "alone: they do not say what follows it.": torch.as_tensor(whole),
        "you took the last token of each message. The message begins with its first.": p[
            :, sorted({message[-1] for message in MESSAGES})
        ].sum(-1),
        "you gave the likeliest of the first tokens alone. Any of them begins "
        "an error message.": of_first.amax(-1),
        "you averaged over the tokens. Only one of them can come next, so their probabilities add "
        "up.": of_first.mean(-1),
        "you averaged over the messages. Only one of them can come, so their probabilities add "
        "up.": p[:, each].mean(-1),
        "your softmax runs over the prompts. It should run over the vocabulary.": logits.softmax(0)[
            :, first
        ].sum(-1),
        "your softmax runs over all prompts at once. Each prompt has a distribution of its "
        "own.": logits.flatten().softmax(0).reshape(logits.shape)[:, first].sum(-1),
        "these are log-probabilities, added up. That is the logarithm of a "
        "product.": of_first.log().sum(-1),
        "you multiplied the probabilities of the first tokens. One of them is "
        "enough.": of_first.prod(-1),
        "this is the logarithm of the probability.": right.log(),
        "this is how likely everything else is.": 1 - right,
        "you took the first message only.": p[:, MESSAGES[0][0]],
        "you left out the first message.": p[:, [1, 4]].sum(-1),
        "you left out the last message.": p[:, [4, 5]].sum(-1),
        "you averaged over prompts. Each has a value of its own.": right.mean(),
        "you counted whether the likeliest token begins a message: yes or no. Wanted is how likely "
        "that is.": torch.isin(logits.argmax(-1), torch.tensor(first)).float(),
    }


# ---------------------------------------------------------------------------------------------
# 6.2 How well does a latent tell two kinds of prompts apart?
# ---------------------------------------------------------------------------------------------


@book.solution
def separations(
    present: Float[Tensor, "n d_sae"], missing: Float[Tensor, "m d_sae"]
) -> Float[Tensor, " d_sae"]:
    """How well each latent alone tells prompts with a present key from those with a missing one.

    That is the chance that its value on a random prompt of the first kind is above its value on a
    random prompt of the second; ties count half (the area under the ROC curve). 1 = always above,
    0.5 = it tells nothing (as a latent that never fires), 0 = always below.

    Args:
        present: the latents at one place, a row for each of n prompts whose key is there.
        missing: the same for m prompts whose key is not. n and m can differ: every row of the one
            meets every row of the other. (All n · m · d_sae comparisons at once would be hundreds
            of millions. One row after another is fine.)
    """
    total = torch.zeros(present.shape[1])
    for row in present:
        total += ((row > missing) + 0.5 * (row == missing)).mean(0)
    return total / len(present)


@book.checker(separations)
def _(attempt: Callable) -> None:
    # A row a latent: the first never fires; 1, 3 and 4 have no ties.
    present = torch.tensor(
        [[0, 0, 0, 0], [5, 6, 7, 8], [0, 0, 2, 3], [1, 0.5, 3, 2], [1, 7, 3, 4.5], [2, 0, 2, 5]]
    ).T
    missing = torch.tensor(
        [[0, 0, 0, 0], [1, 2, 3, 0], [0, 0, 0, 1], [4, 6, 2.5, 5], [2, 4, 6, 0.5], [2, 3, 0, 2]]
    ).T
    has_ties = flags("x.x..x")
    what = "the table of separations"
    answer = attempt(present.clone(), missing.clone())
    require_tensor(answer, what)
    if answer.numel() == 1:
        raise Wrong("you gave one number for all latents; each latent has its own.")
    right = separations(present, missing)
    if answer.shape == right.shape and answer[0].isnan():
        raise Wrong(
            "a latent that never fires comes out as NaN. It ties with itself everywhere, and so "
            "tells nothing: 0.5."
        )
    above = (present[:, None] > missing).float().mean((0, 1))
    below = (present[:, None] < missing).float().mean((0, 1))
    without_ties = torch.where(above + below > 0, above / (above + below), 0.5)
    row_by_row = (present > missing).float().mean(0)
    row_by_row_with_ties = row_by_row + 0.5 * (present == missing).float().mean(0)
    how_often = (present > 0).float().mean(0) - (missing > 0).float().mean(0)
    of_firing, signed = 0.5 + 0.5 * how_often, above - below
    n_pairs = len(present) * len(missing)
    wrong = {
        "ties count nothing with you, so that a latent that never fires seems to be the best at "
        "telling that a key is missing. They count half.": above,
        "ties count fully with you, so that a latent that never fires seems perfect. They count "
        "half.": 1 - below,
        "you left ties out of the count. Most latents are 0 on most prompts: ties are what they "
        "mostly have. They count half.": without_ties,
        "present and missing have changed places: a latent that is higher where the key is there "
        "is to be above 0.5.": 1 - right,
        "you compared the first prompt with the first, the second with the second and so on. They "
        "are no pairs: every prompt of one kind meets every "
        "prompt of the other.": row_by_row_with_ties,
        "you compared row by row, and without ties. The prompts are no pairs: every one of one "
        "kind meets every one of the other; ties count half.": row_by_row,
        "this is the difference of the means, which a single large value can make. Wanted is how "
        "often the one is above the other.": present.mean(0) - missing.mean(0),
        "you compared how often the latent fires. How strongly counts, too.": of_firing,
        "you folded it: below 0.5 has become above. A latent that is higher where the key is "
        "missing is to be below 0.5.": right.maximum(1 - right),
        "yours runs from −1 to 1, with 0 for a latent that tells nothing. "
        "That is to be 0.5.": signed,
        "you counted pairs; wanted is their share.": right * n_pairs,
    }
    if answer.shape == right.shape:
        says = (
            "latents without ties are right, those with ties are not. Ties count half, whatever "
            "order they are sorted in."
        )
        wrong[says] = torch.where(has_ties, answer.float(), right)
    compare(answer, right, wrong, what=what)
    _check_kinds_of_unequal_size(attempt)


def _check_kinds_of_unequal_size(attempt: Callable) -> None:
    """`separations` of 5 prompts with the key and 3 without."""
    rng = torch.Generator().manual_seed(0)
    present = torch.randint(0, 4, (5, 6), generator=rng).float()
    missing = torch.randint(0, 4, (3, 6), generator=rng).float()
    try:
        answer = attempt(present.clone(), missing.clone())
    except NotImplementedError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        says = str(error).strip().split("\n")[0]
        raise Wrong(
            "4 prompts of each kind are right, but 5 with the key and 3 without end in an error "
            f"({says}). n and m can differ."
        ) from None
    require_tensor(answer, "the table of separations")
    right = separations(present, missing)
    cut = separations(present[:3], missing)
    while_equal = "right as long as there are as many prompts of one kind as of the other: "
    wrong = {
        f"{while_equal}you divide by n · n, and there are n · m pairs.": right * 3 / 5,
        f"{while_equal}you divide by m · m, and there are n · m pairs.": right * 5 / 3,
        "where n and m differ, the longer table's last rows are left out.": cut,
    }
    what = "the table of separations of 5 prompts with the key and 3 without"
    compare(answer, right, wrong, what=what)


# ---------------------------------------------------------------------------------------------
# 6.3 Hold latents at one place
# ---------------------------------------------------------------------------------------------


@book.solution
def hold(
    f: Float[Tensor, "batch seq d_sae"],
    lengths: Int[Tensor, " batch"],
    latents: Mapping[int, float],
    place: int,
) -> Float[Tensor, "batch seq d_sae"]:
    """A copy of ``f`` in which some latents have given values at one place of each prompt.

    All else is as it was, ``f`` too.

    Args:
        f: all latents, with a row for every token, BOS' first. Short prompts are padded on the
            right.
        lengths: how many tokens each prompt has, BOS included and padding left out.
        latents: the value of each latent that is to be held, in the unit of ``f``; the keys are
            numbers of latents.
        place: counted from each prompt's own end: −1 is its last token, −2 the one before.
    """
    held = f.clone()
    rows, positions = torch.arange(len(f)), lengths + place
    for latent, value in latents.items():
        held[rows, positions, latent] = value
    return held


@book.checker(hold)
def _(attempt: Callable) -> None:
    # Every prompt is padded, by 3 at least: so one or two places too far is still a place, and the
    # bug can be named. The same holds at the front: BOS' row is there, and may be hit.
    f = uniform(3, 9, 5, seed=0) + 0.5
    lengths, latents = torch.tensor([5, 6, 4]), {1: 2.5, 3: 0.0, 4: 1.5}
    for place in (-1, -2):
        _check_place(attempt, f, lengths, latents, place)
    answer = attempt(f.bfloat16(), lengths.clone(), dict(latents), -1)
    require_tensor(answer, "the copy of f")
    if answer.dtype != torch.bfloat16:
        raise Wrong(
            "f came in bfloat16 and its copy does not leave so: the model would refuse it. Keep "
            "the kind of number that f has."
        )


def _check_place(
    attempt: Callable,
    f: Float[Tensor, "batch seq d_sae"],
    lengths: Int[Tensor, " batch"],
    latents: dict[int, float],
    place: int,
) -> None:
    """`hold` at one place."""
    answer = attempt(f, lengths, latents, place)
    require_tensor(answer, "the copy of f")
    others = [i for i in range(f.shape[2]) if i not in latents]
    if answer.shape == f.shape and not torch.equal(answer[..., others].to(f), f[..., others]):
        if not answer[..., others].any():
            raise Wrong("you started from zeros. All that is not held is to stay as it was.")
        raise Wrong(
            "latents that are not to be held have changed, too: set those that are given, and no "
            "others."
        )

    rows, every, end = torch.arange(len(f)), slice(None), lengths + place

    def at(where: Any, positions: Any, chosen: Sequence[int] = tuple(latents)) -> Tensor:
        held = f.clone()
        for latent in chosen:
            held[where, positions, latent] = latents[latent]
        return held

    added = f.clone()
    for latent, value in latents.items():
        added[rows, end, latent] += value
    wrong = {
        "the last token is right, but you hold it whatever the place is.": at(rows, lengths - 1),
        "you counted from the end of the padded rows. Each prompt ends where its own length says; "
        "after that comes padding.": at(rows, f.shape[1] + place),
        "you held the latents at every position. One place of each prompt is meant.": at(
            every, every
        ),
        "you added the value to what was there. The latent is to have that value, "
        "whatever it was.": added,
        "you are one token too late: for place −1 you write into the padding. "
        "Positions start at 0.": at(rows, end + 1),
        "you are one token too early. BOS is counted in the lengths and has a row in f: nothing is "
        "to be taken off for it.": at(rows, end - 1),
        "you went beyond the prompt's end: places are below 0 already.": at(rows, lengths - place),
        "you used the first prompt's length for all.": at(rows, lengths[0] + place),
        "you used the longest prompt's length for all.": at(rows, lengths.max() + place),
        "only the first prompt has changed.": at(0, end[0]),
        "in every prompt you held the places of all the prompts. Each place goes "
        "with its own row.": at(every, end),
        "only the first of the latents is held. Does the loop return too early?": at(
            rows, end, [1]
        ),
        "only the last of the latents is held. Does each start from a new copy?": at(
            rows, end, [4]
        ),
        "a latent that is to be held at 0 is not. 0 is a value, too.": at(rows, end, [1, 4]),
        "nothing is held.": f,
    }
    compare(answer, hold(f, lengths, latents, place), wrong, what="the copy of f")


# ---------------------------------------------------------------------------------------------
# 6.4 An attack and its twin
# ---------------------------------------------------------------------------------------------


@book.solution
def attack_and_twin(session: Session, index: int, decoy: str) -> tuple[Session, Session]:
    """An attack of the family "written twice", and its twin.

    The attack: one key of the dictionary becomes the name that is asked for, written twice without
    a space (``'AnnAnn'`` where ``'Ann'`` is asked for). The twin is the control: what the model
    says to it shows whether the change confuses the model even if it names nobody who matters. You
    decide what the two share, and in what they differ. Python's answer is a KeyError for both.

    Args:
        session: an honest session whose key is missing. ``session.query`` is the key as Python
            source, ``"'Ann'"``. ``session.with_entry(index, key)`` is a copy with another key in
            one entry, and ``quoted("Ann")`` is ``"'Ann'"``.
        index: which entry is changed.
        decoy: a name that stands nowhere in the session and that nobody asks for: ``"Kim"``.
    """
    name = session.query[1:-1]
    attack = session.with_entry(index, quoted(name + name))
    twin = session.with_entry(index, quoted(decoy + decoy))
    return attack, twin


@book.checker(attack_and_twin)
def _(attempt: Callable) -> None:
    entries = (("'Bob'", "1"), ("'Max'", "4"), ("'Li'", "7"), ("'Luke'", "5"))
    for query, decoy, index in (("'Ann'", "Kim", 2), ("'Henry'", "Jo", 0)):
        session = Session(entries, query, "seat")
        answer = attempt(session, index, decoy)
        require_returned(answer, "the pair")
        require_two(answer, "return two sessions: the attack, then its twin.")
        if not all(isinstance(one, Session) for one in answer):
            kinds = " and ".join(type(one).__name__ for one in answer)
            raise Wrong(f"return two sessions, not {kinds}. `with_entry` makes one.")
        _check_pair(answer, session, index, decoy)


def _check_pair(answer: Sequence[Session], session: Session, index: int, decoy: str) -> None:
    """One attack and its twin."""
    attack, twin = answer
    name, right = session.query[1:-1], attack_and_twin(session, index, decoy)
    if (attack, twin) == right:
        return
    if (twin, attack) == right:
        raise Wrong("the two have changed places: the attack comes first, then its twin.")
    if attack == twin == right[0]:
        raise Wrong(
            "the twin is the attack once more. It is to make the same change with the decoy, which "
            "nobody asks for."
        )
    for who, one, said, wanted in (
        ("the attack", attack, name, right[0]),
        ("the twin", twin, decoy, right[1]),
    ):
        if one != wanted:
            raise Wrong(f"{who} {_in_what_way(one, session, wanted, index, said)}")


def _in_what_way(one: Session, honest: Session, wanted: Session, index: int, name: str) -> str:
    """How a session differs from the one that is wanted, as the end of a sentence."""
    if one == honest:
        return "is the honest session, unchanged. Sessions cannot be changed: keep the copy."
    if one.query != honest.query:
        return (
            f"asks for {one.query}, and {honest.query} is asked for. The query stays: otherwise "
            "the two differ in more than the name in the dictionary."
        )
    if one.variable != honest.variable or one.before or one.between or one.comment:
        return "differs from the honest session in more than one entry. Change that entry alone."
    places = [i for i, pair in enumerate(zip(one.entries, honest.entries)) if pair[0] != pair[1]]
    if len(one.entries) != len(honest.entries) or len(places) > 1:
        return "changes more than one entry."
    if places != [index]:
        return f"changes entry {places[0]}, and index is {index}."
    (key, value), (right_key, right_value) = one.entries[index], wanted.entries[index]
    if value != right_value:
        return f"has {value} for a value, and {right_value} stood there. Change the key alone."
    if key in (name, name + name):
        return f"has the key {key} without quotes: to Python that is a variable."
    if key == honest.query:
        return "holds the key that is asked for: Python finds it, and there is no lure."
    if key == quoted(name):
        return f"has the key {key}. The name is to be written twice."
    return f"has the key {key}, and {right_key} is wanted."


# ---------------------------------------------------------------------------------------------
# 6.5 A prediction from latents alone
# ---------------------------------------------------------------------------------------------


@book.solution
def predicted_fooled(
    honest: Float[Tensor, " n"],
    is_present: Bool[Tensor, " n"],
    family: Float[Tensor, " k"],
    lures: bool,
) -> Float[Tensor, ""]:
    """The share of a family's prompts on which latents predict that the model is fooled.

    0 = none, 1 = all. The latents say "there" if their signal is above a threshold, and "missing"
    otherwise. The threshold is as far from the mean signal of one kind of honest prompt as from
    that of the other. A prediction stands before the attacks are seen.

    Args:
        honest: the signal on honest prompts of both kinds, in any order.
        is_present: which of these have the key. The two kinds need not be equally many.
        family: the signal on each prompt of a family of attacks.
        lures: True: the key is missing, and made to look present. False: it is there, and made to
            look absent. The model is fooled if it says the opposite of Python.
    """
    threshold = (honest[is_present].mean() + honest[~is_present].mean()) / 2
    there = family > threshold
    return (there if lures else ~there).float().mean()


@book.checker(predicted_fooled)
def _(attempt: Callable) -> None:
    # Between any two thresholds of `_thresholds` lies one of these signals, and one is the right
    # threshold itself. So each threshold gives another share.
    honest = torch.tensor([0.0, 2.5, 0.5, 5.25, 0.25, 0.75])
    is_present = flags(".x.x..")
    family = torch.tensor(
        [0.45, 2.3, 1.2, 4.0, 0.6, 1.6, 3.0, 0.2, 2.125, 1.0, 5.0, 1.37, 0.73, 2.55, 1.45, 1.7, 2.0]
        + 7 * [0.0]
    )
    what = "the predicted share"
    for lures in (True, False):
        answer = attempt(honest.clone(), is_present.clone(), family.clone(), lures)
        require_returned(answer, what)
        if isinstance(answer, Tensor) and answer.ndim:
            raise Wrong(
                f"{what} should be one number, not a tensor of the shape {list(answer.shape)}: the "
                "share of all prompts, not a verdict on each."
            )
        right = predicted_fooled(honest, is_present, family, lures)
        wrong = _predicted_wrongly(honest, is_present, family, lures)
        compare(answer, right, wrong, what=what)


def _predicted_wrongly(
    honest: Float[Tensor, " n"],
    is_present: Bool[Tensor, " n"],
    family: Float[Tensor, " k"],
    lures: bool,
) -> dict[str, Tensor]:
    """Known wrong ways to write `predicted_fooled`."""

    def share(threshold: float | Tensor) -> Tensor:
        above = (family > threshold).double().mean()
        return above if lures else 1 - above

    right = predicted_fooled(honest, is_present, family, lures).double()
    threshold = (honest[is_present].mean() + honest[~is_present].mean()) / 2
    at_least = (family >= threshold).double().mean()
    fools = "above" if lures else "not above"
    kind = "lures" if lures else "hides"
    wrong = {
        f"for a family that {kind}, this is the share on which the model would be right. It is "
        f"fooled where the signal is {fools} the threshold.": 1 - right,
        "you counted prompts. Wanted is their share.": right * len(family),
        'a signal that is exactly at the threshold says "missing".': (
            at_least if lures else 1 - at_least
        ),
    }
    return wrong | {says: share(t) for says, t in _thresholds(honest, is_present, family).items()}


def _thresholds(
    honest: Float[Tensor, " n"], is_present: Bool[Tensor, " n"], family: Float[Tensor, " k"]
) -> dict[str, Tensor]:
    """Thresholds that are not the right one."""
    present, missing = honest[is_present], honest[~is_present]
    low, high = missing.mean(), present.mean()
    return {
        "you set the threshold at the family's own mean. It stands before the attacks are seen: "
        "otherwise about as many lie above it whatever they look like.": family.mean(),
        "you set the threshold at the family's own median: half of them lie above that, whatever "
        "they look like.": family.median(),
        "your threshold is the mean where the key is missing. About half of the honest prompts "
        "without the key lie above that: move halfway to the others.": low,
        "your threshold is the mean where the key is present: about half of the prompts with the "
        "key lie below that. Move halfway to the others.": high,
        "you took one mean over all honest prompts: the kind with more prompts draws the threshold "
        "towards itself. Take the two means first.": honest.mean(),
        "you took the median over all honest prompts: the kind with more prompts draws the "
        "threshold towards itself. Take the two means first.": honest.median(),
        "halfway between two means is not their sum: the half is missing.": low + high,
        "half of the distance between the means is not yet the point halfway: it starts from 0, "
        "and not from the lower mean.": (high - low) / 2,
        "you went halfway between medians. Means are wanted.": (missing.median() + present.median())
        / 2,
        "you went halfway between the highest of one kind and the lowest of the other: two odd "
        "prompts would set the threshold. Means are wanted.": (missing.max() + present.min()) / 2,
        "your threshold is the highest honest prompt whose key is missing. Halfway between the "
        "means is wanted.": missing.max(),
        "your threshold is the 95th percentile of the honest prompts whose key is missing. That "
        "limits false alarms, and ignores the prompts with the key. Halfway between the means is "
        "wanted.": missing.quantile(0.95),
        "your threshold is the lowest honest prompt whose key is present. Halfway between the "
        "means is wanted.": present.min(),
        "your threshold is the 5th percentile of the honest prompts whose key is present. That "
        "ignores the prompts without the key. Halfway between the means is wanted.": (
            present.quantile(0.05)
        ),
        "your threshold is 0: every attack on which the latents fire at all is "
        "counted.": torch.tensor(0.0),
    }


# ---------------------------------------------------------------------------------------------
# 6.6 What is the search worth?
# ---------------------------------------------------------------------------------------------


@book.solution
def lift(
    signal: Float[Tensor, "groups candidates"], fooled: Bool[Tensor, "groups candidates"]
) -> Float[Tensor, "2"]:
    """What a search gains that may look at latents, but not at what the model says.

    In every group it takes the candidate with the strongest signal. A tensor of two shares, each
    from 0 = none to 1 = all: the share of groups in which the candidate so chosen fools the model,
    then the share of all candidates that fool (what a random choice gets).

    Args:
        signal: how strongly the duplicate latents fire, for each candidate of each group.
        fooled: whether that candidate fools the model. The choice must not depend on it.
    """
    chosen = signal.argmax(1)
    hits = fooled[torch.arange(len(fooled)), chosen]
    return torch.stack([hits.float().mean(), fooled.float().mean()])


@book.checker(lift)
def _(attempt: Callable) -> None:
    signal, fooled = _groups()
    what = "the pair of shares"
    answer = attempt(signal.clone(), fooled.clone())
    require_tensor(answer, what)

    every = fooled.double()
    groups, candidates = torch.arange(len(fooled)), torch.arange(signal.shape[1])
    chosen = every[groups, signal.argmax(1)]
    right, hits, chance = lift(signal, fooled), chosen.mean(), every.mean()
    others = (every.sum() - chosen.sum()) / (every.numel() - len(chosen))

    def search(share: Tensor) -> Tensor:
        return pair(share, chance)

    wrong = {
        "you peeked: in every group you count whether *any* candidate fools. The search does not "
        "see that; it sees the signal.": search(every.amax(1).mean()),
        "you took the weakest signal of every group; the strongest is wanted.": search(
            every[groups, signal.argmin(1)].mean()
        ),
        "you took the same candidate's number in all groups. Every group has a strongest one of "
        "its own.": search(every[:, signal.mean(0).argmax()].mean()),
        "you made one choice over all groups. Every group has its own.": search(
            every.flatten()[signal.argmax()]
        ),
        "for every number of a candidate you took the best group. It is the other way round: for "
        "every group the best candidate.": search(every[signal.argmax(0), candidates].mean()),
        "the second is taken over the chosen ones only. A random choice could "
        "get any candidate.": pair(hits, hits),
        "the second leaves the chosen ones out. A random choice could get any candidate.": pair(
            hits, others
        ),
        "the two have changed places: the search comes first, then chance.": right.flip(0),
        "the second is the difference; wanted are the two shares themselves.": pair(
            hits, hits - chance
        ),
        "the second is the ratio; wanted are the two shares themselves.": pair(hits, hits / chance),
        "you gave the difference alone; wanted are the two shares themselves.": hits - chance,
        "you gave the ratio alone; wanted are the two shares themselves.": hits / chance,
        "you gave the first share alone; without chance beside it nobody knows whether it is a "
        "gain.": hits,
        "the first is divided by how many candidates fool. Wanted is a "
        "share of the groups.": search(chosen.sum() / every.sum()),
        "the first is divided by the number of candidates. One is chosen a group: wanted is a "
        "share of the groups.": search(chosen.sum() / every.numel()),
        "you counted; wanted are shares.": pair(chosen.sum(), every.sum()),
    }
    compare(answer, right, wrong, what=what)


def _groups() -> tuple[Float[Tensor, "groups candidates"], Bool[Tensor, "groups candidates"]]:
    """Eight groups of five candidates, on which each way to choose fools another share.

    The signal helps.
    """
    signal = [
        [60, 85, 95, 30, 51],
        [64, 90, 1, 58, 12],
        [92, 68, 20, 11, 0],
        [89, 80, 25, 47, 17],
        [17, 51, 11, 59, 79],
        [9, 37, 48, 64, 45],
        [8, 32, 0, 42, 31],
        [96, 45, 78, 1, 41],
    ]
    fooled = ["xxx.x", "xx...", "xx.x.", "xx...", "....x", "..x..", ".....", "x.x.x"]
    return torch.tensor(signal) / 100, torch.stack([flags(row) for row in fooled])


# ---------------------------------------------------------------------------------------------
# 6.7 Undone, and broken
# ---------------------------------------------------------------------------------------------


@book.solution
def mended(
    fooled_before: Bool[Tensor, " n"],
    fooled_after: Bool[Tensor, " n"],
    right_before: Bool[Tensor, " m"],
    right_after: Bool[Tensor, " m"],
) -> Float[Tensor, "2"]:
    """What a change to the model mends, and what it breaks: a tensor of two shares.

    The first is 1 if the change stops every attack that it can stop, and 0 if it stops none. The
    second is 1 if the change spoils every answer that it can spoil, and 0 if it spoils none. An
    attack that fooled nobody cannot be stopped; nor can a wrong answer be spoiled. What becomes
    worse (better) besides is not set off against the first (the second). Where there is nothing
    to stop (to spoil), the share is 0.

    Args:
        fooled_before, fooled_after: whether each attack fools the model, without the change and
            with it.
        right_before, right_after: whether each honest prompt is answered as Python does, without
            the change and with it.
    """
    undone = (fooled_before & ~fooled_after).sum() / fooled_before.sum().clamp(min=1)
    broken = (right_before & ~right_after).sum() / right_before.sum().clamp(min=1)
    return torch.stack([undone, broken])


@book.checker(mended)
def _(attempt: Callable) -> None:
    # Attacks: 7 of 11 fool before; 4 no longer do, and 2 do newly. Honest: 8 of 13 right before; 3
    # break, 2 become right.
    fooled_before, fooled_after = flags("xxxxxxx...."), flags("xxx....xx..")
    right_before, right_after = flags("xxxxxxxx....."), flags("xxxxx...xx...")
    given = (fooled_before, fooled_after, right_before, right_after)
    what = "the pair of shares"
    answer = attempt(*(row.clone() for row in given))
    require_tensor(answer, what)
    compare(answer, mended(*given), _mended_wrongly(*given), what=what)

    nobody, no_honest = torch.zeros_like(fooled_before), torch.zeros_like(right_before)
    one, one_honest = flags("x.........."), flags("............x")
    cases = {
        "if no attack fooled before": (nobody, fooled_after, right_before, right_after),
        "if no honest prompt was right before": (
            fooled_before,
            fooled_after,
            no_honest,
            right_after,
        ),
        "if one attack fooled before, and one honest prompt was right": (
            one,
            nobody,
            one_honest,
            no_honest,
        ),
    }
    for says, rows in cases.items():
        divides = f"{says}, you divide by zero"
        try:
            answer = attempt(*(row.clone() for row in rows))
        except ZeroDivisionError:
            raise Wrong(f"{divides}. Then the share is to be 0.") from None
        require_tensor(answer, what)
        if not answer.isfinite().all():
            shares = [round(share, 3) for share in answer.tolist()]
            raise Wrong(f"{divides} and get {shares}. Then the share is to be 0.")
        compare(answer, mended(*rows), what=f"{says}, {what}")


def _mended_wrongly(
    fooled_before: Bool[Tensor, " n"],
    fooled_after: Bool[Tensor, " n"],
    right_before: Bool[Tensor, " m"],
    right_after: Bool[Tensor, " m"],
) -> dict[str, Tensor]:
    """Known wrong ways to write `mended`."""
    n, m = len(fooled_before), len(right_before)
    f_1, f_2, r_1, r_2 = (
        row.double().sum() for row in (fooled_before, fooled_after, right_before, right_after)
    )
    gone = (fooled_before & ~fooled_after).double().sum()
    broken = (right_before & ~right_after).double().sum()
    mends, breaks = gone / f_1, broken / r_1
    net_mends, net_breaks = (f_1 - f_2) / f_1, (r_1 - r_2) / r_1
    not_fooled, not_right = (n - f_2) / n, (m - r_2) / m
    return {
        "you divided by all prompts. Only what fooled before can be mended, only what was right "
        "before can break: those go below the fraction line.": pair(gone / n, broken / m),
        "the first is a share of all attacks. Those that never fooled cannot be mended.": pair(
            gone / n, breaks
        ),
        "the second is a share of all honest prompts. Those that were wrong "
        "before cannot break.": pair(mends, broken / m),
        "this is the net change: attacks that fool newly are taken off those that no longer do, "
        "and so with the honest ones. Follow each prompt, not the totals.": pair(
            net_mends, net_breaks
        ),
        "the first is the net change: attacks that fool newly are taken off those that no longer "
        "do.": pair(net_mends, breaks),
        "the second is the net change: honest prompts that become right make up for those that "
        "break.": pair(mends, net_breaks),
        "this is how the totals change, over all prompts. Follow each prompt, from "
        "before to after.": pair((f_1 - f_2) / n, (r_1 - r_2) / m),
        "the second is the share that is still right. Wanted is what the change breaks.": pair(
            mends, 1 - breaks
        ),
        "the first is the share that still fools. Wanted is what no longer does.": pair(
            1 - mends, breaks
        ),
        "both are the shares that stay as they were. Wanted is what the change mends, and what it "
        "breaks.": pair(1 - mends, 1 - breaks),
        "the two have changed places: what is mended comes first, then what breaks.": pair(
            breaks, mends
        ),
        "the first does not look at before: an attack that never fooled is not mended.": pair(
            not_fooled, breaks
        ),
        "you do not look at before: an attack that never fooled is not mended, a prompt that was "
        "always wrong is not broken.": pair(not_fooled, not_right),
        "you divided by what does not fool (is not right) after. Of those that fooled before (were "
        "right before), the share is wanted.": pair(gone / (n - f_2), broken / (m - r_2)),
        "you counted; wanted are shares.": pair(gone, broken),
        "you gave one number; mending and breaking are two.": mends - breaks,
    }


# ---------------------------------------------------------------------------------------------
# 6.8 Fit seen anew, and score it on a family that the fit has not met
# ---------------------------------------------------------------------------------------------


@book.solution
def held_out_scores(
    f: Float[Tensor, "n d_sae"], there: Bool[Tensor, " n"], family: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """How strongly latents say "there" on each prompt, by a fit that has met no prompt of its
    family.

    The fit is a difference of means. Its direction is the mean of the prompts on which the model
    says "there", less the mean of those on which it says "missing". A prompt's score is its latents
    along that direction (a dot product, not scaled), counted from the point halfway between the two
    means: above 0 = nearer to "there".

    Args:
        f: latents at one place, a row per prompt.
        there: what the model says to each prompt.
        family: which family each prompt is of: any whole numbers.
    """
    scores = torch.zeros(len(f))
    for one in family.unique():
        own = family == one
        high, low = f[~own & there].mean(0), f[~own & ~there].mean(0)
        scores[own] = (f[own] - (high + low) / 2) @ (high - low)
    return scores


@book.checker(held_out_scores)
def _(attempt: Callable) -> None:
    family = torch.tensor([7, 2, 2, 7, 4, 2, 4, 9, 7, 2, 9, 4, 2, 9])
    there = flags("xx....x.x.x..x")
    f = uniform(14, 5, seed=8) + 0.3 * family[:, None] / 9 + 0.5 * there[:, None]
    what = "the row of scores"
    answer = attempt(f.clone(), there.clone(), family.clone())
    require_tensor(answer, what)
    right = held_out_scores(f, there, family)
    try:
        compare(answer, right, _held_out_wrongly(f, there, family), what=what)
    except Unnamed as wrong:
        raise Wrong(_of_families(answer, right, family) or str(wrong)) from None


def _of_families(
    answer: Tensor, right: Float[Tensor, " n"], family: Int[Tensor, " n"]
) -> str | None:
    """What can be seen from scores family by family, if anything."""
    if answer.shape != right.shape:
        return None
    spread = max(right[family == one].std().item() for one in family.unique())

    def is_constant(values: Tensor) -> bool:
        return all(values[family == one].std() < 1e-4 * spread for one in family.unique())

    if is_constant(answer.float()):
        return "all prompts of a family get the same score. Each has latents of its own."
    if is_constant(answer.float() - right):
        return (
            "within each family the scores are right but for a constant: the direction is right, "
            "and the point from which they are counted is not halfway between the two means."
        )
    return None


def _held_out_wrongly(
    f: Float[Tensor, "n d_sae"], there: Bool[Tensor, " n"], family: Int[Tensor, " n"]
) -> dict[str, Tensor]:
    """Known wrong ways to write `held_out_scores`."""
    own_of = [family == one for one in family.tolist()]
    rows = torch.arange(len(f))
    others_of = [rows != i for i in rows.tolist()]
    everyone = torch.ones_like(there)

    def scored(
        fitted_on: Sequence[Tensor],
        *,
        middle: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda a, b, _: (a + b) / 2,
        along: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a - b,
    ) -> Tensor:
        scores = torch.zeros(len(f))
        for i, fit in enumerate(fitted_on):
            high, low = f[fit & there].mean(0), f[fit & ~there].mean(0)
            scores[i] = (f[i] - middle(high, low, f[fit].mean(0))) @ along(high, low)
        return scores

    held_out = [~own for own in own_of]
    return {
        "the fit has met the prompts that it scores: all families are in it. Fit anew for each "
        "family, without it.": scored([everyone] * len(f)),
        "you left out one prompt at a time. Its family is still in the fit, and shows how such "
        "prompts look: leave out the whole family.": scored(others_of),
        "you fitted on the prompt's own family, and on nothing else. It is the other way "
        "round.": scored(own_of),
        'the sign is wrong: above 0 is for "there".': -scored(held_out),
        "the scores do not start from the point halfway between the two means: with prompts of "
        "another family, 0 says nothing.": scored(held_out, middle=lambda a, b, _: 0 * a),
        "the scores start from the mean of all prompts of the fit. The kind with more prompts "
        "draws that towards itself: the point halfway between the two means is "
        "wanted.": scored(held_out, middle=lambda a, b, mean: mean),
        'the scores start from the mean of "there". The point halfway between the two means is '
        "wanted.": scored(held_out, middle=lambda a, b, _: a),
        'the scores start from the mean of "missing". The point halfway between the two means is '
        "wanted.": scored(held_out, middle=lambda a, b, _: b),
        'your direction is the mean of "there" alone. It is the difference of the two '
        "means.": scored(held_out, along=lambda a, b: a),
        'your direction is the mean of "missing" alone. It is the difference of the two '
        "means.": scored(held_out, along=lambda a, b: b),
        "your direction is the sum of the two means. It is their difference.": scored(
            held_out, along=lambda a, b: a + b
        ),
        "you scaled the direction to a norm of 1. Its size differs from fit to fit, but here it is "
        "not scaled.": scored(
            held_out, along=lambda a, b: torch.nn.functional.normalize(a - b, dim=0)
        ),
        "you gave yes or no. Wanted is how strongly: a number per prompt.": (
            scored(held_out) > 0
        ).float(),
    }
