"""Notebook 04's checkers accept the solutions, and name the bug in every wrong version."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from readers import WrongVersions, attempt, cases

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.sparsification import MaskSettings
from course_utils.circuits.sparsification import temperature as library_temperature
from course_utils.teaching import nb04
from course_utils.teaching.nb04 import (
    attribution_scores,
    book,
    integrated_gradient,
    learn_by_hand,
    prune,
    temperature,
)


def walk(share: str, end: str = "/ steps * (clean - patch)") -> str:
    """`integrated_gradient` with points that are such a share of the way, and such an end."""
    return f"""
shares = [{share} for j in range(steps)]
return sum(gradient_at(clean + share * (patch - clean)) for share in shares) {end}
"""


LOSS = """
off, n_saes = ld_spliced - ld_masked, len(masks)
n_nodes = sum(mask.sum() for mask in masks.values())
cost = sparsity * n_nodes / n_saes
"""


def loop(
    tau: str = "temperature(step, steps, tau_max)",
    step: str = "optimizer.zero_grad(); loss.backward(); optimizer.step()",
    end: str = "return {name: (value > 0).float() for name, value in theta.items()}",
) -> str:
    """`learn_by_hand` with other lines in places."""
    return f"""
optimizer = torch.optim.Adam(theta.values(), lr=lr)
for step in range(steps):
    tau = {tau}
    masks = {{name: torch.sigmoid(tau * value) for name, value in theta.items()}}
    loss = loss_of(masks, step)
    {step}
{end}
"""


def kept(size: str) -> str:
    """`prune` by another size of a node than its |score|."""
    return f"""
sizes = torch.cat([({size}).flatten() for score, mask in zip(scores.values(), masks.values())])
flat = torch.zeros_like(sizes)
flat[sizes.topk(n).indices] = 1
parts = flat.split([score.numel() for score in scores.values()])
return {{name: part.view_as(scores[name]) for name, part in zip(scores, parts)}}
"""


WRONG: WrongVersions = {
    "attribution_scores": {
        "sign is turned round": "return (gradient * (patch - clean)).mean(0)",
        "averaged over positions too": "return (gradient * (clean - patch)).mean((0, 1))",
        "summed over prompts": "return (gradient * (clean - patch)).sum(0)",
        "size of each prompt's score": "return (gradient * (clean - patch)).abs().mean(0)",
        "gradient alone": "return gradient.mean(0)",
        "multiplied by the clean value": "return (gradient * clean).mean(0)",
        "each prompt's own product": "return gradient.mean(0) * (clean - patch).mean(0)",
        "has the shape [5, 4, 6], and [4, 6] is wanted": "return gradient * (clean - patch)",
    },
    "integrated_gradient": {
        "did not divide by the number of points": walk("j / steps", "* (clean - patch)"),
        "sign is turned round": walk("j / steps", "/ steps * (patch - clean)"),
        "That is AtP: move the point": walk("0.0"),
        "take in the patch itself": walk("(j + 1) / steps"),
        "leave out the clean point": walk("1 - j / steps"),
        "ends on the patch itself": walk("j / max(1, steps - 1)"),
        "still to be multiplied by the change": walk("j / steps", "/ steps"),
    },
    "sparsification_loss": {
        "opposite sign cancel": LOSS + "return off.mean().abs() + cost",
        "can be below 0": LOSS + "return off.mean() + cost",
        "squared": LOSS + "return (off**2).mean() + cost",
        "you summed over prompts": LOSS + "return off.abs().sum() + cost",
        "divide by the number of SAEs": LOSS + "return off.abs().mean() + cost * n_saes",
        "mean of the masks": LOSS
        + "return off.abs().mean() + cost * n_saes / sum(m.numel() for m in masks.values())",
        "mean of each mask": LOSS
        + "return off.abs().mean() + cost * sum(m.mean() for m in masks.values()) / n_nodes",
        "what the nodes cost is missing": LOSS + "return off.abs().mean()",
        "λ is missing": LOSS + "return off.abs().mean() + n_nodes / n_saes",
    },
    "temperature": {
        "same amount each step": "return 1 + (tau_max - 1) * step / (steps - 1)",
        "does not reach tau_max": "return tau_max ** (step / steps)",
        "starts above 1": "return tau_max ** ((step + 1) / steps)",
        "overshoots": "return tau_max ** (2 * step / (steps - 1))",
        "it falls": "return tau_max ** (1 - step / (steps - 1))",
        "tau_max at every step": "return tau_max",
    },
    "learn_by_hand": {
        "earlier steps pile up": loop(step="loss.backward(); optimizer.step()"),
        "Is there an optimizer.step()": loop(step="optimizer.zero_grad(); loss.backward()"),
        "the temperature stays 1": loop(tau="1.0"),
        "you divided by τ": loop(tau="1 / temperature(step, steps, tau_max)"),
        "returned the soft masks": loop(end="return masks"),
        "turned it round": loop(
            end="return {n: (value < 0).float() for n, value in theta.items()}"
        ),
        "asked for 16 times in 8 steps": loop(
            step="(loss + loss_of(masks, step)).backward(); optimizer.step()"
        ),
        "a mask for each hook point": loop(end="return list(theta.values())"),
    },
    "prune": {
        "a node came back": kept("score.abs()"),
        "rank by |score|": kept("score * mask"),
        "kept the worst": kept("-score.abs() - 100 * (1 - mask)"),
        "you kept n nodes of each SAE": """
            kept = {name: torch.zeros_like(score) for name, score in scores.items()}
            for name, score in scores.items():
                kept[name].view(-1)[(score.abs() * masks[name]).flatten().topk(n).indices] = 1
            return kept
        """,
        "as a dictionary like masks": "return list(masks)",
    },
}


@pytest.mark.parametrize("name", list(book.solutions))
def test_the_solution_is_right_and_the_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(nb04, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_every_wrong_version_is_rejected_for_its_own_reason(name, body, says):
    checked = book.checked(attempt(nb04, name, body))
    assert checked.status == "wrong" and says in checked.says, checked.says


def test_every_exercise_has_three_wrong_versions_or_more():
    assert set(WRONG) == set(book.solutions) == set(book.checkers)
    assert all(len(rows) >= 3 for rows in WRONG.values())


def test_integrated_gradients_sum_to_what_the_patch_changes_and_begin_with_attribution():
    generator = torch.Generator().manual_seed(0)
    weight, clean, patch = torch.randn(3, 4, 2, 3, generator=generator)

    def gradient_at(f):
        return weight * f**2

    scores = integrated_gradient(gradient_at, clean, patch, 2000)
    change = weight * (clean**3 - patch**3) / 3  # of the function whose gradient that is
    torch.testing.assert_close(scores, change, atol=5e-3, rtol=5e-3)
    one_step = integrated_gradient(gradient_at, clean, patch, 1)
    torch.testing.assert_close(
        one_step.mean(0), attribution_scores(gradient_at(clean), clean, patch)
    )


@given(steps=st.integers(2, 300), tau_max=st.floats(1.5, 500))
def test_the_temperature_rises_by_the_same_factor_from_1_to_its_end(steps, tau_max):
    taus = [temperature(step, steps, tau_max) for step in range(steps)]
    assert taus[0] == 1 and taus[-1] == pytest.approx(tau_max)
    factors = [after / before for before, after in zip(taus, taus[1:], strict=False)]
    assert factors == pytest.approx([factors[0]] * (steps - 1)) and factors[0] > 1
    settings = MaskSettings(steps=steps, tau_max=tau_max, settle=1.0)
    assert taus == pytest.approx([library_temperature(step, settings) for step in range(steps)])


def test_what_is_learned_by_hand_keeps_the_nodes_that_are_worth_their_cost():
    need = torch.tensor([[0.0, 3.0, 0.2, 1.0]])
    theta = {"hook": torch.ones(1, 4, requires_grad=True)}

    def loss_of(masks, step):
        return ((1 - masks["hook"]) * need).sum() + 0.5 * masks["hook"].sum()

    masks = learn_by_hand(loss_of, theta, steps=40, tau_max=20.0)
    assert masks["hook"].tolist() == [[0, 1, 0, 1]]


@given(seed=st.integers(0, 1000), n=st.integers(0, 20))
def test_pruning_keeps_the_n_largest_of_those_that_are_left(seed, n):
    generator = torch.Generator().manual_seed(seed)
    scores = {
        "a": torch.randn(3, 4, generator=generator),
        "b": torch.randn(4, 5, generator=generator),
    }
    everything = {name: torch.ones_like(score) for name, score in scores.items()}
    before = prune(scores, everything, 20)
    after = prune(scores, before, n)
    by_library = SAEMasks.from_scores(scores, n, rank="abs")
    for name in scores:
        assert torch.equal(after[name], by_library[name])
        assert (after[name] <= before[name]).all()
