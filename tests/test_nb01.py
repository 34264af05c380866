"""The checkers of notebook 01 accept the solutions, and reject the usual mistakes for the right
reason.
"""

import pytest
import torch

from course_utils.teaching.nb01 import book

WRONG = {
    "toy_loss": {
        "return (importance * (x - torch.relu(x @ W.T @ W + b)) ** 2).mean()": "averaged over the features too",
        "return (importance * (x - torch.relu(x @ W.T @ W + b)) ** 2).sum()": "summed over the batch",
        "return ((x - torch.relu(x @ W.T @ W + b)) ** 2).sum(1).mean()": "importance is missing",
        "return (importance * (x - (x @ W.T @ W + b)) ** 2).sum(1).mean()": "ReLU is missing from the read-out",
        "return (importance * (x - torch.relu(x @ W.T @ W)) ** 2).sum(1).mean()": "bias is missing",
        "return (importance * (x - torch.relu(torch.relu(x @ W.T) @ W + b)) ** 2).sum(1).mean()": "a ReLU on h",
        "return ((importance * (x - torch.relu(x @ W.T @ W + b))) ** 2).sum(1).mean()": "inside the square",
    },
    "sae_forward": {
        "pre = (x - b_dec) @ W_enc + b_enc; return pre, pre @ W_dec + b_dec": "latents cannot be negative",
        "f = activation(x @ W_enc + b_enc); return f, f @ W_dec + b_dec": "b_dec was not taken off",
        "f = activation((x - b_dec) @ W_enc + b_enc); return f, f @ W_dec": "b_dec was not put back",
        "f = activation((x - b_dec) @ W_enc); return f, f @ W_dec + b_dec": "b_enc is missing",
        "f = torch.relu((x - b_dec) @ W_enc + b_enc); return f, f @ W_dec + b_dec": "use the argument `activation`",
        "f = activation((x - b_dec) @ W_enc + b_enc); return f @ W_dec + b_dec, f": "the latents come first",
        "return activation((x - b_dec) @ W_enc + b_enc)": "two things are to be returned",
    },
    "l1_loss": {
        "return torch.nn.functional.mse_loss(x_hat, x) + l1 * (f * W_dec.norm(dim=1)).sum(1).mean()": "squared error is averaged over d_in",
        "return ((x - x_hat) ** 2).sum(1).mean() + l1 * f.sum(1).mean()": "length of the decoder rows is missing",
        "return ((x - x_hat) ** 2).sum() + l1 * (f * W_dec.norm(dim=1)).sum()": "summed over the batch",
        "return ((x - x_hat) ** 2).sum(1).mean() + l1 * (f * W_dec.norm(dim=1)).mean()": "sparsity is averaged over latents",
        "return ((x - x_hat) ** 2).sum(1).mean() + (f * W_dec.norm(dim=1)).sum(1).mean()": "l1 is missing",
        "return ((x - x_hat) ** 2).sum(1).mean() + l1 * (f**2 * W_dec.norm(dim=1)).sum(1).mean()": "that is L2",
        "return ((x - x_hat) ** 2).sum(1).mean() + l1 * ((f > 0) * W_dec.norm(dim=1)).sum(1).mean()": "you counted latents",
    },
    "topk": {
        "v, i = pre.topk(k); return torch.zeros_like(pre).scatter(1, i, v)": "negative pre-activations",
        "t = pre.flatten().topk(k * len(pre)).values[-1]; return torch.where(pre >= t, pre, 0).relu()": "that is BatchTopK",
        "v, i = pre.topk(k); return torch.zeros_like(pre).scatter(1, i, (v > 0).float())": "mask of zeros and ones",
        "return pre.topk(k).values": "put them back into their places",
        "i = pre.abs().topk(k).indices; return torch.zeros_like(pre).scatter(1, i, pre.gather(1, i).relu())": "ranked by size",
        "v, i = pre.topk(k, dim=0); return torch.zeros_like(pre).scatter(0, i, v.relu())": "in each column",
        "v = pre.topk(k).values[:, -1:]; return torch.where(pre > v, pre, 0).relu()": "the k-th largest stays too",
        "return pre.relu()": "that is ReLU",
    },
    "explained_variance": {
        "return 1 - (x - x_hat).pow(2).sum() / x.pow(2).sum()": "your baseline is zero",
        "return 1 - (x - x_hat).pow(2).sum() / (x - x.mean()).pow(2).sum()": "one number for all dimensions",
        "return (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()": "the share that is not explained",
        "return (1 - (x - x_hat).pow(2).sum(0) / (x - x.mean(0)).pow(2).sum(0)).mean()": "averaged over dimensions",
        "return (1 - (x - x_hat).pow(2).sum(1) / (x - x.mean(0)).pow(2).sum(1)).mean()": "averaged over tokens",
        "return 1 - ((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()": "a tensor of one number",
        "return x_hat.var(0).sum() / x.var(0).sum()": "compares the variance of x̂",
    },
    "l0_and_dead": {
        "return f.sum(1).mean(), (f == 0).all(0).sum()": "that is L1",
        "return (f > 0).float().mean(), (f == 0).all(0).sum()": "you averaged over latents too",
        "return (f > 0).sum(0).float().mean(), (f == 0).all(0).sum()": "how many tokens a latent is on for",
        "return (f > 0).sum(1).float().mean(), (f == 0).any(0).sum()": "off for some token",
        "return (f > 0).sum(1).float().mean(), (f > 0).any(0).sum()": "latents that are alive",
        "return (f > 0).sum(1).float().mean(), (f == 0).all(0).float().mean()": "share of dead latents",
        "return (f > 0).sum(1).float().mean(), (f == 0).all(0).sum()": "plain numbers",
        "return (f > 0).sum(1).float().mean()": "two numbers are to be returned",
    },
}
CASES = [
    pytest.param(name, body, says, id=f"{name}: {says}")
    for name, wrong in WRONG.items()
    for body, says in wrong.items()
]
ARGUMENTS = {
    "toy_loss": "W, b, x, importance",
    "sae_forward": "x, W_enc, b_enc, W_dec, b_dec, activation=torch.relu",
    "l1_loss": "x, x_hat, f, W_dec, l1",
    "topk": "pre, k",
    "explained_variance": "x, x_hat",
    "l0_and_dead": "f",
}


def attempt(name, body):
    space = {"torch": torch}
    exec(compile(f"def {name}({ARGUMENTS[name]}):\n    {body}", "<reader>", "exec"), space)
    return space[name]


def test_there_are_six_exercises_with_at_least_three_wrong_versions_each():
    assert set(book.solutions) == set(book.checkers) == set(WRONG) and len(WRONG) == 6
    assert all(len(wrong) >= 3 for wrong in WRONG.values())


@pytest.mark.parametrize("name", list(WRONG))
def test_the_solution_is_right(name):
    assert book.checked(book.solutions[name]).status == "right"


@pytest.mark.parametrize("name", list(WRONG))
def test_an_unwritten_exercise_is_open(name):
    assert book.checked(attempt(name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(("name", "body", "says"), CASES)
def test_a_wrong_version_is_rejected_for_the_right_reason(name, body, says):
    found = book.checked(attempt(name, body))
    assert found.status == "wrong" and says in found.says, found.says


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (
            "toy_loss",
            "h = torch.einsum('hf,bf->bh', W, x); return torch.einsum('bf,f->b', (x - (h @ W + b).clamp(min=0)).square(), importance).mean()",
        ),
        (
            "l1_loss",
            "return ((x - x_hat).square().sum() + l1 * (f @ W_dec.norm(dim=1)).sum()) / len(x)",
        ),
        ("topk", "return torch.where(pre >= pre.topk(k).values[:, -1:], pre, 0).clamp(min=0)"),
        (
            "explained_variance",
            "return 1 - (x - x_hat).pow(2).sum(1).mean() / x.var(0, correction=0).sum()",
        ),
        (
            "l0_and_dead",
            "return (f != 0).sum().item() / len(f), f.shape[1] - f.amax(0).gt(0).sum().item()",
        ),
    ],
)
def test_another_right_way_is_accepted(name, body):
    assert book.checked(attempt(name, body)).status == "right"
