"""What is said of a lab before it is loaded, against what it takes when it is."""

from pathlib import Path

import pytest
import torch
from conftest import make_lab
from torch.utils.flop_counter import FlopCounterMode

from course_utils.circuits.optimize import MaskSettings, learn_masks
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.catalog import LABS, LabError
from course_utils.labs.lab import load_lab
from course_utils.labs.requirements import estimate, matrix_rate, requirements_of, table
from course_utils.prompts.tasks import load_task


@pytest.mark.parametrize("name", LABS)
def test_every_lab_says_what_it_needs(name):
    needs = estimate(name, device="cpu", dtype=torch.bfloat16)
    assert needs.memory > needs.weights > 0 and needs.saes > 0 and needs.gflop_per_step > 0
    assert name in str(needs) and "to fetch" in str(needs)


def test_the_posts_setting_fits_a_gpu_of_24_gb_and_its_weights_are_18_5():
    needs = estimate("gemma-2-9b")
    assert needs.dtype == torch.bfloat16
    assert needs.weights == pytest.approx(18.48, abs=0.01)
    assert needs.saes == pytest.approx(4 * 2 * 2 * 16384 * 3584 / 1e9)
    assert 18.5 < needs.memory < 23


@pytest.mark.weights
def test_a_loaded_lab_says_the_same_as_before():
    lab = load_lab("smollm2", layers=[5, 11])
    before, after = estimate("smollm2", layers=[5, 11]), lab.estimate()
    assert (before.parameters, before.weights, before.saes, before.step, before.gflop_per_step) == (
        after.parameters, after.weights, after.saes, after.step, after.gflop_per_step
    )  # fmt: skip
    assert (
        before.download == pytest.approx(0.098, abs=0.001) and before.missing == after.download == 0
    )
    assert before.weights == pytest.approx(
        sum(p.numel() * p.element_size() for p in lab.hf_model.parameters()) / 1e9
    )


@pytest.mark.weights
def test_the_work_of_a_mask_step_is_what_is_counted():
    """Within a quarter of a count of the matrix products of a real step."""
    lab = load_lab("smollm2", layers=[5, 11, 17, 23, 29])
    task = load_task("ioi", lab.tokenizer, n=16, verbose=False)
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)

    def count(steps):
        with FlopCounterMode(display=False) as counter:
            learn_masks(
                spliced, task, means=means, settings=MaskSettings(steps=steps), progress=False
            )
        return counter.get_total_flops()

    counted = (count(2) - count(1)) / 1e9
    reckoned = lab.estimate().gflop_per_step * (task.seq_len - 1) / 24
    assert reckoned == pytest.approx(counted, rel=0.25)


def test_a_lab_of_ones_own_says_what_it_needs_too():
    lab = make_lab("gemma3")
    needs = lab.estimate()
    assert needs.parameters == sum(p.numel() for p in lab.hf_model.parameters())
    assert needs.download == 0 and not needs.gpu


def test_more_layers_after_the_first_sae_are_more_work():
    model = make_lab().hf_model
    early, late = (
        requirements_of("x", model, {layer: 24}, torch.float32).gflop_per_step for layer in (0, 2)
    )
    assert early > 2 * late


def test_the_readme_shows_what_is_reckoned():
    """If this fails: paste what `python -m course_utils.labs.requirements` prints."""
    assert table() in (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_an_unknown_lab_is_refused():
    with pytest.raises(LabError, match="unknown lab"):
        estimate("gpt5")


def test_the_time_of_a_step_follows_from_the_machines_rate():
    needs = estimate("smollm2")
    assert matrix_rate(torch.float32) > 1
    assert (
        0.2
        < needs.seconds_per_step("cpu")
        / (needs.gflop_per_step / (0.5 * matrix_rate(torch.float32)))
        < 5
    )
