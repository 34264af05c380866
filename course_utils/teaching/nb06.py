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

from course_utils.teaching.fixtures import flags, pair, require_returned, require_tensor, uniform
from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 6.1 How likely is an error message?
# ---------------------------------------------------------------------------------------------


@book.solution
def p_missing(logits: Float[Tensor, "n vocab"], ids: Sequence[int]) -> Float[Tensor, " n"]:
    """How likely the model is to open an error message, for each prompt.

    That is the probability of all the tokens ``ids`` together.

    0 = it certainly writes something else, 1 = it certainly starts with one of them. Probabilities
    are a softmax over the whole vocabulary.

    Args:
        logits: of the token that comes next, one row a prompt.
        ids: the tokens that open an error message, all different.
    """
    probabilities = logits.float().softmax(-1)
    return probabilities[:, list(ids)].sum(-1)


@book.checker(p_missing)
def _(attempt: Callable) -> None:
    logits = torch.tensor(
        [
            [1.0, 2.0, -1.0, 0.5, 3.0, 0.0],
            [0.0, -2.0, 1.5, 2.5, 0.7, 1.0],
            [2.0, 0.3, 0.6, -1.0, -0.5, 4.0],
            [-1.0, 1.2, 2.2, 0.1, 1.0, 0.4],
        ]
    )
    ids, what = [4, 1, 2], "the probability"
    answer = attempt(logits.clone(), list(ids))
    require_tensor(answer, what)

    right, of_ids = p_missing(logits, ids), logits.softmax(-1)[:, ids]
    over_prompts = logits.softmax(0)[:, ids].sum(-1)
    over_all = logits.flatten().softmax(0).reshape(logits.shape)[:, ids]
    likeliest_is_one = torch.isin(logits.argmax(-1), torch.tensor(ids)).float()
    wrong = {
        "you took the softmax over these tokens alone: then they always add up to 1. The model "
        "could have written any other token, so the whole vocabulary belongs below the fraction "
        "line.": torch.ones(4),
        "you added up logits. Those are no probabilities: a softmax is missing.": logits[
            :, ids
        ].sum(-1),
        "you gave the likeliest of the tokens alone. Any of them opens "
        "an error message.": of_ids.amax(-1),
        "you averaged over the tokens. Only one of them can come next, so their probabilities add "
        "up.": of_ids.mean(-1),
        "your softmax runs over the prompts. It is to run over the vocabulary.": over_prompts,
        "your softmax runs over all prompts at once. Each prompt has a "
        "distribution of its own.": over_all.sum(-1),
        "these are log-probabilities, added up: that is what it would take to write all of the "
        "tokens.": of_ids.log().sum(-1),
        "you multiplied the probabilities: that would be to write all of the tokens, and one is "
        "enough.": of_ids.prod(-1),
        "this is the logarithm of the probability.": right.log(),
        "this is how likely everything else is.": 1 - right,
        "you took the first token only.": of_ids[:, 0],
        "you gave one value for each of the tokens; wanted is one a prompt.": of_ids,
        "you averaged over prompts; each has a value of its own.": right.mean(),
        "you counted whether the likeliest token is among these: yes or no. Wanted is how likely "
        "they are.": likeliest_is_one,
    }
    compare(answer, right, wrong, what=what)

    answer = attempt(logits + 1000, tuple(ids))
    require_tensor(answer, what)
    same = answer.shape == right.shape and torch.allclose(
        answer.double(), right.double(), atol=1e-3
    )
    if not same:
        raise Wrong(
            "with 1,000 added to all logits it comes out different, and no probability changes by "
            "that. Whoever takes exp of a large number gets inf; torch's own softmax does not."
        )
    answer = attempt(logits[:1].clone(), [3])
    require_tensor(answer, what)
    what = "the probability of one token, for a single prompt,"
    compare(answer, p_missing(logits[:1], [3]), what=what)


# ---------------------------------------------------------------------------------------------
# 6.2 How well does a latent tell two kinds of prompts apart?
# ---------------------------------------------------------------------------------------------


@book.solution
def separations(
    present: Float[Tensor, "n d_sae"], missing: Float[Tensor, "m d_sae"]
) -> Float[Tensor, " d_sae"]:
    """How well each latent alone tells prompts with a present key from those with a missing one.

    That is the chance that its value on a random prompt of the first kind is above its value on a
    random prompt of the second, ties counting half (the area under the ROC curve). 1 = always
    above, 0.5 = it tells nothing (so also a latent that never fires), 0 = always below.

    Args:
        present: a row for each of n prompts whose key is there: the latents at one place.
        missing: the same for m prompts whose key is not. n and m can differ: every row of the one
            meets every row of the other. (Held in memory at once, that would be n · m · d_sae
            comparisons: hundreds of millions. Row after row is fine.)
    """
    total = torch.zeros(present.shape[1], device=present.device)
    for row in present:
        above, equal = (row > missing).float(), (row == missing).float()
        total += (above + 0.5 * equal).mean(0)
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
# 6.4 A prediction from latents alone
# ---------------------------------------------------------------------------------------------


@book.solution
def predicted_share(
    missing: Float[Tensor, " n"], present: Float[Tensor, " m"], attack: Float[Tensor, " k"]
) -> float:
    """The share of attacks on which latents hold the key to be there, before the model is asked.

    0 = none, 1 = all.

    They do if their activation lies above a threshold: halfway between the mean over honest prompts
    whose key is missing and the mean over honest prompts whose key is present. The attacks have no
    say in the threshold: it stands before they come.

    Args:
        missing: activation of the duplicate latents on each of n honest prompts whose key is
            missing.
        present: the same on m honest prompts whose key is present. n and m can differ; both kinds
            weigh the same.
        attack: the same on k prompts of an attack. If it lures (the key is missing and made to look
            present), the share is the one that we predict to be fooled.
    """
    threshold = (missing.mean() + present.mean()) / 2
    return (attack > threshold).float().mean().item()


@book.checker(predicted_share)
def _(attempt: Callable) -> None:
    missing, present = torch.tensor([0.0, 0.9, 0.1, 0.0, 1.0]), torch.tensor([5.8, 2.4, 3.8])
    # Between any two of the thresholds below lies one of these, so that each gives another share.
    fools = [1.2, 24, 2.1, 0.3, 1.77, 4.2, 1.85, 2.3, 0.9, 0.1, 5, 1.5, 3.5, 0.2, 1.72]
    attack = torch.tensor([*fools, *6 * [0.0]])
    answer = attempt(missing.clone(), present.clone(), attack.clone())
    what = "the predicted share"
    number = _as_number(answer, what)

    def above(threshold: float | Tensor) -> Tensor:
        return (attack > threshold).double().mean()

    low, high, pooled = missing.mean(), present.mean(), torch.cat([missing, present]).mean()
    between_medians = (missing.median() + present.median()) / 2
    between_extremes = (missing.max() + present.min()) / 2
    right = above((low + high) / 2)
    wrong = {
        "this is the share below the threshold. Those above look as if the key were present: they "
        "are the ones to fool.": 1 - right,
        "you counted the attacks above the threshold; wanted is their share.": right * len(attack),
        "you set the threshold at the attacks' own mean. It is set before they come, on honest "
        "prompts: otherwise about as many lie above it however well they look.": above(
            attack.mean()
        ),
        "you set the threshold at the attacks' own median: half of them lie above that, however "
        "well they look.": above(attack.median()),
        "your threshold is the mean where the key is missing. Half of the honest prompts can lie "
        "above that, too: go halfway to the others.": above(low),
        "your threshold is the mean where the key is present: half of the prompts that really have "
        "the key would fail. Come halfway down.": above(high),
        "you pooled the honest prompts and took one mean: the kind with more prompts draws the "
        "threshold towards itself. Take the two means first.": above(pooled),
        "halfway between two means is not their sum: the half is missing.": above(low + high),
        "half of the distance between the means is not yet the point halfway: it starts from 0 and "
        "not from the lower mean.": above((high - low) / 2),
        "you went halfway between medians; means are wanted.": above(between_medians),
        "you went halfway between the highest of one kind and the lowest of the other: two odd "
        "prompts would set it. Means are wanted.": above(between_extremes),
        "your threshold is the highest honest prompt whose key is missing. Halfway between the "
        "means is wanted.": above(missing.max()),
        "your threshold is 0: every attack on which the latents fire at all is counted.": above(
            0.0
        ),
    }
    compare(torch.tensor(number).double(), right, wrong, what=what)


def _as_number(answer: Any, what: str) -> float:
    """One number, as a float or as a tensor of no dimensions; `Wrong` for anything else."""
    require_returned(answer, what)
    if isinstance(answer, Tensor) and answer.ndim:
        raise Wrong(
            f"{what} is to be one number, not a tensor of the shape {list(answer.shape)}: the "
            "share of all attacks, not a verdict on each."
        )
    try:
        if not isinstance(answer, str):
            return float(answer)
    except (TypeError, ValueError):
        pass
    raise Wrong(f"{what} is to be a number, not {type(answer).__name__}.")


# ---------------------------------------------------------------------------------------------
# 6.5 What is the search worth?
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
# 6.6 Undone, and broken
# ---------------------------------------------------------------------------------------------


@book.solution
def mended(
    fooled_before: Bool[Tensor, " n"],
    fooled_after: Bool[Tensor, " n"],
    right_before: Bool[Tensor, " m"],
    right_after: Bool[Tensor, " m"],
) -> Float[Tensor, "2"]:
    """What a change to the model mends, and what it breaks. A tensor of two shares, each from 0 =
    none to 1 = all:

    of the attacks that fooled before, the share that no longer does;
    of the honest prompts that were right before, the share that is wrong now.

    If nothing fooled before, the first is 0; if nothing was right before, the second is 0.

    Args:
        fooled_before, fooled_after: whether each attack fools the model, without the change and
            with it.
        right_before, right_after: whether each honest prompt is answered as Python does, without
            the change and with it.
    """
    no_longer = (fooled_before & ~fooled_after).sum() / fooled_before.sum().clamp(min=1)
    broken = (right_before & ~right_after).sum() / right_before.sum().clamp(min=1)
    return torch.stack([no_longer, broken])


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
    without_cases = {
        "if no attack fooled before": (nobody, fooled_after, right_before, right_after),
        "if no honest prompt was right before": (
            fooled_before,
            fooled_after,
            no_honest,
            right_after,
        ),
    }
    for says, rows in without_cases.items():
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
