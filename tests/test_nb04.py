"""Notebook 04's checkers accept the solutions, and name the bug in every wrong version."""

import itertools

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


def scored(
    score: str = "(gradient * (clean - patch)).mean(0)", *, at: str = "clean", number: str = "sum"
) -> str:
    """`attribution_scores` with another end, point, or number to differentiate."""
    return f"""
f = {at}.detach().clone().requires_grad_()
gradient = torch.autograd.grad(logit_diff_of(f).{number}(), f)[0]
return {score}
"""


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
        "sign is turned round": scored("(gradient * (patch - clean)).mean(0)"),
        "averaged over positions too": scored("(gradient * (clean - patch)).mean((0, 1))"),
        "summed over prompts": scored("(gradient * (clean - patch)).sum(0)"),
        "size of each prompt's score": scored("(gradient * (clean - patch)).abs().mean(0)"),
        "gradient alone": scored("gradient.mean(0)"),
        "multiplied by the clean value": scored("(gradient * clean).mean(0)"),
        "each prompt's own product": scored("gradient.mean(0) * (clean - patch).mean(0)"),
        "every prompt has its score still": scored("gradient * (clean - patch)"),
        "over positions, and not over prompts": scored("(gradient * (clean - patch)).mean(1)"),
        "multiplied by the patch value": scored("(gradient * patch).mean(0)"),
        "a bracket is missing": scored("(gradient * clean - patch).mean(0)"),
        "clean and patch are added": scored("(gradient * (clean + patch)).mean(0)"),
        "the change alone": scored("(clean - patch).mean(0)"),
        "gradient of the mean logit difference": scored(number="mean"),
        "at the patch latents": scored(at="patch"),
        "at latents of 0": scored(at="torch.zeros_like(clean)"),
        "clean and patch are swapped": scored("(gradient * (patch - clean)).mean(0)", at="patch"),
        "activation patching, with one run for each": """
            whole, scores = logit_diff_of(clean), torch.zeros(clean.shape[1:])
            for position in range(clean.shape[1]):
                for latent in range(clean.shape[2]):
                    f = clean.clone()
                    f[:, position, latent] = patch[:, position, latent]
                    scores[position, latent] = (whole - logit_diff_of(f)).mean()
            return scores
        """,
        "all prompts at once": """
            f = clean[0].detach().requires_grad_()
            gradient = torch.autograd.grad(logit_diff_of(f).sum(), f)[0]
            return gradient * (clean - patch)[0]
        """,
        "patch was changed in place": scored("(gradient * patch.sub_(clean).neg_()).mean(0)"),
    },
    "integrated_gradient": {
        "did not divide by the number of points": walk("j / steps", "* (clean - patch)"),
        "sign is turned round": walk("j / steps", "/ steps * (patch - clean)"),
        "That is AtP: move the point": walk("0.0"),
        "take in the patch itself": walk("(j + 1) / steps"),
        "leave out the clean point": walk("1 - j / steps"),
        "ends on the patch itself": walk("j / max(1, steps - 1)"),
        "still to be multiplied by the change": walk("j / steps", "/ steps"),
        "you walk away from the patch": walk("-j / steps"),
        "in the middle of each step": walk("(j + 0.5) / steps"),
        "the shares are not divided": walk("j"),
        "these shares of the way: 0, 0.4": walk("2 * j / steps"),
        "multiplied by the clean value": walk("j / steps", "/ steps * clean"),
        "you averaged over prompts": """
            return solutions["integrated_gradient"](gradient_at, clean, patch, steps).mean(0)
        """,
        "not on the straight line": """
            shares = [j / steps for j in range(steps)]
            return sum(gradient_at(clean + s * patch) for s in shares) / steps * (clean - patch)
        """,
        "one point at a time": """
            shares = torch.arange(steps).view(-1, 1, 1, 1) / steps
            return gradient_at(clean + shares * (patch - clean)).mean(0) * (clean - patch)
        """,
        "only the last point's gradient": """
            for j in range(steps):
                total = gradient_at(clean + j / steps * (patch - clean))
            return total * (clean - patch)
        """,
    },
    "sparsification_loss": {
        "the post's published loss": LOSS + "return off.mean().abs() + cost",
        "prompt by prompt, and average then": LOSS + "return off.sum().abs() / 6 + cost",
        "a float, and a tensor is wanted": LOSS + "return float(off.abs().mean() + cost)",
        "no gradient reaches ld_masked and masks": LOSS
        + "return (off.abs().mean() + cost).detach()",
        "no gradient reaches masks": LOSS + "return off.abs().mean() + cost.item()",
        "no gradient reaches ld_masked,": LOSS + "return off.abs().mean().detach() + cost",
        "A count has no gradient": LOSS
        + "return off.abs().mean() + sparsity * sum((m > 0).sum() for m in masks.values()) / 3",
        "a loss for each prompt still": LOSS + "return off.abs() + cost",
        "the root of the mean square": LOSS + "return (off**2).mean().sqrt() + cost",
        "you compared the sizes": LOSS
        + "return (ld_spliced.abs() - ld_masked.abs()).abs().mean() + cost",
        "is taken off: it is to be added": LOSS + "return off.abs().mean() - cost",
        "the number of SAEs divides the second term": LOSS
        + "return (off.abs().mean() + sparsity * n_nodes) / n_saes",
        "only the last SAE's nodes": LOSS
        + "return off.abs().mean() + sparsity * list(masks.values())[-1].sum() / n_saes",
        "can be below 0": LOSS + "return off.mean() + cost",
        "below 0 where ld_masked is below": LOSS + "return cost - off.mean()",
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
        "put brackets around": "return tau_max ** (step / steps - 1)",
        "1 at every step": "return 1.0",
        "to the power of the step": "return tau_max**step",
        "it is 2 at step 0": "return 1 + tau_max ** (step / (steps - 1))",
        "it is 100 at the last": "return (tau_max / 2) ** (step / (steps - 1))",
        "the factor from step to step goes from": """
            return tau_max ** (step / (steps - 1)) ** 2
        """,
        "with steps=4": "return 200 ** (step / (steps - 1))",
        "not tuple": "return (tau_max ** (step / (steps - 1)),)",
    },
    "learn_by_hand": {
        "earlier steps pile up": loop(step="loss.backward(); optimizer.step()"),
        "zero_grad between backward and step": loop(
            step="loss.backward(); optimizer.zero_grad(); optimizer.step()"
        ),
        "the optimizer finds no gradient": loop(
            step="loss.backward(); optimizer.zero_grad(set_to_none=False); optimizer.step()"
        ),
        "comes before any gradient": loop(
            step="optimizer.step(); optimizer.zero_grad(); loss.backward()"
        ),
        "Is there a loss.backward()": loop(step="optimizer.zero_grad(); optimizer.step()"),
        "you go up": loop(step="optimizer.zero_grad(); (-loss).backward(); optimizer.step()"),
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
        "the temperature is one step ahead": loop(tau="temperature(step + 1, steps, tau_max)"),
        "tau_max from the start": loop(tau="tau_max"),
        "by the same amount each step": loop(tau="1 + (tau_max - 1) * step / (steps - 1)"),
        "right up to step 0, and not at 1": loop(tau="temperature(step, steps, tau_max) ** 2"),
        "torch.optim.Adam is wanted": loop().replace("Adam", "SGD"),
        "hand lr on to it": loop().replace("lr=lr", "lr=0.1"),
        "a new optimizer at each step": loop(
            step="optimizer = torch.optim.Adam(theta.values(), lr=lr); optimizer.zero_grad(); "
            "loss.backward(); optimizer.step()"
        ),
        "the sigmoid is missing": loop().replace("torch.sigmoid(tau * value)", "tau * value"),
        "the masks that the loss sees have no gradient": loop().replace(
            "tau * value", "tau * value.detach()"
        ),
        "it was told [0, 0": loop().replace("loss_of(masks, step)", "loss_of(masks, 0)"),
        "from before the last optimizer step": loop(
            end="return {name: (mask > 0.5).float() for name, mask in masks.items()}"
        ),
        "exactly 0 stayed": loop(
            end="return {name: (value >= 0).float() for name, value in theta.items()}"
        ),
        "you cut θ at ½": loop(
            end="return {name: (value > 0.5).float() for name, value in theta.items()}"
        ),
        "True and False": loop(end="return {name: value > 0 for name, value in theta.items()}"),
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
        "as a dictionary with the keys": "return list(masks)",
        "True and False": """
            kept = solutions["prune"](scores, masks, n)
            return {name: mask.bool() for name, mask in kept.items()}
        """,
        "the mask of 'a' has the shape [6]": """
            kept = solutions["prune"](scores, masks, n)
            return {name: mask.flatten() for name, mask in kept.items()}
        """,
        "rows and columns changed places": """
            turned = [{name: value.mT for name, value in of.items()} for of in (scores, masks)]
            kept = solutions["prune"](*turned, n)
            return {name: mask.reshape(scores[name].shape) for name, mask in kept.items()}
        """,
        "has its score still": """
            kept = solutions["prune"](scores, masks, n)
            return {name: scores[name].abs() * mask for name, mask in kept.items()}
        """,
        "you returned scores": "return scores",
        "n + 1 nodes": "return solutions['prune'](scores, masks, n + 1)",
        "n − 1 nodes": "return solutions['prune'](scores, masks, n - 1)",
        "you dropped n nodes": """
            left = int(sum(mask.sum() for mask in masks.values()))
            return solutions["prune"](scores, masks, left - n)
        """,
    },
}


RIGHT = {
    "attribution_scores": [
        scored("torch.einsum('bpl,bpl->pl', gradient, clean - patch) / len(clean)"),
        """
        f = clean.clone().requires_grad_()
        logit_diff_of(f).mean().backward()
        return (f.grad * (clean - patch)).sum(0)
        """,
        """
        f = clean.clone().requires_grad_()
        rows = [torch.autograd.grad(logit_diff_of(f)[i], f)[0][i] for i in range(len(clean))]
        return (torch.stack(rows) * (clean - patch)).mean(0)
        """,
    ],
    "integrated_gradient": [
        """
        points = [torch.lerp(clean, patch, j / steps) for j in reversed(range(steps))]
        gradients = torch.stack([gradient_at(point) for point in points])
        return (clean - patch) * gradients.mean(0)
        """,
        """
        total, point = 0, clean
        for _ in range(steps):
            total = total + gradient_at(point) * (clean - patch) / steps
            point = point + (patch - clean) / steps
        return total
        """,
    ],
    "sparsification_loss": [
        """
        nodes = torch.cat([mask.flatten() for mask in masks.values()]).sum()
        first = torch.nn.functional.l1_loss(ld_masked, ld_spliced)
        return first + sparsity / len(masks) * nodes
        """,
        """
        loss = (ld_masked - ld_spliced.detach()).abs().sum() / len(ld_masked)
        for mask in masks.values():
            loss = loss + sparsity * mask.sum() / len(masks)
        return loss
        """,
    ],
    "temperature": [
        "return float(torch.logspace(0, 1, steps, base=tau_max)[step])",
        "return torch.tensor(tau_max).log().mul(step / (steps - 1)).exp()",
        """
        factor = tau_max ** (1 / (steps - 1))
        return factor**step
        """,
    ],
    "learn_by_hand": [
        loop(step="loss.backward(); optimizer.step(); optimizer.zero_grad()"),
        loop(step="optimizer.zero_grad(set_to_none=False); loss.backward(); optimizer.step()"),
        loop(end="return {n: torch.where(t > 0, 1.0, 0.0) for n, t in theta.items()}"),
        """
        theta = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
        optimizers = [torch.optim.Adam([value], lr=lr) for value in theta.values()]
        for step in range(steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
            tau = temperature(step, steps, tau_max)
            masks = {name: (tau * value).sigmoid() for name, value in theta.items()}
            loss_of(masks, step).backward()
            for optimizer in optimizers:
                optimizer.step()
        return {name: (torch.sigmoid(value) > 0.5).float() for name, value in theta.items()}
        """,
    ],
    "prune": [
        """
        left = {name: score.abs() * masks[name] for name, score in scores.items()}
        least = torch.cat([size.flatten() for size in left.values()]).sort().values[-n]
        return {name: (size >= least).float() for name, size in left.items()}
        """,
        """
        nodes = [
            (abs(score[i, j].item()), name, i, j)
            for name, score in scores.items()
            for i, j in masks[name].nonzero().tolist()
        ]
        kept = {name: torch.zeros_like(score) for name, score in scores.items()}
        for _, name, i, j in sorted(nodes)[-n:]:
            kept[name][i, j] = 1
        return kept
        """,
    ],
}


@pytest.mark.parametrize(
    ("name", "body"), [(name, body) for name, bodies in RIGHT.items() for body in bodies]
)
def test_another_right_way_of_writing_it_is_accepted(name, body):
    checked = book.checked(attempt(nb04, name, body))
    assert checked.status == "right", checked.says


@pytest.mark.parametrize("name", list(book.solutions))
def test_the_solution_is_right_and_the_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(nb04, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_every_wrong_version_is_rejected_for_its_own_reason(name, body, says):
    checked = book.checked(attempt(nb04, name, body))
    assert checked.status == "wrong" and says in checked.says, checked.says


def test_each_known_mistake_in_the_loop_shows_other_masks_than_the_others():
    settings = {"tau_max": 5.0, "lr": 0.25}
    seen = [nb04._watch(learn_by_hand, 8, **settings).masks]
    for bug in nb04.LOOP_BUGS.values():
        seen.append(nb04._watch(nb04._learn_badly(**bug), 8, **settings).masks)
    for a, b in itertools.combinations(seen, 2):
        assert not torch.allclose(a, b, atol=1e-2)


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
    by_atp = attribution_scores(lambda f: (weight * f**3 / 3).sum((1, 2)), clean, patch)
    torch.testing.assert_close(one_step.mean(0), by_atp)


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
