"""What a model loses where its residual stream is replaced, and how errors grow.

Against hooks on the whole model.
"""

import copy
import functools

import pytest
import torch
from conftest import make_lab
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from course_utils.circuits.reconstruction import (
    KINDS,
    disturbances,
    error_growth,
    loss_recovered,
    residual_stream,
    text_loss,
)
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import Lab, hook_point

# ---------------------------------------------------------------------------------------------
# The loss on text
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resid(lab, task):
    return residual_stream(lab, 1, task.clean, batch_size=5)


def test_the_residual_stream_is_what_the_model_says_without_bos(lab, task, resid):
    with torch.no_grad():
        states = lab.hf_model(task.clean, output_hidden_states=True).hidden_states
    assert_close(resid, states[2][:, 1:], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_models_cross_entropy_from_the_second_token_on(lab, task, resid):
    with torch.no_grad():
        logits = lab.hf_model(task.clean).logits
    expected = cross_entropy(
        logits[:, 1:-1].flatten(0, 1), task.clean[:, 2:].flatten(), reduction="none"
    )
    expected = expected.view(len(task.clean), -1).mean(1)
    assert_close(text_loss(lab, 1, task.clean, resid, batch_size=5), expected, rtol=1e-4, atol=1e-5)
    assert_close(text_loss(lab, 1, task.clean, resid, lambda x: x), expected, rtol=1e-4, atol=1e-5)


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
    expected = cross_entropy(logits[:, 1:-1].flatten(0, 1), task.clean[:, 2:].flatten())
    assert_close(
        text_loss(lab, 1, task.clean, resid, lambda x: x / 2).mean(), expected, rtol=1e-4, atol=1e-5
    )


def test_what_replaces_the_stream_is_given_all_tokens_in_rows_and_in_order(lab, task, resid):
    shown = []

    def look(x):
        shown.append(x.clone())
        return x.double()  # another dtype than the model's

    loss = text_loss(lab, 1, task.clean, resid, look, batch_size=5)
    assert torch.equal(torch.cat(shown), resid.flatten(0, 1))
    assert_close(loss, text_loss(lab, 1, task.clean, resid), rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_model_in_half_precision_is_computed_in_full(task):
    lab = make_lab()
    half = Lab("half", copy.deepcopy(lab.hf_model).bfloat16(), lab.tokenizer, {})
    losses = [
        text_loss(lab, 1, task.clean, residual_stream(lab, 1, task.clean)) for lab in (lab, half)
    ]
    assert losses[1].dtype == torch.float32
    assert_close(losses[1], losses[0], rtol=0.05, atol=0.05)
    assert len(losses[1].bfloat16().unique()) < len(losses[1].unique())


def test_without_a_bos_the_loss_is_over_the_tokens_from_the_second_on(task):
    lab = make_lab("gpt2")
    tokenizer = copy.deepcopy(lab.tokenizer)
    tokenizer.bos_token = None
    lab, texts = Lab("no bos", lab.hf_model, tokenizer, {}), task.clean[:, 1:]
    resid = residual_stream(lab, 2, texts)
    with torch.no_grad():
        output = lab.hf_model(texts, output_hidden_states=True)
    assert_close(resid, output.hidden_states[3], rtol=1e-4, atol=1e-5)
    log_p = output.logits.log_softmax(-1)
    expected = -log_p[:, :-1].gather(-1, texts[:, 1:, None])[..., 0].mean(1)
    assert_close(text_loss(lab, 2, texts, resid), expected, rtol=1e-4, atol=1e-5)


def test_loss_recovered_is_one_for_the_model_and_zero_for_the_ablation():
    model, ablated = torch.rand(20), 5 + torch.rand(20)
    assert loss_recovered(model, model, ablated).value == 1
    assert loss_recovered(model, ablated, ablated).value == 0
    halfway = loss_recovered(model, (model + ablated) / 2, ablated)
    assert (halfway.value, halfway.low, halfway.high) == pytest.approx((0.5, 0.5, 0.5))


def test_loss_recovered_is_a_ratio_of_means_and_its_interval_covers_pieces_of_text():
    generator = torch.Generator().manual_seed(0)
    model = torch.rand(30, generator=generator)
    spliced, ablated = model + torch.rand(30, generator=generator), model + 4
    recovered = loss_recovered(model, spliced, ablated, seed=1)
    assert recovered.value == pytest.approx((ablated - spliced).mean().item() / 4, rel=1e-5)
    assert recovered.low < recovered.value < recovered.high
    assert loss_recovered(model, spliced, ablated, seed=1) == recovered
    assert loss_recovered(model, spliced, ablated, seed=2) != recovered


# ---------------------------------------------------------------------------------------------
# How errors grow
# ---------------------------------------------------------------------------------------------


def test_the_three_disturbances_are_equally_long_at_every_token(lab):
    x = torch.randn(3, 5, lab.d_model)
    changes = disturbances(x, lab.saes[1], torch.Generator().manual_seed(0))
    assert tuple(changes) == KINDS
    for kind in KINDS:
        assert_close(changes[kind].norm(dim=-1), changes["sae"].norm(dim=-1))
    assert not torch.allclose(changes["other"], changes["sae"])
    assert not torch.allclose(changes["random"], changes["sae"])


def test_the_saes_own_disturbance_is_its_error(lab):
    x, sae = torch.randn(3, 5, lab.d_model), lab.saes[1]
    changes = disturbances(x, sae, torch.Generator().manual_seed(0))
    expected = torch.stack([sae(row) - row for row in x])
    assert_close(changes["sae"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_other_error_is_an_error_of_another_token(lab, seed):
    x = torch.randn(3, 5, lab.d_model)
    changes = disturbances(x, lab.saes[1], torch.Generator().manual_seed(seed))
    own, other = (normalize(changes[kind].flatten(0, 1), dim=-1) for kind in ("sae", "other"))
    closest = (other @ own.T).max(1)
    assert_close(closest.values, torch.ones(15))
    assert (closest.indices != torch.arange(15)).all()
    assert len(set(closest.indices.tolist())) == 15  # each token's error is used once


def test_random_directions_favour_none(lab):
    x = torch.randn(100, 50, lab.d_model)
    changes = disturbances(x, lab.saes[1], torch.Generator().manual_seed(0))
    directions = normalize(changes["random"].flatten(0, 1), dim=-1)
    assert directions.mean(0).abs().max() < 5 / (5000 * lab.d_model) ** 0.5
    own = normalize(changes["sae"].flatten(0, 1), dim=-1)
    assert (directions * own).sum(-1).mean().abs() < 5 / (5000 * lab.d_model) ** 0.5


def test_the_error_of_a_single_token_has_no_other(lab):
    x = torch.randn(1, 1, lab.d_model)
    changes = disturbances(x, lab.saes[1], torch.Generator().manual_seed(0))
    assert_close(changes["other"], changes["sae"])


@torch.no_grad()
def test_growth_is_what_hooks_on_the_whole_model_see(lab, task):
    tokens, saes = task.clean, dict(lab.saes.items())
    generator = torch.Generator().manual_seed(3)
    clean_logits, cache = lab.model.run_with_cache(tokens)
    growth = error_growth(SplicedModel(lab), tokens, seed=3)
    changes = {}  # by layer: what each kind adds, of the stream that the SAEs alone have disturbed
    for kind in KINDS:
        seen = {}

        def look(x, hook, layer, kind=kind, seen=seen):
            if layer in saes:
                if kind == "sae":
                    changes[layer] = disturbances(x[:, 1:], saes[layer], generator)
                x = torch.cat([x[:, :1], x[:, 1:] + changes[layer][kind]], dim=1)
            seen[layer] = x[:, 1:]
            return x

        layers = range(lab.n_layers)
        hooks = [(hook_point(layer), functools.partial(look, layer=layer)) for layer in layers]
        logits = lab.model.run_with_hooks(tokens, fwd_hooks=hooks)
        for layer in layers:
            x = cache[hook_point(layer)][:, 1:]
            relative = ((seen[layer] - x).norm(dim=-1) / x.norm(dim=-1)).mean(1)
            assert_close(growth[kind].relative[:, layer], relative, atol=1e-4, rtol=1e-4)
        p, q = clean_logits[:, 1:].log_softmax(-1), logits[:, 1:].log_softmax(-1)
        kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean(1)
        assert_close(growth[kind].kl, kl, atol=1e-4, rtol=1e-3)
        for i, layer in enumerate(saes):
            x = cache[hook_point(layer)][:, 1:]
            added = (changes[layer][kind].norm(dim=-1) / x.norm(dim=-1)).mean(1)
            assert_close(growth[kind].added[:, i], added, atol=1e-4, rtol=1e-4)


def test_the_saes_own_growth_is_the_same_in_batches_of_any_size(lab, task):
    spliced = SplicedModel(lab)
    whole, pieces = (
        error_growth(spliced, task.clean, batch_size=size)["sae"] for size in (len(task), 5)
    )
    assert_close(whole.relative, pieces.relative, atol=1e-5, rtol=1e-4)
    assert_close(whole.kl, pieces.kl, atol=1e-5, rtol=1e-3)


def test_before_the_first_sae_nothing_is_disturbed_and_there_only_the_sae(lab, task):
    for growth in error_growth(SplicedModel(lab, [1]), task.clean).values():
        assert growth.relative.shape == (len(task), lab.n_layers)
        assert (growth.relative[:, :1] == 0).all() and (growth.relative[:, 1:] > 0).all()
        assert growth.added.shape == (len(task), 1)
        assert_close(growth.relative[:, 1], growth.added[:, 0])
        assert (growth.kl > 0).all()


def test_the_same_seed_gives_the_same_noise(lab, task):
    a, b, c = (
        error_growth(SplicedModel(lab), task.clean, seed=seed)["random"].kl for seed in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
