"""Notebook 03's checkers accept the solutions, and name what is wrong with the classic mistakes."""

import inspect

import pytest
import torch
from sae_lens import SAE

from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.circuits.splice import PatchMeans, SplicedModel
from course_utils.teaching.fixtures import tiny_sae
from course_utils.teaching.nb03 import book

ARGUMENTS = {
    "switch_off": "x, hook, *, sae, latent, position",
    "masked": "f, mask, ablation",
    "mean_latents": "x, sae",
    "forward": "self, x, sae_hook_point, mean_ablation=None",
    "count_nodes": "masks, seq",
    "knock_out": "circuit",
    "running_mean": "batches",
}

WRONG = {
    "switch_off": [
        ("f = sae.encode(x); f[:, position, latent] = 0; return sae.decode(f)", "BOS went through the SAE too"),
        ("f = sae.encode(x); f[..., latent] = 0; return keep_bos(x, sae.decode(f))", "at every position, not at one"),
        ("f = sae.encode(x); f[:, position] = 0; return keep_bos(x, sae.decode(f))", "every latent off at that position"),
        ("f = sae.encode(x); f[:, latent, position] = 0; return keep_bos(x, sae.decode(f))", "position and latent are swapped"),
        ("f = sae.encode(x); f[0, position, latent] = 0; return keep_bos(x, sae.decode(f))", "only the first prompt"),
        ("f = sae.encode(x); g = 0 * f; g[:, position, latent] = f[:, position, latent]; return keep_bos(x, sae.decode(g))", "kept this latent and switched"),
        ("return keep_bos(x, sae.decode(sae.encode(x)))", "nothing is switched off"),
        ("f = sae.encode(x); f[:, position, latent] = 0; y = x.clone(); y[:, position] = sae.decode(f)[:, position]; return y", "only this position went"),
        ("y = x.clone(); y[:, position] -= sae.encode(x)[:, position, latent, None] * sae.W_dec[latent]; return y", "so that the SAE's error stays"),
        ("f = sae.encode(x); f[:, position, latent] = 0; return f", "you returned latents"),
        ("f = sae.encode(x); f[:, position, latent] = 0; x[:, 1:] = sae.decode(f)[:, 1:]; return x", "you changed x in place"),
        ("f = sae.encode(x); f[:, position, latent] = 0; keep_bos(x, sae.decode(f))", "Is the return missing?"),
        ("f = sae.encode(x); f[position, latent] = 0; return keep_bos(x, sae.decode(f))", "the batch dimension is missing"),
        ("f = sae.encode(x[:, 1:]); f[:, position, latent] = 0; return torch.cat([x[:, :1], sae.decode(f)], 1)", "the position after the wanted"),
    ],
    "masked": [
        ("return f * mask", "the ablation is missing"),
        ("return f * (1 - mask) + ablation * mask", "kept and ablated are swapped"),
        ("return f * mask + ablation", "added where the latent is kept"),
        ("return torch.where(mask > 0, f, ablation)", "it needs a gradient"),
        ("return torch.where(mask > 0.5, f, ablation)", "a threshold has no gradient"),
        ("return torch.where(mask == 1, f, ablation)", "all that is not wholly kept"),
        ("return (f - ablation) * mask", "the ablation that it starts from is not"),
        ("f *= mask; return f", "you changed the latents in place"),
    ],
    "mean_latents": [
        ("return sae.encode(x).mean(0)", "BOS has means too"),
        ("return sae.encode(x)[:, 1:].mean((0, 1))", "you averaged over positions too"),
        ("return sae.encode(x).mean(1)", "and not over prompts"),
        ("f = sae.encode(x.mean(0)); f[0] = 0; return f", "you encoded the mean residual stream"),
        ("f = sae.encode(x).sum(0); f[0] = 0; return f", "the sum over prompts"),
        ("f = sae.encode(x); m = f.sum(0) / (f > 0).sum(0).clamp(min=1); m[0] = 0; return m", "a silent prompt counts"),
    ],
    "forward": [
        ("return ablate(x, self.masks[0], mean_ablation)", "you took the first mask"),
        ("self.check(sae_hook_point, x.shape[-2], x.shape[-1]); return x * self[sae_hook_point]", "mean_ablation is not used"),
        ("return ablate(x, 1 - self[sae_hook_point], mean_ablation)", "kept and ablated are swapped"),
        ("return ablate(x, self.masks[0] * self.masks[1], mean_ablation)", "the masks of all hook points act at once"),
        ("return mean_ablation + (x - mean_ablation) * self[sae_hook_point]", "without mean_ablation, 0 is to stand in"),
        ("return x if mean_ablation is None else ablate(x, self[sae_hook_point], mean_ablation)", "nothing is taken out"),
        ("return ablate(x, self[sae_hook_point], mean_ablation)", "broadcasting made up positions"),
        ("assert x.shape[-2] == self[sae_hook_point].shape[0]; return ablate(x, self[sae_hook_point], mean_ablation)", "refused with MaskError, not AssertionError"),
        ("if x.shape[1:] != self[sae_hook_point].shape: raise MaskError('no')\n    return solved_forward(self, x, sae_hook_point, mean_ablation)", "a shared mask"),
    ],
    "count_nodes": [
        ("return sum(int((m > 0).sum()) for m in masks.masks)", "BOS is counted too"),
        ("return int(sum(m[1:].sum() if m.ndim == 2 else (seq - 1) * m.sum() for m in masks.masks))", "you summed the mask"),
        ("return sum(int((m[1:] > 0).any(0).sum()) for m in masks.masks)", "you counted latents, not nodes"),
        ("return sum(int(((m[1:] if m.ndim == 2 else m) > 0).sum()) for m in masks.masks)", "counted once"),
        ("return sum(int((m[1:] > 0).sum() if m.ndim == 2 else seq * (m > 0).sum()) for m in masks.masks)", "no node at BOS"),
        ("return sum(int((m[1:] > 0).sum()) * (1 if m.ndim == 2 else seq - 1) for m in masks.masks)", "is a latent, not BOS"),
        ("m = masks.masks[0]; return int((m[1:] > 0).sum() if m.ndim == 2 else (seq - 1) * (m > 0).sum())", "only the first hook point"),
    ],
    "knock_out": [
        ("return SAEMasks(circuit.hook_points, [1 - m for m in circuit.masks])", "row 0 is on"),
        ("return circuit", "this is the circuit itself"),
        ("return SAEMasks(circuit.hook_points, [bos_off((1 - m.amax(0)).expand_as(m).clone()) for m in circuit.masks])", "at every position. A node"),
        ("return SAEMasks(circuit.hook_points, [(1 - m.amax(0)).expand_as(m) for m in circuit.masks])", "and row 0, BOS, is on"),
        ("return SAEMasks(circuit.hook_points, [bos_off((1 - m.amax(1, keepdim=True)).expand_as(m).clone()) for m in circuit.masks])", "every latent at the circuit"),
        ("return SAEMasks(circuit.hook_points, [bos_off(torch.ones_like(m)) for m in circuit.masks])", "nothing is knocked out"),
        ("return [bos_off(1 - m) for m in circuit.masks]", "to return SAEMasks, not list"),
        ("[m.sub_(1).neg_() for m in circuit.masks]; return circuit", "you changed the circuit itself"),
    ],
    "running_mean": [
        ("m = 0\n    for i, b in enumerate(batches):\n        for row in b: m = m + (row - m) / (i + 1)\n    return m", "the count counts batches"),
        ("return torch.stack([b.mean(0) for b in batches]).mean(0)", "you averaged the batches' means"),
        ("m = 0\n    for b in batches: m = m + (b - m).sum(0) / len(b)\n    return m", "the last batch alone is left"),
        ("m = None\n    for b in batches: m = b.mean(0) if m is None else (m + b.mean(0)) / 2\n    return m", "averaged with all that came before"),
        ("return sum(b.sum(0) for b in batches)", "the sum of all prompts"),
        ("s, k = 0, 0\n    for b in batches: s, k = s + b.sum(0), k + 1\n    return s / k", "divided by the number of batches"),
        ("s, k = 0, 0\n    for b in batches: s, k = s + b.sum(), k + b.numel()\n    return s / k", "not over prompts alone"),
        ("return torch.cat(list(batches)).mean(0)", "you kept batches for later"),
        ("n = sum(len(b) for b in batches); return sum((b.sum(0) for b in batches), torch.tensor(0.0)) / n", "gone through once only"),
    ],
}  # fmt: skip


def attempt(name, body):
    """The reader's function ``name``, with that body."""
    from course_utils.circuits.masks import ablate

    space = {
        "torch": torch,
        "SAEMasks": SAEMasks,
        "MaskError": MaskError,
        "solved_forward": book.solutions["forward"],
        "ablate": ablate,
        "keep_bos": lambda x, x_hat: torch.cat([x[:, :1], x_hat[:, 1:]], dim=1),
        "bos_off": lambda mask: torch.cat([torch.zeros_like(mask[:1]), mask[1:]]),
    }
    exec(compile(f"def {name}({ARGUMENTS[name]}):\n    {body}", "<reader>", "exec"), space)
    return space[name]


def test_every_exercise_has_a_checker_and_wrong_versions():
    assert (
        set(book.solutions) == set(book.checkers) == set(ARGUMENTS) == set(WRONG)
        and min(map(len, WRONG.values())) >= 3
    )


@pytest.mark.parametrize("name", book.solutions)
def test_the_checker_accepts_the_solution(name):
    found = book.checked(book.solutions[name])
    assert found.status == "right", found.says


@pytest.mark.parametrize("name", book.solutions)
def test_an_unwritten_exercise_is_open(name):
    assert book.checked(attempt(name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [(name, *wrong) for name, all_wrong in WRONG.items() for wrong in all_wrong],
)
def test_the_checker_names_what_is_wrong(name, body, says):
    found = book.checked(attempt(name, body))
    assert found.status == "wrong" and says in found.says, found.says


@pytest.mark.parametrize("name", book.solutions)
def test_docstrings_say_what_values_mean(name):
    solution = book.solutions[name]
    assert len(inspect.getdoc(solution)) > 100
    assert all(
        p.annotation is not inspect.Parameter.empty
        for p in inspect.signature(solution).parameters.values()
    )


def test_other_right_ways_of_writing_them_are_accepted():
    right = {
        "switch_off": "f = sae.encode(x).clone(); f[:, position, latent] = 0; y = sae.decode(f); y[:, 0] = x[:, 0]; return y",
        "masked": "return torch.lerp(ablation.expand_as(f), f, mask.expand_as(f))",
        "mean_latents": "f = sae.encode(x[:, 1:]).mean(0); return torch.cat([torch.zeros_like(f[:1]), f])",
        "running_mean": "total, n = 0, 0\n    for b in batches: total, n = total + b.sum(0), n + len(b)\n    return total / n",
    }
    for name, body in right.items():
        found = book.checked(attempt(name, body))
        assert found.status == "right", found.says


# -- the solutions against the library, which has other tests --------------------------------------


def test_the_hook_by_hand_equals_the_spliced_model(lab, task):
    layer, latent, position = 3, 7, 4
    spliced = SplicedModel(lab, [layer])
    [name] = spliced.hook_points
    hook = lambda x, hook: book.solutions["switch_off"](
        x, hook, sae=lab.saes[layer], latent=latent, position=position
    )
    by_hand = lab.model.run_with_hooks(task.clean, fwd_hooks=[(name, hook)])[:, -1]
    mask = torch.ones(task.seq_len, lab.saes[layer].cfg.d_sae)
    mask[0] = mask[position, latent] = 0
    torch.testing.assert_close(
        by_hand,
        spliced.run(task.clean, masks=SAEMasks([name], [mask])).logits,
        atol=1e-4,
        rtol=1e-4,
    )


def test_mean_latents_equal_the_librarys(lab, task):
    spliced = SplicedModel(lab, [1])
    [name] = spliced.hook_points
    x = []
    lab.model.run_with_hooks(task.patch, fwd_hooks=[(name, lambda value, hook: x.append(value))])
    found = book.solutions["mean_latents"](x[0], lab.saes[1])
    torch.testing.assert_close(
        found, spliced.patch_means(task.patch).latents[name], atol=1e-5, rtol=1e-4
    )


def test_the_readers_forward_makes_a_class_that_masks_as_saemasks_does():
    class MyMasks(SAEMasks):
        forward = book.exercise(book.solutions["forward"])

    mask, x, mean = (
        torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
    )
    mine, library = (kind(["blocks.1.hook_resid_post"], [mask]) for kind in (MyMasks, SAEMasks))
    torch.testing.assert_close(
        mine(x[None], "blocks.1.hook_resid_post", mean),
        library(x[None], "blocks.1.hook_resid_post", mean),
    )


def test_knocked_out_and_kept_make_every_node():
    masks = SAEMasks.from_scores(
        {"a": torch.rand(4, 5, generator=torch.Generator().manual_seed(0))}, 6
    )
    masks["a"][0] = 0
    count = book.solutions["count_nodes"]
    assert count(masks, 4) + count(book.solutions["knock_out"](masks), 4) == 3 * 5


def test_a_circuit_with_all_its_nodes_knocked_out_is_what_the_library_ablates(lab, task):
    spliced = SplicedModel(lab, [1, 3])
    means: PatchMeans = spliced.patch_means(task.patch)
    everything = SAEMasks.full(means.latents, 1.0)
    nothing = book.solutions["knock_out"](everything)
    assert nothing.get_num_latents() == 0
    torch.testing.assert_close(
        spliced.logit_diff(task, masks=nothing, means=means),
        spliced.logit_diff(task, masks=SAEMasks.full(means.latents, 0.0), means=means),
    )


def test_the_tiny_sae_is_an_sae_with_latents_that_fire_and_latents_that_do_not():
    sae = tiny_sae()
    f = sae.encode(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    assert isinstance(sae, SAE) and 0.2 < (f > 0).float().mean() < 0.8
