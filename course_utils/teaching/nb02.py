"""The exercises of notebook 02: the splice, one and several, its error, its cost, its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from course_utils.labs.lab import hook_point
from course_utils.teaching.fixtures import keep_bos, normal, residual_stream, tiny_sae
from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 2.1 The splice
# ---------------------------------------------------------------------------------------------


@book.solution
def splice(x: Float[Tensor, "batch seq d_model"], sae: SAE) -> Float[Tensor, "batch seq d_model"]:
    """The residual stream with its reconstruction in its place: what the next layer is to read.

    Args:
        x: the residual stream. Position 0 holds BOS, and comes out as it went in.
        sae: ``sae.encode`` gives latents, ``sae.decode`` a residual stream.

    Returns:
        A new tensor. ``x`` stays as it is.
    """
    x_hat = sae.decode(sae.encode(x[:, 1:]))
    return torch.cat([x[:, :1], x_hat], dim=1)


@book.checker(splice)
def _(attempt: Callable) -> None:
    sae, x = tiny_sae(), residual_stream()
    answer = attempt(x, sae)

    x_hat = sae.decode(sae.encode(x))
    right = keep_bos(x, x_hat)
    prompt_kept, end_kept, bos_alone, two_kept = (x_hat.clone() for _ in range(4))
    prompt_kept[0], end_kept[:, -1], two_kept[:, :2] = x[0], x[:, -1], x[:, :2]
    bos_alone[:, 1:] = x[:, 1:]
    twice = keep_bos(x, sae.decode(sae.encode(x_hat)))
    wrong = {
        "you spliced BOS too. Its residual stream is far longer than the others, and no SAE was "
        "trained on it.": x_hat,
        "you left prompt 0 alone, and position 0 was meant: the first "
        "axis is the batch.": prompt_kept,
        "you left the last position alone, and the first is BOS.": end_kept,
        "you put zeros where BOS is. The later tokens attend to it: it has "
        "to stay as it was.": keep_bos(torch.zeros_like(x), x_hat),
        "BOS became b_dec: its latents were set to 0, and then decoded. It has to stay as it "
        "was.": keep_bos(sae.b_dec.expand_as(x), x_hat),
        "you spliced BOS alone. It is the one position to leave as it was.": bos_alone,
        "you left two positions as they were; BOS alone is to stay.": two_kept,
        "x̂ went through the SAE again: once is enough.": twice,
        "BOS is there twice: take it from x, and the positions after it from the "
        "reconstruction.": torch.cat([x[:, :1], x_hat], dim=1),
        "BOS is last; it is to come first.": torch.cat([x_hat[:, 1:], x[:, :1]], dim=1),
        "BOS is missing from what you returned: the next layer wants all positions.": x_hat[:, 1:],
        "you returned the latents. The next layer reads the residual "
        "stream: decode them.": sae.encode(x),
        "you returned x as it was.": x,
        "you returned the error, x − SAE(x), and the reconstruction is wanted.": x - right,
    }
    compare(answer, right, wrong, what="the spliced stream")


# ---------------------------------------------------------------------------------------------
# 2.2 Hooks on several layers
# ---------------------------------------------------------------------------------------------


@book.solution
def run_with(
    model: Any, changes: Mapping[int, Callable[[Tensor], Tensor]], tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq vocab"]:
    """The model's logits, with its residual stream changed after several layers in one run.

    Args:
        model: ``model.run_with_hooks(tokens, fwd_hooks=pairs)`` runs it. A pair is the name of a
            hook point, here ``hook_point(layer)``, and a function that is called as ``(x, hook)``
            with the activation and its hook point. What it returns takes the activation's place.
        changes: by layer, what becomes of the residual stream after it: ``changes[11](x)``.
        tokens: what the model reads.

    Raises:
        RuntimeError: a hook did not run, since the model has no such layer.
    """
    ran = []

    def hook_after(layer):
        def hook(x, hook):
            ran.append(layer)
            return changes[layer](x)

        return hook_point(layer), hook

    pairs = [hook_after(layer) for layer in changes]
    logits = model.run_with_hooks(tokens, fwd_hooks=pairs)
    missing = set(changes) - set(ran)
    if missing:
        raise RuntimeError(f"no hook ran after {missing}: is there such a layer?")
    return logits


class _TinyModel:
    """Four layers that take hooks as TransformerLens does: a name that it lacks is skipped."""

    def __init__(self) -> None:
        self.embedding, self.unembedding = normal(7, 5, seed=0), normal(5, 7, seed=1)
        self.weights = [normal(5, 5, seed=seed) / 2 for seed in range(2, 6)]

    def run_with_hooks(
        self, tokens: Tensor, fwd_hooks: Sequence[tuple[str, Callable]] = ()
    ) -> Tensor:
        x = self.embedding[tokens]
        for layer, weight in enumerate(self.weights):
            x = x + (x @ weight).tanh()
            for name, hook in fwd_hooks:
                if name == hook_point(layer):
                    changed = hook(x, hook=SimpleNamespace(name=name))
                    x = x if changed is None else changed
        return x @ self.unembedding


@book.checker(run_with)
def _(attempt: Callable) -> None:
    model, tokens = _TinyModel(), torch.arange(6).view(2, 3)
    changes = {1: lambda x: 0.5 * x, 2: lambda x: x.flip(-1), 3: lambda x: x - 1}

    def with_hooks(changes: Mapping[int, Callable]) -> Tensor:
        def hook_of(change: Callable) -> Callable:
            return lambda x, hook: change(x)

        pairs = [(hook_point(layer), hook_of(change)) for layer, change in changes.items()]
        return model.run_with_hooks(tokens, pairs)

    def twice(change: Callable) -> Callable:
        return lambda x: change(change(x))

    right = with_hooks(changes)
    first, *_, last = changes.values()
    wrong = {
        "every layer got the last layer's change: functions made in a loop see its last value. "
        "Make each hook in a function of its own.": with_hooks(dict.fromkeys(changes, last)),
        "every layer got the first layer's change; each has its own.": with_hooks(
            dict.fromkeys(changes, first)
        ),
        "no hook changed anything: it has to return the changed activation, and its name is "
        "hook_point(layer).": with_hooks({}),
        "only the first layer was changed; all are to be, in one run.": with_hooks({1: first}),
        "only the last layer was changed; all are to be, in one run.": with_hooks({3: last}),
        "the hooks sit one layer too early.": with_hooks(
            {layer - 1: change for layer, change in changes.items()}
        ),
        "the hooks sit one layer too late.": with_hooks(
            {layer + 1: change for layer, change in changes.items()}
        ),
        "each change was made twice.": with_hooks(
            {layer: twice(change) for layer, change in changes.items()}
        ),
        "the layers got each other's changes, in reverse order.": with_hooks(
            dict(zip(changes, reversed(changes.values())))
        ),
        "these are the logits at the last position; all are wanted.": right[:, -1],
    }
    compare(attempt(model, changes, tokens), right, wrong, what="the logits")
    compare(attempt(model, {}, tokens), with_hooks({}), what="the logits without any change")
    unordered = dict(reversed(changes.items()))
    compare(
        attempt(model, unordered, tokens),
        right,
        what="the logits with the layers given in falling order",
    )
    try:
        attempt(model, {**changes, 9: first}, tokens)
    except (RuntimeError, AssertionError, ValueError, KeyError):
        return
    raise Wrong(
        "the values are right, but a change after layer 9, which the model lacks, went unnoticed: "
        "let the hooks note that they ran, and raise an error if one did not."
    )


# ---------------------------------------------------------------------------------------------
# 2.3 Putting an error back
# ---------------------------------------------------------------------------------------------


@book.solution
def splice_with_error(
    x: Float[Tensor, "batch seq d_model"], sae: SAE, error: Float[Tensor, "*batch seq d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """The spliced residual stream, with a given error added to it: SAE(x) + error.

    Args:
        x: the residual stream that comes in: in a model with other SAEs before this one, it differs
            from the clean run's.
        sae: the SAE.
        error: what is put back, 0 at BOS: ``[batch, seq, d_model]``, one for each prompt (policy
            "keep": the clean run's), or ``[seq, d_model]``, one for all prompts (policy "mean").
    """
    return splice(x, sae) + error


@book.checker(splice_with_error)
def _(attempt: Callable) -> None:
    sae, x = tiny_sae(), residual_stream()
    clean = x + 0.5 * normal(*x.shape, seed=5)
    error = clean - splice(clean, sae)
    right = splice(x, sae) + error
    bos_spliced = sae.decode(sae.encode(x)) + error
    wrong = {
        "you took the error of the x that came in, so x comes out and nothing was spliced. The "
        "error to put back is the one given.": x,
        "you subtracted the error: x = SAE(x) + error.": splice(x, sae) - error,
        "the error is not put back: this is the policy 'drop'.": splice(x, sae),
        "you added the error before the SAE. It goes around the SAE, so add it after.": splice(
            x + error, sae
        ),
        "you spliced BOS too: splice leaves it alone.": bos_spliced,
        "you put the error alone in the stream's place.": error,
        "you added the error to x, and not to its reconstruction.": x + error,
        "the error is there twice.": right + error,
        "every prompt got the first prompt's error; each has its own.": splice(x, sae) + error[0],
        "you added the error's mean over prompts; each prompt has its own.": splice(x, sae)
        + error.mean(0),
        "BOS is missing from what you returned: the next layer wants all positions.": right[:, 1:],
    }
    compare(attempt(x, sae, error), right, wrong, what="the stream")
    shared = error.mean(0)
    compare(
        attempt(x, sae, shared),
        splice(x, sae) + shared,
        what="the stream, with one error [seq, d_model] for all prompts,",
    )


# ---------------------------------------------------------------------------------------------
# 2.4 The mean error
# ---------------------------------------------------------------------------------------------


@book.solution
def mean_error(x: Float[Tensor, "n seq d_model"], sae: SAE) -> Float[Tensor, "seq d_model"]:
    """What the SAE leaves out of the residual stream on average over prompts, position by position.

    Args:
        x: the unspliced model's residual stream on n prompts.
        sae: the SAE.

    Returns:
        The mean of x − SAE(x) over the prompts. 0 at BOS, which is not spliced.
    """
    return (x - splice(x, sae)).mean(dim=0)


@book.checker(mean_error)
def _(attempt: Callable) -> None:
    sae, x = tiny_sae(), residual_stream()
    error = x - splice(x, sae)
    bos_too = (x - sae.decode(sae.encode(x))).mean(0)
    mean_x = x.mean(0, keepdim=True)
    of_mean_x = (mean_x - splice(mean_x, sae))[0]
    latents = sae.encode(x).mean(0)
    wrong = {
        "you averaged over positions too: each position has its own mean.": error.mean((0, 1)),
        "you averaged over positions, and prompts were meant: the first "
        "axis is the batch.": error.mean(1),
        "this is SAE(x) − x. Added to SAE(x), it would double the error: the error is what is "
        "missing, x − SAE(x).": -error.mean(0),
        "BOS has an error here. It is not spliced, so there is nothing to put "
        "back: use splice.": bos_too,
        "this is the error of the mean stream. An SAE is not linear: take each prompt's error "
        "first, then the mean.": of_mean_x,
        "you averaged sizes. Errors of opposite signs have to cancel.": error.abs().mean(0),
        "you summed over prompts, and the mean was meant.": error.sum(0),
        "you returned every prompt's own error: that is for 'keep'.": error,
        "BOS' row is missing: it is to be there, and 0.": error[:, 1:].mean(0),
        "you took the mean of x̂; what is missing from it is wanted, x − SAE(x).": splice(
            x, sae
        ).mean(0),
        "you took the mean of x; what is missing from SAE(x) is wanted, x − SAE(x).": x.mean(0),
        "x and SAE(x) are added; the error is their difference.": (x + splice(x, sae)).mean(0),
        "that is one prompt's error; the mean over prompts is wanted.": error[0],
        "that is the mean of the latents; the error in the residual stream is wanted.": latents,
        "you took the median; the mean is wanted.": error.median(0).values,
    }
    compare(attempt(x, sae), error.mean(0), wrong, what="the mean error")


# ---------------------------------------------------------------------------------------------
# 2.5 Cross-entropy
# ---------------------------------------------------------------------------------------------


@book.solution
def cross_entropy(
    logits: Float[Tensor, "batch seq vocab"], tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, " batch"]:
    """How surprising each text is: the mean of −log p(token | those before it), in nats.

    Args:
        logits: at position i, for the token at position i + 1.
        tokens: the text, BOS first. BOS itself is given, and not predicted.

    Returns:
        One number per text: the mean over its seq − 1 predictions. 0 = every token was certain;
        log(vocab) = a blind guess.
    """
    log_p = logits[:, :-1].log_softmax(dim=-1)
    return -log_p.gather(-1, tokens[:, 1:, None])[..., 0].mean(dim=1)


@book.checker(cross_entropy)
def _(attempt: Callable) -> None:
    logits = 3 * normal(4, 6, 9, seed=2)
    tokens = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(3))

    def surprise(scores: Tensor, tokens: Tensor) -> Tensor:
        return -scores.gather(-1, tokens[..., None])[..., 0]

    log_p, following = logits.log_softmax(-1), tokens[:, 1:]
    each = surprise(log_p[:, :-1], following)
    right = each.mean(1)
    not_shifted = surprise(log_p, tokens)
    shifted_back = surprise(log_p[:, 1:], tokens[:, :-1])
    of_logits = surprise(logits[:, :-1], following)
    over_positions = surprise(logits[:, :-1].log_softmax(1), following)
    p = (-each).exp()
    wrong = {
        "you scored each token with the logits at its own position. Those are for the token after "
        "it: shift by one.": not_shifted.mean(1),
        "you shifted the wrong way: the logits at position i are for "
        "the token at i + 1.": shifted_back.mean(1),
        "you averaged over the texts too. One number per text is wanted: the "
        "intervals need them.": right.mean(),
        "you summed over positions, and the mean was meant.": each.sum(1),
        "you returned a number for each token: take the mean over positions.": each,
        "the sign is turned: −log p is above 0.": -right,
        "this is in bits (log₂), and nats are wanted.": right / math.log(2),
        "these are logits and not log-probabilities: log_softmax over the "
        "vocabulary first.": of_logits.mean(1),
        "you took the mean of p, and then the log. The log comes first.": -p.mean(1).log(),
        "these are probabilities: the log is missing.": p.mean(1),
        "these are probabilities, with a minus: the log is missing.": -p.mean(1),
        "that is the perplexity, exp of the cross-entropy.": right.exp(),
        "you divided by seq; BOS is not predicted, so that there are seq − 1 "
        "predictions.": each.sum(1) / 6,
        "the last prediction is left out.": each[:, :-1].mean(1),
        "the first prediction, the one from BOS, is left out.": each[:, 1:].mean(1),
        "you averaged over texts; average over positions, for each text.": each.mean(0),
        "you averaged over the vocabulary: pick the log-probability of the token that "
        "follows.": -log_p[:, :-1].mean((1, 2)),
        "the softmax is over positions, and it belongs over the vocabulary.": over_positions.mean(
            1
        ),
        "you scored the last token alone.": each[:, -1],
    }
    compare(attempt(logits, tokens), right, wrong, what="the cross-entropy")


# ---------------------------------------------------------------------------------------------
# 2.6 Where to put them
# ---------------------------------------------------------------------------------------------


@book.solution
def place(n_layers: int, gap: int) -> list[int]:
    """After which layers to splice, so that no SAE is more than ``gap`` layers from the next.

    The last SAE comes after the last layer, and the others every ``gap`` layers before it, as far
    as there are layers.

    Args:
        n_layers: of the model; they are numbered from 0.
        gap: layers from one SAE to the next; 1 is an SAE after every layer.

    Returns:
        Layers in rising order.
    """
    return list(range(n_layers - 1, -1, -gap))[::-1]


@book.checker(place)
def _(attempt: Callable) -> None:
    for n_layers, gap in ((30, 9), (30, 6), (12, 5), (7, 1), (4, 10)):
        answer = attempt(n_layers, gap)
        if answer is None:
            raise Wrong(
                "it is None. Is the return missing? (`.reverse()` and `.sort()` return None, too.)"
            )
        if isinstance(answer, Tensor):
            raise Wrong("a list of integers is wanted, not a tensor.")
        layers = [int(layer) for layer in answer]
        if layers != place(n_layers, gap):
            raise Wrong(
                f"place({n_layers}, {gap}) gave {layers}: {_misplaced(layers, n_layers, gap)}"
            )


def _misplaced(layers: list[int], n_layers: int, gap: int) -> str:
    """What is wrong with layers that are not those of `place`."""
    right, last = place(n_layers, gap), n_layers - 1
    if n_layers in layers:
        return f"there is no layer {n_layers}. Layers are numbered from 0, so the last is {last}."
    if any(layer < 0 for layer in layers):
        return "a layer below 0 does not exist."
    if layers == right[::-1]:
        return "the layers are right, and in falling order. They are wanted in rising order."
    counted_from_the_start = bool(layers) and layers[0] in (0, gap - 1, gap)
    if layers == right[:-1] or (last not in layers and counted_from_the_start):
        return (
            f"none is after the last layer, {last}, so part of the model lies behind "
            "the last bottleneck."
        )
    if layers == right[1:]:
        return f"layer {right[0]} is missing: the range stops one too early."
    if any(b - a != gap for a, b in zip(layers, layers[1:])):
        return f"they are not {gap} apart."
    return "those are not the layers."
