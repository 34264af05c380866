"""The post's circuits beside ours, and its mask files."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from course_utils.circuits import published
from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.masks import MaskError
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.published import (
    PublishedCircuit,
    beside_published,
    load_published_mask,
    published_circuits,
)
from course_utils.circuits.splice import SplicedModel

A, B, C = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post", "blocks.5.hook_resid_post"
WIDTHS = {A: 8, B: 6}
POST = {f"blocks.{layer}.hook_resid_post": 16_384 for layer in (7, 14, 21, 40)}
"""Where the post has SAEs, and their width."""


# ---------------------------------------------------------------------------------------------
# Its circuits beside ours
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def halves(lab, task, monkeypatch) -> SimpleNamespace:
    """A task of the tiny lab, cut into two halves that differ, in the place of every task."""
    some = [i % 7 for i in range(18)]  # as many as a step takes, and two more
    halves = {"train": replace(task[some], split="train"), "test": replace(task[7:], split="test")}
    asked = []

    def load(name, tokenizer, split, *, n, verbose):
        assert tokenizer is lab.tokenizer
        asked.append((name, split))
        return halves[split][:n]

    monkeypatch.setattr(published, "load_task", load)
    return SimpleNamespace(asked=asked, **halves)


def test_the_posts_circuits_are_those_of_gemma_2_9b():
    circuits = published_circuits("gemma-2-9b")
    assert [(c.nodes, c.faithfulness) for c in circuits if c.task == "ioi"] == [
        (822, 0.88),
        (1695, 0.95),
    ]
    assert published_circuits("smollm2") == []


def test_ours_have_the_published_sizes_and_tasks_that_we_lack_are_left_out(lab, halves):
    circuits = [
        PublishedCircuit("no_such_task", "?", 5, 0.5),
        PublishedCircuit("sva_rc", "agreement", 18, 0.94),
        PublishedCircuit("ioi", "names", 3, 0.9),
    ]
    spliced = SplicedModel(lab)
    settings = dict(steps=5, seed=2, progress=False)
    rows = beside_published(spliced, circuits, n_train=17, n_test=4, **settings)
    means = spliced.patch_means(halves.train.patch[:17])
    learned = learn_masks(spliced, halves.train[:17], means=means, n_nodes=18, **settings)
    raw = Evaluation(spliced, halves.test[:4], means).faithfulness(learned.masks).raw
    assert rows[0] == {
        "behaviour": "agreement",
        "nodes, published": 18,
        "F(C)/F(S), published": 0.94,
        "nodes, ours": learned.n_nodes,
        "F(C)/F(S), ours": str(raw),
        "prompts": 4,
    }
    assert [(row["behaviour"], row["nodes, published"]) for row in rows[1:]] == [("names", 3)]
    assert halves.asked == [
        ("sva_rc", "train"),
        ("sva_rc", "test"),
        ("ioi", "train"),
        ("ioi", "test"),
    ]


# ---------------------------------------------------------------------------------------------
# Its mask files
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "0.1_run.json"


def write(path: Path, record) -> Path:
    path.write_text(json.dumps(record))
    return path


def test_latents_for_all_positions_become_masks_of_one_row(path):
    masks = load_published_mask(write(path, {B: [5, 0], A: [2]}), WIDTHS)
    assert masks.nodes() == [(A, None, 2), (B, None, 0), (B, None, 5)]
    assert [list(mask.shape) for mask in masks.masks] == [[8], [6]]
    assert masks.hook_points == [A, B]
    assert all(mask.dtype == torch.float32 for mask in masks.masks)


def test_latents_per_position_become_masks_per_position(path):
    record = {A: [[], [2, 7], [2]], B: [[], [], [0, 0]]}
    for seq_len in (3, None):
        masks = load_published_mask(write(path, record), WIDTHS, seq_len)
        assert masks.nodes() == [(A, 1, 2), (A, 1, 7), (A, 2, 2), (B, 2, 0)]
        assert [list(mask.shape) for mask in masks.masks] == [[3, 8], [3, 6]]
        assert masks[B].max() == 1  # named twice, on once


@pytest.mark.parametrize("rest", [{}, {B: []}])
@pytest.mark.parametrize(("latents", "shape"), [([3], [6]), ([[], [3]], [2, 6])])
def test_a_hook_point_without_latents_is_off_whether_it_is_named_or_not(path, rest, latents, shape):
    masks = load_published_mask(write(path, {A: latents} | rest), WIDTHS)
    assert list(masks[B].shape) == shape and masks[B].sum() == 0 and masks[A].sum() == 1


def test_measurements_and_remarks_beside_the_lists_are_passed_over(path):
    """The numbers of one of the post's files, with fewer latents."""
    record = {
        "blocks.7.hook_resid_post": [9152, 9152, 4146],
        "blocks.14.hook_resid_post": [],
        "total_density": 3,
        "avg_density": 0.75,
        "ce_loss": 5.315802574157715,
        "faithfulness": 0.9561419486999512,
        "task": "sva",
        "seed": None,
    }
    masks = load_published_mask(write(path, record), POST)
    name = "blocks.7.hook_resid_post"
    assert masks.nodes() == [(name, None, 4146), (name, None, 9152)]
    assert masks.hook_points == list(POST)


def test_a_spliced_model_says_where_its_saes_are_and_runs_with_the_mask(path, spliced, task, means):
    nothing = load_published_mask(write(path, {A: [], B: []}), spliced)
    all_of_it = load_published_mask(write(path, {A: [*range(24)], B: [*range(24)]}), spliced)
    got = [
        spliced.run(task.clean, masks=masks, means=means).logits for masks in (nothing, all_of_it)
    ]
    torch.testing.assert_close(got[1], spliced.run(task.clean).logits)
    assert not torch.allclose(got[0], got[1], atol=1e-3)
    rows = [[], *[[1, 2]] * (task.seq_len - 1)]
    per_position = load_published_mask(write(path, {B: rows}), spliced, task.seq_len)
    shared = load_published_mask(write(path, {B: [1, 2]}), spliced)
    torch.testing.assert_close(
        spliced.run(task.clean, masks=per_position, means=means).logits,
        spliced.run(task.clean, masks=shared, means=means).logits,
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({C: [1]}, r"no SAE at 'blocks\.5\..*SAEs at \['blocks\.1\..*'blocks\.3\."),
        ({A: [1], C: []}, r"no SAE at 'blocks\.5\."),
        ({A: [1], "7": {"62": [10]}}, "no SAE at '7'"),
        ({A: [8]}, r"blocks\.1\..*: latent 8 is none of 8, 0 to 7.*wider"),
        ({A: [[], [1]], B: [[0], [6]]}, r"blocks\.3\..*: latent 6 is none of 6, 0 to 5"),
        ({A: [-1]}, r"blocks\.1\..*: latent -1 is none"),
        ({A: [1.0]}, r"blocks\.1\..*whole number, not 1\.0"),
        ({A: [True]}, r"blocks\.1\..*whole number, not True"),
        ({A: ["1"]}, r"blocks\.1\..*whole number, not '1'"),
        ({A: [[[1]]]}, r"blocks\.1\..*whole number, not \[1\]"),
        ({A: [[], [1]], B: [[0]]}, r"blocks\.3\..*lists for 1 positions, and 2 are wanted"),
        ({A: [[], [1]], B: [0, 1]}, r"blocks\.3\..*without a position.*Wanted 2 lists"),
        ({A: [[1], 2]}, r"blocks\.1\..*without a position"),
        ({A: 3}, r"blocks\.1\..*wanted a list of latents.*not 3"),
        ({A: {"1": [2]}}, r"blocks\.1\..*wanted a list of latents"),
        ({"faithfulness": 0.9}, r"no list of latents; wanted some of \['blocks\.1\."),
        ([1, 2], "wanted an object.*not a list"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_by_hook_point(path, record, message):
    with pytest.raises(MaskError, match=f"0.1_run.json: .*{message}"):
        load_published_mask(write(path, record), WIDTHS)


def test_positions_for_other_prompts_are_refused_by_hook_point(path):
    write(path, {A: [[], [1]], B: [[], []]})
    with pytest.raises(MaskError, match=r"blocks\.1\..*lists for 2 positions, and 7 are wanted"):
        load_published_mask(path, WIDTHS, 7)


@pytest.mark.parametrize(
    "content", [b"{'blocks.7.hook_resid_post': {580, 699}}", b'{"x": [1,', b'{"x": "\xe9"}']
)
def test_what_is_no_json_is_refused(path, content):
    """The post's ig_bi_*.json are Python sets."""
    path.write_bytes(content)
    with pytest.raises(MaskError, match="not JSON"):
        load_published_mask(path, WIDTHS)


def test_a_missing_file_is_not_found(path):
    with pytest.raises(FileNotFoundError):
        load_published_mask(path, WIDTHS)


def test_a_tilde_is_the_home_folder(path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(path.parent))
    write(path, {A: [1]})
    assert load_published_mask("~/0.1_run.json", WIDTHS).nodes() == [(A, None, 1)]


def test_the_posts_first_files_which_hold_positions_are_refused(path):
    record = {name: [2] for name in POST}
    record["blocks.40.hook_resid_post"] = [6] * 17
    with pytest.raises(MaskError, match=r"blocks\.40\..*positions and not latents"):
        load_published_mask(write(path, record), POST)


@pytest.mark.parametrize("latents", [[2, 6], [2, 6, 6, 5082]])
def test_low_latents_are_latents_unless_all_are_low_and_some_repeat(path, latents):
    name = "blocks.7.hook_resid_post"
    masks = load_published_mask(write(path, {name: latents}), POST)
    assert [latent for _, _, latent in masks.nodes()] == sorted(set(latents))
