"""The exercises of notebook 01: a toy model's loss; an SAE, its loss and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.teaching.fixtures import normal, require_two
from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 1.1 The loss of the toy model
# ---------------------------------------------------------------------------------------------


@book.solution
def toy_loss(
    W: Float[Tensor, "d_hidden n_features"],
    b: Float[Tensor, " n_features"],
    x: Float[Tensor, "batch n_features"],
    importance: Float[Tensor, " n_features"],
) -> Float[Tensor, ""]:
    """The loss of the toy model, which squeezes its features into a few dimensions.

    h = W x are those dimensions, and x' = ReLU(Wᵀ h + b) is what is read out of them.

    Returns the squared error of x' times the importance of each feature, summed over features,
    averaged over the batch: 0 when every feature that matters comes back exactly. (Elhage et al.
    2022.)
    """
    h = x @ W.T
    x_out = torch.relu(h @ W + b)
    return (importance * (x - x_out) ** 2).sum(dim=-1).mean()


@book.checker(toy_loss)
def _(attempt: Callable) -> None:
    W, b, x = normal(2, 5, seed=0), 0.3 * normal(5, seed=1), normal(7, 5, seed=2).abs()
    importance = 0.7 ** torch.arange(5.0)
    h = x @ W.T
    out = torch.relu(h @ W + b)
    error = importance * (x - out) ** 2
    no_relu = importance * (x - (h @ W + b)) ** 2
    no_bias = importance * (x - torch.relu(h @ W)) ** 2
    two_relus = importance * (x - torch.relu(torch.relu(h) @ W + b)) ** 2
    wrong = {
        "you averaged over the features too; sum over them, and average "
        "over the batch only.": error.mean(),
        "you summed over the batch; average over it.": error.sum(),
        "the importance is missing: every feature counts the same.": (x - out).pow(2).sum(1).mean(),
        "the importance is inside the square.": (importance * (x - out)).pow(2).sum(1).mean(),
        "the ReLU is missing from the read-out.": no_relu.sum(1).mean(),
        "the bias is missing from the read-out.": no_bias.sum(1).mean(),
        "there is a ReLU on h; only the read-out has one.": two_relus.sum(1).mean(),
        "that is the loss of each example; average over the batch.": error.sum(1),
    }
    compare(attempt(W, b, x, importance), error.sum(1).mean(), wrong, what="the loss")


# ---------------------------------------------------------------------------------------------
# 1.2 Encode and decode
# ---------------------------------------------------------------------------------------------


@book.solution
def sae_forward(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_in"]]:
    """Encode and decode: returns the latents f and the reconstruction x̂.

    b_dec is the origin: it is taken off before encoding and put back after decoding. In between, f
    is the ``activation`` of an affine map of what is left (0 = the latent is silent), and x̂ is
    b_dec plus f's latents, each times its row of W_dec.
    """
    f = activation((x - b_dec) @ W_enc + b_enc)
    x_hat = f @ W_dec + b_dec
    return f, x_hat


@book.checker(sae_forward)
def _(attempt: Callable) -> None:
    x, W_enc, b_enc = normal(6, 3, seed=0), normal(3, 8, seed=1), normal(8, seed=2)
    W_dec, b_dec = normal(8, 3, seed=3), normal(3, seed=4)
    answer = attempt(x, W_enc, b_enc, W_dec, b_dec)
    require_two(answer, "two things are to be returned: the latents, then the reconstruction.")

    pre = (x - b_dec) @ W_enc + b_enc
    f = torch.relu(pre)
    x_hat = f @ W_dec + b_dec
    wrong = {
        "the activation function is missing: latents cannot be negative.": pre,
        "b_dec was not taken off before encoding.": torch.relu(x @ W_enc + b_enc),
        "b_dec was added before encoding; it is to be taken off.": torch.relu(
            (x + b_dec) @ W_enc + b_enc
        ),
        "b_enc is missing.": torch.relu((x - b_dec) @ W_enc),
        "b_enc came after the activation function.": torch.relu((x - b_dec) @ W_enc) + b_enc,
        "you returned the reconstruction first; the latents come first.": x_hat,
    }
    compare(answer[0], f, wrong, what="f")

    wrong = {
        "b_dec was not put back after decoding.": f @ W_dec,
        "there is an activation function on the reconstruction.": torch.relu(x_hat),
        "the decoder used W_enc's transpose; it has its own matrix.": f @ W_enc.T + b_dec,
    }
    compare(answer[1], x_hat, wrong, what="x̂")

    doubled = attempt(x, W_enc, b_enc, W_dec, b_dec, lambda pre: 2 * torch.relu(pre))[0]
    wrong = {"ReLU is written into your function; use the argument `activation`.": f}
    compare(doubled, 2 * f, wrong, what="f with another activation function")


# ---------------------------------------------------------------------------------------------
# 1.3 The loss with an L1 penalty
# ---------------------------------------------------------------------------------------------


@book.solution
def l1_loss(
    x: Float[Tensor, "batch d_in"],
    x_hat: Float[Tensor, "batch d_in"],
    f: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    l1: float,
) -> Float[Tensor, ""]:
    """The loss of a ReLU SAE: squared error plus ``l1`` times sparsity.

    The squared error is summed over d_in. The sparsity is the sum over latents of f times the
    length of the latent's decoder row: what it writes, however the SAE shares that out between the
    two. Both are averaged over the batch.
    """
    squared_error = (x - x_hat).pow(2).sum(dim=-1)
    sparsity = (f * W_dec.norm(dim=1)).sum(dim=-1)
    return (squared_error + l1 * sparsity).mean()


@book.checker(l1_loss)
def _(attempt: Callable) -> None:
    x, x_hat = normal(6, 3, seed=0), normal(6, 3, seed=1)
    f, W_dec = normal(6, 8, seed=2).relu(), normal(8, 3, seed=3)
    l1, squared, norm = 0.3, (x - x_hat).pow(2), W_dec.norm(dim=1)
    error, sparsity = squared.sum(1).mean(), (f * norm).sum(1).mean()

    on, mean_error = (f > 0).float(), squared.mean()
    mean_sparsity, squared_latents = (f * norm).mean(), (f**2 * norm).sum(1).mean()
    both_means = mean_error + l1 * mean_sparsity
    no_norm, squared_norm = f.sum(1).mean(), (f * norm**2).sum(1).mean()
    l0, error_norm = (on * norm).sum(1).mean(), squared.sum(1).sqrt().mean()
    wrong = {
        "the squared error is averaged over d_in; sum over it (F.mse_loss averages over "
        "everything).": mean_error + l1 * sparsity,
        "the sparsity is averaged over latents; sum over them.": error + l1 * mean_sparsity,
        "both are averaged over everything; sum over d_in and over latents.": both_means,
        "you summed over the batch; average over it.": squared.sum() + l1 * (f * norm).sum(),
        "the length of the decoder rows is missing from the sparsity.": error + l1 * no_norm,
        "the decoder's length is squared.": error + l1 * squared_norm,
        "l1 is missing: the sparsity counts fully.": error + sparsity,
        "the sparsity is missing.": error,
        "l1 scales the squared error; it belongs to the sparsity.": l1 * error + sparsity,
        "the latents are squared in the sparsity: that is L2, which makes many small latents "
        "instead of few.": error + l1 * squared_latents,
        "you counted latents (L0); a count has no gradient, their sizes have.": error + l1 * l0,
        "that is the length of the error, not its square.": error_norm + l1 * sparsity,
    }
    compare(attempt(x, x_hat, f, W_dec, l1), error + l1 * sparsity, wrong, what="the loss")


# ---------------------------------------------------------------------------------------------
# 1.4 TopK
# ---------------------------------------------------------------------------------------------


@book.solution
def topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Float[Tensor, "batch d_sae"]:
    """The TopK activation function: the ``k`` largest pre-activations of each row keep their size.

    All others become 0.

    Negative ones become 0 even among the largest, so that a row has at most ``k`` latents on. (Gao
    et al. 2024.)
    """
    values, index = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


@book.checker(topk)
def _(attempt: Callable) -> None:
    pre, k = normal(6, 8, seed=0), 3
    pre[0] = -pre[0].abs() - 0.1  # nothing is above 0
    pre[1] = torch.tensor([0.5, -1.0, -2.0, -0.2, -0.1, -0.7, -3.0, -0.9])  # one is

    def at(index: Tensor, values: Tensor | float, dim: int = 1) -> Tensor:
        return torch.zeros_like(pre).scatter(dim, index, values)

    values, index = pre.topk(k, dim=1)
    largest_of_all = pre.flatten().topk(k * len(pre)).values[-1]
    in_columns = pre.topk(k, dim=0)
    by_size = pre.abs().topk(k, dim=1).indices
    one_more = pre.topk(k + 1, dim=1)
    wrong = {
        "negative pre-activations among the k largest came through; latents "
        "are never negative.": at(index, values),
        "you kept the k · batch largest of the whole batch (that is BatchTopK); "
        "keep k in each row.": torch.where(pre >= largest_of_all, pre, 0).relu(),
        "you kept the k largest in each column; keep k in each row.": at(
            in_columns.indices, in_columns.values.relu(), dim=0
        ),
        "you ranked by size, so that large negative ones took a place.": at(
            by_size, pre.gather(1, by_size).relu()
        ),
        "that is a mask of zeros and ones; the latents are to keep their size.": at(index, 1.0),
        "that is a mask of zeros and ones, without the negative ones; the latents are to keep "
        "their size.": at(index, (values > 0).float()),
        "you returned the k values alone; put them back into their "
        "places among zeros.": values.relu(),
        "you returned the k values alone, negative ones too; put them back into their places among "
        "zeros.": values,
        "you kept k + 1 a row.": at(one_more.indices, one_more.values.relu()),
        "you kept fewer than k a row: the k-th largest stays too.": at(
            index[:, :-1], values[:, :-1].relu()
        ),
        "that is ReLU: all positive ones stayed.": pre.relu(),
    }
    compare(attempt(pre.clone(), k), at(index, values.relu()), wrong, what="the result")


# ---------------------------------------------------------------------------------------------
# 1.5 Explained variance
# ---------------------------------------------------------------------------------------------


@book.solution
def explained_variance(
    x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]
) -> Float[Tensor, ""]:
    """The share of the variance of x that x̂ accounts for.

    1 = exact, 0 = no better than the mean, below 0 = worse than that.

    1 − (squared error of x̂) / (squared distance of x from its mean over tokens, dimension by
    dimension), each summed over all tokens and dimensions before they are divided.
    """
    unexplained = (x - x_hat).pow(2).sum()
    variance = (x - x.mean(dim=0)).pow(2).sum()
    return 1 - unexplained / variance


@book.checker(explained_variance)
def _(attempt: Callable) -> None:
    scale, centre = torch.tensor([1.0, 3.0, 0.5, 2.0]), torch.tensor([4.0, -1.0, 0.0, 2.0])
    x = normal(20, 4, seed=0) * scale + centre
    x_hat = x + 0.4 * normal(20, 4, seed=1)
    answer = attempt(x.clone(), x_hat.clone())
    if isinstance(answer, float):
        raise Wrong("return a tensor of one number, and leave `.item()` to whoever calls it.")

    error, deviation = (x - x_hat).pow(2), (x - x.mean(0)).pow(2)
    one_mean = 1 - error.sum() / (x - x.mean()).pow(2).sum()
    from_token_means = (x - x.mean(1, keepdim=True)).pow(2).sum()
    unexplained = error.sum() / deviation.sum()
    of_dimensions = 1 - error.sum(0) / deviation.sum(0)
    of_tokens = 1 - error.sum(1) / deviation.sum(1)
    of_x_hat = (x_hat - x_hat.mean(0)).pow(2).sum() / deviation.sum()
    wrong = {
        "your baseline is zero, so that merely knowing the mean counts as explained; take the mean "
        "over tokens off first.": 1 - error.sum() / x.pow(2).sum(),
        "your mean is one number for all dimensions; each has its own (mean "
        "over tokens only).": one_mean,
        "your mean is over dimensions; take it over tokens.": 1 - error.sum() / from_token_means,
        "that is the share that is not explained.": unexplained,
        "you averaged over dimensions, where a small one counts like a large one; sum first, then "
        "divide.": of_dimensions.mean(),
        "you averaged over tokens; sum first, then divide.": of_tokens.mean(),
        "that is one number a dimension; sum over them before you divide.": of_dimensions,
        "that is one number a token; sum over them before you divide.": of_tokens,
        "that compares the variance of x̂ with that of x, which a wrong x̂ can match.": of_x_hat,
    }
    compare(answer, 1 - unexplained, wrong, what="the explained variance")


# ---------------------------------------------------------------------------------------------
# 1.6 L0 and dead latents
# ---------------------------------------------------------------------------------------------


@book.solution
def l0_and_dead(f: Float[Tensor, "tokens d_sae"]) -> tuple[float, int]:
    """L0 and dead latents.

    Returns:
        L0: how many latents are on (above 0) for a token, averaged over tokens.
        dead: how many latents are on for none of these tokens.
    """
    on = f > 0
    l0 = on.sum(dim=1).float().mean().item()
    dead = int((~on.any(dim=0)).sum())
    return l0, dead


@book.checker(l0_and_dead)
def _(attempt: Callable) -> None:
    f = (normal(10, 6, seed=0) - 0.3).relu()
    f[:, 4:] = 0
    f[3] = 0
    f[:, 0] += 0.1
    answer = attempt(f.clone())
    require_two(answer, "two numbers are to be returned: L0, then the number of dead latents.")

    on = f > 0
    each, off = on.sum(1).float(), (~on).sum(1).float()
    tokens_of_each = on.sum(0).float()
    wrong = {
        "L0 counts latents; you added up their sizes (that is L1).": f.sum(1).mean(),
        "you averaged over latents too, which gives their share; count them, and average over "
        "tokens.": on.float().mean(),
        "you averaged over latents: that is how many tokens a "
        "latent is on for.": tokens_of_each.mean(),
        "you did not average over tokens.": on.sum(),
        "that is one number a token; average over tokens.": each,
        "you counted the latents that are off.": off.mean(),
    }
    compare(answer[0], each.mean(), wrong, what="L0")

    dead, ever_off = ~on.any(0), ~on.all(0)
    wrong = {
        "you counted the latents that are alive.": on.any(0).sum(),
        "you counted latents that are off for some token; a dead "
        "one is off for all.": ever_off.sum(),
        "you counted tokens for which nothing is on.": (~on.any(1)).sum(),
        "that is the share of dead latents; count them.": dead.float().mean(),
    }
    compare(answer[1], dead.sum(), wrong, what="the number of dead latents")
    if any(isinstance(number, Tensor) for number in answer):
        raise Wrong(
            "the values are right, but both are to be plain numbers: `.item()` makes one out of a "
            "tensor."
        )
