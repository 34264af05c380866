"""Running layer by layer equals the model itself; what cannot be run so is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_hf_model
from torch import nn

from course_utils.circuits.saes import decode, encode, narrow_sae
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.layers import LayerError, LayerStack

BOS = 1


def prompts(n: int, seq: int) -> torch.Tensor:
    tokens = torch.randint(2, 100, (n, seq), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = BOS
    return tokens


@pytest.mark.parametrize("bos", [BOS, None])
@pytest.mark.parametrize("seq", [2, 9])
def test_layer_by_layer_gives_the_models_logits(any_lab, bos, seq):
    """Nine tokens are more than Gemma's sliding window here (4) holds."""
    stack, tokens = LayerStack(any_lab.hf_model, bos), prompts(5, seq)
    with torch.no_grad():
        x = stack.run(stack.embed(tokens), range(2))
        x = stack.run(x, range(2, stack.n_layers))
        normed = stack.norm(x[:, -1], x.shape[1])
        expected = any_lab.hf_model(tokens).logits[:, -1]
    assert x.shape[1] == seq - (bos is not None)
    torch.testing.assert_close(stack.logits(normed), expected, atol=2e-5, rtol=1e-4)
    answers = torch.arange(5) + 3
    torch.testing.assert_close(
        stack.logits_of(normed, answers), expected[torch.arange(5), answers], atol=2e-5, rtol=1e-4
    )


def test_the_cached_bos_stays_as_it_is_for_batches_of_any_size(lab):
    stack = LayerStack(lab.hf_model, BOS)
    before = [layer.keys.clone() for layer in stack._bos_cache.layers]
    with torch.no_grad():
        whole = stack.run(stack.embed(prompts(6, 5)), range(4))
        pieces = torch.cat(
            [stack.run(stack.embed(piece), range(4)) for piece in prompts(6, 5).split([1, 3, 2])]
        )
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-5)
    assert all(
        torch.equal(layer.keys, old) and layer.get_seq_length() == 1
        for layer, old in zip(stack._bos_cache.layers, before)
    )


def test_gradients_equal_those_of_a_hook_on_the_model(lab):
    stack, tokens = LayerStack(lab.hf_model, BOS), prompts(3, 6)
    with torch.no_grad():
        x = stack.run(stack.embed(tokens), range(2))
    point = x.clone().requires_grad_()
    normed = stack.norm(stack.run(point, range(2, 4))[:, -1], 5)
    found = torch.autograd.grad(stack.logits_of(normed, torch.tensor([3, 4, 5])).sum(), point)[0]

    there = x.clone().requires_grad_()
    handle = lab.hf_model.model.layers[2].register_forward_pre_hook(
        lambda module, args: (torch.cat([args[0][:, :1], there], dim=1),)
    )
    try:
        logits = lab.hf_model(tokens).logits[:, -1]
    finally:
        handle.remove()
    expected = torch.autograd.grad(logits[torch.arange(3), torch.tensor([3, 4, 5])].sum(), there)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_model_that_does_something_else_to_its_logits_is_refused(lab):
    class Scaled(type(lab.hf_model)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 3
            return out

    torch.manual_seed(0)
    model = Scaled(lab.hf_model.config).eval().requires_grad_(False)
    with pytest.raises(LayerError, match="Scaled.*% away from its own"):
        LayerStack(model, BOS).run(torch.randn(1, 4, 16), range(1))


def test_a_model_without_an_unembedding_or_layers_is_refused(lab):
    with pytest.raises(LayerError, match="no unembedding"):
        LayerStack(lab.hf_model.model)
    headless = tiny_hf_model("llama", 60)
    headless.model.layers = nn.ModuleList(list(headless.model.layers)[:2])
    with pytest.raises(LayerError, match="one list of 4 layers, found 0"):
        LayerStack(headless)


def test_the_bridge_shares_its_weights_with_the_model(any_lab):
    """Hooks of one's own see the same model, and cost no second copy of it (but of fused matrices,
    which TransformerLens splits).
    """
    lab, tokens = any_lab, prompts(3, 6)
    assert lab.model is lab.model
    ours = {p.data_ptr() for p in lab.hf_model.parameters()}
    theirs = [p for p in lab.model.original_model.parameters() if p.ndim == 2]
    fused = 0 if lab.hf_model.config.model_type not in ("gpt2", "gpt_neox") else 3 * 4
    assert len(theirs) > 10 and sum(p.data_ptr() not in ours for p in theirs) <= fused
    assert not any(p.requires_grad for p in theirs)
    torch.testing.assert_close(lab.model(tokens), lab.hf_model(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_narrow_sae_is_the_sae_without_the_other_latents(lab):
    sae, keep, x = lab.saes[1], torch.tensor([3, 7, 20]), torch.randn(4, 5, 16)
    small, f = narrow_sae(sae, keep), encode(sae, x)
    torch.testing.assert_close(encode(small, x), f[..., keep])
    others = torch.zeros_like(f)
    others[..., keep] = f[..., keep]
    torch.testing.assert_close(
        decode(small, f[..., keep]), decode(sae, others), atol=1e-5, rtol=1e-5
    )


def test_a_spliced_model_narrowed_to_what_fires_is_the_same_model(any_lab, task):
    spliced, task = SplicedModel(any_lab), task[:1]
    run = spliced.run(task.clean)
    keep = {name: (f != 0).flatten(0, 1).any(0).nonzero()[:, 0] for name, f in run.latents.items()}
    assert any(len(at) < 24 for at in keep.values())
    torch.testing.assert_close(
        spliced.narrow(keep).logit_diff(task), spliced.logit_diff(task), atol=1e-5, rtol=1e-5
    )
    assert spliced.saes[spliced.hook_points[0]].cfg.d_sae == 24


def test_a_start_can_be_used_again_and_cut(lab, task):
    spliced = SplicedModel(lab, error="keep")
    start = spliced.prefix(task.clean)
    for _ in range(2):
        torch.testing.assert_close(
            spliced.logit_diff(task, start=start, batch_size=5),
            spliced.logit_diff(task),
            atol=1e-5,
            rtol=1e-5,
        )
    later = spliced.run(start).prefixes[spliced.hook_points[1]]
    assert later.layer == 3
    torch.testing.assert_close(
        spliced.run(later[2:4]).logits, spliced.run(task.clean[2:4]).logits, atol=1e-5, rtol=1e-5
    )


def test_the_batch_size_follows_memory_and_length(lab, monkeypatch):
    spliced = SplicedModel(lab)
    free = lambda gigabytes: monkeypatch.setattr(
        "psutil.virtual_memory", lambda: type("M", (), {"available": gigabytes * 1e9})
    )
    free(16)
    assert (
        spliced.batch_size(8) == 512
        and spliced.batch_size(16) == 256
        and spliced.batch_size(10**6) == 1
    )
    free(0.001)
    assert 1 < spliced.batch_size(8) < 512 and spliced.batch_size(
        8, gradient=True
    ) < spliced.batch_size(8)


def test_a_tokenizer_without_bos_is_said(lab):
    plain = replace(lab, tokenizer=SimpleNamespace(bos_token_id=None))
    with pytest.raises(ValueError, match="no BOS.*has_bos=False"):
        SplicedModel(plain)
