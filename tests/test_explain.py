"""Where latents fire, what they write and what forcing them does, against the slow and plain way of
finding out.
"""

import copy
import math

import pytest
import torch

from course_utils.circuits.explain import (
    Context,
    contexts_by_layer,
    lens_difference,
    logit_lens,
    top_contexts,
)
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import auc
from course_utils.labs.lab import Lab

HERE = "blocks.1.hook_resid_post"


def test_top_contexts_are_those_where_the_latent_is_largest(lab, task):
    f = SplicedModel(lab, [1], error="keep").run(task.clean).latents[HERE]  # [n, seq, d_sae], BOS 0
    latent = int(f.amax((0, 1)).argmax())
    contexts = top_contexts(lab, 1, [latent], task.clean, k=3)[latent]
    expected = f[..., latent].amax(1).sort(descending=True).values[:3]
    torch.testing.assert_close(
        torch.tensor([context.values[context.peak] for context in contexts]), expected
    )
    assert all(len(context.tokens) == len(context.values) <= 16 for context in contexts)
    assert all(context.values[context.peak] == max(context.values) for context in contexts)


def test_a_latent_that_never_fires_has_no_context(lab, task):
    silenced = copy.deepcopy(lab.saes[1])
    silenced.threshold.data[3] = 1e6
    quiet = Lab("quiet", lab.hf_model, lab.tokenizer, {1: silenced})
    assert top_contexts(quiet, 1, [3], task.clean) == {3: []}


def test_the_logit_lens_is_the_unembedding_of_the_normed_decoder_row(any_lab):
    sae, model = any_lab.saes[3], any_lab.hf_model
    found = logit_lens(any_lab, 3, [5], k=4)[5]
    base = model.base_model
    norm = next(
        getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name)
    )
    with torch.no_grad():
        row = sae.W_dec[5][None]
        logits = model.get_output_embeddings()(norm(row) - norm(torch.zeros_like(row)))[0]
    assert found["promotes"] == [
        any_lab.tokenizer.decode([i]) for i in logits.topk(4).indices.tolist()
    ]
    assert found["suppresses"] == [
        any_lab.tokenizer.decode([i]) for i in (-logits).topk(4).indices.tolist()
    ]


def test_contexts_by_layer_are_those_of_each_layer_by_itself(lab, task):
    wanted = {3: [2, 5], 1: [7]}
    found = contexts_by_layer(lab, wanted, task.clean, k=2, batch_size=5)
    for layer, latents in wanted.items():
        for latent, contexts in top_contexts(lab, layer, latents, task.clean, k=2).items():
            assert [context.tokens for context in found[layer, latent]] == [
                context.tokens for context in contexts
            ]
            for a, b in zip(found[layer, latent], contexts):
                torch.testing.assert_close(
                    torch.tensor(a.values), torch.tensor(b.values), rtol=1e-4, atol=1e-5
                )


def test_contexts_do_not_peak_at_the_tokens_that_are_skipped(lab, task):
    f = SplicedModel(lab, [1], error="keep").run(task.clean).latents[HERE][:, 1:]
    latent = int(f[:, 2:].amax((0, 1)).argmax())
    [best, *_] = contexts_by_layer(lab, {1: [latent]}, task.clean, skip=2)[1, latent]
    assert best.peak >= 2 and best.values[best.peak] == pytest.approx(
        f[:, 2:, latent].max().item(), rel=1e-4
    )


def test_the_word_at_the_peak_is_put_together_from_its_pieces():
    tokens = [" the", " ca", "th", "ed", "rals", " (", "old", ")", "."]
    assert [Context(tokens, [1.0] * 9, peak).word for peak in (0, 2, 4, 6, 8)] == [
        "the",
        "cathedrals",
        "cathedrals",
        "old",
        ".",
    ]


def test_the_lens_difference_is_the_difference_of_two_logits(lab):
    model, row = lab.hf_model, lab.saes[3].W_dec[[4]]
    with torch.no_grad():
        logits = model.get_output_embeddings()(model.base_model.norm(row))[0]
    ids = {
        text: lab.tokenizer(text, add_special_tokens=False)["input_ids"][0]
        for text in (" are", " is", " were", " was")
    }
    by_hand = (
        logits[ids[" are"]] - logits[ids[" is"]] + logits[ids[" were"]] - logits[ids[" was"]]
    ) / 2
    torch.testing.assert_close(
        lens_difference(lab, 3, [4], [(" are", " is"), (" were", " was")])[0], by_hand
    )
    with pytest.raises(ValueError, match="is 2 tokens"):
        lens_difference(lab, 3, [4], [(" are is", " was")])


def test_separation_counts_pairs_by_hand():
    values, yes = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert auc(values, yes) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert auc(values, torch.tensor([True, False, True, False])) == 1
    assert math.isnan(auc(values, torch.ones(4, dtype=torch.bool)))
