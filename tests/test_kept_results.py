"""Notebooks of a test session share results, and only those of the very same call."""

import json
from dataclasses import replace

import nbformat
import papermill
import pytest
import torch
from conftest import make_lab, tiny_sae
from kept_results import fingerprint, kept

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.sparsification import MaskSettings
from course_utils.circuits.splice import SplicedModel


@pytest.fixture
def calls(tmp_path):
    """A kept function, and what it was called with."""
    seen = []

    def size(value, scale=1, progress=True):
        seen.append(value)
        return {"size": torch.tensor([float(scale)])}

    return kept(size, tmp_path), seen


def test_the_same_call_is_computed_once_and_gives_the_same(calls):
    function, seen = calls
    first, again = function([1, "a"], scale=2), function([1, "a"], scale=2, progress=False)
    assert torch.equal(first["size"], again["size"]) and first is not again
    assert len(seen) == 1


def test_what_has_no_fingerprint_is_computed_each_time(calls):
    function, seen = calls
    for _ in range(2):
        function(iter([1]))
    assert len(seen) == 2


def test_a_call_that_was_interrupted_leaves_nothing(tmp_path):
    def fails(value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(fails, tmp_path)(1)
    assert not list(tmp_path.iterdir())


def changed(tensor):
    return tensor + torch.eye(*tensor.shape) * 1e-6


def test_whatever_a_result_depends_on_is_in_the_fingerprint(task):
    """One number more, in any place, gives another."""
    lab = make_lab()
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)
    masks = SAEMasks.full(means.latents, 1.0)
    name, mask = next(iter(masks.items()))
    prefix = spliced.prefix(task.clean)
    other_sae = SplicedModel(make_lab())
    other_sae.saes = {**spliced.saes, name: tiny_sae()}
    values = [
        spliced,
        SplicedModel(lab, [3]),
        SplicedModel(lab, error="keep"),
        SplicedModel(make_lab(seed=1)),
        other_sae,
        spliced.narrow({name: torch.arange(5)}),
        task,
        task[:3],
        replace(task, clean_answers=task.patch_answers),
        means,
        replace(means, latents={**means.latents, name: changed(means.latents[name])}),
        masks,
        SAEMasks([name], [mask]),
        SAEMasks(masks.hook_points, [changed(mask) for mask in masks.masks]),
        prefix,
        prefix[:3],
        MaskSettings(),
        MaskSettings(seed=1),
        {"a": 1},
        {"b": 1},
        [1, [2]],
        [[1], 2],
        1,
        1.0,
        True,
        "1",
        None,
    ]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(SplicedModel(make_lab())) == fingerprint(spliced)
    assert fingerprint(spliced.prefix(task.clean)) == fingerprint(prefix)


CELLS = """\
from course_utils.circuits import optimize
from course_utils.circuits.splice import SplicedModel
import json
print(json.dumps([hasattr(optimize.learn_masks, "__wrapped__"),
                  hasattr(SplicedModel.logit_diff_from, "__wrapped__"),
                  [name for name in ("os", "sys", "torch", "kept_results") if name in globals()]]))
"""


@pytest.mark.slow
def test_kernels_of_this_session_share_results_and_get_no_name(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS)])
    nbformat.write(notebook, tmp_path / "in.ipynb")
    run = papermill.execute_notebook(
        tmp_path / "in.ipynb", None, kernel_name="python3", progress_bar=False
    )
    assert json.loads(run.cells[-1].outputs[0].text) == [True, True, []]
