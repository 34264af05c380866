"""Notebook 04's checkers accept the course's version, and name the bug in every wrong one."""

import inspect
import re

import pytest
import torch

from course_utils.teaching.nb04 import book, temperature

S = book.solutions


def scores(body):
    return lambda gradient, clean, patch: body(gradient, clean, patch)


def ig(share=lambda j, steps: j / steps, divide=True, sign=1):
    def integrated_gradient(gradient_at, clean, patch, steps):
        total = sum(gradient_at(clean + share(j, steps) * (patch - clean)) for j in range(steps))
        return sign * total / (steps if divide else 1) * (clean - patch)

    return integrated_gradient


def loop(*, zero=True, step_it=True, tau=temperature, binary=True, sign=1, double=False):
    def learn_by_hand(loss_of, theta, *, steps, tau_max=200.0, lr=0.3):
        optimizer = torch.optim.Adam(theta.values(), lr=lr)
        for step in range(steps):
            soft = {
                name: torch.sigmoid(tau(step, steps, tau_max) * value)
                for name, value in theta.items()
            }
            loss = loss_of(soft, step) + (loss_of(soft, step) if double else 0)
            if zero:
                optimizer.zero_grad()
            loss.backward()
            if step_it:
                optimizer.step()
        return (
            {name: (sign * value > 0).float() for name, value in theta.items()} if binary else soft
        )

    return learn_by_hand


def prune_with(key, per_sae=False):
    def prune(scores, masks, n):
        size = {name: key(score, masks[name]) for name, score in scores.items()}
        pools = [[name] for name in size] if per_sae else [list(size)]
        kept = {name: torch.zeros_like(score) for name, score in scores.items()}
        for pool in pools:
            flat = torch.cat([size[name].flatten() for name in pool])
            chosen = torch.zeros_like(flat)
            chosen[flat.topk(n).indices] = 1
            for name, part in zip(pool, chosen.split([size[name].numel() for name in pool])):
                kept[name] = part.view_as(kept[name])
        return kept

    return prune


WRONG = {
    "attribution_scores": [
        (scores(lambda g, c, p: (g * (p - c)).mean(0)), "sign is turned round"),
        (scores(lambda g, c, p: (g * (c - p)).mean((0, 1))), "averaged over positions too"),
        (scores(lambda g, c, p: (g * (c - p)).sum(0)), "summed over prompts"),
        (scores(lambda g, c, p: (g * (c - p)).abs().mean(0)), "size of each prompt's score"),
        (scores(lambda g, c, p: g.mean(0)), "gradient alone"),
        (scores(lambda g, c, p: (g * c).mean(0)), "multiplied by the clean value"),
        (scores(lambda g, c, p: g.mean(0) * (c - p).mean(0)), "each prompt's own product"),
        (scores(lambda g, c, p: g * (c - p)), r"has the shape \[5, 4, 6\], and \[4, 6\] is wanted"),
    ],
    "integrated_gradient": [
        (ig(divide=False), "did not divide by the number of points"),
        (ig(sign=-1), "sign is turned round"),
        (ig(share=lambda j, steps: 0.0), "That is AtP: move the point"),
        (ig(share=lambda j, steps: (j + 1) / steps), "take in the patch itself"),
        (ig(share=lambda j, steps: 1 - j / steps), "take in the patch itself"),
        (ig(share=lambda j, steps: j / max(1, steps - 1)), "ends on the patch itself"),
    ],
    "sparsification_loss": [
        (
            lambda s, m, masks, p: (
                (s - m).mean().abs() + p * sum(x.sum() for x in masks.values()) / len(masks)
            ),
            "opposite sign cancel",
        ),
        (
            lambda s, m, masks, p: (
                (s - m).mean() + p * sum(x.sum() for x in masks.values()) / len(masks)
            ),
            "can be below 0",
        ),
        (
            lambda s, m, masks, p: (
                ((s - m) ** 2).mean() + p * sum(x.sum() for x in masks.values()) / len(masks)
            ),
            "squared",
        ),
        (
            lambda s, m, masks, p: (s - m).abs().mean() + p * sum(x.sum() for x in masks.values()),
            "divide by the number of SAEs",
        ),
        (
            lambda s, m, masks, p: (
                (s - m).abs().mean() + p * sum(x.mean() for x in masks.values()) / len(masks)
            ),
            "mean of each mask",
        ),
        (lambda s, m, masks, p: (s - m).abs().mean(), "what the nodes cost is missing"),
    ],
    "temperature": [
        (lambda step, steps, top: 1 + (top - 1) * step / (steps - 1), "same amount each step"),
        (lambda step, steps, top: top ** (step / steps), "does not reach tau_max"),
        (lambda step, steps, top: top ** ((step + 1) / steps), "starts above 1"),
        (lambda step, steps, top: top ** (2 * step / (steps - 1)), "overshoots"),
        (lambda step, steps, top: top, "tau_max at every step"),
    ],
    "learn_by_hand": [
        (loop(zero=False), "earlier steps pile up"),
        (loop(step_it=False), r"θ never moves. Is there an optimizer.step\(\)"),
        (loop(tau=lambda *_: 1.0), "the temperature stays 1"),
        (loop(tau=lambda *a: 1 / temperature(*a)), "you divided by τ"),
        (loop(binary=False), "returned the soft masks"),
        (loop(sign=-1), "turned it round"),
        (loop(double=True), "asked for 16 times in 8 steps"),
    ],
    "prune": [
        (prune_with(lambda score, mask: score.abs()), "a node came back"),
        (prune_with(lambda score, mask: score * mask), r"rank by \|score\|"),
        (
            prune_with(lambda score, mask: score.abs() * mask, per_sae=True),
            "you kept n nodes of each SAE",
        ),
        (prune_with(lambda score, mask: -score.abs() - 100 * (1 - mask)), "kept the worst"),
        (lambda scores, masks, n: list(masks), "as a dictionary like masks"),
    ],
}


def named(function, name):
    """The wrong version with the exercise's own name and arguments."""

    def attempt(*args, **kwargs):
        return function(*args, **kwargs)

    attempt.__name__, attempt.__signature__ = name, inspect.signature(S[name])
    return attempt


@pytest.mark.parametrize("name", S)
def test_the_courses_version_is_accepted(name):
    assert book.checked(S[name]).status == "right"


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [(name, wrong, says) for name, rows in WRONG.items() for wrong, says in rows],
)
def test_every_wrong_version_is_rejected_for_its_own_reason(name, wrong, says):
    found = book.checked(named(wrong, name))
    assert found.status == "wrong"
    assert re.search(says, found.says), found.says


def test_every_exercise_has_three_wrong_versions_or_more():
    assert set(WRONG) == set(S) == set(book.checkers)
    assert all(len(rows) >= 3 for rows in WRONG.values())
