"""Heads are seen as the model has them, and patching one is what TransformerLens' patching is."""

import pytest
import torch
from conftest import make_lab, make_task, tiny_tokenizer
from transformer_lens import patching

from course_utils.circuits.heads import (
    HeadNode,
    Heads,
    attending,
    blend,
    effect_with_layer_held,
    head_effects,
)
from course_utils.circuits.splice import logit_diff
from course_utils.labs.catalog import LabError
from course_utils.prompts.tasks import Task


@pytest.fixture(scope="module")
def heads(lab) -> Heads:
    return Heads(lab)


def test_every_architecture_is_seen_as_it_is_or_refused_by_name(any_lab):
    """The logits are the model's own, and outputs through W_O are what attention writes."""
    heads = Heads(any_lab)
    tokens = make_task(tiny_tokenizer()).clean
    run = heads.run(tokens)
    expected = any_lab.hf_model(tokens).logits[:, -1]
    torch.testing.assert_close(run.logits, expected, atol=2e-5, rtol=1e-4)
    for layer in range(heads.n_layers):
        seen = run.attention[layer]
        torch.testing.assert_close(seen.pattern.sum(-1), torch.ones(seen.pattern.shape[:-1]))
    if any_lab.name == "tiny-gpt2":
        with pytest.raises(LabError, match="GPT2LMHeadModel has no o_proj"):
            heads.W_O(0)


def test_nothing_of_the_attention_function_stays_behind(lab, task):
    before = lab.hf_model.config._attn_implementation
    own = lab.hf_model(task.clean).logits
    with attending(lab.stack), pytest.raises(RuntimeError, match="in place already"):
        with attending(lab.stack):
            pass
    assert lab.hf_model.config._attn_implementation == before
    torch.testing.assert_close(lab.hf_model(task.clean).logits, own)


def test_masks_that_are_recorded_inside_fit_the_models_own_attention():
    """Prompts of a length that was never run before, met first with the heads open."""
    lab = make_lab()
    tokens = make_task(tiny_tokenizer()).clean[:, :5]
    with attending(lab.stack):
        lab.stack.finish(lab.stack.embed(tokens), after=-1)
    x = lab.stack.finish(lab.stack.embed(tokens), after=-1)
    expected = lab.hf_model(tokens).logits[:, -1]
    torch.testing.assert_close(lab.stack.logits(x), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_what_a_head_writes_is_its_output_through_W_O(architecture, task):
    lab = make_lab(architecture)
    heads = Heads(lab)
    caught = {}

    def note(module, args, output):
        caught["attention"] = output[0]

    handle = lab.stack.layers[1].self_attn.register_forward_hook(note)
    try:
        run = heads.run(task.clean)
    finally:
        handle.remove()
    written = torch.einsum("bhsd,hdm->bsm", run.attention[1].out, heads.W_O(1))
    torch.testing.assert_close(written, caught["attention"], atol=1e-5, rtol=1e-4)


def test_values_are_the_normed_stream_through_W_V(lab, heads, task):
    run = heads.run(task.clean)
    normed = lab.stack.layers[2].input_layernorm(run.resid[2])
    values = torch.einsum("bsm,hmd->bhsd", normed, heads.W_V(2))
    torch.testing.assert_close(run.attention[2].value[:, :, 1:], values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["out", "query", "key", "value"])
def test_an_effect_is_that_of_transformer_lens_patching(lab, heads, task, kind):
    """By TransformerLens' own patching function for outputs; by its hooks for the others (keys and
    queries are patched after the rotation here, and a rotation at one position commutes with it).
    """
    nodes = [HeadNode(2, kind, 0, 4), HeadNode(1, kind, 0, 2), HeadNode(3, kind, 0, 5)]
    effects = head_effects(heads, task, nodes)
    clean_ld = logit_diff(lab.model(task.clean)[:, -1], task)
    for node, effect in zip(nodes, effects, strict=True):
        name = f"blocks.{node.layer}.attn.hook_{'z' if kind == 'out' else kind[0]}"
        _, cache = lab.model.run_with_cache(task.patch, names_filter=name)

        def patch(part, hook, node=node, cache=cache):
            part = part.clone()
            part[:, node.position, node.head] = cache[hook.name][:, node.position, node.head]
            return part

        logits = lab.model.run_with_hooks(task.clean, fwd_hooks=[(name, patch)])
        expected = clean_ld - logit_diff(logits[:, -1], task)
        torch.testing.assert_close(effect, expected, atol=1e-4, rtol=1e-3)
    if kind == "out":
        _, cache = lab.model.run_with_cache(task.patch)
        table = patching.get_act_patch_attn_head_out_by_pos(
            lab.model, task.clean, cache, lambda logits: logit_diff(logits[:, -1], task).mean()
        )
        for node, effect in zip(nodes, effects.mean(1), strict=True):
            expected = clean_ld.mean() - table[node.layer, node.position, node.head]
            assert abs(effect - expected) < 1e-4


def test_an_effect_does_not_depend_on_how_nodes_and_prompts_are_batched(heads, task):
    nodes = heads.nodes("out", [2, 5]) + heads.nodes("query", [5]) + heads.nodes("key", [2])
    whole = head_effects(heads, task, nodes)
    pieces = head_effects(heads, task, nodes, batch_size=5, rows_at_once=7)
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-4)
    assert whole.abs().max() > 1e-3


def test_patching_every_head_at_once_is_not_needed_where_prompts_are_the_same(heads, task):
    same = Task(**{**vars(task), "patch": task.clean})
    assert head_effects(heads, same, heads.nodes("out", [5])).abs().max() < 1e-5


@pytest.mark.parametrize(
    "node, says",
    [
        (HeadNode(9, "out", 0, 2), "layers 0 to 3"),
        (HeadNode(1, "key", 1, 2), "1 sets of keys"),
        (HeadNode(1, "out", 0, 0), "BOS is the same"),
    ],
)
def test_a_node_that_is_not_there_is_refused(heads, task, node, says):
    with pytest.raises(ValueError, match=says):
        head_effects(heads, task, [node])


def test_padded_prompts_are_refused(heads, task):
    padded = Task(**{**vars(task), "lengths": torch.full((len(task),), 6)})
    with pytest.raises(ValueError, match="without pad=True"):
        head_effects(heads, padded, [HeadNode(1, "out", 0, 2)])


@pytest.mark.parametrize("kind", ["out", "query", "key"])
def test_a_blend_leads_from_the_clean_to_the_patched_logit_difference(heads, task, kind):
    node = HeadNode(2, kind, 0, 5)
    patterns, lds = blend(heads, task, node, torch.tensor([0.0, 0.5, 1.0]))
    clean = heads.run(task.clean)
    torch.testing.assert_close(lds[0], clean.logit_diff(task))
    torch.testing.assert_close(patterns[0], clean.attention[2].pattern[:, :, -1])
    effect = head_effects(heads, task, [node])[0]
    torch.testing.assert_close(lds[0] - lds[2], effect, atol=1e-5, rtol=1e-4)


def test_with_the_layer_held_only_the_other_paths_are_left(heads, task):
    """A node of the last layer but one, the last layer held: what is left is its direct path."""
    node = HeadNode(2, "out", 1, 5)
    effect = effect_with_layer_held(heads, task, node, 3)
    clean, patch = heads.run(task.clean), heads.run(task.patch)
    out = clean.attention[2].out.clone()
    out[:, 1, 4] = patch.attention[2].out[:, 1, 4]
    x = heads.run(clean.resid[2], layer=2, changes={(2, "out"): lambda _: out}).resid[3]
    final = x + clean.resid[4] - clean.resid[3]
    normed = heads.stack.norm(final[:, -1])
    left = heads.stack.logits_of(normed, task.clean_answers) - heads.stack.logits_of(
        normed, task.patch_answers
    )
    torch.testing.assert_close(effect, clean.logit_diff(task) - left, atol=1e-5, rtol=1e-4)
    whole = head_effects(heads, task, [node])[0]
    assert (whole - effect).abs().max() > 1e-3
    with pytest.raises(ValueError, match="not behind layer 2"):
        effect_with_layer_held(heads, task, node, 2)
