"""AtP of heads, its repairs, and the bound: against loops, exact patching and known answers."""

import pytest
import torch
from conftest import make_lab
from scipy.stats import ttest_ind
from transformer_lens.tools.analysis import attribution_patching as tl

from course_utils.circuits.atp_star import (
    drop_scores,
    effect_bound,
    head_atp,
    head_ig,
    of_nodes,
    patched_subsets,
)
from course_utils.circuits.backward import layers_dropped
from course_utils.circuits.heads import HeadNode, Heads, head_effects
from course_utils.circuits.splice import logit_diff


@pytest.fixture(scope="module")
def heads(lab) -> Heads:
    return Heads(lab)


def test_atp_of_outputs_is_transformer_lens_attribution_patching(task):
    """Theirs takes the gradient on the prompts that it calls corrupted, and its scores point away
    from them: what we call clean, and the other sign.
    """
    lab = make_lab()
    heads, some = Heads(lab), task[:3]
    lab.model.requires_grad_(True)  # theirs starts at the weights
    metric = iter([some[[i]] for i in range(3) for _ in range(2)])  # both runs of each pair
    result = tl.attribution_patch(
        lab.model,
        clean=some.patch,
        corrupt=some.clean,
        metric_fn=lambda logits: logit_diff(logits[:, -1], next(metric)).sum(),
    )
    found = head_atp(heads, some)["out"].mean(0)
    for layer in range(4):
        for head in range(2):
            for position in range(1, 6):
                theirs = result.node_scores[tl.Node("attn_head_out", position, layer, head)]
                assert abs(found[layer, head, position] + theirs) < 1e-4
    assert found.abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_the_qk_fix_is_the_gradient_after_the_softmax_times_the_patched_patterns_change(
    architecture, task
):
    """The patched pattern by patching a query, or a key, in a forward pass."""
    lab = make_lab(architecture)
    heads = Heads(lab)
    scores = head_atp(heads, task, qk_fix=True)
    clean, patch = heads.run(task.clean, track=True), heads.run(task.patch)
    layer, head, position = 2, 0, 5
    row = heads.row(HeadNode(layer, "query", head, position))
    [gradient] = torch.autograd.grad(
        clean.logit_diff(task).sum(), clean.attention[layer].pattern, retain_graph=True
    )

    def patched(part):
        part = part.clone()
        part[:, head, row] = patch.attention[layer].query[:, head, row]
        return part

    other = heads.run(clean.resid[layer].detach(), layer=layer, changes={(layer, "query"): patched})
    change = clean.attention[layer].pattern - other.attention[layer].pattern
    expected = (gradient * change).sum((1, 2, 3))
    torch.testing.assert_close(
        scores["query"][:, layer, head, position], expected.detach(), atol=1e-5, rtol=1e-3
    )
    key = HeadNode(layer, "key", 0, 2)
    other = heads.run(
        clean.resid[layer].detach(),
        layer=layer,
        changes={
            (layer, "key"): lambda part: _with_row(
                part, patch.attention[layer].key, key.head, heads.row(key)
            )
        },
    )
    change = clean.attention[layer].pattern - other.attention[layer].pattern
    expected = (gradient * change).sum((1, 2, 3))
    torch.testing.assert_close(
        scores["key"][:, layer, 0, 2], expected.detach(), atol=1e-5, rtol=1e-3
    )


def _with_row(part, source, head, row):
    part = part.clone()
    part[:, head, row] = source[:, head, row]
    return part


def test_grad_drop_is_the_mean_size_over_a_loop(heads, task):
    found = head_atp(heads, task, grad_drop=True)["out"]
    patch = heads.run(task.patch)
    expected = torch.zeros_like(found)
    for layer in range(4):
        with layers_dropped(heads.stack) as dropped:
            dropped.layer = layer
            clean = heads.run(task.clean, track=True)
            outs = [clean.attention[i].out for i in range(4)]
            gradients = torch.autograd.grad(
                clean.logit_diff(task).sum(), outs, allow_unused=True, retain_graph=True
            )
        for i, g in enumerate(gradients):
            if g is not None:
                change = (g * (outs[i] - patch.attention[i].out)).sum(-1)
                expected[:, i, :, 1:] += change.abs().detach() / 3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_a_node_gets_nothing_in_the_pass_that_drops_its_own_layer(heads, task):
    with layers_dropped(heads.stack) as dropped:
        clean = heads.run(task.clean, track=True)
        dropped.layer = 2
        [g] = torch.autograd.grad(
            clean.logit_diff(task).sum(), clean.attention[2].out, allow_unused=True
        )
    assert g is None or g.abs().max() == 0


def test_the_mean_size_of_the_passes_is_grad_drop(heads, task):
    nodes = heads.nodes("out", [2, 5])
    passes = drop_scores(heads, task, nodes)
    scores = head_atp(heads, task, grad_drop=True)["out"]
    expected = torch.stack([scores[:, n.layer, n.head, n.position] for n in nodes])
    torch.testing.assert_close(passes.abs().sum(0) / 3, expected, atol=1e-5, rtol=1e-3)
    with pytest.raises(ValueError, match="asked of outputs"):
        drop_scores(heads, task, heads.nodes("query", [5]))


def test_integrated_gradients_of_a_layer_add_up_to_patching_the_whole_layer(heads, task):
    """Completeness: Σ over heads and positions is LD(clean) − LD(all of the layer's outputs
    patched).
    """
    scores = head_ig(heads, task, "out", steps=64)
    clean, patch = heads.run(task.clean), heads.run(task.patch)
    for layer in (0, 2):
        other = heads.run(
            clean.resid[layer],
            layer=layer,
            changes={(layer, "out"): lambda part, layer=layer: patch.attention[layer].out},
        )
        expected = clean.logit_diff(task) - other.logit_diff(task)
        torch.testing.assert_close(scores[:, layer].sum((1, 2)), expected, atol=2e-3, rtol=2e-2)
    some = head_ig(heads, task, "out", steps=64, layers=[2])
    torch.testing.assert_close(some[:, 2], scores[:, 2])
    assert some[:, [0, 1, 3]].isnan().all()
    with pytest.raises(ValueError, match="one or more of 0 to 3"):
        head_ig(heads, task, "out", layers=[4])


def test_the_mean_of_sizes_is_no_smaller_than_the_size_of_the_mean(heads, task):
    scores = head_atp(heads, task)
    nodes = heads.nodes("out", [2, 5]) + heads.nodes("key", [2])
    sizes, signed = of_nodes(scores, nodes), of_nodes(scores, nodes, sizes=False)
    assert (sizes + 1e-7 >= signed.abs()).all() and (sizes > signed.abs() + 1e-4).any()


def test_relp_scores_outputs_and_leaves_queries_at_zero(heads, task):
    scores = head_atp(heads, task, rule="relp")
    assert scores["query"].abs().max() == 0 and scores["key"].abs().max() == 0
    assert scores["out"].abs().max() > 1e-3


def test_an_unknown_rule_is_refused(heads, task, wrong_types):
    with pytest.raises(ValueError, match="'gradient' or 'relp'"):
        head_atp(heads, task, rule="lrp")


def test_the_bound_holds_for_a_linear_toy_and_closes_on_the_largest_effect():
    """Effects that add up: the difference of means estimates each, and the bound is above all."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(20)
    truth[3], truth[11] = 2.0, -0.5
    patched = torch.rand(400, 20, generator=generator) < 0.5
    lds = 5 - patched.float() @ truth + 0.05 * torch.randn(400, generator=generator)
    bound = effect_bound(lds, patched)
    assert (bound.upper >= truth.abs()).all()
    assert abs(bound.effects[3] - 2) < 0.2 and 2 <= bound.largest < 2.6
    fewer = effect_bound(lds[:40], patched[:40])
    assert fewer.largest > bound.largest


def test_each_bound_is_welchs_interval_at_the_confidence_of_all_together():
    """By SciPy, for one node at a time, at 1 − 5 % / 20 nodes (Bonferroni)."""
    generator = torch.Generator().manual_seed(2)
    patched = torch.rand(60, 20, generator=generator) < 0.5
    lds = torch.randn(60, generator=generator) - 2 * patched[:, 4]
    bound = effect_bound(lds, patched)
    for node in (0, 4):
        with_it, without = lds[patched[:, node]].numpy(), lds[~patched[:, node]].numpy()
        test = ttest_ind(without, with_it, equal_var=False)
        ends = test.confidence_interval(confidence_level=1 - 0.05 / 20)
        assert bound.upper[node].item() == pytest.approx(max(abs(ends.low), abs(ends.high)), 1e-4)


def test_a_bound_needs_nodes_in_and_out_of_subsets():
    patched = torch.ones(10, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="draw more"):
        effect_bound(torch.randn(10), patched)


def test_subsets_are_patched_together(heads, task):
    """A subset of one node has that node's effect."""
    nodes = [HeadNode(2, "out", 1, 5), HeadNode(1, "query", 0, 2)]
    values, patched = patched_subsets(heads, task, nodes, subsets=12, seed=1)
    clean = heads.run(task.clean).logit_diff(task).mean()
    effects = head_effects(heads, task, nodes).mean(1)
    for value, row in zip(values, patched, strict=True):
        if row.sum() < 2:
            expected = clean - (effects[row].sum() if row.any() else 0)
            torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-3)
    assert {int(row.sum()) for row in patched} >= {0, 1, 2}
