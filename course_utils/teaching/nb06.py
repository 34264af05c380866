"""The exercises of notebook 06, their solutions and their checkers.

The checkers work on small tables that stand for what a model said and for what its latents did: a
row a prompt. Their numbers are chosen so that every known wrong way gives another result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


def _needs_tensor(found: Any, what: str) -> None:
    """Raise `Wrong` unless ``found`` is a tensor: the notebook goes on with what tensors can do,
    and lists cannot.
    """
    if found is None:
        raise Wrong(f"{what} is None. Is the return missing?")
    if not isinstance(found, Tensor):
        raise Wrong(f"{what} is to be a tensor, not {type(found).__name__}.")


def _flags(text: str) -> Bool[Tensor, " n"]:
    """Yes and no as text: ``"x."`` is [True, False]."""
    return torch.tensor([letter == "x" for letter in text])


# ---------------------------------------------------------------------------------------------
# 6.1 What the model says
# ---------------------------------------------------------------------------------------------


@book.solution
def p_missing(logits: Float[Tensor, "n vocab"], ids: Sequence[int]) -> Float[Tensor, " n"]:
    """How likely the model is to open an error message, for each prompt: the probability of all the
    tokens ``ids`` together.

    0 = it certainly writes something else, 1 = it certainly starts with one of them. Probabilities
    are a softmax over the whole vocabulary.

    Args:
        logits: of the token that comes next, one row a prompt.
        ids: the tokens that open an error message, all different.
    """
    probabilities = logits.float().softmax(-1)
    return probabilities[:, list(ids)].sum(-1)


@book.checker(p_missing)
def _(attempt):
    logits = torch.tensor(
        [
            [1.0, 2.0, -1.0, 0.5, 3.0, 0.0],
            [0.0, -2.0, 1.5, 2.5, 0.7, 1.0],
            [2.0, 0.3, 0.6, -1.0, -0.5, 4.0],
            [-1.0, 1.2, 2.2, 0.1, 1.0, 0.4],
        ]
    )
    ids = [4, 1, 2]
    of_ids, right = logits.softmax(-1)[:, ids], p_missing(logits, ids)
    over_prompts, over_all = logits.softmax(0), logits.flatten().softmax(0).reshape(logits.shape)
    found = attempt(logits.clone(), list(ids))
    _needs_tensor(found, "the probability")
    compare(
        found,
        right,
        {
            "you took the softmax over these tokens alone: then they always add up to 1. The model could have written any other "
            "token, so the whole vocabulary belongs below the fraction line.": torch.ones(4),
            "you added up logits. Those are no probabilities: a softmax is missing.": logits[
                :, ids
            ].sum(-1),
            "you gave the likeliest of the tokens alone. Any of them opens an error message.": of_ids.amax(
                -1
            ),
            "you averaged over the tokens. Only one of them can come next, so their probabilities add up.": of_ids.mean(
                -1
            ),
            "your softmax runs over the prompts. It is to run over the vocabulary.": over_prompts[
                :, ids
            ].sum(-1),
            "your softmax runs over all prompts at once. Each prompt has a distribution of its own.": over_all[
                :, ids
            ].sum(-1),
            "these are log-probabilities, added up: that is what it would take to write all of the tokens.": of_ids.log().sum(
                -1
            ),
            "you multiplied the probabilities: that would be to write all of the tokens, and one is enough.": of_ids.prod(
                -1
            ),
            "this is the logarithm of the probability.": right.log(),
            "this is how likely everything else is.": 1 - right,
            "you took the first token only.": of_ids[:, 0],
            "you gave one value for each of the tokens; wanted is one a prompt.": of_ids,
            "you averaged over prompts; each has a value of its own.": right.mean(),
            "you counted whether the likeliest token is among these: yes or no. Wanted is how likely they are.": sum(
                (logits.argmax(-1) == i).float() for i in ids
            ),
        },
        what="the probability",
    )
    found = attempt(logits + 1000, tuple(ids))
    _needs_tensor(found, "the probability")
    if found.shape != right.shape or not torch.allclose(found.double(), right.double(), atol=1e-3):
        raise Wrong(
            "with 1,000 added to all logits it comes out different, and no probability changes by that. Whoever takes exp of a "
            "large number gets inf; torch's own softmax does not."
        )
    found = attempt(logits[:1].clone(), [3])
    _needs_tensor(found, "the probability")
    compare(
        found, p_missing(logits[:1], [3]), what="the probability of one token, for a single prompt,"
    )


# ---------------------------------------------------------------------------------------------
# 6.2 Which latents tell present from missing
# ---------------------------------------------------------------------------------------------


@book.solution
def separations(
    present: Float[Tensor, "n d_sae"], missing: Float[Tensor, "m d_sae"]
) -> Float[Tensor, " d_sae"]:
    """How well each latent alone tells prompts whose key is present from those whose key is
    missing.

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
def _(attempt):
    # A column a latent: the first never fires; 1, 3 and 4 have no ties.
    present = torch.tensor(
        [[0, 0, 0, 0], [5, 6, 7, 8], [0, 0, 2, 3], [1, 0.5, 3, 2], [1, 7, 3, 4.5], [2, 0, 2, 5]]
    ).T
    missing = torch.tensor(
        [[0, 0, 0, 0], [1, 2, 3, 0], [0, 0, 0, 1], [4, 6, 2.5, 5], [2, 4, 6, 0.5], [2, 3, 0, 2]]
    ).T
    right = separations(present, missing)
    above, below = (
        compared.float().mean((0, 1))
        for compared in (present[:, None] > missing, present[:, None] < missing)
    )
    found = attempt(present.clone(), missing.clone())
    _needs_tensor(found, "the table of separations")
    if found.numel() == 1:
        raise Wrong("you gave one number for all latents; each latent has its own.")
    if found.shape == right.shape and found[0].isnan():
        raise Wrong(
            "a latent that never fires comes out as NaN. It ties with itself everywhere, and so tells nothing: 0.5."
        )
    row_by_row, row_ties = (present > missing).float().mean(0), (present == missing).float().mean(0)
    fires = (present > 0).float().mean(0) - (missing > 0).float().mean(0)
    tied = torch.tensor([True, False, True, False, False, True])
    wrong = {
        "ties count nothing with you, so that a latent that never fires seems to be the best at telling that a key is missing. "
        "They count half.": above,
        "ties count fully with you, so that a latent that never fires seems perfect. They count half.": 1
        - below,
        "you left ties out of the count. Most latents are 0 on most prompts: ties are what they mostly have. They count "
        "half.": torch.where(above + below > 0, above / (above + below), 0.5),
        "present and missing have changed places: a latent that is higher where the key is there is to be above 0.5.": 1
        - right,
        "you compared the first prompt with the first, the second with the second and so on. They are no pairs: every prompt of "
        "one kind meets every prompt of the other.": row_by_row + 0.5 * row_ties,
        "you compared row by row, and without ties. The prompts are no pairs: every one of one kind meets every one of the "
        "other; ties count half.": row_by_row,
        "this is the difference of the means, which a single large value can make. Wanted is how often the one is above the "
        "other.": present.mean(0) - missing.mean(0),
        "you compared how often the latent fires. How strongly counts, too.": 0.5 + 0.5 * fires,
        "you folded it: below 0.5 has become above. A latent that is higher where the key is missing is to be below "
        "0.5.": right.maximum(1 - right),
        "yours runs from −1 to 1, with 0 for a latent that tells nothing. That is to be 0.5.": above
        - below,
        "you counted pairs; wanted is their share.": right * len(present) * len(missing),
    }
    if found.shape == right.shape:
        says = "latents without ties are right, those with ties are not. Ties count half, whatever order they are sorted in."
        wrong[says] = torch.where(tied, found.float(), right)
    compare(found, right, wrong, what="the table of separations")

    rng = torch.Generator().manual_seed(0)
    present, missing = (torch.randint(0, 4, (size, 6), generator=rng).float() for size in (5, 3))
    right = separations(present, missing)
    try:
        found = attempt(present.clone(), missing.clone())
    except (RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, NotImplementedError):
            raise
        says = str(error).strip().split("\n")[0]
        raise Wrong(
            f"4 prompts of each kind are right, but 5 with the key and 3 without end in an error ({says}). n and m can differ."
        ) from None
    _needs_tensor(found, "the table of separations")
    compare(
        found,
        right,
        {
            "right as long as there are as many prompts of one kind as of the other: you divide by n · n, and there are n · m "
            "pairs.": right * 3 / 5,
            "right as long as there are as many prompts of one kind as of the other: you divide by m · m, and there are n · m "
            "pairs.": right * 5 / 3,
            "where n and m differ, the longer table's last rows are left out.": separations(
                present[:3], missing
            ),
        },
        what="the table of separations of 5 prompts with the key and 3 without",
    )


# ---------------------------------------------------------------------------------------------
# 6.3 Holding latents at one place
# ---------------------------------------------------------------------------------------------


@book.solution
def hold(
    f: Float[Tensor, "batch seq d_sae"],
    lengths: Int[Tensor, " batch"],
    latents: Mapping[int, float],
    place: int,
) -> Float[Tensor, "batch seq d_sae"]:
    """A copy of ``f`` in which some latents have given values at one place of each prompt; all else
    is as it was, ``f`` too.

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
def _(attempt):
    # Every prompt is padded, by 3 at least: so one or two places too far is still a place, and the
    # bug can be named.
    f = torch.rand(3, 8, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    lengths, latents, rows = torch.tensor([4, 5, 3]), {1: 2.5, 3: 0.0, 4: 1.5}, torch.arange(3)
    others = [i for i in range(f.shape[2]) if i not in latents]

    def at(where, positions, chosen=latents):
        held = f.clone()
        for latent, value in chosen.items():
            held[where, positions, latent] = value
        return held

    for place in (-1, -2):
        given, given_lengths = f.clone(), lengths.clone()
        found = attempt(given, given_lengths, dict(latents), place)
        _needs_tensor(found, "the copy of f")
        if not torch.equal(given, f):
            raise Wrong(
                "you changed the f that you were given. Whoever reads it next reads what you wrote: copy first."
            )
        if not torch.equal(given_lengths, lengths):
            raise Wrong(
                "you changed the lengths that you were given: the next call would count from another end."
            )
        right = hold(f, lengths, latents, place)
        if found.shape == f.shape and not torch.equal(found[..., others].to(f), f[..., others]):
            if not found[..., others].any():
                raise Wrong("you started from zeros. All that is not held is to stay as it was.")
            raise Wrong(
                "latents that are not to be held have changed, too: set those that are given, and no others."
            )
        added = f.clone()
        for latent, value in latents.items():
            added[rows, lengths + place, latent] += value
        compare(
            found,
            right,
            {
                "the last token is right, but you hold it whatever the place is.": at(
                    rows, lengths - 1
                ),
                "you counted from the end of the padded rows. Each prompt ends where its own length says; after that comes "
                "padding.": at(rows, f.shape[1] + place),
                "you held the latents at every position. One place of each prompt is meant.": at(
                    slice(None), slice(None)
                ),
                "you added the value to what was there. The latent is to have that value, whatever it was.": added,
                "you are one token too late: for place −1 you write into the padding. Positions start at 0.": at(
                    rows, lengths + place + 1
                ),
                "you are one token too early. BOS is counted neither in the lengths nor in the rows of f: nothing is to be taken "
                "off for it.": at(rows, lengths + place - 1),
                "you went beyond the prompt's end: places are below 0 already.": at(
                    rows, lengths - place
                ),
                "you used the first prompt's length for all.": at(rows, lengths[0] + place),
                "you used the longest prompt's length for all.": at(rows, lengths.max() + place),
                "only the first prompt has changed.": at(0, lengths[0] + place),
                "in every prompt you held the places of all the prompts. Each place goes with its own row.": at(
                    slice(None), lengths + place
                ),
                "only the first of the latents is held. Does the loop return too early?": at(
                    rows, lengths + place, {1: 2.5}
                ),
                "only the last of the latents is held. Does each start from a new copy?": at(
                    rows, lengths + place, {4: 1.5}
                ),
                "a latent that is to be held at 0 is not. 0 is a value, too.": at(
                    rows, lengths + place, {1: 2.5, 4: 1.5}
                ),
                "nothing is held.": f,
            },
            what="the copy of f",
        )
    found = attempt(f.bfloat16(), lengths.clone(), dict(latents), -1)
    _needs_tensor(found, "the copy of f")
    if found.dtype != torch.bfloat16:
        raise Wrong(
            "f came in bfloat16 and its copy does not leave so: the model would refuse it. Keep the kind of number that f has."
        )


# ---------------------------------------------------------------------------------------------
# 6.4 A prediction made before trying
# ---------------------------------------------------------------------------------------------


@book.solution
def predicted_share(
    missing: Float[Tensor, " n"], present: Float[Tensor, " m"], attack: Float[Tensor, " k"]
) -> float:
    """The share of attack prompts on which latents hold the key to be there, before the model is
    asked: 0 = none, 1 = all.

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
def _(attempt):
    missing, present = torch.tensor([0.0, 0.9, 0.1, 0.0, 1.0]), torch.tensor([5.8, 2.4, 3.8])
    # Between any two of the thresholds below lies one of these, so that each gives another share.
    attack = [
        1.2,
        0.0,
        24,
        2.1,
        0.3,
        1.77,
        0.0,
        4.2,
        1.85,
        0.0,
        2.3,
        0.9,
        0.1,
        5,
        0.0,
        1.5,
        0.0,
        3.5,
        0.2,
        1.72,
        0.0,
    ]
    attack = torch.tensor(attack)
    low, high, pooled = missing.mean(), present.mean(), torch.cat([missing, present]).mean()
    halfway, of_medians, gap = (
        (low + high) / 2,
        (missing.median() + present.median()) / 2,
        (missing.max() + present.min()) / 2,
    )
    right = predicted_share(missing, present, attack)

    def above(threshold):
        return (attack > threshold).double().mean()

    what = "the predicted share"
    found = attempt(missing.clone(), present.clone(), attack.clone())
    if found is None:
        raise Wrong(f"{what} is None. Is the return missing?")
    if isinstance(found, Tensor) and found.ndim:
        raise Wrong(
            f"{what} is to be one number, not a tensor of the shape {list(found.shape)}: the share of all attacks, not a verdict "
            "on each."
        )
    try:
        number = None if isinstance(found, str) else float(found)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise Wrong(f"{what} is to be a number, not {type(found).__name__}.")
    compare(
        torch.tensor(number, dtype=torch.double),
        torch.tensor(right, dtype=torch.double),
        {
            "this is the share below the threshold. Those above look as if the key were present: they are the ones to fool.": 1
            - above(halfway),
            "you counted the attacks above the threshold; wanted is their share.": above(halfway)
            * len(attack),
            "you set the threshold at the attacks' own mean. It is set before they come, on honest prompts: otherwise about as "
            "many lie above it however well they look.": above(attack.mean()),
            "you set the threshold at the attacks' own median: half of them lie above that, however well they look.": above(
                attack.median()
            ),
            "your threshold is the mean where the key is missing. Half of the honest prompts can lie above that, too: go halfway "
            "to the others.": above(low),
            "your threshold is the mean where the key is present: half of the prompts that really have the key would fail. Come "
            "halfway down.": above(high),
            "you pooled the honest prompts and took one mean: the kind with more prompts draws the threshold towards itself. "
            "Take the two means first.": above(pooled),
            "halfway between two means is not their sum: the half is missing.": above(low + high),
            "half of the distance between the means is not yet the point halfway: it starts from 0 and not from the lower "
            "mean.": above((high - low) / 2),
            "you went halfway between medians; means are wanted.": above(of_medians),
            "you went halfway between the highest of one kind and the lowest of the other: two odd prompts would set it. Means "
            "are wanted.": above(gap),
            "your threshold is the highest honest prompt whose key is missing. Halfway between the means is wanted.": above(
                missing.max()
            ),
            "your threshold is 0: every attack on which the latents fire at all is counted.": above(
                0
            ),
        },
        what=what,
    )


# ---------------------------------------------------------------------------------------------
# 6.5 A search that sees latents and no outputs
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
def _(attempt):
    signal, fooled = _groups()
    right = lift(signal, fooled)
    every, n_groups = fooled.double(), len(fooled)
    groups, share = torch.arange(n_groups), every.mean()

    def first(value, second=share):
        return torch.stack(
            [
                torch.as_tensor(value, dtype=torch.double),
                torch.as_tensor(second, dtype=torch.double),
            ]
        )

    chosen = every[groups, signal.argmax(1)]
    what = "the pair of shares"
    found = attempt(signal.clone(), fooled.clone())
    _needs_tensor(found, what)
    rest = (every.sum() - chosen.sum()) / (every.numel() - n_groups)
    compare(
        found,
        right,
        {
            "you peeked: in every group you count whether *any* candidate fools. The search does not see that; it sees the "
            "signal.": first(every.amax(1).mean()),
            "you took the weakest signal of every group; the strongest is wanted.": first(
                every[groups, signal.argmin(1)].mean()
            ),
            "you took the same candidate's number in all groups. Every group has a strongest one of its own.": first(
                every[:, signal.mean(0).argmax()].mean()
            ),
            "you made one choice over all groups. Every group has its own.": first(
                every.flatten()[signal.argmax()]
            ),
            "for every number of a candidate you took the best group. It is the other way round: for every group the best "
            "candidate.": first(every[signal.argmax(0), torch.arange(signal.shape[1])].mean()),
            "the second is taken over the chosen ones only. A random choice could get any candidate.": right[
                [0, 0]
            ],
            "the second leaves the chosen ones out. A random choice could get any candidate.": first(
                chosen.mean(), rest
            ),
            "the two have changed places: the search comes first, then chance.": right.flip(0),
            "the second is the difference; wanted are the two shares themselves.": first(
                chosen.mean(), chosen.mean() - share
            ),
            "the second is the ratio; wanted are the two shares themselves.": first(
                chosen.mean(), chosen.mean() / share
            ),
            "you gave the difference alone; wanted are the two shares themselves.": chosen.mean()
            - share,
            "you gave the ratio alone; wanted are the two shares themselves.": chosen.mean()
            / share,
            "you gave the first share alone; without chance beside it nobody knows whether it is a gain.": chosen.mean(),
            "the first is divided by how many candidates fool. Wanted is a share of the groups.": first(
                chosen.sum() / every.sum()
            ),
            "the first is divided by the number of candidates. One is chosen a group: wanted is a share of the groups.": first(
                chosen.sum() / every.numel()
            ),
            "you counted; wanted are shares.": first(chosen.sum(), every.sum()),
        },
        what=what,
    )


def _groups() -> tuple[Float[Tensor, "groups candidates"], Bool[Tensor, "groups candidates"]]:
    """Eight groups of five candidates: a signal that helps, and ways to choose that fool each a
    different share.
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
    return torch.tensor(signal) / 100, torch.stack([_flags(row) for row in fooled])


# ---------------------------------------------------------------------------------------------
# 6.6 Mended, and at what price
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
def _(attempt):
    # Attacks: 7 of 11 fool before; 4 no longer do, and 2 do newly. Honest: 8 of 13 right before; 3
    # break, 2 become right.
    given = [
        _flags(row) for row in ("xxxxxxx....", "xxx....xx..", "xxxxxxxx.....", "xxxxx...xx...")
    ]
    fooled_before, fooled_after, right_before, right_after = given
    right = mended(*given)
    f_1, f_2, r_1, r_2 = (row.double().sum() for row in given)
    gone, broken = (
        (fooled_before & ~fooled_after).double().sum(),
        (right_before & ~right_after).double().sum(),
    )
    n, m = len(fooled_before), len(right_before)

    def pair(a, b):
        return torch.stack(
            [torch.as_tensor(a, dtype=torch.double), torch.as_tensor(b, dtype=torch.double)]
        )

    what = "the pair of shares"
    found = attempt(*(row.clone() for row in given))
    _needs_tensor(found, what)
    compare(
        found,
        right,
        {
            "you divided by all prompts. Only what fooled before can be mended, only what was right before can break: those go "
            "below the fraction line.": pair(gone / n, broken / m),
            "the first is a share of all attacks. Those that never fooled cannot be mended.": pair(
                gone / n, broken / r_1
            ),
            "the second is a share of all honest prompts. Those that were wrong before cannot break.": pair(
                gone / f_1, broken / m
            ),
            "this is the net change: attacks that fool newly are taken off those that no longer do, and so with the honest ones. "
            "Follow each prompt, not the totals.": pair((f_1 - f_2) / f_1, (r_1 - r_2) / r_1),
            "the first is the net change: attacks that fool newly are taken off those that no longer do.": pair(
                (f_1 - f_2) / f_1, broken / r_1
            ),
            "the second is the net change: honest prompts that become right make up for those that break.": pair(
                gone / f_1, (r_1 - r_2) / r_1
            ),
            "this is how the totals change, over all prompts. Follow each prompt, from before to after.": pair(
                (f_1 - f_2) / n, (r_1 - r_2) / m
            ),
            "the second is the share that is still right. Wanted is what the change breaks.": pair(
                gone / f_1, 1 - broken / r_1
            ),
            "the first is the share that still fools. Wanted is what no longer does.": pair(
                1 - gone / f_1, broken / r_1
            ),
            "both are the shares that stay as they were. Wanted is what the change mends, and what it breaks.": pair(
                1 - gone / f_1, 1 - broken / r_1
            ),
            "the two have changed places: what is mended comes first, then what breaks.": right.flip(
                0
            ),
            "the first does not look at before: an attack that never fooled is not mended.": pair(
                (n - f_2) / n, broken / r_1
            ),
            "you do not look at before: an attack that never fooled is not mended, a prompt that was always wrong is not "
            "broken.": pair((n - f_2) / n, (m - r_2) / m),
            "you divided by what does not fool (is not right) after. Of those that fooled before (were right before), the share "
            "is wanted.": pair(gone / (n - f_2), broken / (m - r_2)),
            "you counted; wanted are shares.": pair(gone, broken),
            "you gave one number; mending and breaking are two.": gone / f_1 - broken / r_1,
        },
        what=what,
    )
    nothing, none_right = torch.zeros_like(fooled_before), torch.zeros_like(right_before)
    for says, empty in {
        "if no attack fooled before": (nothing, fooled_after, right_before, right_after),
        "if no honest prompt was right before": (
            fooled_before,
            fooled_after,
            none_right,
            right_after,
        ),
    }.items():
        try:
            found = attempt(*(row.clone() for row in empty))
        except ZeroDivisionError:
            raise Wrong(f"{says}, you divide by zero. Then the share is to be 0.") from None
        _needs_tensor(found, what)
        if not found.isfinite().all():
            raise Wrong(
                f"{says}, you divide by zero and get {[round(x, 3) for x in found.tolist()]}. Then the share is to be 0."
            )
        compare(found, mended(*empty), what=f"{says}, {what}")
