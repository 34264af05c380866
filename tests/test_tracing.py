"""Shares of the logit difference: they add up, and are AtP and OV by hand."""

import pytest
import torch
from conftest import make_lab, make_task, tiny_tokenizer

from course_utils.circuits.backward import norm_factor, norms_frozen
from course_utils.circuits.heads import Heads
from course_utils.circuits.saes import encode
from course_utils.circuits.tracing import through_head, trace_heads, trace_latents


@pytest.fixture(scope="module")
def heads(lab) -> Heads:
    return Heads(lab)


def test_latents_bias_and_error_add_up_to_gradient_times_stream(lab, task):
    trace = trace_latents(lab, task, batch_size=5)
    stack = lab.stack
    for layer, (name, sums) in zip(lab.sae_layers, trace.sums().items(), strict=True):
        x = stack.run(stack.embed(task.clean), range(layer + 1)).detach().requires_grad_()
        normed = stack.finish(x, layer)
        ld = stack.logits_of(normed, task.clean_answers) - stack.logits_of(
            normed, task.patch_answers
        )
        [g] = torch.autograd.grad(ld.sum(), x)
        expected = (g * x).sum((1, 2)).detach()
        torch.testing.assert_close(sums.sum(1), expected, atol=1e-4, rtol=1e-3)
        f = encode(lab.saes[layer], x.detach())
        by_hand = f[2, 3, 7] * (lab.saes[layer].W_dec[7] @ g[2, 3])
        assert abs(trace.latents[name][2, 4, 7] - by_hand) < 1e-5
        assert trace.latents[name][:, 0].abs().max() == 0
        torch.testing.assert_close(trace.logit_diff, ld.detach(), atol=1e-5, rtol=1e-4)


def test_a_head_brings_from_all_positions_what_its_output_does(heads, task):
    shares = trace_heads(heads, task, batch_size=5)
    run = heads.run(task.clean, track=True)
    outs = [run.attention[layer].out for layer in range(4)]
    gradients = torch.autograd.grad(run.logit_diff(task).sum(), outs)
    for layer, (out, g) in enumerate(zip(outs, gradients, strict=True)):
        expected = (out * g)[:, :, -1].sum(-1).detach()
        torch.testing.assert_close(shares[:, layer].sum(-1), expected, atol=1e-4, rtol=1e-3)


def test_right_after_an_sae_a_head_is_reached_by_W_V_and_W_O_alone(lab, heads, task):
    layer, head = 2, 1
    found = through_head(heads, task, layer, head)
    run = heads.run(task.clean, track=True)
    seen = run.attention[layer]
    [g] = torch.autograd.grad(run.logit_diff(task).sum(), seen.out)
    back = g[:, head, -1] @ heads.W_V(layer)[0].T  # [batch, d_model]
    stream = run.resid[layer].detach()
    factor = norm_factor(lab.stack.layers[layer].input_layernorm, stream)
    row = seen.pattern[:, head, -1, 1:, None] * factor * back[:, None]
    expected = encode(lab.saes[1], stream) * (row @ lab.saes[1].W_dec.T)
    torch.testing.assert_close(found[:, 1:], expected.detach(), atol=1e-5, rtol=1e-3)
    assert found.abs().max() > 1e-3


def test_a_head_further_on_is_reached_through_the_layers_between():
    """By the gradient of the head's share, patterns and norms as constants."""
    lab = make_lab(layers=(0, 3))
    heads = Heads(lab)
    task = make_task(tiny_tokenizer())
    found = through_head(heads, task, 2, 0, sae_layer=0)
    run = heads.run(task.clean, track=True)
    out = run.attention[2].out
    [g] = torch.autograd.grad(run.logit_diff(task).sum(), out, retain_graph=True)
    g = g[:, 0, -1]
    f = encode(lab.saes[0], run.resid[1].detach())
    latent = int(f[:, 1].sum(0).argmax())
    changes = {
        (layer, "pattern"): lambda part, layer=layer: run.attention[layer].pattern.detach()
        for layer in range(4)
    }
    with norms_frozen(lab.stack):
        x = run.resid[1].detach().requires_grad_()
        here = heads.run(x, layer=1, changes=changes, track=True)
        share = (here.attention[2].out[:, 0, -1] * g.detach()).sum()
        [gradient] = torch.autograd.grad(share, x)
    direction = lab.saes[0].W_dec[latent]
    expected = f[:, 1, latent] * (gradient[:, 1] @ direction)
    torch.testing.assert_close(found[:, 2, latent], expected.detach(), atol=1e-5, rtol=1e-3)
    assert found[:, 2, latent].abs().max() > 1e-4


def test_what_cannot_be_traced_is_refused(heads, task):
    with pytest.raises(ValueError, match="no such SAE before layer 1"):
        through_head(heads, task, 1, 0)
    with pytest.raises(ValueError, match="BOS"):
        trace_heads(heads, task, position=-6)
