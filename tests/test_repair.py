"""Direct, frozen and total effects: against patching by hand; the parts add up."""

import pytest
import torch

from course_utils.circuits.heads import Heads
from course_utils.circuits.repair import RepairBench, share_of
from course_utils.circuits.saes import encode


@pytest.fixture(scope="module")
def bench(lab) -> RepairBench:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 60, (5, 9), generator=generator)
    tokens[:, 0] = 1
    return RepairBench(Heads(lab), tokens)


def centred_logits(lab, tokens, hook=None):
    logits = lab.model.run_with_hooks(tokens, fwd_hooks=[hook] if hook else [])
    logits = logits - logits.mean(-1, keepdim=True)
    return logits[:, 1:-1].gather(-1, tokens[:, 2:, None])[..., 0]


@pytest.mark.parametrize("layer, head", [(0, 1), (2, 0), (3, 1)])
def test_the_total_effect_is_that_of_a_hook_that_mean_ablates(lab, bench, layer, head):
    def ablate(z, hook):
        z = z.clone()
        z[:, 1:, head] = z[:, 1:, head].mean((0, 1))
        return z

    before = centred_logits(lab, bench.tokens)
    after = centred_logits(lab, bench.tokens, (f"blocks.{layer}.attn.hook_z", ablate))
    found = bench.ablate_head(layer, head)
    torch.testing.assert_close(found.total, before - after, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layer, head", [(0, 1), (2, 0), (3, 1)])
def test_direct_effect_and_what_later_parts_write_differently_make_the_frozen_effect(
    bench, layer, head
):
    """frozen = direct + falls of later heads and MLPs; with the norm, the total."""
    found = bench.ablate_head(layer, head)
    later = found.later_heads.sum((-1, -2)) + found.later_mlps.sum(-1)
    torch.testing.assert_close(found.frozen, found.direct + later, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.by_norm + found.by_later_layers, found.repaired)
    direct = bench.direct_effects_of_heads(layer)[head]
    torch.testing.assert_close(direct, found.direct, atol=1e-5, rtol=1e-4)


def test_in_the_last_layer_only_its_own_mlp_and_the_norm_can_repair(bench):
    found = bench.ablate_head(3, 0)
    assert found.later_heads.abs().max() == 0
    assert found.later_mlps[..., :3].abs().max() == 0 and found.later_mlps[..., 3].abs().max() > 0


def test_a_latent_that_is_taken_out_after_a_layer(lab, bench):
    sae = lab.saes[1]
    f = encode(sae, bench.run.resid[2])
    latent = int(f.sum((0, 1)).argmax())
    written = f[..., latent, None] * sae.W_dec[latent]
    found = bench.ablate_written(1, written)

    def take_out(x, hook):
        return torch.cat([x[:, :1], x[:, 1:] - written], dim=1)

    before = centred_logits(lab, bench.tokens)
    after = centred_logits(lab, bench.tokens, ("blocks.1.hook_resid_post", take_out))
    torch.testing.assert_close(found.total, before - after, atol=1e-4, rtol=1e-3)
    later = found.later_heads.sum((-1, -2)) + found.later_mlps.sum(-1)
    torch.testing.assert_close(found.frozen, found.direct + later, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="no layer left"):
        bench.ablate_written(3, written)


def test_the_largest_tokens_are_that_share_of_all(bench):
    found = bench.ablate_head(2, 0)
    chosen = found.largest(0.2)
    assert chosen.sum() == round(0.2 * chosen.numel())
    assert found.direct[chosen].min() >= found.direct[~chosen].max()


def test_a_share_is_of_sums_and_has_an_interval(bench):
    part, whole = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 3.0])
    found = share_of(part, whole)
    assert found.value == pytest.approx(0.5) and found.low < 0.5 < found.high
