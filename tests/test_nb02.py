"""Notebook 02's checkers accept the course's versions, and say of wrong ones what is wrong."""

import pytest
import torch

from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import hook_point
from course_utils.teaching.nb02 import (
    book,
    cross_entropy,
    mean_error,
    place,
    splice,
    splice_with_error,
)


@pytest.mark.parametrize("name", list(book.solutions))
def test_the_solution_is_accepted(name):
    assert book.checked(book.solutions[name]).status == "right"


def bos_last(x, sae):
    y = sae.decode(sae.encode(x))
    y[:, -1] = x[:, -1]
    return y


def bos_prompt(x, sae):
    y = sae.decode(sae.encode(x))
    y[0] = x[0]
    return y


def bos_zero(x, sae):
    y = sae.decode(sae.encode(x))
    y[:, 0] = 0
    return y


def in_place(x, sae):
    x[:, 1:] = sae.decode(sae.encode(x[:, 1:]))
    return x


def nll(scores, wanted):
    return -scores.gather(-1, wanted[..., None])[..., 0]


WRONG = {
    "splice": [
        (lambda x, sae: sae.decode(sae.encode(x)), "you spliced BOS too"),
        (bos_prompt, "you left prompt 0 alone"),
        (bos_last, "you left the last position alone"),
        (bos_zero, "zeros where BOS is"),
        (lambda x, sae: sae.decode(sae.encode(x[:, 1:])), "BOS is missing"),
        (lambda x, sae: sae.encode(x), "you returned the latents"),
        (lambda x, sae: x, "you returned x as it was"),
        (lambda x, sae: x - splice(x, sae), "you returned the error"),
        (in_place, "x itself was changed"),
        (lambda x, sae: None, "Is the return missing?"),
    ],
    "splice_with_error": [
        (lambda x, sae, error: splice(x, sae) + (x - splice(x, sae)), "you took the error of the x that came in"),
        (lambda x, sae, error: splice(x, sae) - error, "you subtracted the error"),
        (lambda x, sae, error: splice(x, sae), "this is the policy 'drop'"),
        (lambda x, sae, error: splice(x + error, sae), "before the SAE"),
        (lambda x, sae, error: sae.decode(sae.encode(x)) + error, "you spliced BOS too"),
        (lambda x, sae, error: x + error, "to x, and not to its reconstruction"),
        (lambda x, sae, error: error, "the error alone"),
        (lambda x, sae, error: splice(x, sae) + error[0], "has the shape|off by up to"),
    ],
    "mean_error": [
        (lambda x, sae: (x - splice(x, sae)).mean((0, 1)), "you averaged over positions too"),
        (lambda x, sae: (x - splice(x, sae)).mean(1), "you averaged over positions, and prompts were meant"),
        (lambda x, sae: (splice(x, sae) - x).mean(0), "would double the error"),
        (lambda x, sae: (x - sae.decode(sae.encode(x))).mean(0), "BOS has an error here"),
        (lambda x, sae: (x.mean(0, True) - splice(x.mean(0, True), sae))[0], "the error of the mean stream"),
        (lambda x, sae: (x - splice(x, sae)).abs().mean(0), "you averaged sizes"),
        (lambda x, sae: (x - splice(x, sae)).sum(0), "you summed over prompts"),
        (lambda x, sae: x - splice(x, sae), "every prompt's own error"),
        (lambda x, sae: (x - splice(x, sae))[:, 1:].mean(0), "BOS' row is missing"),
    ],
    "cross_entropy": [
        (lambda logits, tokens: nll(logits.log_softmax(-1), tokens).mean(1), "shift by one"),
        (lambda logits, tokens: nll(logits.log_softmax(-1)[:, 1:], tokens[:, :-1]).mean(1), "you shifted the wrong way"),
        (lambda logits, tokens: cross_entropy(logits, tokens).mean(), "you averaged over the texts too"),
        (lambda logits, tokens: cross_entropy(logits, tokens) * 5, "you summed over positions"),
        (lambda logits, tokens: nll(logits.log_softmax(-1)[:, :-1], tokens[:, 1:]), "a number for each token"),
        (lambda logits, tokens: -cross_entropy(logits, tokens), "the sign is turned"),
        (lambda logits, tokens: cross_entropy(logits, tokens) / 0.6931472, "in bits"),
        (lambda logits, tokens: nll(logits[:, :-1], tokens[:, 1:]).mean(1), "not log-probabilities"),
        (lambda logits, tokens: -(-nll(logits.log_softmax(-1)[:, :-1], tokens[:, 1:])).exp().mean(1).log(), "The log comes first"),
        (lambda logits, tokens: nll(logits[:, :-1].log_softmax(1), tokens[:, 1:]).mean(1), "the softmax is over positions"),
        (lambda logits, tokens: nll(logits.log_softmax(-1)[:, -2:-1], tokens[:, -1:])[:, 0], "the last token alone"),
    ],
    "place": [
        (lambda n_layers, gap: list(range(gap, n_layers, gap)), "none is after the last layer"),
        (lambda n_layers, gap: list(range(gap - 1, n_layers, gap)), "none is after the last layer"),
        (lambda n_layers, gap: list(range(0, n_layers, gap)), "none is after the last layer"),
        (lambda n_layers, gap: list(range(n_layers, -1, -gap))[::-1], "there is no layer 30"),
        (lambda n_layers, gap: list(range(n_layers - 1, -1, -gap)), "in falling order"),
        (lambda n_layers, gap: list(range(n_layers - 1, -gap - 1, -gap))[::-1], "a layer below 0"),
        (lambda n_layers, gap: list(range(n_layers - 1, 2, -gap))[::-1], "the range stops one too early"),
        (lambda n_layers, gap: list(range(n_layers - 1, -1, -gap - 1))[::-1], "they are not 9 apart"),
        (lambda n_layers, gap: None, "Is the return missing?"),
        (lambda n_layers, gap: torch.arange(n_layers - 1, -1, -gap).flip(0), "a list of integers"),
    ],
}  # fmt: skip
CASES = [
    pytest.param(name, function, says, id=f"{name}: {says}")
    for name, wrong in WRONG.items()
    for function, says in wrong
]


@pytest.mark.parametrize(("name", "wrong", "says"), CASES)
def test_a_wrong_version_is_rejected_for_the_right_reason(name, wrong, says):
    def taking(*names):
        space = {"wrong": wrong}
        exec(f"def {name}({', '.join(names)}): return wrong({', '.join(names)})", space)
        return space[name]

    code = book.solutions[name].__code__
    found = book.checked(taking(*code.co_varnames[: code.co_argcount]))
    assert found.status == "wrong" and any(part in found.says for part in says.split("|")), found


def test_every_exercise_has_wrong_versions():
    assert set(WRONG) == set(book.solutions) and all(len(wrong) >= 3 for wrong in WRONG.values())


def test_the_spliced_hook_is_the_spliced_model(lab, task):
    hooks = [
        (hook_point(layer), lambda x, hook, sae=sae: splice(x, sae))
        for layer, sae in lab.saes.items()
    ]
    by_hand = lab.model.run_with_hooks(task.clean, fwd_hooks=hooks)
    torch.testing.assert_close(
        by_hand[:, -1], SplicedModel(lab).run(task.clean).logits, atol=1e-4, rtol=1e-4
    )


def test_mean_error_is_the_spliced_models(lab, task):
    _, cache = lab.model.run_with_cache(task.patch)
    means = SplicedModel(lab, error="mean").patch_means(task.patch)
    for layer, sae in lab.saes.items():
        name = hook_point(layer)
        torch.testing.assert_close(
            mean_error(cache[name], sae), means.errors[name], atol=1e-4, rtol=1e-4
        )


def test_keeping_the_error_gives_back_the_stream(lab, task):
    x = torch.randn(3, 5, lab.d_model)
    sae = lab.saes[lab.sae_layers[0]]
    torch.testing.assert_close(splice_with_error(x, sae, x - splice(x, sae)), x)


def test_cross_entropy_is_torchs():
    logits, tokens = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    right = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    ).mean(1)
    torch.testing.assert_close(cross_entropy(logits, tokens), right)


def test_place_gives_the_courses_placement():
    assert (
        place(30, 6) == [5, 11, 17, 23, 29]
        and place(30, 3) == [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]
        and place(30, 30) == [29]
    )
