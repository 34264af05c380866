"""The spliced forward pass, against identities and a plain second implementation."""

import pytest
import torch
from conftest import make_lab, tiny_sae
from sae_lens import TopKSAE, TopKSAEConfig

from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.circuits.saes import decode
from course_utils.circuits.splice import PatchMeans, SplicedModel, logit_diff
from course_utils.labs.lab import Lab, LabError, hook_point

POLICIES = ("drop", "mean", "keep")


def by_hand(lab, layers, tokens, masks=None, means=None, error="drop", first=1):
    """The spliced model with PyTorch's own hooks on the decoder layers, one prompt at a time."""
    layers_of_model = next(m for m in lab.hf_model.modules() if isinstance(m, torch.nn.ModuleList))
    logits = []
    for prompt in tokens:
        errors = {}
        if error == "keep":

            def record(layer, errors=errors):
                def hook(module, args, output):
                    x = output[0] if isinstance(output, tuple) else output
                    errors[layer] = x - lab.saes[layer].decode(lab.saes[layer].encode(x))

                return hook

            handles = [
                layers_of_model[layer].register_forward_hook(record(layer)) for layer in layers
            ]
            lab.hf_model(prompt[None])
            [handle.remove() for handle in handles]

        def replace(layer, errors=errors):
            def hook(module, args, output):
                x = output[0] if isinstance(output, tuple) else output
                new = x.clone()
                for position in range(first, x.shape[1]):
                    f = lab.saes[layer].encode(x[0, position])
                    if masks is not None:
                        mean = 0 if means is None else means.latents[hook_point(layer)][position]
                        f = mean + (f - mean) * masks[hook_point(layer)][position]
                    new[0, position] = lab.saes[layer].decode(f)
                    if error == "keep":
                        new[0, position] += errors[layer][0, position]
                    if error == "mean":
                        new[0, position] += means.errors[hook_point(layer)][position]
                return (new, *output[1:]) if isinstance(output, tuple) else new

            return hook

        handles = [layers_of_model[layer].register_forward_hook(replace(layer)) for layer in layers]
        logits.append(lab.hf_model(prompt[None]).logits[0, -1])
        [handle.remove() for handle in handles]
    return torch.stack(logits)


def random_masks(means: PatchMeans) -> SAEMasks:
    torch.manual_seed(1)
    return SAEMasks(list(means.latents), [torch.rand_like(f) for f in means.latents.values()])


@pytest.mark.parametrize("error", POLICIES)
def test_the_spliced_model_equals_a_loop_by_hand(any_lab, task, error):
    spliced = SplicedModel(any_lab, error=error)
    means = spliced.patch_means(task.patch)
    masks = random_masks(means)
    with torch.no_grad():
        fast = spliced.run(task.clean, masks=masks, means=means).logits
        slow = by_hand(any_lab, spliced.layers, task.clean, masks, means, error)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("error", POLICIES)
def test_all_ones_mask_equals_the_spliced_model(any_lab, task, error):
    spliced = SplicedModel(any_lab, error=error)
    means = spliced.patch_means(task.patch)
    ones = SAEMasks.full(means.latents, 1.0)
    with torch.no_grad():
        masked, whole = (
            spliced.run(task.clean, masks=ones, means=means).logits,
            spliced.run(task.clean, means=means).logits,
        )
    torch.testing.assert_close(masked, whole, atol=1e-5, rtol=1e-5)


def test_all_ones_mask_with_errors_kept_equals_the_model_itself(any_lab, task):
    spliced = SplicedModel(any_lab, error="keep")
    means = spliced.patch_means(task.patch)
    with torch.no_grad():
        kept = spliced.run(task.clean, masks=SAEMasks.full(means.latents, 1.0), means=means).logits
        model = any_lab.model(task.clean)[:, -1]
    torch.testing.assert_close(kept, model, atol=1e-4, rtol=1e-4)


def test_all_zeros_mask_gives_the_same_answer_to_every_prompt(any_lab, task):
    spliced = SplicedModel(any_lab)
    means = spliced.patch_means(task.patch)
    with torch.no_grad():
        logits = spliced.run(
            task.clean, masks=SAEMasks.full(means.latents, 0.0), means=means
        ).logits
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=1e-5, rtol=1e-5)
    assert (
        spliced.run(task.clean).logits[0] - spliced.run(task.clean).logits[1]
    ).abs().max() > 1e-3


def test_dropped_errors_change_the_model(any_lab, task):
    spliced = SplicedModel(any_lab, error="drop")
    assert (spliced.run(task.clean).logits - spliced.model_logits(task.clean)).abs().max() > 1e-2


def test_bos_is_left_alone(lab, task):
    """With the first token called BOS its residual stream passes; called an ordinary token, it does
    not.
    """
    with torch.no_grad():
        found = [
            SplicedModel(lab, has_bos=has_bos).run(task.clean).logits for has_bos in (True, False)
        ]
        expected = [by_hand(lab, [1, 3], task.clean, first=first) for first in (1, 0)]
    torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert SplicedModel(lab).run(task.clean).latents[hook_point(1)][:, 0].abs().max() == 0


def test_patch_means_are_means_over_all_prompts_whatever_the_batch_size(lab, task):
    spliced = SplicedModel(lab, error="mean")
    whole, pieces = spliced.patch_means(task.patch), spliced.patch_means(task.patch, batch_size=5)
    assert whole.n == pieces.n == len(task)
    name = hook_point(1)
    for batch in (whole, pieces):
        torch.testing.assert_close(
            batch.errors[name], spliced.errors(task.patch)[name].mean(0), atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(
            batch.latents[name],
            spliced.run(task.patch, means=whole).latents[name].mean(0),
            atol=1e-6,
            rtol=1e-5,
        )


def test_latents_put_in_take_the_place_of_the_saes_own(lab, task):
    spliced = SplicedModel(lab)
    with torch.no_grad():
        patch = spliced.run(task.patch)
        swapped = spliced.run(task.clean, latents={hook_point(1): patch.latents[hook_point(1)]})
    torch.testing.assert_close(swapped.logits, patch.logits, atol=1e-5, rtol=1e-5)


def test_gradients_reach_masks_at_every_hook_point(any_lab, task):
    spliced = SplicedModel(any_lab)
    means = spliced.patch_means(task.patch)
    masks = random_masks(means)
    for mask in masks.masks:
        mask.requires_grad_()
    logit_diff(spliced.run(task.clean, masks=masks, means=means).logits, task).sum().backward()
    assert all(
        mask.grad[1:].abs().sum() > 0 and mask.grad[0].abs().sum() == 0 for mask in masks.masks
    )


def test_logit_diff_is_clean_answer_minus_patch_answer(lab, task):
    logits = torch.randn(len(task), 50 + int(task.clean_answers.max()))
    expected = [
        logits[i, task.clean_answers[i]] - logits[i, task.patch_answers[i]]
        for i in range(len(task))
    ]
    torch.testing.assert_close(logit_diff(logits, task), torch.stack(expected))


def test_logit_differences_do_not_depend_on_the_batch_size(lab, task):
    spliced = SplicedModel(lab)
    torch.testing.assert_close(
        spliced.logit_diff(task), spliced.logit_diff(task, batch_size=5), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        spliced.model_logit_diff(task),
        logit_diff(lab.model(task.clean)[:, -1], task),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.usefixtures("wrong_types")
def test_bad_arguments_are_named(lab, task):
    with pytest.raises(LabError, match="layers: no SAE for layer 2.*1, 3"):
        SplicedModel(lab, layers=[1, 2])
    with pytest.raises(ValueError, match="error must be"):
        SplicedModel(lab, error="ignore")
    with pytest.raises(ValueError, match="means="):
        SplicedModel(lab, error="mean").run(task.clean)
    with pytest.raises(ValueError, match="column 0"):
        SplicedModel(lab).run(task.clean[:, 1:])
    assert SplicedModel(lab, has_bos=False).run(task.clean[:, 1:]).logits.isfinite().all()
    wrong = SAEMasks([hook_point(1), hook_point(3)], [torch.ones(9, 24)] * 2)
    with pytest.raises(MaskError, match=r"blocks\.1.*\[9, 24\].*\[6, 24\]"):
        SplicedModel(lab).run(task.clean, masks=wrong)


def test_a_lab_refuses_saes_that_do_not_fit():
    lab = make_lab()
    for sae, message in (
        (tiny_sae(d_in=20), "width 20.*16"),
        (tiny_sae().half(), "float16.*float32"),
    ):
        with pytest.raises(LabError, match=message):
            Lab("mine", lab.hf_model, lab.tokenizer, {1: sae})
    with pytest.raises(LabError, match="layers 0 to 3"):
        Lab("mine", lab.hf_model, lab.tokenizer, {4: tiny_sae()})


def test_in_bfloat16_masks_and_logit_differences_stay_float32(task):
    lab = make_lab()
    exact = SplicedModel(lab)
    means = exact.patch_means(task.patch)
    half = Lab(
        "half",
        lab.hf_model.to(torch.bfloat16),
        lab.tokenizer,
        {layer: sae.to(torch.bfloat16) for layer, sae in lab.saes.items()},
    )
    spliced = SplicedModel(half)
    theirs = spliced.patch_means(task.patch)
    masks = random_masks(theirs)
    for mask in masks.masks:
        mask.requires_grad_()
    found = spliced.run(task.clean, masks=masks, means=theirs).logit_diff(task)
    found.sum().backward()
    expected = SplicedModel(make_lab()).logit_diff(task, masks=masks, means=means)
    assert found.dtype == torch.float32 and all(
        f.dtype == torch.float32 for f in theirs.latents.values()
    )
    assert all(
        mask.grad.dtype == torch.float32 and mask.grad.isfinite().all() for mask in masks.masks
    )
    assert (found - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize("error", POLICIES)
def test_leaving_out_latents_that_do_not_fire_changes_no_number_and_no_gradient(task, error):
    """Without ``keep_latents``, SAEs are narrowed to what fires: here a third of the latents, and
    one that only the means have.
    """
    lab = make_lab()
    for sae in lab.saes.values():
        sae.threshold[8:] = 100
    spliced = SplicedModel(lab, error=error)
    means = spliced.patch_means(task.patch)
    means.latents[hook_point(3)][2, 20] = 1.0
    results = []
    for keep_latents in (True, False):
        masks = random_masks(means)
        for mask in masks.masks:
            mask.requires_grad_()
        run = spliced.run(task.clean, masks=masks, means=means, keep_latents=keep_latents)
        run.logit_diff(task).sum().backward()
        results.append((run, [mask.grad for mask in masks.masks]))
    (whole, expected), (small, found) = results
    assert whole.latents and not small.latents
    torch.testing.assert_close(small.logits, whole.logits, atol=1e-5, rtol=1e-5)
    for gradient, wanted in zip(found, expected):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
    assert expected[1][-1, :8].abs().sum() > 0 and (
        error == "keep" or expected[0][2].abs().sum() > 0
    )


def test_latents_can_be_given_as_a_function_of_what_is_found(lab, task):
    spliced = SplicedModel(lab)
    name = spliced.hook_points[0]
    doubled = spliced.run(task.clean, latents={name: lambda f: 2 * f})
    by_hand = spliced.run(task.clean, latents={name: 2 * spliced.run(task.clean).latents[name]})
    torch.testing.assert_close(doubled.normed, by_hand.normed)
    torch.testing.assert_close(doubled.latents[name], by_hand.latents[name])
    last = spliced.hook_points[-1]  # only the last position is computed there
    change = {last: lambda f: 2 * f}
    torch.testing.assert_close(
        spliced.run(task.clean, latents=change, keep_latents=False).normed,
        spliced.run(task.clean, latents=change).normed,
    )


@pytest.mark.parametrize("has_bos", [True, False])
def test_a_function_of_latents_sees_the_positions_of_the_tokens(lab, task, has_bos):
    """Row p belongs to column p of the tokens; BOS' row is 0, and what is put there is ignored."""
    spliced = SplicedModel(lab, has_bos=has_bos)
    name, seen = spliced.hook_points[0], []

    def look(f):
        seen.append(f.clone())
        f = f.clone()
        f[:, : spliced.first] = 100.0
        return f

    run = spliced.run(task.clean, latents={name: look})
    plain = spliced.run(task.clean)
    torch.testing.assert_close(seen[0], plain.latents[name])
    torch.testing.assert_close(run.latents[name], plain.latents[name])
    assert seen[0].shape[1] == task.seq_len and bool((seen[0][:, 0] == 0).all()) == has_bos


def test_outputs_put_in_take_the_place_of_what_the_sae_decodes(lab, task):
    spliced = SplicedModel(lab)
    name = spliced.hook_points[0]
    patch = spliced.run(task.patch)
    outputs = torch.full((len(task), task.seq_len, 16), 100.0)  # BOS' row is ignored
    outputs[:, 1:] = decode(lab.saes[1], patch.latents[name][:, 1:])
    swapped = spliced.run(task.clean, outputs={name: outputs})
    torch.testing.assert_close(swapped.logits, patch.logits, atol=1e-5, rtol=1e-5)


def test_padded_prompts_give_what_they_give_by_themselves(lab, task):
    """Through a prefix, which knows the lengths; at every SAE, with masks of [d_sae]."""
    spliced = SplicedModel(lab)
    lengths = torch.tensor([6, 4, 5])
    torch.manual_seed(0)
    masks = SAEMasks(spliced.hook_points, [torch.rand(24), torch.rand(24)])
    prefix = spliced.prefix(task.clean[:3], lengths=lengths)
    for keep_latents in (True, False):
        padded = spliced.run(prefix, masks=masks, keep_latents=keep_latents)
        for row, length in enumerate(lengths.tolist()):
            alone = spliced.run(task.clean[row : row + 1, :length], masks=masks)
            torch.testing.assert_close(padded.normed[row], alone.normed[0], atol=1e-5, rtol=1e-5)
    assert all((f[1, 4:] == 0).all() for f in spliced.run(prefix).latents.values())


def test_a_run_has_no_lengths_of_its_own_to_ignore(lab, task):
    """Lengths belong to the prefix; `run(prefix, lengths=…)` once ignored them."""
    with pytest.raises(TypeError, match="lengths"):
        SplicedModel(lab).run(task.clean, lengths=torch.tensor([4] * len(task)))


def test_errors_kept_are_those_of_the_clean_prompts_where_these_are_given(lab, task):
    spliced = SplicedModel(lab, error="keep")
    prefix = spliced.prefix(task.patch, clean_tokens=task.clean)
    for name, error in spliced.errors(task.clean).items():
        torch.testing.assert_close(prefix.errors[name], error[:, 1:], atol=1e-6, rtol=1e-5)


def test_a_spliced_model_without_saes_is_refused_at_once(lab):
    with pytest.raises(LabError, match=r"layers: none.*\[1, 3\]"):
        SplicedModel(lab, layers=[])


def test_a_topk_sae_is_not_narrowed_below_its_k(task):
    """Where fewer latents fire than k, there are no k to choose from among those that are left."""
    lab = make_lab()
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=24, k=6))
    with torch.no_grad():
        sae.b_enc[4:] = -100.0  # so that at most four fire
    saes = {1: tiny_sae(), 3: sae}  # gradients come to the TopK SAE from the mask before it
    spliced = SplicedModel(Lab("topk", lab.hf_model, lab.tokenizer, saes))
    means = spliced.patch_means(task.patch)
    masks = random_masks(means)
    masks[hook_point(1)].requires_grad_()
    whole = spliced.run(task.clean, masks=masks, means=means)
    assert 0 < int((whole.latents[hook_point(3)] != 0).flatten(0, 1).any(0).sum()) < 6
    narrow = spliced.run(task.clean, masks=masks, means=means, keep_latents=False)
    torch.testing.assert_close(narrow.logits, whole.logits, atol=1e-5, rtol=1e-5)
