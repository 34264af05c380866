"""Where latents fire, what they write and what forcing them does, against the slow and plain way of finding out."""

import copy

import pytest
import torch

from course_utils.explain import force, forced_logit_diff, logit_lens, top_contexts
from course_utils.labs import Lab
from course_utils.splice import SplicedModel

HERE = "blocks.1.hook_resid_post"


def test_top_contexts_are_those_where_the_latent_is_largest(lab, task):
    f = SplicedModel(lab, [1], error="keep").run(task.clean).latents[HERE]  # [n, seq, d_sae], BOS 0
    latent = int(f.amax((0, 1)).argmax())
    contexts = top_contexts(lab, 1, [latent], task.clean, k=3)[latent]
    expected = f[..., latent].amax(1).sort(descending=True).values[:3]
    torch.testing.assert_close(torch.tensor([context.values[context.peak] for context in contexts]), expected)
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
    norm = next(getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name))
    with torch.no_grad():
        row = sae.W_dec[5][None]
        logits = model.get_output_embeddings()(norm(row) - norm(torch.zeros_like(row)))[0]
    assert found["promotes"] == [any_lab.tokenizer.decode([i]) for i in logits.topk(4).indices.tolist()]
    assert found["suppresses"] == [any_lab.tokenizer.decode([i]) for i in (-logits).topk(4).indices.tolist()]


def test_forcing_the_values_that_are_there_changes_nothing(lab, task):
    spliced = SplicedModel(lab)
    run = spliced.run(task.clean)
    values = {(name, 3, 5): f[:, 3, 5] for name, f in run.latents.items()}
    torch.testing.assert_close(forced_logit_diff(spliced, task, values), run.logit_diff(task))


def test_what_is_forced_upstream_is_seen_downstream(lab, task):
    spliced = SplicedModel(lab)
    first, last = spliced.hook_points
    run = force(spliced, task.clean, {(first, 2, 7): 3.0, (last, 4, 1): 2.0})
    plain = spliced.run(task.clean)
    assert (run.latents[first][:, 2, 7] == 3).all() and (run.latents[last][:, 4, 1] == 2).all()
    f = plain.latents[first].clone()
    f[:, 2, 7] = 3.0
    expected = spliced.run(task.clean, latents={first: f}).latents[last].clone()
    expected[:, 4, 1] = 2.0
    torch.testing.assert_close(run.latents[last], expected)


def test_forcing_a_node_that_is_not_spliced_is_refused(lab, task):
    with pytest.raises(ValueError, match="nothing is spliced at blocks.2.hook_resid_post; there is blocks.1"):
        force(SplicedModel(lab), task.clean, {("blocks.2.hook_resid_post", 1, 1): 0.0})
