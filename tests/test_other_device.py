"""On a device without float64 (Apple's MPS): the course gives the numbers that it gives on a CPU.

There is no such device here, so that one is made up (`other_device.py`). It also refuses to mix
tensors on the device with tensors on the CPU, as every GPU does.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import make_lab, make_task, session_tokenizer, tiny_hf_model, tiny_sae
from other_device import DEVICE, OnDevice, without_float64
from torch import Tensor
from torch.utils._pytree import tree_leaves

from course_utils.circuits.attribution import (
    activation_patching,
    effect_of_baseline,
    largest_change,
    random_scores,
    variants,
)
from course_utils.circuits.controls import separations
from course_utils.circuits.evaluate import Evaluation, paired_difference, seed_mean
from course_utils.circuits.explain import lens_difference, logit_lens, top_contexts
from course_utils.circuits.frontier import Frontier
from course_utils.circuits.hypotheses import (
    equivalence,
    independence,
    inflated_drops,
    knocked_out,
    minimality,
)
from course_utils.circuits.interventions import edge_effects, resampled_logit_diff
from course_utils.circuits.masks import SAEMasks, only
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.reconstruction import error_growth, residual_stream, text_loss
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import auc, bootstrap, mean_interval, proportion
from course_utils.labs.lab import Lab
from course_utils.prompts.tasks import Task
from course_utils.studies import dictionaries

ASKED = dictionaries.attacks(dictionaries.HONEST[0], 4)


def interpreter_lab() -> Lab:
    torch.manual_seed(0)
    tokenizer = session_tokenizer()
    model = tiny_hf_model("qwen2", len(tokenizer)).eval()
    return Lab("tiny-qwen2", model, tokenizer, {layer: tiny_sae() for layer in (1, 3)})


class Judge(Evaluation):
    """An evaluation whose rows stay on the lab's device, as somebody's own may."""

    def __init__(self, spliced: SplicedModel, task: Task):
        super().__init__(spliced, task, spliced.patch_means(task.patch))
        rows = (self.model, self.spliced_model, self.empty)
        device = spliced.lab.device
        self.model, self.spliced_model, self.empty = (row.to(device) for row in rows)

    def logit_diff(self, masks: SAEMasks) -> Tensor:
        return super().logit_diff(masks).to(self.spliced.lab.device)


LABS = {"llama": make_lab, "sessions": interpreter_lab}


def circuit(spliced: SplicedModel, task) -> SAEMasks:
    scores = largest_change(spliced, task)
    return SAEMasks.from_scores(scores, 12)


# ---------------------------------------------------------------------------------------------
# What is computed
# ---------------------------------------------------------------------------------------------


def learning(lab: Lab) -> list:
    spliced, task = SplicedModel(lab, error="mean"), make_task(lab.tokenizer)
    learned = learn_masks(spliced, task, steps=4, batch_size=4, sparsity=0.3, progress=False)
    drawn = learn_masks(
        spliced, task, steps=4, batch_size=4, method="hard_concrete", progress=False
    )
    return [learned.theta, learned.history, drawn.masks.masks, learned.candidate_error]


def attribution(lab: Lab) -> list:
    spliced, task = SplicedModel(lab), make_task(lab.tokenizer)
    means = spliced.patch_means(task.patch)
    nodes = [(name, 2, 3) for name in spliced.hook_points]
    return [
        variants(spliced, task, means=means, steps=3, progress=False),
        effect_of_baseline(spliced, task, means=means, baseline="mean"),
        activation_patching(spliced, task, nodes, means=means, progress=False),
        random_scores(spliced, task, seed=0),
    ]


def judging(lab: Lab) -> list:
    spliced, task = SplicedModel(lab, error="keep"), make_task(lab.tokenizer)
    masks, judge = circuit(spliced, task), Judge(spliced, task)
    frontier = Frontier.of(spliced, task)
    frontier.judge("mask", masks, judge)
    frontier.judge("mask", masks, judge)
    rows = judge.logit_diff(masks)[None]
    return [
        judge.faithfulness(masks),
        paired_difference(rows, rows + 0.1 * judge.model, "gap", judge.reference),
        seed_mean(rows, "vs_spliced", judge.reference),
        frontier.rows(),
        frontier.logit_diffs("mask", masks.get_num_latents()),
    ]


def hypotheses(lab: Lab) -> list:
    spliced, task = SplicedModel(lab), make_task(lab.tokenizer)
    masks, judge = circuit(spliced, task), Judge(spliced, task)
    everything = SAEMasks.full(judge.means.latents, 1.0)
    without = judge.logit_diff(only(masks, []))
    drops = torch.stack([judge.spliced_model - without, judge.model - without])
    nodes = masks.nodes()
    return [
        equivalence(judge.logit_diff(masks), judge.spliced_model),
        independence(without + judge.model, judge.spliced_model, n_permutations=20),
        minimality(drops, drops.abs() + 1),
        knocked_out(judge.logit_diff, masks, everything, nodes[:2]),
        inflated_drops(judge.logit_diff, masks, [n for n in everything.nodes()[:3]]),
        resampled_logit_diff(spliced, task, masks, task.patch),
        edge_effects(spliced, task.clean, task.patch, [node for node in nodes if node[1]][:4]),
    ]


def statistics(lab: Lab) -> list:
    values = torch.linspace(0, 3, 20).square().to(lab.device)
    return [
        mean_interval(values),
        bootstrap(lambda a, b: a / b, [values, values + 1]),
        auc(values, (values.sin() > 0)),
        proportion(values > 2),
    ]


def explaining(lab: Lab) -> list:
    spliced, task = SplicedModel(lab), make_task(lab.tokenizer)
    yes = torch.tensor([pair.case == "plural" for pair in task.pairs])
    stream = residual_stream(lab, 1, task.clean)
    return [
        separations(spliced.run(task.clean).latents, yes),
        top_contexts(lab, 1, [2, 5], task.clean, k=2),
        logit_lens(lab, 3, [0, 1], k=3),
        lens_difference(lab, 3, [0, 1], [(" are", " is")]),
        text_loss(lab, 1, task.clean, stream),
        error_growth(spliced, task.clean),
    ]


def asking(lab: Lab) -> list:
    spliced = SplicedModel(lab, error="keep")
    clamp = dictionaries.Clamp({(spliced.hook_points[0], 3): 2.0})
    return [
        dictionaries.answers(spliced, ASKED, read=[(1, dictionaries.QUERIED)]),
        dictionaries.answers_with(spliced, ASKED, clamp),
        dictionaries.read_latents(spliced, ASKED, 3),
    ]


WORK: list[tuple[str, Callable[[Lab], list]]] = [
    *(("llama", work) for work in (learning, attribution, judging, hypotheses, statistics)),
    ("llama", explaining),
    ("sessions", asking),
]


def numbers(results: object) -> list:
    """All that results hold, down to numbers and words."""
    found = []
    for leaf in tree_leaves(results):
        if isinstance(leaf, Tensor):
            assert isinstance(leaf, OnDevice) or leaf.device.type == "cpu"
            found.append(leaf.detach().cpu())
        elif hasattr(leaf, "__dict__"):
            found += numbers(list(vars(leaf).values()))
        else:
            found.append(leaf)
    return found


@pytest.mark.parametrize(("name", "work"), WORK, ids=[work.__name__ for _, work in WORK])
def test_a_device_without_float64_gives_the_numbers_of_a_cpu(name, work):
    expected = numbers(work(LABS[name]()))
    lab = LABS[name]()
    with without_float64():
        lab.hf_model.to(DEVICE)
        for sae in lab.saes.values():
            sae.to(DEVICE)
        assert lab.device == DEVICE
        found = numbers(work(lab))
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected):
        if isinstance(other, Tensor | float | np.ndarray):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert one == other


# ---------------------------------------------------------------------------------------------
# The made-up device itself
# ---------------------------------------------------------------------------------------------


def test_the_device_has_no_float64_and_the_cpu_has():
    with without_float64():
        x = torch.tensor([1.0, 2.0], device=DEVICE)
        assert x.cpu().double().dtype == torch.float64
        for refused in (
            lambda: x.double(),
            lambda: x.to(torch.float64),
            lambda: torch.zeros(2, device=DEVICE, dtype=torch.float64),
            lambda: torch.ones(2, dtype=torch.float64).to(DEVICE),
        ):
            with pytest.raises(TypeError, match="no float64"):
                refused()


def test_the_device_and_the_cpu_do_not_mix_and_copies_go_both_ways():
    with without_float64():
        x, here = torch.arange(3.0).to(DEVICE), torch.arange(3.0)
        with pytest.raises(RuntimeError, match="two devices"):
            x + here
        assert (x + 1).tolist() == [1, 2, 3] and (2 * x.sum()).item() == 6
        x[:2] = here[1:]
        assert x[torch.tensor([2, 0])].cpu().tolist() == [2, 1]


def test_gradients_are_those_of_the_cpu():
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    gradients = []
    with without_float64():
        for device in ("cpu", DEVICE):
            w = weight.clone().to(device).requires_grad_()
            (w @ w).relu().sum().backward()
            gradients.append(w.grad.cpu())
    torch.testing.assert_close(*gradients)
