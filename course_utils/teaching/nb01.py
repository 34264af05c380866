"""The exercises of notebook 01: a toy model, an SAE, its training, and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
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


@book.checker(toy_loss, gradient=("W", "b"))
def _(attempt: Callable) -> None:
    W, b, x = normal(2, 5, seed=0), 0.3 * normal(5, seed=1), normal(7, 5, seed=2).abs()
    importance = 0.7 ** torch.arange(5.0)
    h = x @ W.T
    out = torch.relu(h @ W + b)
    error = importance * (x - out) ** 2

    def loss(out: Tensor) -> Tensor:
        return (importance * (x - out) ** 2).sum(1).mean()

    wrong = {
        "you averaged over the features too; sum over them, and average "
        "over the batch only.": error.mean(),
        "you summed over the batch; average over it.": error.sum(),
        "you summed over the batch and averaged over the features: it is the other way "
        "round.": error.sum(0).mean(),
        "the importance is missing: every feature counts the same.": (x - out).pow(2).sum(1).mean(),
        "the importance is inside the square.": (importance * (x - out)).pow(2).sum(1).mean(),
        "you divided by the importance.": ((x - out) ** 2 / importance).sum(1).mean(),
        "the ReLU is missing from the read-out.": loss(h @ W + b),
        "the bias is missing from the read-out.": loss(torch.relu(h @ W)),
        "the bias comes after the ReLU; it belongs inside.": loss(torch.relu(h @ W) + b),
        "the bias is subtracted; it is to be added.": loss(torch.relu(h @ W - b)),
        "there is a ReLU on h; only the read-out has one.": loss(torch.relu(torch.relu(h) @ W + b)),
        "h is not read out: x' is ReLU(b) for every x.": loss(torch.relu(b).expand_as(x)),
        "x' is added to x; the error is their difference.": loss(-out),
        "x' is missing from the error.": loss(torch.zeros_like(x)),
        "x is missing from the error.": (importance * out**2).sum(1).mean(),
        "the error is not squared: errors of opposite signs cancel.": (importance * (x - out))
        .sum(1)
        .mean(),
        "that is the size of the error, not its square.": (importance * (x - out).abs())
        .sum(1)
        .mean(),
        "that is the norm of the error, not its square.": error.sum(1).sqrt().mean(),
        "that is the loss of each example; average over the batch.": error.sum(1),
        "that is the importance alone: the error is missing.": importance.sum(),
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


@book.checker(sae_forward, gradient=("W_enc", "b_enc", "W_dec", "b_dec"))
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
        "the difference is the wrong way round: b_dec is taken off x.": torch.relu(
            (b_dec - x) @ W_enc + b_enc
        ),
        "x is missing: you encoded b_dec.": torch.relu(b_dec @ W_enc + b_enc).expand_as(f),
        "b_enc is missing.": torch.relu((x - b_dec) @ W_enc),
        "b_enc is subtracted; it is to be added.": torch.relu((x - b_dec) @ W_enc - b_enc),
        "b_enc came after the activation function.": torch.relu((x - b_dec) @ W_enc) + b_enc,
        "the encoder used W_dec's transpose; it has its own matrix.": torch.relu(
            (x - b_dec) @ W_dec.T + b_enc
        ),
        "you returned the reconstruction first; the latents come first.": x_hat,
        "you returned a mask of latents that are on; their sizes are wanted.": (pre > 0).float(),
    }
    compare(answer[0], f, wrong, what="f")

    wrong = {
        "b_dec was not put back after decoding.": f @ W_dec,
        "b_dec was taken off after decoding; it is to be put back.": f @ W_dec - b_dec,
        "there is an activation function on the reconstruction.": torch.relu(x_hat),
        "the decoder used W_enc's transpose; it has its own matrix.": f @ W_enc.T + b_dec,
        "you decoded the pre-activations; decode the latents.": pre @ W_dec + b_dec,
        "x̂ is x itself; it is to come from the latents.": x,
        "x̂ is b_dec alone: what the latents write is missing.": b_dec.expand_as(x),
    }
    compare(answer[1], x_hat, wrong, what="x̂")

    def lowered(pre: Tensor) -> Tensor:
        return 0.5 * pre - 1

    other = attempt(x, W_enc, b_enc, W_dec, b_dec, lowered)
    require_two(other, "two things are to be returned: the latents, then the reconstruction.")
    wrong = {
        "ReLU is written into your function; use the argument `activation`.": f,
        "there is a ReLU besides the argument `activation`.": lowered(pre).relu(),
        "there is a ReLU before the argument `activation`.": lowered(f),
    }
    compare(other[0], lowered(pre), wrong, what="f with another activation function")
    wrong = {"x̂ comes from ReLU's latents; use the argument `activation` for both.": x_hat}
    right = lowered(pre) @ W_dec + b_dec
    compare(other[1], right, wrong, what="x̂ with another activation function")


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
    norm of the latent's decoder row: what it writes, however the SAE shares that out between the
    two. Both are averaged over the batch.
    """
    squared_error = (x - x_hat).pow(2).sum(dim=-1)
    sparsity = (f * W_dec.norm(dim=1)).sum(dim=-1)
    return (squared_error + l1 * sparsity).mean()


@book.checker(l1_loss, gradient=("x_hat", "f", "W_dec"))
def _(attempt: Callable) -> None:
    x, x_hat = normal(6, 3, seed=0), normal(6, 3, seed=1)
    f, W_dec = normal(6, 8, seed=2).abs(), normal(8, 3, seed=3)
    l1, squared, norm = 0.3, (x - x_hat).pow(2), W_dec.norm(dim=1)
    weighed = f * norm
    error, sparsity = squared.sum(1).mean(), weighed.sum(1).mean()
    right = error + l1 * sparsity

    def with_error(error: Tensor) -> Tensor:
        return error + l1 * sparsity

    def with_sparsity(sparsity: Tensor) -> Tensor:
        return error + l1 * sparsity

    wrong = {
        "the squared error is averaged over d_in; sum over it (F.mse_loss averages over "
        "everything).": with_error(squared.mean()),
        "the sparsity is averaged over latents; sum over them.": with_sparsity(weighed.mean()),
        "both are averaged over everything; sum over d_in and over latents.": squared.mean()
        + l1 * weighed.mean(),
        "you summed over the batch; average over it.": squared.sum() + l1 * weighed.sum(),
        "the squared error is summed over the batch; average over it.": with_error(squared.sum()),
        "the sparsity is summed over the batch; average over it.": with_sparsity(weighed.sum()),
        "the squared error is summed over the batch and averaged over d_in: it is the other way "
        "round.": with_error(squared.sum(0).mean()),
        "the sparsity is summed over the batch and averaged over latents: it is the other way "
        "round.": with_sparsity(weighed.sum(0).mean()),
        "the norm of the decoder rows is missing from the sparsity.": with_sparsity(
            f.sum(1).mean()
        ),
        "the decoder's norm is squared.": with_sparsity((f * norm**2).sum(1).mean()),
        "you divided by the norm of the decoder rows; multiply by it.": with_sparsity(
            (f / norm).sum(1).mean()
        ),
        "you multiplied by the norm of the whole decoder; each latent has its own "
        "row.": with_sparsity((f * W_dec.norm()).sum(1).mean()),
        "l1 is missing: the sparsity counts fully.": error + sparsity,
        "the sparsity is missing.": error,
        "the squared error is missing.": l1 * sparsity,
        "the sparsity is subtracted: that rewards many latents.": error - l1 * sparsity,
        "l1 scales the squared error; it belongs to the sparsity.": l1 * error + sparsity,
        "l1 scales both; it belongs to the sparsity alone.": l1 * (error + sparsity),
        "you divided by the sparsity; l1 times it is wanted.": error + l1 / sparsity,
        "the latents are squared in the sparsity: that is L2, which makes many small latents "
        "instead of few.": with_sparsity((f**2 * norm).sum(1).mean()),
        "the sizes of the latents are missing: you counted latents (L0), and a count has no "
        "gradient.": with_sparsity(((f > 0) * norm).sum(1).mean()),
        "that is the norm of the error, not its square.": with_error(squared.sum(1).sqrt().mean()),
        "that is the size of the error, not its square.": with_error(
            (x - x_hat).abs().sum(1).mean()
        ),
        "the error is not squared: errors of opposite signs cancel.": with_error(
            (x - x_hat).sum(1).mean()
        ),
        "x̂ is added to x; the error is their difference.": with_error(
            (x + x_hat).pow(2).sum(1).mean()
        ),
        "x̂ is missing from the squared error.": with_error(x.pow(2).sum(1).mean()),
        "x is missing from the squared error.": with_error(x_hat.pow(2).sum(1).mean()),
        "that is the loss of each example; average over the batch.": squared.sum(1)
        + l1 * weighed.sum(1),
    }
    compare(attempt(x, x_hat, f, W_dec, l1), right, wrong, what="the loss")


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


@book.checker(topk, gradient=("pre",))
def _(attempt: Callable) -> None:
    pre, k = normal(6, 8, seed=0) + 0.5, 3
    pre[0] = -pre[0].abs() - 0.1  # nothing is above 0
    pre[1] = torch.tensor([0.5, -1.0, -2.0, -0.2, -0.1, -0.7, -3.0, -0.9])  # one is
    pre[2] = torch.tensor([0.3, 1.4, 0.6, 2.0, 0.9, 1.1, 0.2, 0.8])  # all are

    def at(index: Tensor, values: Tensor | float, dim: int = 1) -> Tensor:
        return torch.zeros_like(pre).scatter(dim, index, values)

    values, index = pre.topk(k, dim=1)
    right = at(index, values.relu())
    largest_of_all = pre.flatten().topk(k * len(pre)).values[-1]
    in_columns = pre.topk(k, dim=0)
    by_size = pre.abs().topk(k, dim=1).indices
    one_more, smallest = pre.topk(k + 1, dim=1), pre.topk(k, dim=1, largest=False)
    kth_smallest = pre.kthvalue(k, dim=1, keepdim=True).values
    wrong = {
        "negative pre-activations among the k largest came through; latents "
        "are never negative.": at(index, values),
        "negative pre-activations among the k largest came through without their sign; they are to "
        "become 0.": at(index, values.abs()),
        "you kept the k · batch largest of the whole batch (that is BatchTopK); "
        "keep k in each row.": torch.where(pre >= largest_of_all, pre, 0).relu(),
        "you kept the k largest in each column; keep k in each row.": at(
            in_columns.indices, in_columns.values.relu(), dim=0
        ),
        "you looked for the k largest in each column and put them into rows: both are to be along "
        "the last axis.": at(in_columns.indices, in_columns.values.relu()),
        "you ranked by size, so that large negative ones took a place.": at(
            by_size, pre.gather(1, by_size).relu()
        ),
        "you kept the k smallest; the k largest are wanted.": at(
            smallest.indices, smallest.values.relu()
        ),
        "your threshold is the k-th smallest; the k-th largest is wanted.": torch.where(
            pre >= kth_smallest, pre, 0
        ).relu(),
        "that is a mask of zeros and ones; the latents are to keep their size.": at(index, 1.0),
        "that is a mask of zeros and ones, without the negative ones; the latents are to keep "
        "their size.": at(index, (values > 0).float()),
        "you returned the k values alone; put them back into their "
        "places among zeros.": values.relu(),
        "you returned the k values alone, negative ones too; put them back into their places among "
        "zeros.": values,
        "that is where the k largest are; their values are wanted, among zeros.": index.float(),
        "you kept k + 1 per row.": at(one_more.indices, one_more.values.relu()),
        "you kept fewer than k per row: the k-th largest stays too.": at(
            index[:, :-1], values[:, :-1].relu()
        ),
        "that is ReLU: all positive ones stayed.": pre.relu(),
        "the latents outside the k largest are 1; they are to be 0.": torch.ones_like(pre).scatter(
            1, index, values.relu()
        ),
        "the latents outside the k largest kept their values; they are to be 0.": pre.scatter(
            1, index, values.relu()
        ),
        "you set the k largest to 0 and kept the others; it is the other way round.": (
            pre.relu() - right
        ),
    }
    compare(attempt(pre, k), right, wrong, what="the result")


# ---------------------------------------------------------------------------------------------
# 1.5 A step with a gradient
# ---------------------------------------------------------------------------------------------


@book.solution
def step(
    pre: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], width: float
) -> Float[Tensor, "batch d_sae"]:
    """Which latents are on: 1 where a pre-activation is above its latent's threshold, 0 elsewhere.

    The true gradient of a step is 0 nearly everywhere. In its place, the threshold gets a gradient
    of −1 / width for each pre-activation that is less than width / 2 away from it, and of 0 for all
    others. The pre-activations get none. (The straight-through estimator of Rajamanoharan et al.
    2024b, with a rectangle as its kernel.)
    """
    on = (pre > threshold).float()
    near = (pre - threshold).abs() < width / 2
    return on + near / width * (threshold.detach() - threshold)


@book.checker(step, gradient=("threshold",))
def _(attempt: Callable) -> None:
    pre, threshold, width = normal(40, 6, seed=0), 0.2 + 0.1 * normal(6, seed=1).abs(), 0.6
    on, near = (pre > threshold).float(), ((pre - threshold).abs() < width / 2).float()
    carried = near / width * threshold
    wrong = {
        "on and off have changed places: a latent is on above its threshold.": 1 - on,
        "the threshold is not used: a latent is on above its threshold, not above 0.": (
            pre > 0
        ).float(),
        "you returned the pre-activations above the threshold (that is JumpReLU); which they are "
        "is wanted, as 1 and 0.": pre * on,
        "the term that carries the gradient is not 0: let it be a tensor minus itself, one of them "
        "detached.": on + carried,
        "the term that carries the gradient is not 0: it took the threshold away.": on - carried,
        "this is where the gradient is to be, near the threshold; the value is the step.": near,
        "only latents near their threshold are on; those far above it are on too.": on * near,
    }
    compare(attempt(pre, threshold, width), on, wrong, what="the step")

    pull = normal(40, 6, seed=2)
    theta, x = threshold.clone().requires_grad_(), pre.clone().requires_grad_()
    answer = attempt(x, theta, width)
    if not (isinstance(answer, Tensor) and answer.requires_grad):
        return  # what is said of a gradient that is lost is said elsewhere
    of_pre, of_theta = torch.autograd.grad((pull * answer).sum(), (x, theta), allow_unused=True)
    if of_pre is not None and of_pre.any():
        raise Wrong(
            "the values are right, but a gradient reaches pre: the step itself gives it none. "
            "Compare, and use what you compare as a number."
        )
    if of_theta is None:
        return
    right = -(pull * near / width).sum(0)

    def within(reach: float) -> Tensor:
        return -(pull * ((pre - threshold).abs() < reach) / width).sum(0)

    above, below = pre > threshold, pre < threshold
    wrong = {
        "its sign is turned: a higher threshold turns latents off, so it is below 0.": -right,
        "the factor 1 / width is missing.": right * width,
        "it is multiplied by width; divide by it.": right * width**2,
        "it is divided by 2 / width too: the slope is 1 / width.": right * 2,
        "it is half as large as it should be.": right / 2,
        "it reaches width to each side; width / 2 is wanted.": within(width),
        "it reaches 2 · width to each side; width / 2 is wanted.": within(2 * width),
        "it is everywhere, and is wanted only near the threshold.": within(torch.inf),
        "it is there only for pre-activations above the threshold; those just below count, too.": -(
            pull * near * above / width
        ).sum(0),
        "it is there only for pre-activations below the threshold; those just above count, too.": -(
            pull * near * below / width
        ).sum(0),
        "it is there for everything far below the threshold, too: take the distance, without its "
        "sign.": -(pull * (pre - threshold < width / 2) / width).sum(0),
        "it is there for everything far above the threshold, too: take the distance, without its "
        "sign.": -(pull * (threshold - pre < width / 2) / width).sum(0),
        "it is where the squared distance is small; the distance is wanted.": -(
            pull * ((pre - threshold).square() < width / 2) / width
        ).sum(0),
        "it is where latents are far from their threshold; near is wanted.": within(torch.inf)
        - right,
    }
    compare(of_theta, right, wrong, what="the threshold's gradient")


# ---------------------------------------------------------------------------------------------
# 1.6 Explained variance
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
    scale, centre = torch.tensor([1.0, 3.0, 0.5, 2.0]), torch.tensor([4.0, -1.0, 0.3, 2.0])
    x = normal(20, 4, seed=0) * scale + centre
    # It shrinks, and its mean is off: SAEs do both.
    x_hat = 0.9 * x + 0.4 * normal(20, 4, seed=1) + torch.tensor([0.6, -0.3, 0.4, 0.2])
    answer = attempt(x, x_hat)
    if isinstance(answer, float):
        raise Wrong("return a tensor of one number, and leave `.item()` to whoever calls it.")

    off, off_centre = x - x_hat, x - x.mean(0)
    error, deviation = off.pow(2), off_centre.pow(2)
    unexplained, n = error.sum() / deviation.sum(), len(x)

    def against(baseline: Tensor) -> Tensor:
        return 1 - error.sum() / (x - baseline).pow(2).sum()

    of_dimensions = 1 - error.sum(0) / deviation.sum(0)
    of_tokens = 1 - error.sum(1) / deviation.sum(1)
    of_x_hat = (x_hat - x_hat.mean(0)).pow(2).sum() / deviation.sum()
    wrong = {
        "your baseline is zero, so that merely knowing the mean counts as explained; take the mean "
        "over tokens off first.": against(torch.zeros(4)),
        "your mean is one number for all dimensions; each has its own (mean "
        "over tokens only).": against(x.mean()),
        "your mean is over dimensions; take it over tokens.": against(x.mean(1, keepdim=True)),
        "your baseline is the mean of x̂; the mean of x does not depend on the SAE.": against(
            x_hat.mean(0)
        ),
        "your baseline is the sum over tokens; their mean is wanted.": against(x.sum(0)),
        "the mean is added to x; the distance from it is wanted.": against(-x.mean(0)),
        "the variance is that of x̂; x is what is to be explained.": 1
        - error.sum() / (x_hat - x_hat.mean(0)).pow(2).sum(),
        "the variance is unbiased (divided by n − 1), as `var` is by default, and the squared "
        "error is a mean: let both be sums.": 1 - unexplained * (n - 1) / n,
        "the variance is divided by the number of tokens, and the squared error is not.": 1
        - unexplained * n,
        "the squared error is averaged, and the variance is summed; sum both.": 1
        - error.mean() / deviation.sum(),
        "the variance is averaged, and the squared error is summed; sum both.": 1
        - error.sum() / deviation.mean(),
        "the mean of the error is taken off first. An x̂ that is off by the same amount everywhere "
        "is wrong too.": 1 - (off - off.mean(0)).pow(2).sum() / deviation.sum(),
        "that is the share that is not explained.": unexplained,
        "the share that is not explained is added to 1; take it away from 1.": 1 + unexplained,
        "the share that is not explained is to be taken away from 1.": -unexplained,
        "the fraction is upside down.": 1 - 1 / unexplained,
        "you averaged over dimensions, where a small one counts like a large one; sum first, then "
        "divide.": of_dimensions.mean(),
        "you averaged over tokens; sum first, then divide.": of_tokens.mean(),
        "that is one number per dimension; sum over them before you divide.": of_dimensions,
        "that is one number per token; sum over them before you divide.": of_tokens,
        "that compares the variance of x̂ with that of x, which a wrong x̂ can match.": of_x_hat,
        "you divided norms; their squares are wanted.": 1 - unexplained.sqrt(),
        "you added up sizes; their squares are wanted.": 1
        - off.abs().sum() / off_centre.abs().sum(),
        "the squared error is not divided by the variance.": 1 - error.sum(),
        "x̂ is added to x; the error is their difference.": 1
        - (x + x_hat).pow(2).sum() / deviation.sum(),
        "x̂ is missing from the error.": 1 - x.pow(2).sum() / deviation.sum(),
        "x is missing from the error.": 1 - x_hat.pow(2).sum() / deviation.sum(),
        "the error is not squared: errors of opposite signs cancel.": 1
        - off.sum() / deviation.sum(),
    }
    compare(answer, 1 - unexplained, wrong, what="the explained variance")


# ---------------------------------------------------------------------------------------------
# 1.7 L0 and dead latents
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
    f = (normal(11, 7, seed=0) - 0.3).relu()
    f[:, 4:] = 0  # three are dead
    f[[3, 6, 7, 8, 10]] = 0  # nothing is on for five tokens
    f[0, 1] = 1.0
    answer = attempt(f)
    require_two(answer, "two numbers are to be returned: L0, then the number of dead latents.")

    on = f > 0
    each, off = on.sum(1).float(), (~on).sum(1).float()
    dead, tokens_of_each = ~on.any(0), on.sum(0).float()
    wrong = {
        "L0 counts latents; you added up their sizes (that is L1).": f.sum(1).mean(),
        "you averaged over latents too, which gives their share; count them, and average over "
        "tokens.": on.float().mean(),
        "you averaged over latents: that is how many tokens a "
        "latent is on for.": tokens_of_each.mean(),
        "you did not average over tokens.": on.sum(),
        "that is one number per token; average over tokens.": each,
        "that is one number per latent; count latents, and average over tokens.": tokens_of_each,
        "you counted the latents that are off.": off.mean(),
        "the two have changed places: L0 comes first, then the number of dead "
        "latents.": dead.sum().float(),
        "you counted every latent; on is what is above 0, and 0 is not.": f.shape[1],
        "you averaged only over tokens for which something is on.": each[each > 0].mean(),
        "you counted only latents above 1; on is what is above 0.": (f > 1).sum(1).float().mean(),
        "you took the median over tokens; average over them.": each.median(),
    }
    compare(answer[0], each.mean(), wrong, what="L0")

    wrong = {
        "you counted the latents that are alive.": on.any(0).sum(),
        "you counted latents that are off for some token; a dead one is off for all.": (
            ~on.all(0)
        ).sum(),
        "you counted tokens for which nothing is on.": (~on.any(1)).sum(),
        "you counted tokens for which some latent is off.": (~on.all(1)).sum(),
        "you counted tokens for which something is on.": on.any(1).sum(),
        "you counted zeros; a dead latent is off for all tokens, and counts once.": (~on).sum(),
        "that is the share of dead latents; count them.": dead.float().mean(),
        "that is which latents are dead; count them.": dead.float(),
        "no latent is dead by your count: on is what is above 0, and 0 is not.": 0,
    }
    compare(answer[1], dead.sum(), wrong, what="the number of dead latents")
    if any(isinstance(number, Tensor) for number in answer):
        raise Wrong(
            "the values are right, but both are to be plain numbers: `.item()` makes one out of a "
            "tensor."
        )


# ---------------------------------------------------------------------------------------------
# 1.8 Dead latents get a gradient
# ---------------------------------------------------------------------------------------------


@book.solution
def aux_loss(
    x: Float[Tensor, "batch d_in"],
    x_hat: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch d_sae"],
    dead: Bool[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    k: int,
) -> Float[Tensor, ""]:
    """How badly the dead latents rebuild what the live ones leave out: the auxiliary loss.

    For each example, the ``k`` dead latents with the largest pre-activations write their rows of
    W_dec, each times its pre-activation if that is above 0. What they are to rebuild is the error
    x − x̂, as it is: no gradient goes back to x̂, that is, to the live latents.

    Returns the squared error of that, summed over d_in, averaged over the batch. (Gao et al. 2024.)
    """
    error = (x - x_hat).detach()
    rebuilt = topk(pre * dead, k) @ W_dec
    return (error - rebuilt).pow(2).sum(dim=-1).mean()


@book.checker(aux_loss, gradient=("pre", "W_dec"))
def _(attempt: Callable) -> None:
    x, x_hat = normal(9, 4, seed=0), normal(9, 4, seed=1)
    pre, W_dec, k = normal(9, 10, seed=2), normal(10, 4, seed=3), 2
    pre[0, 5:] = -pre[0, 5:].abs()  # no dead latent is above 0
    dead = torch.arange(10) >= 5
    error = x - x_hat

    def off(rebuilt: Tensor, of: Tensor = error) -> Tensor:
        return (of - rebuilt).pow(2).sum(1).mean()

    only_dead = pre * dead
    rebuilt = topk(only_dead, k) @ W_dec
    values, index = pre.masked_fill(~dead, -torch.inf).topk(k, dim=1)
    unclipped = torch.zeros_like(pre).scatter(1, index, values)
    taken = topk(pre, k)
    squared = (error - rebuilt).pow(2)
    wrong = {
        "the live latents took part; only dead ones are to rebuild the error.": off(taken @ W_dec),
        "live and dead have changed places: `dead` is True for latents that are dead.": off(
            topk(pre * ~dead, k) @ W_dec
        ),
        "dead latents competed with live ones for the k places; choose among the dead alone.": off(
            (taken * dead) @ W_dec
        ),
        "all dead latents write, and k of them are wanted.": off(only_dead.relu() @ W_dec),
        "all dead latents write, also those below 0; the k largest are wanted, with a ReLU.": off(
            only_dead @ W_dec
        ),
        "negative pre-activations came through; latents are never negative.": off(
            unclipped @ W_dec
        ),
        "the dead latents rebuild x; what the live ones miss is wanted, x − x̂.": off(rebuilt, x),
        "the dead latents rebuild x̂; what it misses is wanted, x − x̂.": off(rebuilt, x_hat),
        "x̂ is added to x; the error is their difference.": off(rebuilt, x + x_hat),
        "what the dead latents write is added to the error; their difference is wanted. (Or the "
        "error is the wrong way round: what is missing is x − x̂.)": off(-rebuilt),
        "that is the squared error of x̂: the dead latents are missing.": off(0 * rebuilt),
        "that is the size of what the dead latents write; how far it is from the error is "
        "wanted.": off(rebuilt, 0 * error),
        "you averaged over d_in, too; sum over it.": squared.mean(),
        "you summed over the batch; average over it.": squared.sum(),
        "you summed over the batch and averaged over d_in: it is the other way round.": squared.sum(
            0
        ).mean(),
        "that is the loss of each example; average over the batch.": squared.sum(1),
        "that is the norm of the error, not its square.": squared.sum(1).sqrt().mean(),
        "the error is not squared: errors of opposite signs cancel.": (error - rebuilt)
        .sum(1)
        .mean(),
    }
    compare(attempt(x, x_hat, pre, dead, W_dec, k), squared.sum(1).mean(), wrong, what="the loss")

    live = x_hat.clone().requires_grad_()
    answer = attempt(x, live, pre.clone(), dead, W_dec.clone(), k)
    if isinstance(answer, Tensor) and answer.requires_grad:
        raise Wrong(
            "the values are right, but a gradient goes back to x̂, so that the live latents would "
            "learn to leave out what the dead ones can rebuild: detach the error."
        )


# ---------------------------------------------------------------------------------------------
# 1.9 Loss recovered
# ---------------------------------------------------------------------------------------------


@book.solution
def share_recovered(
    model: Float[Tensor, " n"], spliced: Float[Tensor, " n"], ablated: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """The loss recovered by an SAE: 1 = as good as the model itself, 0 = no better than ablating.

    Args:
        model: the model's loss on each piece of text.
        spliced: its loss with the SAE's reconstruction in the residual stream's place.
        ablated: its loss with something there that knows nothing, such as zeros.

    Returns:
        The share of the mean loss added by ablating that the SAE saves. Below 0 if the SAE is worse
        than ablating.
    """
    return (ablated.mean() - spliced.mean()) / (ablated.mean() - model.mean())


@book.checker(share_recovered)
def _(attempt: Callable) -> None:
    model = 2 + 0.7 * normal(12, seed=0)
    spliced, ablated = model + 0.3 + 0.2 * normal(12, seed=1), 5 + normal(12, seed=2)
    m, s, a = model.mean(), spliced.mean(), ablated.mean()
    right = (a - s) / (a - m)
    wrong = {
        "that is the share that is lost; the share that is saved is wanted.": (s - m) / (a - m),
        "you took the ratio for each piece and averaged: a piece on which ablating hardly matters "
        "then counts most. Average the losses first.": (
            (ablated - spliced) / (ablated - model)
        ).mean(),
        "that is one number for each piece; average the losses first.": (ablated - spliced)
        / (ablated - model),
        "the fraction is upside down.": (a - m) / (a - s),
        "the sign is turned: ablating costs most, so take the others away from it.": (s - a)
        / (a - m),
        "you divided by the ablated loss; divide by what ablating adds to it.": (a - s) / a,
        "you divided by the model's loss; divide by what ablating adds to it.": (a - s) / m,
        "you divided by what ablating costs more than the SAE; the model is what both are compared "
        "with.": (s - m) / (a - s),
        "that is a ratio of losses; 0 is to be the ablated loss, and 1 the model's.": m / s,
        "that is a ratio of losses; how much each adds to the model's is wanted.": s / m,
        "that is a ratio of losses, the SAE's to the ablated one.": s / a,
        "that is what the SAE saves, in nats; divide by what ablating costs.": a - s,
        "that is what the SAE costs, in nats.": s - m,
        "that is what ablating costs, in nats.": a - m,
        "the losses are added; differences are wanted.": (a + s) / (a + m),
        "above the line the losses are added; their difference is wanted.": (a + s) / (a - m),
        "below the line the losses are added; their difference is wanted.": (a - s) / (a + m),
        "you multiplied by what ablating costs; divide by it.": (a - s) * (a - m),
        "the ablated loss is missing above the line.": -s / (a - m),
        "the SAE's loss is missing above the line.": a / (a - m),
        "the SAE and the ablation have changed places.": (s - a) / (s - m),
    }
    compare(attempt(model, spliced, ablated), right, wrong, what="the share")


# ---------------------------------------------------------------------------------------------
# 1.10 Where a latent is strongest
# ---------------------------------------------------------------------------------------------


@book.solution
def strongest(f: Float[Tensor, "n seq"], k: int) -> Int[Tensor, "m 2"]:
    """Where to look for what a latent responds to: the places at which it is strongest.

    Args:
        f: the latent at each position of n texts.
        k: how many places are wanted.

    Returns:
        A row (text, position) for each place, the strongest first: the ``k`` texts in which the
        latent gets highest, each with the position of its peak. A text comes once, and texts in
        which the latent is never on are left out, so that there may be fewer than k.
    """
    highest, where = f.max(dim=1)
    texts = highest.argsort(descending=True)[:k]
    texts = texts[highest[texts] > 0]
    return torch.stack([texts, where[texts]], dim=1)


@book.checker(strongest)
def _(attempt: Callable) -> None:
    f = (normal(8, 6, seed=0) - 0.2).relu()
    f[[1, 4]] = 0  # silent
    f[2, 3], f[2, 5], f[6, 0], f[5] = 3.0, 2.9, 3.5, f[5] / f[5].max().clamp(min=1) * 0.4

    def at(texts: Tensor, positions: Tensor) -> Tensor:
        return torch.stack([texts, positions], 1)

    highest, where = f.max(1)
    for k in (3, 7):
        ranked = highest.argsort(descending=True, stable=True)
        texts = ranked[:k][highest[ranked[:k]] > 0]
        right = at(texts, where[texts])
        flat = f.flatten().topk(k).indices
        several = at(flat // f.shape[1], flat % f.shape[1])
        by_mean = f.mean(1).argsort(descending=True)[:k]
        by_mean = by_mean[highest[by_mean] > 0]
        silent_too, weakest = ranked[:k], highest.argsort()[:k]
        weakest = weakest[highest[weakest] > 0]
        in_order, all_texts = texts.sort().values, ranked[highest[ranked] > 0]
        first_on, lowest = (f > 0).float().argmax(1), f.argmin(1)
        above_one = texts[highest[texts] > 1]
        wrong = {
            "a text comes twice: take each text's peak, and then the k best texts.": several,
            "texts in which the latent is never on are there, too.": at(
                silent_too, where[silent_too]
            ),
            "there are more than k.": at(all_texts, where[all_texts]),
            "these are the texts in which it is weakest.": at(weakest, where[weakest]),
            "the weakest of them comes first; the strongest is to.": right.flip(0),
            "the texts are in the order of the corpus; the strongest is to come first.": at(
                in_order, where[in_order]
            ),
            "you ranked texts by their mean; by their peak is wanted.": at(by_mean, where[by_mean]),
            "the columns have changed places: the text comes first, then the position.": right.flip(
                1
            ),
            "rows and columns have changed places: a row for each place is wanted.": right.T,
            "these are the first positions at which it is on; the peak is wanted.": at(
                texts, first_on[texts]
            ),
            "these are the positions at which it is weakest; the peak is wanted.": at(
                texts, lowest[texts]
            ),
            "these are the places of the peaks without their texts.": where[texts],
            "these are the texts without the places of the peaks.": texts,
            "these are how strong it is; where is wanted.": highest[texts],
            "places where it is on, but weak, are left out: on is what is above 0.": at(
                above_one, where[above_one]
            ),
            "the peaks do not belong to their texts: index them by the text, too.": at(
                texts, where[: len(texts)]
            ),
            "each text is named where its rank or position is to be.": at(texts, texts),
        }
        compare(attempt(f, k), right, wrong, what=f"what you returned for k = {k}")
