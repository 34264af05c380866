"""The forward pass stays what it is; the way back follows the rules."""

import pytest
import torch
from conftest import make_lab
from torch import nn

from course_utils.circuits.backward import (
    frozen_patterns,
    layers_dropped,
    norm_factor,
    norms_frozen,
    patterns_frozen,
    relevance,
)
from course_utils.circuits.heads import Heads
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.catalog import LabError
from course_utils.labs.lab import Lab


def gradient(lab: Lab, task, *, rules=None, start=0):
    """LD, x and ∂LD/∂x where x is what layer ``start`` reads."""
    stack = lab.stack
    x = stack.run(stack.embed(task.clean), range(start)).detach().requires_grad_()
    normed = stack.finish(x, start - 1)
    clean = stack.logits_of(normed, task.clean_answers)
    ld = clean - stack.logits_of(normed, task.patch_answers)
    return ld.detach(), x.detach(), torch.autograd.grad(ld.sum(), x)[0]


@pytest.mark.parametrize("rule", [layers_dropped, norms_frozen, patterns_frozen, relevance])
def test_the_forward_pass_is_the_same_inside(lab, task, rule):
    before, _, usual = gradient(lab, task)
    with rule(lab.stack):
        inside, _, ruled = gradient(lab, task)
    after, _, again = gradient(lab, task)
    torch.testing.assert_close(inside, before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again, usual, atol=1e-6, rtol=1e-5)
    if rule is not layers_dropped:  # which drops none until it is told to
        assert (ruled - usual).abs().max() > 1e-2


def test_a_dropped_layer_passes_back_its_skip_connection_alone(lab, task):
    """By a loop that detaches what the layer writes."""
    stack = lab.stack
    for dropped_layer in range(4):
        with layers_dropped(stack) as dropped:
            dropped.layer = dropped_layer
            _, _, found = gradient(lab, task)
        x = stack.embed(task.clean).detach().requires_grad_()
        h = x
        for layer in range(4):
            out = stack.run(h, range(layer, layer + 1))
            h = h + (out - h).detach() if layer == dropped_layer else out
        normed = stack.finish(h, 3)
        ld = stack.logits_of(normed, task.clean_answers) - stack.logits_of(
            normed, task.patch_answers
        )
        [expected] = torch.autograd.grad(ld.sum(), x)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_layers_can_be_dropped_in_turn_on_one_graph(spliced, task):
    with layers_dropped(spliced.stack) as dropped:
        run = spliced.run(task.clean, track_latents=True)
        first = next(iter(run.latents.values()))
        found = []
        for dropped.layer in (None, 2, 3, None):
            [g] = torch.autograd.grad(run.logit_diff(task).sum(), first, retain_graph=True)
            found.append(g)
    torch.testing.assert_close(found[0], found[3])
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert (found[1] - found[2]).abs().max() > 1e-3


def test_relevance_is_conserved_from_layer_to_layer(task):
    """Without biases and without BOS, Σ x · ∂LD/∂x is the logit difference at every layer; the
    usual gradient's is not.
    """
    plain = SplicedModel(make_lab(), has_bos=False)  # a stack in which BOS is a token like others
    with relevance(plain.stack):
        for start in range(4):
            x = plain.stack.run(plain.stack.embed(task.clean), range(start)).detach()
            x.requires_grad_()
            normed = plain.stack.finish(x, start - 1)
            ld = plain.stack.logits_of(normed, task.clean_answers)
            ld = ld - plain.stack.logits_of(normed, task.patch_answers)
            [g] = torch.autograd.grad(ld.sum(), x)
            torch.testing.assert_close((g * x).sum((1, 2)), ld, atol=1e-4, rtol=1e-3)
    x = plain.stack.embed(task.clean).detach().requires_grad_()
    ld = plain.stack.logits_of(plain.stack.finish(x, -1), task.clean_answers)
    [g] = torch.autograd.grad(ld.sum(), x)
    assert ((g * x).sum((1, 2)) - ld).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen3"])
def test_a_norm_is_its_factor_times_the_stream(architecture, task):
    lab = make_lab(architecture)
    x = lab.stack.embed(task.clean)
    norm = lab.stack.final_norm
    torch.testing.assert_close(norm_factor(norm, x) * x, norm(x), atol=1e-4, rtol=1e-3)


def test_a_layer_norm_is_its_factor_times_the_centred_stream():
    norm, x = nn.LayerNorm(6, bias=False), torch.randn(3, 6)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(norm_factor(norm, x) * centred, norm(x), atol=1e-5, rtol=1e-4)


def test_a_frozen_norm_has_the_gradient_of_a_product_with_its_factor(lab, task):
    norm = lab.stack.final_norm
    x = lab.stack.embed(task.clean)[:, -1].clone().requires_grad_()
    with norms_frozen(lab.stack):
        y = norm(x)
    [g] = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g, norm_factor(norm, x.detach()), atol=1e-4, rtol=1e-3)


def test_relevance_refuses_mlps_that_it_does_not_know():
    lab = make_lab("gpt2")
    with pytest.raises(LabError, match="act_fn and one down_proj per layer"):
        with relevance(lab.stack):
            pass


def test_with_relevance_heads_and_the_stack_agree(lab, task):
    """The rules inside `Heads.run` are those around a plain pass."""
    heads = Heads(lab)
    with relevance(lab.stack):
        _, _, expected = gradient(lab, task)
    with relevance(lab.stack, patterns=False):
        run = heads.run(task.clean, changes=frozen_patterns(4), track=True)
        [found] = torch.autograd.grad(run.logit_diff(task).sum(), run.resid[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
