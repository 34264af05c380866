"""Notebook 03's checkers accept the solutions, and name what is wrong with the classic mistakes."""

import functools
import inspect

import pytest
import torch
from readers import WrongVersions, attempt, cases
from sae_lens import SAE

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel
from course_utils.teaching import nb03
from course_utils.teaching.fixtures import tiny_sae
from course_utils.teaching.nb03 import book

WRONG: WrongVersions = {
    "switch_off": {
        "BOS went through the SAE too": """
            f = sae.encode(x)
            f[:, position, latent] = 0
            return sae.decode(f)
        """,
        "at every position, not at one": """
            f = sae.encode(x)
            f[..., latent] = 0
            return keep_bos(x, sae.decode(f))
        """,
        "every latent off at that position": """
            f = sae.encode(x)
            f[:, position] = 0
            return keep_bos(x, sae.decode(f))
        """,
        "position and latent are swapped": """
            f = sae.encode(x)
            f[:, latent, position] = 0
            return keep_bos(x, sae.decode(f))
        """,
        "only the first prompt": """
            f = sae.encode(x)
            f[0, position, latent] = 0
            return keep_bos(x, sae.decode(f))
        """,
        "kept this latent and switched": """
            f = sae.encode(x)
            g = 0 * f
            g[:, position, latent] = f[:, position, latent]
            return keep_bos(x, sae.decode(g))
        """,
        "nothing is switched off": "return keep_bos(x, sae.decode(sae.encode(x)))",
        "only this position went": """
            f = sae.encode(x)
            f[:, position, latent] = 0
            y = x.clone()
            y[:, position] = sae.decode(f)[:, position]
            return y
        """,
        "so that the SAE's error stays": """
            y = x.clone()
            y[:, position] -= sae.encode(x)[:, position, latent, None] * sae.W_dec[latent]
            return y
        """,
        "you returned latents": """
            f = sae.encode(x)
            f[:, position, latent] = 0
            return f
        """,
        "the values are right, but x was changed in place": """
            f = sae.encode(x)
            f[:, position, latent] = 0
            x[:, 1:] = sae.decode(f)[:, 1:]
            return x
        """,
        "Is the return missing?": """
            f = sae.encode(x)
            f[:, position, latent] = 0
            keep_bos(x, sae.decode(f))
        """,
        "the batch dimension is missing": """
            f = sae.encode(x)
            f[position, latent] = 0
            return keep_bos(x, sae.decode(f))
        """,
        "the position after the wanted": """
            f = sae.encode(x[:, 1:])
            f[:, position, latent] = 0
            return torch.cat([x[:, :1], sae.decode(f)], 1)
        """,
        "the position before the wanted": """
            f = sae.encode(x)
            f[:, position - 1, latent] = 0
            return keep_bos(x, sae.decode(f))
        """,
        "the next latent is off": """
            f = sae.encode(x)
            f[:, position, latent + 1] = 0
            return keep_bos(x, sae.decode(f))
        """,
        "A latent is a direction": """
            y = x.clone()
            y[:, position, latent] = 0
            return y
        """,
        "and encoded then": """
            y = x.clone()
            y[:, position, latent] = 0
            return keep_bos(x, sae.decode(sae.encode(y)))
        """,
        "a dimension of the rebuilt stream": """
            y = keep_bos(x, sae.decode(sae.encode(x)))
            y[:, position, latent] = 0
            return y
        """,
        "the encoder's column is taken out, and what a latent writes": """
            f = sae.encode(x)
            y = keep_bos(x, sae.decode(f))
            y[:, position] -= f[:, position, latent, None] * sae.W_enc[:, latent]
            return y
        """,
        "b_dec is missing": """
            f = sae.encode(x)
            f[:, position, latent] = 0
            return keep_bos(x, f @ sae.W_dec)
        """,
        "BOS is there twice": """
            f = sae.encode(x)
            f[:, position, latent] = 0
            return torch.cat([x[:, :1], sae.decode(f)], 1)
        """,
        "for another node": """
            f = sae.encode(x)
            f[:, 2, 3] = 0
            return keep_bos(x, sae.decode(f))
        """,
    },
    "masked": {
        "the ablation is missing": "return f * mask",
        "kept and ablated are swapped": "return f * (1 - mask) + ablation * mask",
        "added where the latent is kept": "return f * mask + ablation",
        "it needs a gradient": "return torch.where(mask > 0, f, ablation)",
        "a threshold has no gradient": "return torch.where(mask > 0.5, f, ablation)",
        "all that is not wholly kept": "return torch.where(mask == 1, f, ablation)",
        "the ablation that it starts from is not": "return (f - ablation) * mask",
        "the values are right, but f was changed in place": """
            return f.sub_(ablation).mul_(mask) + ablation
        """,
        "Besides, f was changed in place": """
            f *= mask
            return f
        """,
        "not by its square": "return ablation + (f - ablation) * mask**2",
        "no gradient reaches mask": "return ablation + (f - ablation) * mask.detach()",
        "no gradient reaches f": "return ablation + (f.detach() - ablation) * mask",
        "it is float64": "return ablation + (f - ablation) * mask.double()",
        "one ablation for all positions": """
            if ablation.ndim == 1:
                return f * mask
            return ablation + (f - ablation) * mask
        """,
    },
    "mean_latents": {
        "BOS has means too": "return sae.encode(x).mean(0)",
        "you averaged over positions too": "return sae.encode(x)[:, 1:].mean((0, 1))",
        "and not over prompts": "return sae.encode(x).mean(1)",
        "you encoded the mean residual stream": """
            f = sae.encode(x.mean(0))
            f[0] = 0
            return f
        """,
        "the sum over prompts": """
            f = sae.encode(x).sum(0)
            f[0] = 0
            return f
        """,
        "a silent prompt counts": """
            f = sae.encode(x)
            m = f.sum(0) / (f > 0).sum(0).clamp(min=1)
            m[0] = 0
            return m
        """,
        "a latent is 0 at every position": """
            m = sae.encode(x).mean(0)
            m[:, 0] = 0
            return m
        """,
        "another row than BOS'": """
            m = sae.encode(x).mean(0)
            m[1] = 0
            return m
        """,
        "one less than the number of prompts": """
            m = sae.encode(x).sum(0) / (len(x) - 1)
            m[0] = 0
            return m
        """,
        "the share of prompts": """
            m = (sae.encode(x) > 0).float().mean(0)
            m[0] = 0
            return m
        """,
        "do not decode": "return bos_row_off(sae.decode(sae.encode(x)).mean(0))",
        "encode it first": "return bos_row_off(x.mean(0))",
    },
    "forward": {
        "you took the first mask": "return mix(x, self.masks[0], mean_ablation)",
        "mean_ablation is not used": """
            self.check(sae_hook_point, x.shape[-2], x.shape[-1])
            return x * self[sae_hook_point]
        """,
        "kept and ablated are swapped": "return mix(x, 1 - self[sae_hook_point], mean_ablation)",
        "masks are soft while they are learned": """
            self.check(sae_hook_point, x.shape[-2], x.shape[-1])
            return mix(x, (self[sae_hook_point] > 0).float(), mean_ablation)
        """,
        "a threshold has no gradient": """
            self.check(sae_hook_point, x.shape[-2], x.shape[-1])
            return mix(x, (self[sae_hook_point] > 0.5).float(), mean_ablation)
        """,
        "no gradient reaches self": """
            self.check(sae_hook_point, x.shape[-2], x.shape[-1])
            return mix(x, self[sae_hook_point].detach(), mean_ablation)
        """,
        "is the dimension before the last": """
            self.check(sae_hook_point, x.shape[-1], x.shape[-2])
            return mix(x, self[sae_hook_point], mean_ablation)
        """,
        "latents [2, 3, 1] met a mask": """
            if x.shape[-2] != len(self[sae_hook_point]) and self[sae_hook_point].ndim == 2:
                raise MaskError("positions")
            return mix(x, self[sae_hook_point], mean_ablation)
        """,
        "the masks of all hook points act at once": """
            return mix(x, self.masks[0] * self.masks[1], mean_ablation)
        """,
        "without mean_ablation, 0 is to stand in": """
            return mean_ablation + (x - mean_ablation) * self[sae_hook_point]
        """,
        "nothing is taken out": """
            return (
                x if mean_ablation is None else mix(x, self[sae_hook_point], mean_ablation)
            )
        """,
        "broadcasting made up positions": "return mix(x, self[sae_hook_point], mean_ablation)",
        "refused with MaskError, not AssertionError": """
            mask = self[sae_hook_point]
            assert x.shape[-mask.ndim :] == mask.shape
            return mix(x, self[sae_hook_point], mean_ablation)
        """,
        "a shared mask": """
            if x.shape[1:] != self[sae_hook_point].shape:
                raise MaskError("no")
            return solutions["forward"](self, x, sae_hook_point, mean_ablation)
        """,
    },
    "count_nodes": {
        "BOS is counted too": "return sum(int((m > 0).sum()) for m in masks.masks)",
        "you summed the mask": """
            return int(
                sum(m[1:].sum() if m.ndim == 2 else (seq - 1) * m.sum() for m in masks.masks)
            )
        """,
        "you summed the mask, and cut": """
            return sum(
                int(m[1:].sum()) if m.ndim == 2 else (seq - 1) * int(m.sum()) for m in masks.masks
            )
        """,
        "BOS too, and cut": "return int(sum(m.sum() for m in masks.masks))",
        "you made whole numbers of the mask": """
            return int(sum(m[1:].int().sum() for m in masks.masks))
        """,
        "what is above 0.5": "return int(sum((m[1:] > 0.5).sum() for m in masks.masks))",
        "a column: BOS is a row": "return int(sum((m[:, 1:] > 0).sum() for m in masks.masks))",
        "a whole number (int) is wanted": """
            return sum(
                (m[1:] > 0).sum() if m.ndim == 2 else (seq - 1) * (m > 0).sum()
                for m in masks.masks
            )
        """,
        "only the last hook point": """
            m = masks.masks[-1]
            return int((m[1:] > 0).sum() if m.ndim == 2 else (seq - 1) * (m > 0).sum())
        """,
        "you counted latents, not nodes": """
            return sum(int((m[1:] > 0).any(0).sum()) for m in masks.masks)
        """,
        "counted once": """
            return sum(int(((m[1:] if m.ndim == 2 else m) > 0).sum()) for m in masks.masks)
        """,
        "no node at BOS": """
            return sum(
                int((m[1:] > 0).sum() if m.ndim == 2 else seq * (m > 0).sum())
                for m in masks.masks
            )
        """,
        "is a latent, not BOS": """
            return sum(
                int((m[1:] > 0).sum()) * (1 if m.ndim == 2 else seq - 1) for m in masks.masks
            )
        """,
        "only the first hook point": """
            m = masks.masks[0]
            return int((m[1:] > 0).sum() if m.ndim == 2 else (seq - 1) * (m > 0).sum())
        """,
    },
    "knock_out": {
        "row 0 is on": "return SAEMasks(circuit.hook_points, [1 - m for m in circuit.masks])",
        "this is the circuit itself": "return circuit",
        "at every position. A node": """
            return SAEMasks(
                circuit.hook_points,
                [bos_row_off((1 - m.amax(0)).expand_as(m).clone()) for m in circuit.masks],
            )
        """,
        "and row 0, BOS, is on": """
            return SAEMasks(
                circuit.hook_points, [(1 - m.amax(0)).expand_as(m) for m in circuit.masks]
            )
        """,
        "every latent at the circuit": """
            return SAEMasks(
                circuit.hook_points,
                [
                    bos_row_off((1 - m.amax(1, keepdim=True)).expand_as(m).clone())
                    for m in circuit.masks
                ],
            )
        """,
        "nothing is knocked out": """
            return SAEMasks(
                circuit.hook_points, [bos_row_off(torch.ones_like(m)) for m in circuit.masks]
            )
        """,
        "to return SAEMasks, not list": "return [bos_row_off(1 - m) for m in circuit.masks]",
        "the values are right, but circuit was changed in place": """
            for m in circuit.masks:
                m.sub_(1).neg_()[0] = 0
            return circuit
        """,
        "column 0, is off at every position": """
            masks = [1 - m for m in circuit.masks]
            for m in masks:
                m[:, 0] = 0
            return SAEMasks(circuit.hook_points, masks)
        """,
        "0 and −1": """
            return SAEMasks(circuit.hook_points, [bos_row_off(m - 1) for m in circuit.masks])
        """,
        "the masks changed places": """
            masks = [bos_row_off(1 - m) for m in circuit.masks]
            return SAEMasks(circuit.hook_points, masks[::-1])
        """,
        "True and False": """
            masks = [bos_row_off(1 - m).bool() for m in circuit.masks]
            return SAEMasks(circuit.hook_points, masks)
        """,
        "the hook points are to be": """
            return SAEMasks(circuit.hook_points[::-1], [bos_row_off(1 - m) for m in circuit.masks])
        """,
    },
    "running_mean": {
        "your count is of batches, but prompts are added": """
            m = 0
            for i, b in enumerate(batches):
                for row in b:
                    m = m + (row - m) / (i + 1)
            return m
        """,
        "you averaged the batches' means": """
            return torch.stack([b.mean(0) for b in batches]).mean(0)
        """,
        "the last batch alone is left": """
            m = 0
            for b in batches:
                m = m + (b - m).sum(0) / len(b)
            return m
        """,
        "averaged with all that came before": """
            m = None
            for b in batches:
                m = b.mean(0) if m is None else (m + b.mean(0)) / 2
            return m
        """,
        "the sum of all prompts": "return sum(b.sum(0) for b in batches)",
        "divided by the number of batches": """
            s, k = 0, 0
            for b in batches:
                s, k = s + b.sum(0), k + 1
            return s / k
        """,
        "not over prompts alone": """
            s, k = 0, 0
            for b in batches:
                s, k = s + b.sum(), k + b.numel()
            return s / k
        """,
        "you divided by 0": """
            m, n = torch.tensor(0.0), 0
            for b in batches:
                m = m + (b - m).sum(0) / n
                n += len(b)
            return m
        """,
        "the count is late": """
            m, n = torch.tensor(0.0), 0
            for b in batches:
                m = m + (b - m).sum(0) / max(1, n)
                n += len(b)
            return m
        """,
        "the count starts at 1": """
            m, n = torch.tensor(0.0), 1
            for b in batches:
                n += len(b)
                m = m + (b - m).sum(0) / n
            return m
        """,
        "taken off once per batch": """
            m, n = torch.tensor(0.0), 0
            for b in batches:
                n += len(b)
                m = m + (b.sum(0) - m) / n
            return m
        """,
        "you changed a batch in place": """
            m, n = torch.tensor(0.0), 0
            for b in batches:
                n += len(b)
                m = m + b.sub_(m).sum(0) / n
            return m
        """,
        "the last batch is left out": """
            rows = torch.cat([b.clone() for b in batches][:-1])
            return rows.mean(0)
        """,
        "is float64": """
            total, n = 0, 0
            for b in batches:
                total, n = total + b.double().sum(0), n + len(b)
            return total / n
        """,
        "you kept batches for later": "return torch.cat(list(batches)).mean(0)",
        "gone through once only": """
            n = sum(len(b) for b in batches)
            return sum((b.sum(0) for b in batches), torch.tensor(0.0)) / n
        """,
    },
}


RIGHT = {
    "switch_off": [
        """
        f = sae.encode(x).clone()
        f[:, position, latent] = 0
        y = sae.decode(f)
        y[:, 0] = x[:, 0]
        return y
        """,
        """
        with torch.no_grad():
            f = sae.encode(x)
            y = keep_bos(x, sae.decode(f))
            y[:, position] -= f[:, position, latent, None] * sae.W_dec[latent]
            return y
        """,
        """
        f = sae.encode(x[:, 1:])
        f[:, position - 1, latent] = 0
        return torch.cat([x[:, :1], sae.decode(f)], dim=1)
        """,
    ],
    "masked": [
        "return torch.lerp(ablation.expand_as(f), f, mask.expand_as(f))",
        "return f * mask + ablation * (1 - mask)",
        "return f - (1 - mask) * (f - ablation)",
    ],
    "mean_latents": [
        """
        f = sae.encode(x[:, 1:]).mean(0)
        return torch.cat([torch.zeros_like(f[:1]), f])
        """,
        "return sum(bos_row_off(sae.encode(one)) for one in x) / len(x)",
    ],
    "forward": [
        """
        mask = self[sae_hook_point]
        if mask.shape != x.shape[-mask.ndim :]:
            raise MaskError("another size")
        mean = torch.zeros_like(x) if mean_ablation is None else mean_ablation
        return x * mask + mean * (1 - mask)
        """,
        """
        self.check(sae_hook_point, x.shape[-2], x.shape[-1])
        if mean_ablation is None:
            return x * self[sae_hook_point]
        return mix(x, self[sae_hook_point], mean_ablation)
        """,
    ],
    "count_nodes": [
        """
        shared = [m for m in masks.masks if m.ndim == 1]
        own = [m[1:] for m in masks.masks if m.ndim == 2]
        n = sum(m.count_nonzero().item() for m in own)
        return n + (seq - 1) * sum(m.count_nonzero().item() for m in shared)
        """,
        """
        n = 0
        for _, position, latent in masks.nodes():
            n += seq - 1 if position is None else int(position > 0)
        return n
        """,
    ],
    "knock_out": [
        """
        masks = {name: bos_row_off((mask == 0).float()) for name, mask in circuit.items()}
        return SAEMasks(list(masks), list(masks.values()))
        """,
        """
        full = SAEMasks.full(dict(circuit.items()), 1.0)
        return SAEMasks(full.hook_points, [a - b for a, b in zip(full.masks, circuit.masks)])
        """,
    ],
    "running_mean": [
        """
        total, n = 0, 0
        for batch in batches:
            total, n = total + batch.sum(0), n + len(batch)
        return total / n
        """,
        """
        mean, n = 0.0, 0
        for batch in batches:
            for row in batch:
                n += 1
                mean = mean + (row - mean) / n
        return mean
        """,
        """
        mean, n = 0.0, 0
        for batch in batches:
            share = len(batch) / (n + len(batch))
            mean, n = (1 - share) * mean + share * batch.mean(0), n + len(batch)
        return mean
        """,
    ],
}


def mix(x, mask, mean):
    """``mean`` (0 if there is none) where a mask is 0, whatever its size."""
    mean = torch.tensor(0.0) if mean is None else mean
    return mean + (x - mean) * mask


def test_every_exercise_has_a_checker_and_wrong_versions():
    assert set(book.solutions) == set(book.checkers) == set(WRONG)
    assert min(map(len, WRONG.values())) >= 3


@pytest.mark.parametrize("name", book.solutions)
def test_the_solution_is_right_and_the_stub_is_open(name):
    checked = book.checked(book.solutions[name])
    assert checked.status == "right", checked.says
    assert book.checked(attempt(nb03, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_the_checker_names_what_is_wrong(name, body, says):
    checked = book.checked(attempt(nb03, name, body, mix=mix))
    assert checked.status == "wrong" and says in checked.says, checked.says


@pytest.mark.parametrize("name", book.solutions)
def test_docstrings_say_what_values_mean(name):
    solution = book.solutions[name]
    assert len(inspect.getdoc(solution)) > 100
    parameters = inspect.signature(solution).parameters.values()
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters)


@pytest.mark.parametrize(
    ("name", "body"), [(name, body) for name, bodies in RIGHT.items() for body in bodies]
)
def test_another_right_way_of_writing_it_is_accepted(name, body):
    checked = book.checked(attempt(nb03, name, body, mix=mix))
    assert checked.status == "right", checked.says


# The solutions against the library, which has other tests


def test_the_hook_by_hand_equals_the_spliced_model(lab, task):
    layer, latent, position = 3, 7, 4
    spliced = SplicedModel(lab, [layer])
    [name] = spliced.hook_points
    where = {"sae": lab.saes[layer], "latent": latent, "position": position}
    hook = functools.partial(book.solutions["switch_off"], **where)
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
    means = book.solutions["mean_latents"](x[0], lab.saes[1])
    torch.testing.assert_close(
        means, spliced.patch_means(task.patch).latents[name], atol=1e-5, rtol=1e-4
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
    means = spliced.patch_means(task.patch)
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
