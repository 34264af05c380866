"""What a model loses where its residual stream is replaced (by itself: nothing), and how errors
grow, against hooks on the whole model.
"""

import pytest
import torch

from course_utils.circuits.reconstruction import (
    KINDS,
    disturbances,
    error_growth,
    loss_recovered,
    residual_stream,
    text_loss,
)
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import hook_point
from course_utils.teaching.nb02 import splice

# ---------------------------------------------------------------------------------------------
# The loss on text
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resid(lab, task):
    return residual_stream(lab, 1, task.clean, batch_size=5)


def test_the_residual_stream_is_what_the_model_says_without_bos(lab, task, resid):
    with torch.no_grad():
        states = lab.hf_model(task.clean, output_hidden_states=True).hidden_states
    torch.testing.assert_close(resid, states[2][:, 1:], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_models_cross_entropy_from_the_second_token_on(lab, task, resid):
    with torch.no_grad():
        logits = lab.hf_model(task.clean).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].flatten(0, 1), task.clean[:, 2:].flatten(), reduction="none"
    )
    expected = expected.view(len(task.clean), -1).mean(1)
    torch.testing.assert_close(
        text_loss(lab, 1, task.clean, resid, batch_size=5), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        text_loss(lab, 1, task.clean, resid, lambda x: x), expected, rtol=1e-4, atol=1e-5
    )


def test_replacing_the_residual_stream_is_a_hook_on_the_model(lab, task, resid):
    def halve(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        x = torch.cat([x[:, :1], x[:, 1:] / 2], dim=1)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = lab.hf_model.model.layers[1].register_forward_hook(halve)
    try:
        with torch.no_grad():
            logits = lab.hf_model(task.clean).logits
    finally:
        handle.remove()
    expected = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].flatten(0, 1), task.clean[:, 2:].flatten()
    )
    torch.testing.assert_close(
        text_loss(lab, 1, task.clean, resid, lambda x: x / 2).mean(), expected, rtol=1e-4, atol=1e-5
    )


def test_loss_recovered_is_one_for_the_model_and_zero_for_the_ablation():
    model, ablated = torch.rand(20), 5 + torch.rand(20)
    assert (
        loss_recovered(model, model, ablated).value,
        loss_recovered(model, ablated, ablated).value,
    ) == (1, 0)
    halfway = loss_recovered(model, (model + ablated) / 2, ablated)
    assert (
        halfway.value == pytest.approx(0.5)
        and halfway.low == pytest.approx(0.5)
        and halfway.high == pytest.approx(0.5)
    )


# ---------------------------------------------------------------------------------------------
# How errors grow
# ---------------------------------------------------------------------------------------------


def test_the_three_disturbances_are_equally_long_at_every_token(lab):
    x = torch.randn(3, 5, lab.d_model)
    found = disturbances(x, lab.saes[1], torch.Generator().manual_seed(0))
    for kind in KINDS:
        torch.testing.assert_close(found[kind].norm(dim=-1), found["sae"].norm(dim=-1))
    assert not torch.allclose(found["other"], found["sae"]) and not torch.allclose(
        found["random"], found["sae"]
    )


def test_the_other_error_is_an_error_of_another_token(lab):
    x = torch.randn(3, 5, lab.d_model)
    found = disturbances(x, lab.saes[1], torch.Generator().manual_seed(0))
    own, other = (
        torch.nn.functional.normalize(found[kind].flatten(0, 1), dim=-1)
        for kind in ("sae", "other")
    )
    closest = (other @ own.T).max(1)
    torch.testing.assert_close(closest.values, torch.ones(15))
    assert (closest.indices != torch.arange(15)).all()


def test_growth_is_what_hooks_on_the_whole_model_see(lab, task):
    tokens, spliced = task.clean, SplicedModel(lab)
    seen = {}

    def look(layer):
        return hook_point(layer), lambda x, hook: seen.update({layer: x.clone()})

    with torch.no_grad():
        clean_logits, cache = lab.model.run_with_cache(tokens)
        hooks = []
        for layer in range(lab.n_layers):
            if layer in lab.saes:
                hooks.append(
                    (hook_point(layer), lambda x, hook, sae=lab.saes[layer]: splice(x, sae))
                )
            hooks.append(look(layer))
        logits = lab.model.run_with_hooks(tokens, fwd_hooks=hooks)
    found = error_growth(spliced, tokens, batch_size=5)["sae"]
    for layer in range(lab.n_layers):
        x, y = cache[hook_point(layer)][:, 1:], seen[layer][:, 1:]
        torch.testing.assert_close(
            found.relative[:, layer],
            ((y - x).norm(dim=-1) / x.norm(dim=-1)).mean(1),
            atol=1e-4,
            rtol=1e-4,
        )
    p, q = clean_logits[:, 1:].log_softmax(-1), logits[:, 1:].log_softmax(-1)
    torch.testing.assert_close(found.kl, (p.exp() * (p - q)).sum(-1).mean(1), atol=1e-4, rtol=1e-3)


def test_before_the_first_sae_nothing_is_disturbed_and_there_only_the_sae(lab, task):
    for growth in error_growth(SplicedModel(lab, [1]), task.clean).values():
        assert (
            (growth.relative[:, :1] == 0).all()
            and (growth.relative[:, 1:] > 0).all()
            and growth.added.shape == (len(task), 1)
        )
        torch.testing.assert_close(growth.relative[:, 1], growth.added[:, 0])
        assert (growth.kl > 0).all()


def test_the_same_seed_gives_the_same_noise(lab, task):
    a, b, c = (
        error_growth(SplicedModel(lab), task.clean, seed=seed)["random"].kl for seed in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
