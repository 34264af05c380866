"""Notebook 01's checkers accept the solutions, and reject the usual mistakes for their reason."""

import pytest
from readers import WrongVersions, attempt, cases

from course_utils.teaching import nb01
from course_utils.teaching.nb01 import book

WRONG: WrongVersions = {
    "toy_loss": {
        "averaged over the features too": """
            return (importance * (x - torch.relu(x @ W.T @ W + b)) ** 2).mean()
        """,
        "summed over the batch": """
            return (importance * (x - torch.relu(x @ W.T @ W + b)) ** 2).sum()
        """,
        "importance is missing": "return ((x - torch.relu(x @ W.T @ W + b)) ** 2).sum(1).mean()",
        "ReLU is missing from the read-out": """
            return (importance * (x - (x @ W.T @ W + b)) ** 2).sum(1).mean()
        """,
        "bias is missing": "return (importance * (x - torch.relu(x @ W.T @ W)) ** 2).sum(1).mean()",
        "a ReLU on h": """
            return (
                (importance * (x - torch.relu(torch.relu(x @ W.T) @ W + b)) ** 2).sum(1).mean()
            )
        """,
        "inside the square": """
            return ((importance * (x - torch.relu(x @ W.T @ W + b))) ** 2).sum(1).mean()
        """,
        "the bias comes after the ReLU": """
            return (importance * (x - torch.relu(x @ W.T @ W) - b) ** 2).sum(1).mean()
        """,
        "it is a float, and a tensor is wanted": """
            return solutions["toy_loss"](W, b, x, importance).item()
        """,
        "no gradient reaches W and b": """
            return solutions["toy_loss"](W, b, x, importance).detach()
        """,
        "the gradient that reaches W is not the right one": """
            out = torch.relu(x @ W.T.detach() @ W + b)
            return (importance * (x - out) ** 2).sum(1).mean()
        """,
    },
    "sae_forward": {
        "latents cannot be negative": """
            pre = (x - b_dec) @ W_enc + b_enc
            return pre, pre @ W_dec + b_dec
        """,
        "b_dec was not taken off": """
            f = activation(x @ W_enc + b_enc)
            return f, f @ W_dec + b_dec
        """,
        "b_dec was not put back": """
            f = activation((x - b_dec) @ W_enc + b_enc)
            return f, f @ W_dec
        """,
        "b_enc is missing": """
            f = activation((x - b_dec) @ W_enc)
            return f, f @ W_dec + b_dec
        """,
        "use the argument `activation`": """
            f = torch.relu((x - b_dec) @ W_enc + b_enc)
            return f, f @ W_dec + b_dec
        """,
        "the latents come first": """
            f = activation((x - b_dec) @ W_enc + b_enc)
            return f @ W_dec + b_dec, f
        """,
        "two things are to be returned": "return activation((x - b_dec) @ W_enc + b_enc)",
        "b_enc came after": """
            f = activation((x - b_dec) @ W_enc) + b_enc
            return f, f @ W_dec + b_dec
        """,
        "you decoded the pre-activations": """
            pre = (x - b_dec) @ W_enc + b_enc
            return activation(pre), pre @ W_dec + b_dec
        """,
        "it is to be taken off": """
            f = activation((x + b_dec) @ W_enc + b_enc)
            return f, f @ W_dec + b_dec
        """,
        "it is to be put back": """
            f = activation((x - b_dec) @ W_enc + b_enc)
            return f, f @ W_dec - b_dec
        """,
        "a ReLU besides the argument": """
            f = activation((x - b_dec) @ W_enc + b_enc).relu()
            return f, f @ W_dec + b_dec
        """,
        "use the argument `activation` for both": """
            pre = (x - b_dec) @ W_enc + b_enc
            return activation(pre), pre.relu() @ W_dec + b_dec
        """,
        "no gradient reaches W_enc and b_enc": """
            f = activation((x - b_dec) @ W_enc + b_enc).detach()
            return f, f @ W_dec + b_dec
        """,
    },
    "l1_loss": {
        "squared error is averaged over d_in": """
            return (
                torch.nn.functional.mse_loss(x_hat, x)
                + l1 * (f * W_dec.norm(dim=1)).sum(1).mean()
            )
        """,
        "norm of the error, not its square": """
            return ((x - x_hat).norm(dim=1) + l1 * (f * W_dec.norm(dim=1)).sum(1)).mean()
        """,
        "the decoder's norm is squared": """
            return ((x - x_hat) ** 2).sum(1).mean() + l1 * (f @ W_dec.pow(2).sum(1)).mean()
        """,
        "that rewards many latents": """
            return ((x - x_hat) ** 2).sum(1).mean() - l1 * (f @ W_dec.norm(dim=1)).mean()
        """,
        "the gradient that reaches f and W_dec is not": """
            x_hat, sizes = x_hat.clone(), f @ W_dec.norm(dim=1)
            sizes = torch.cat([sizes[:3].detach(), sizes[3:]])
            return (((x - x_hat) ** 2).sum(1) + l1 * sizes).mean()
        """,
        "norm of the decoder rows is missing": """
            return ((x - x_hat) ** 2).sum(1).mean() + l1 * f.sum(1).mean()
        """,
        "summed over the batch": """
            return ((x - x_hat) ** 2).sum() + l1 * (f * W_dec.norm(dim=1)).sum()
        """,
        "sparsity is averaged over latents": """
            return ((x - x_hat) ** 2).sum(1).mean() + l1 * (f * W_dec.norm(dim=1)).mean()
        """,
        "l1 is missing": """
            return ((x - x_hat) ** 2).sum(1).mean() + (f * W_dec.norm(dim=1)).sum(1).mean()
        """,
        "that is L2": """
            return ((x - x_hat) ** 2).sum(1).mean() + l1 * (f**2 * W_dec.norm(dim=1)).sum(
                1
            ).mean()
        """,
        "you counted latents": """
            return ((x - x_hat) ** 2).sum(1).mean() + l1 * ((f > 0) * W_dec.norm(dim=1)).sum(
                1
            ).mean()
        """,
    },
    "topk": {
        "negative pre-activations": """
            v, i = pre.topk(k)
            return torch.zeros_like(pre).scatter(1, i, v)
        """,
        "that is BatchTopK": """
            t = pre.flatten().topk(k * len(pre)).values[-1]
            return torch.where(pre >= t, pre, 0).relu()
        """,
        "mask of zeros and ones": """
            v, i = pre.topk(k)
            return torch.zeros_like(pre).scatter(1, i, (v > 0).float())
        """,
        "put them back into their places": "return pre.topk(k).values",
        "ranked by size": """
            i = pre.abs().topk(k).indices
            return torch.zeros_like(pre).scatter(1, i, pre.gather(1, i).relu())
        """,
        "no gradient reaches pre": """
            v, i = pre.detach().topk(k)
            return torch.zeros_like(pre).scatter(1, i, v.relu())
        """,
        "the k-th largest is wanted": """
            return torch.where(pre >= pre.kthvalue(k, keepdim=True).values, pre, 0).relu()
        """,
        "pre was changed in place": """
            pre[pre < pre.topk(k).values[:, -1:]] = 0
            return pre.relu()
        """,
        "the k smallest": """
            v, i = pre.topk(k, largest=False)
            return torch.zeros_like(pre).scatter(1, i, v.relu())
        """,
        "in each column": """
            v, i = pre.topk(k, dim=0)
            return torch.zeros_like(pre).scatter(0, i, v.relu())
        """,
        "the k-th largest stays too": """
            v = pre.topk(k).values[:, -1:]
            return torch.where(pre > v, pre, 0).relu()
        """,
        "that is ReLU": "return pre.relu()",
    },
    "step": {
        "on and off have changed places": "return (pre <= threshold).float()",
        "not above 0": "return (pre > 0).float()",
        "that is JumpReLU": "return pre * (pre > threshold)",
        "let it be a tensor minus itself": """
            near = (pre - threshold).abs() < width / 2
            return (pre > threshold).float() + near / width * threshold
        """,
        "no gradient reaches threshold": "return (pre > threshold).float()",
        "a gradient reaches pre": """
            on, near = (pre > threshold).float(), (pre - threshold).abs() < width / 2
            away = pre - threshold
            return on + near / width * (away - away.detach())
        """,
        "its sign is turned": """
            near = (pre - threshold).abs() < width / 2
            return (pre > threshold).float() + near / width * (threshold - threshold.detach())
        """,
        "the factor 1 / width is missing": """
            near = (pre - threshold).abs() < width / 2
            return (pre > threshold).float() + near * (threshold.detach() - threshold)
        """,
        "it reaches width to each side": """
            near = (pre - threshold).abs() < width
            return (pre > threshold).float() + near / width * (threshold.detach() - threshold)
        """,
        "it is everywhere": """
            return (pre > threshold).float() + (threshold.detach() - threshold) / width
        """,
        "only for pre-activations above the threshold": """
            near = (pre > threshold) & (pre - threshold < width / 2)
            return (pre > threshold).float() + near / width * (threshold.detach() - threshold)
        """,
    },
    "aux_loss": {
        "the live latents took part": """
            return ((x - x_hat).detach() - topk(pre, k) @ W_dec).pow(2).sum(1).mean()
        """,
        "live and dead have changed places": """
            return ((x - x_hat).detach() - topk(pre * ~dead, k) @ W_dec).pow(2).sum(1).mean()
        """,
        "competed with live ones": """
            return ((x - x_hat).detach() - (topk(pre, k) * dead) @ W_dec).pow(2).sum(1).mean()
        """,
        "all dead latents write, and k": """
            return ((x - x_hat).detach() - (pre * dead).relu() @ W_dec).pow(2).sum(1).mean()
        """,
        "negative pre-activations came through": """
            v, i = pre.masked_fill(~dead, -1e9).topk(k)
            rebuilt = torch.zeros_like(pre).scatter(1, i, v) @ W_dec
            return ((x - x_hat).detach() - rebuilt).pow(2).sum(1).mean()
        """,
        "the dead latents rebuild x; what": """
            return (x - topk(pre * dead, k) @ W_dec).pow(2).sum(1).mean()
        """,
        "a gradient goes back to x̂": """
            return ((x - x_hat) - topk(pre * dead, k) @ W_dec).pow(2).sum(1).mean()
        """,
        "you averaged over d_in, too": """
            return ((x - x_hat).detach() - topk(pre * dead, k) @ W_dec).pow(2).mean()
        """,
        "no gradient reaches pre and W_dec": """
            return ((x - x_hat) - topk(pre * dead, k) @ W_dec).detach().pow(2).sum(1).mean()
        """,
    },
    "share_recovered": {
        "that is the share that is lost": """
            return (spliced.mean() - model.mean()) / (ablated.mean() - model.mean())
        """,
        "you took the ratio for each piece": """
            return ((ablated - spliced) / (ablated - model)).mean()
        """,
        "one number for each piece": "return (ablated - spliced) / (ablated - model)",
        "divide by what ablating adds": "return (ablated - spliced).mean() / ablated.mean()",
        "0 is to be the ablated loss": "return model.mean() / spliced.mean()",
        "it is a float, and a tensor": """
            return solutions["share_recovered"](model, spliced, ablated).item()
        """,
    },
    "strongest": {
        "a text comes twice": """
            flat = f.flatten().topk(k).indices
            return torch.stack([flat // f.shape[1], flat % f.shape[1]], dim=1)
        """,
        "never on are there": """
            highest, where = f.max(dim=1)
            texts = highest.argsort(descending=True, stable=True)[:k]
            return torch.stack([texts, where[texts]], dim=1)
        """,
        "it is weakest": """
            highest, where = f.max(dim=1)
            texts = highest.argsort()[:k]
            texts = texts[highest[texts] > 0]
            return torch.stack([texts, where[texts]], dim=1)
        """,
        "the columns have changed places": "return solutions['strongest'](f, k).flip(1)",
        "rows and columns have": "return solutions['strongest'](f, k).T",
        "ranked texts by their mean": """
            texts = f.mean(1).argsort(descending=True)[:k]
            return torch.stack([texts, f.argmax(1)[texts]], dim=1)
        """,
        "the peaks do not belong to their texts": """
            highest, where = f.max(dim=1)
            texts = highest.argsort(descending=True)[:k]
            texts = texts[highest[texts] > 0]
            return torch.stack([texts, where[: len(texts)]], dim=1)
        """,
    },
    "explained_variance": {
        "your baseline is zero": "return 1 - (x - x_hat).pow(2).sum() / x.pow(2).sum()",
        "one number for all dimensions": """
            return 1 - (x - x_hat).pow(2).sum() / (x - x.mean()).pow(2).sum()
        """,
        "your baseline is the mean of x̂": """
            return 1 - (x - x_hat).pow(2).sum() / (x - x_hat.mean(0)).pow(2).sum()
        """,
        "the variance is unbiased": """
            return 1 - (x - x_hat).pow(2).sum(1).mean() / x.var(0).sum()
        """,
        "the mean of the error is taken off": """
            return 1 - (x - x_hat).var(0).sum() / x.var(0).sum()
        """,
        "it is float16": """
            return solutions["explained_variance"](x, x_hat).half()
        """,
        "that is the share that is not explained": """
            return (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        """,
        "averaged over dimensions": """
            return (1 - (x - x_hat).pow(2).sum(0) / (x - x.mean(0)).pow(2).sum(0)).mean()
        """,
        "averaged over tokens": """
            return (1 - (x - x_hat).pow(2).sum(1) / (x - x.mean(0)).pow(2).sum(1)).mean()
        """,
        "a tensor of one number": """
            return 1 - ((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
        """,
        "compares the variance of x̂": "return x_hat.var(0).sum() / x.var(0).sum()",
    },
    "l0_and_dead": {
        "that is L1": "return f.sum(1).mean(), (f == 0).all(0).sum()",
        "you averaged over latents too": "return (f > 0).float().mean(), (f == 0).all(0).sum()",
        "how many tokens a latent is on for": """
            return (f > 0).sum(0).float().mean(), (f == 0).all(0).sum()
        """,
        "off for some token": "return (f > 0).sum(1).float().mean(), (f == 0).any(0).sum()",
        "latents that are alive": "return (f > 0).sum(1).float().mean(), (f > 0).any(0).sum()",
        "share of dead latents": """
            return (f > 0).sum(1).float().mean(), (f == 0).all(0).float().mean()
        """,
        "plain numbers": "return (f > 0).sum(1).float().mean(), (f == 0).all(0).sum()",
        "the two have changed places": "return solutions['l0_and_dead'](f)[::-1]",
        "only over tokens for which something is on": """
            each = (f > 0).sum(1).float()
            return each[each > 0].mean().item(), int((f == 0).all(0).sum())
        """,
        "number 2 of what it holds is a float, and a whole number": """
            return (f > 0).sum(1).float().mean().item(), float((f == 0).all(0).sum())
        """,
        "two numbers are to be returned": "return (f > 0).sum(1).float().mean()",
    },
}
RIGHT = {
    "toy_loss": """
        h = torch.einsum("hf,bf->bh", W, x)
        squared = (x - (h @ W + b).clamp(min=0)).square()
        return torch.einsum("bf,f->b", squared, importance).mean()
    """,
    "l1_loss": """
        norm = W_dec.norm(dim=1)
        return ((x - x_hat).square().sum() + l1 * (f @ norm).sum()) / len(x)
    """,
    "topk": "return torch.where(pre >= pre.topk(k).values[:, -1:], pre, 0).clamp(min=0)",
    "explained_variance": """
        return 1 - (x - x_hat).pow(2).sum(1).mean() / x.var(0, correction=0).sum()
    """,
    "l0_and_dead": """
        on = f != 0
        return on.sum().item() / len(f), f.shape[1] - on.any(0).sum().item()
    """,
    "step": """
        away = (pre.detach() - threshold.detach()).abs()
        ramp = torch.where(away < width / 2, -threshold / width, 0)
        return (pre > threshold).to(pre.dtype) + ramp - ramp.detach()
    """,
    "aux_loss": """
        values, index = torch.where(dead, pre, 0.0).topk(k)
        rebuilt = torch.zeros_like(pre).scatter(1, index, values.relu()) @ W_dec
        return (x - x_hat.detach() - rebuilt).square().sum() / len(x)
    """,
    "share_recovered": "return 1 - (spliced - model).sum() / (ablated - model).sum()",
    "strongest": """
        peaks = sorted(((row.max().item(), i, row.argmax().item()) for i, row in enumerate(f)))
        found = [(i, where) for value, i, where in peaks[::-1][:k] if value > 0]
        return torch.tensor(found)
    """,
}


def test_there_are_ten_exercises_with_at_least_three_wrong_versions_each():
    assert set(book.solutions) == set(book.checkers) == set(WRONG) and len(WRONG) == 10
    assert all(len(wrong) >= 3 for wrong in WRONG.values())


@pytest.mark.parametrize("name", list(WRONG))
def test_the_solution_is_right_and_the_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(nb01, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_a_wrong_version_is_rejected_for_the_right_reason(name, body, says):
    checked = book.checked(attempt(nb01, name, body))
    assert checked.status == "wrong" and says in checked.says, checked.says


@pytest.mark.parametrize(("name", "body"), RIGHT.items())
def test_another_right_way_is_accepted(name, body):
    checked = book.checked(attempt(nb01, name, body))
    assert checked.status == "right", checked.says
