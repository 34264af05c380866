"""Notebook 02's checkers accept the course's versions, and say of wrong ones what is wrong."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from readers import WrongVersions, attempt, cases

from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import hook_point
from course_utils.teaching import nb02
from course_utils.teaching.nb02 import (
    book,
    cross_entropy,
    mean_error,
    place,
    run_with,
    splice,
    splice_with_error,
)

RIGHT = "each = nll(logits[:, :-1].log_softmax(-1), tokens[:, 1:])\n"
WRONG: WrongVersions = {
    "splice": {
        "you spliced BOS too": "return sae.decode(sae.encode(x))",
        "you left prompt 0 alone": """
            y = sae.decode(sae.encode(x))
            y[0] = x[0]
            return y
        """,
        "you left the last position alone": """
            y = sae.decode(sae.encode(x))
            y[:, -1] = x[:, -1]
            return y
        """,
        "zeros where BOS is": """
            y = sae.decode(sae.encode(x))
            y[:, 0] = 0
            return y
        """,
        "BOS is missing": "return sae.decode(sae.encode(x[:, 1:]))",
        "you returned the latents": "return sae.encode(x)",
        "you returned x as it was": "return x",
        "you returned the error": "return x - solutions['splice'](x, sae)",
        "the values are right, but x was changed in place": """
            x[:, 1:] = sae.decode(sae.encode(x[:, 1:]))
            return x
        """,
        "Is the return missing?": "sae.decode(sae.encode(x))",
        "BOS became b_dec": """
            f = sae.encode(x)
            f[:, 0] = 0
            return sae.decode(f)
        """,
        "BOS is there twice": "return torch.cat([x[:, :1], sae.decode(sae.encode(x))], dim=1)",
        "not tuple. Is there a comma too many?": """
            return solutions["splice"](x, sae),
        """,
        "it is float64, and float32 is wanted": "return solutions['splice'](x, sae).double()",
    },
    "run_with": {
        "functions made in a loop see its last value": """
            pairs = []
            for layer in changes:
                pairs.append((hook_point(layer), lambda x, hook: changes[layer](x)))
            return model.run_with_hooks(tokens, fwd_hooks=pairs)
        """,
        "no hook changed anything": """
            def hook_after(layer):
                def hook(x, hook):
                    changes[layer](x)
                return hook_point(layer), hook
            return model.run_with_hooks(tokens, fwd_hooks=[hook_after(n) for n in changes])
        """,
        "only the first layer was changed": """
            for layer in changes:
                pair = (hook_point(layer), lambda x, hook: changes[layer](x))
                return model.run_with_hooks(tokens, fwd_hooks=[pair])
            return model.run_with_hooks(tokens)
        """,
        "only the last layer was changed": """
            logits = model.run_with_hooks(tokens)
            for layer in changes:
                pair = (hook_point(layer), lambda x, hook: changes[layer](x))
                logits = model.run_with_hooks(tokens, fwd_hooks=[pair])
            return logits
        """,
        "one layer too late": """
            pairs = [
                (hook_point(layer + 1), lambda x, hook, layer=layer: changes[layer](x))
                for layer in changes
            ]
            return model.run_with_hooks(tokens, fwd_hooks=pairs)
        """,
        "went unnoticed": """
            pairs = [
                (hook_point(layer), lambda x, hook, layer=layer: changes[layer](x))
                for layer in changes
            ]
            return model.run_with_hooks(tokens, fwd_hooks=pairs)
        """,
        "the logits at the last position": """
            return solutions["run_with"](model, changes, tokens)[:, -1]
        """,
        "unexpected keyword argument 'hook'": """
            pairs = [(hook_point(layer), changes[layer]) for layer in changes]
            return model.run_with_hooks(tokens, fwd_hooks=pairs)
        """,
    },
    "splice_with_error": {
        "you took the error of the x that came in": "return splice(x, sae) + (x - splice(x, sae))",
        "you subtracted the error": "return splice(x, sae) - error",
        "this is the policy 'drop'": "return splice(x, sae)",
        "before the SAE": "return splice(x + error, sae)",
        "you spliced BOS too": "return sae.decode(sae.encode(x)) + error",
        "to x, and not to its reconstruction": "return x + error",
        "the error alone": "return error",
        "with one error [seq, d_model] for all prompts, has the shape": """
            return splice(x, sae) + (error if error.ndim == 3 else error[None, None])
        """,
        "every prompt got the first prompt's error": "return splice(x, sae) + error[0]",
        "the error is there twice": "return splice(x, sae) + 2 * error",
        "but x was changed in place": """
            x[:] = splice(x, sae) + error
            return x
        """,
    },
    "mean_error": {
        "you averaged over positions too": "return (x - splice(x, sae)).mean((0, 1))",
        "averaged over positions, and prompts were": "return (x - splice(x, sae)).mean(1)",
        "would double the error": "return (splice(x, sae) - x).mean(0)",
        "BOS has an error here": "return (x - sae.decode(sae.encode(x))).mean(0)",
        "the error of the mean stream": """
            mean = x.mean(0, keepdim=True)
            return (mean - splice(mean, sae))[0]
        """,
        "you averaged sizes": "return (x - splice(x, sae)).abs().mean(0)",
        "you summed over prompts": "return (x - splice(x, sae)).sum(0)",
        "every prompt's own error": "return x - splice(x, sae)",
        "BOS' row is missing": "return (x - splice(x, sae))[:, 1:].mean(0)",
    },
    "cross_entropy": {
        "shift by one": "return nll(logits.log_softmax(-1), tokens).mean(1)",
        "you shifted the wrong way": """
            return nll(logits.log_softmax(-1)[:, 1:], tokens[:, :-1]).mean(1)
        """,
        "you averaged over the texts too": RIGHT + "return each.mean()",
        "you summed over positions": RIGHT + "return each.sum(1)",
        "a number for each token": RIGHT + "return each",
        "the sign is turned": RIGHT + "return -each.mean(1)",
        "in bits": RIGHT + "return each.mean(1) / 0.6931472",
        "not log-probabilities": "return nll(logits[:, :-1], tokens[:, 1:]).mean(1)",
        "The log comes first": RIGHT + "return -(-each).exp().mean(1).log()",
        "the softmax is over positions": """
            return nll(logits[:, :-1].log_softmax(1), tokens[:, 1:]).mean(1)
        """,
        "the last token alone": RIGHT + "return each[:, -1]",
        "BOS is not predicted, so that there are": RIGHT + "return each.sum(1) / tokens.shape[1]",
        "with a minus: the log is missing": """
            return nll(logits[:, :-1].softmax(-1), tokens[:, 1:]).mean(1)
        """,
        "that is the perplexity": RIGHT + "return each.mean(1).exp()",
    },
    "place": {
        "none is after the last layer, 29": "return list(range(gap, n_layers, gap))",
        "none is after the last layer": "return list(range(gap - 1, n_layers, gap))",
        "part of the model lies behind": "return list(range(0, n_layers, gap))",
        "there is no layer 30": "return list(range(n_layers, -1, -gap))[::-1]",
        "in falling order": "return list(range(n_layers - 1, -1, -gap))",
        "a layer below 0": "return list(range(n_layers - 1, -gap - 1, -gap))[::-1]",
        "the range stops one too early": "return list(range(n_layers - 1, 2, -gap))[::-1]",
        "they are not 9 apart": "return list(range(n_layers - 1, -1, -gap - 1))[::-1]",
        "those are not the layers": "return [n_layers - 1]",
        "Is the return missing?": "list(range(n_layers))",
        "it is a range, and a list is wanted": "return range(n_layers - 1, -1, -gap)[::-1]",
        "it holds is a float, and a whole number (int) is wanted": """
            return [float(layer) for layer in solutions["place"](n_layers, gap)]
        """,
        "a list of integers": "return torch.arange(n_layers - 1, -1, -gap).flip(0)",
    },
}


def nll(scores, tokens):
    return -scores.gather(-1, tokens[..., None])[..., 0]


@pytest.mark.parametrize("name", list(book.solutions))
def test_the_solution_is_right_and_the_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(nb02, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_a_wrong_version_is_rejected_for_the_right_reason(name, body, says):
    checked = book.checked(attempt(nb02, name, body, nll=nll))
    assert checked.status == "wrong" and says in checked.says, checked.says


def test_every_exercise_has_wrong_versions():
    assert set(WRONG) == set(book.solutions) and all(len(wrong) >= 3 for wrong in WRONG.values())


def test_splicing_by_hooks_gives_the_spliced_model(lab, task):
    splices = {layer: lambda x, sae=sae: splice(x, sae) for layer, sae in lab.saes.items()}
    by_hand = run_with(lab.model, splices, task.clean)
    torch.testing.assert_close(
        by_hand[:, -1], SplicedModel(lab).run(task.clean).logits, atol=1e-4, rtol=1e-4
    )


def test_a_layer_that_the_model_lacks_is_noticed(lab, task):
    with pytest.raises(RuntimeError, match=r"no hook ran after \{99\}"):
        run_with(lab.model, {99: lambda x: x}, task.clean)


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
    assert place(30, 6) == [5, 11, 17, 23, 29]
    assert place(30, 3) == [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]
    assert place(30, 30) == [29]


@given(n_layers=st.integers(1, 60), gap=st.integers(1, 70))
def test_places_end_at_the_last_layer_are_a_gap_apart_and_begin_within_the_first_gap(n_layers, gap):
    layers = place(n_layers, gap)
    assert layers[-1] == n_layers - 1 and 0 <= layers[0] < gap
    assert all(after - before == gap for before, after in itertools.pairwise(layers))
