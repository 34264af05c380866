"""Where latents fire and what they write, against the slow and plain way of finding out."""

import copy

import pytest
import torch
from conftest import make_lab
from hypothesis import given
from hypothesis import strategies as st

from course_utils.circuits.explain import (
    Context,
    contexts_by_layer,
    lens_difference,
    logit_lens,
    top_contexts,
)
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import Lab

HERE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def latents(lab, task):
    """``[n, seq, d_sae]``, the latents of layer 1 on the clean prompts; BOS' row is 0."""
    return SplicedModel(lab, [1], error="keep").run(task.clean).latents[HERE]


def context_by_hand(lab, tokens, values, *, skip, before, after):
    """What is around the largest value of one text, from its first token after BOS on."""
    peak = max(range(1 + skip, len(tokens)), key=lambda position: values[position])
    window = range(max(1, peak - before), min(len(tokens), peak + after + 1))
    words = [lab.tokenizer.convert_ids_to_tokens(int(tokens[position])) for position in window]
    return words, [float(values[position]) for position in window], window.index(peak)


# ---------------------------------------------------------------------------------------------
# Where latents fire
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize(("before", "after"), [(12, 3), (1, 0), (0, 2)])
def test_contexts_are_those_that_a_loop_over_texts_and_positions_finds(
    lab, task, latents, skip, before, after
):
    k, every = 4, list(reversed(range(latents.shape[-1])))
    settings = {"k": k, "before": before, "after": after, "skip": skip}
    contexts = contexts_by_layer(lab, {1: every}, task.clean, batch_size=5, **settings)
    peaks_that_skipping_moves = 0
    for latent in every:
        f = latents[..., latent]
        strongest = f[:, 1 + skip :].amax(1)
        rows = strongest.sort(descending=True, stable=True).indices.tolist()
        expected = [
            context_by_hand(lab, task.clean[i], f[i], skip=skip, before=before, after=after)
            for i in rows[:k]
            if strongest[i] > 0
        ]
        made = contexts[1, latent]
        assert [(c.tokens, c.peak) for c in made] == [(w, peak) for w, _, peak in expected]
        for context, (_, values, _) in zip(made, expected, strict=True):
            assert context.values == pytest.approx(values, rel=1e-4, abs=1e-5)
        peaks_that_skipping_moves += int((f[:, 1:].amax(1) > strongest).any())
    assert (peaks_that_skipping_moves > 3) == (skip > 0)  # so that the skipping is tested


def test_the_strongest_context_comes_first(lab, task, latents):
    latent = int(latents.amax((0, 1)).argmax())
    peaks = [c.values[c.peak] for c in top_contexts(lab, 1, [latent], task.clean, k=12)[latent]]
    assert len(peaks) > 3 and peaks == sorted(peaks, reverse=True)
    assert peaks[0] == pytest.approx(latents[..., latent].max().item(), rel=1e-4)


def test_contexts_by_layer_are_those_of_each_layer_by_itself(lab, task):
    wanted = {3: [5, 2], 1: [7]}
    contexts = contexts_by_layer(lab, wanted, task.clean, k=2, batch_size=5)
    assert set(contexts) == {(3, 5), (3, 2), (1, 7)}
    for layer, some in wanted.items():
        for latent, alone in top_contexts(lab, layer, some, task.clean, k=2).items():
            assert [c.tokens for c in contexts[layer, latent]] == [c.tokens for c in alone]
            for a, b in zip(contexts[layer, latent], alone, strict=True):
                assert a.values == pytest.approx(b.values, rel=1e-4, abs=1e-5)


def test_a_latent_that_never_fires_has_no_context(lab, task):
    silenced = copy.deepcopy(lab.saes[1])
    silenced.threshold.data[3] = 1e6
    quiet = Lab("quiet", lab.hf_model, lab.tokenizer, {1: silenced})
    assert top_contexts(quiet, 1, [3], task.clean) == {3: []}


def test_skipping_every_token_is_refused(lab, task):
    n_words = task.clean.shape[1] - 1
    contexts_by_layer(lab, {1: [0]}, task.clean, skip=n_words - 1)
    with pytest.raises(ValueError, match=f"texts of {n_words} tokens, and {n_words} of them"):
        contexts_by_layer(lab, {1: [0]}, task.clean, skip=n_words)


def test_without_a_bos_the_first_token_has_a_context_too(task):
    lab = make_lab("gpt2")
    tokenizer = copy.deepcopy(lab.tokenizer)
    tokenizer.bos_token = None
    without_bos = Lab("no bos", lab.hf_model, tokenizer, dict(lab.saes.items()))
    texts = task.clean[:, 1:]
    every = range(24)
    contexts = contexts_by_layer(without_bos, {1: every}, texts, k=3)
    spliced = SplicedModel(without_bos, [1], error="keep", has_bos=False)
    f = spliced.run(texts).latents[HERE]
    for latent in every:
        for context in contexts[1, latent]:
            assert len(context.tokens) == texts.shape[1] and context.tokens[0] == "The"
        if contexts[1, latent]:
            best = contexts[1, latent][0]
            assert best.values[best.peak] == pytest.approx(f[..., latent].max().item(), rel=1e-4)


def test_the_word_at_the_peak_is_put_together_from_its_pieces():
    tokens = [" the", " ca", "th", "ed", "rals", " (", "old", ")", "."]
    words = ["the", "cathedrals", "cathedrals", "cathedrals", "cathedrals", "(", "old", ")", "."]
    assert [Context(tokens, [1.0] * 9, peak).word for peak in range(9)] == words


@given(
    words=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=5),
    cuts=st.lists(st.booleans(), min_size=20, max_size=20),
    data=st.data(),
)
def test_any_piece_of_a_word_gives_the_word(words, cuts, data):
    tokens, word_of = [], []
    for word in words:
        pieces = [" " + word[0]]
        for letter in word[1:]:
            if cuts[len(tokens) + len(pieces) - 1]:
                pieces.append(letter)
            else:
                pieces[-1] += letter
        tokens += pieces
        word_of += [word] * len(pieces)
    peak = data.draw(st.integers(0, len(tokens) - 1))
    assert Context(tokens, [0.0] * len(tokens), peak).word == word_of[peak]


# ---------------------------------------------------------------------------------------------
# What latents write
# ---------------------------------------------------------------------------------------------


def lens_by_hand(lab, layer, latent):
    """The logits of one decoder row, by the modules of the Hugging Face model."""
    base = lab.hf_model.base_model
    names = ("norm", "ln_f", "final_layer_norm")
    norm = next(getattr(base, name) for name in names if hasattr(base, name))
    with torch.no_grad():
        row = lab.saes[layer].W_dec[latent][None]
        normed = norm(row) - norm(torch.zeros_like(row))
        logits = lab.hf_model.get_output_embeddings()(normed)[0]
    cap = getattr(lab.hf_model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


def test_the_logit_lens_is_the_unembedding_of_the_normed_decoder_row(any_lab):
    words = logit_lens(any_lab, 3, [5, 2], k=4)
    assert list(words) == [5, 2]
    for latent, found in words.items():
        logits = lens_by_hand(any_lab, 3, latent)
        decode = any_lab.tokenizer.decode
        assert found["promotes"] == [decode([i]) for i in logits.topk(4).indices.tolist()]
        assert found["suppresses"] == [decode([i]) for i in (-logits).topk(4).indices.tolist()]


@pytest.mark.parametrize(
    ("architecture", "norm"), [("gpt2", "ln_f"), ("gpt_neox", "final_layer_norm")]
)
def test_what_a_norm_with_a_bias_makes_of_nothing_is_taken_off(architecture, norm):
    lab = make_lab(architecture)
    layer_norm = getattr(lab.hf_model.base_model, norm)
    pairs = [(" are", " is"), (" were", " was")]
    without_bias = lens_difference(lab, 3, [4, 7], pairs)
    words = logit_lens(lab, 3, [4, 7])
    torch.manual_seed(1)
    with torch.no_grad():
        layer_norm.bias.copy_(5 * torch.randn_like(layer_norm.bias))
    torch.testing.assert_close(
        lens_difference(lab, 3, [4, 7], pairs), without_bias, rtol=1e-3, atol=1e-4
    )
    assert logit_lens(lab, 3, [4, 7]) == words


def test_a_latent_that_writes_nothing_promotes_no_token_over_another():
    lab = make_lab("gpt2")
    with torch.no_grad():
        lab.saes[3].W_dec[4] = 0
        lab.hf_model.base_model.ln_f.bias.fill_(1.0)
    assert lens_difference(lab, 3, [4], [(" are", " is"), (" near", " by")]).item() == 0


def test_the_lens_difference_is_the_mean_difference_of_two_logits(any_lab):
    ids = {
        text: any_lab.tokenizer(text, add_special_tokens=False)["input_ids"][0]
        for text in (" are", " is", " were", " was")
    }
    differences = lens_difference(any_lab, 3, [4, 9], [(" are", " is"), (" were", " was")])
    assert differences.shape == (2,) and not differences.requires_grad
    for latent, difference in zip([4, 9], differences, strict=True):
        logits = {text: lens_by_hand(any_lab, 3, latent)[i] for text, i in ids.items()}
        are, were = logits[" are"] - logits[" is"], logits[" were"] - logits[" was"]
        torch.testing.assert_close(difference, (are + were) / 2, rtol=1e-4, atol=1e-5)


def test_the_lens_difference_wants_single_tokens(lab):
    with pytest.raises(ValueError, match="is 2 tokens"):
        lens_difference(lab, 3, [4], [(" are is", " was")])
