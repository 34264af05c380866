"""The post's circuits, and ours beside them."""

import pytest

from course_utils.circuits.experiments import PublishedCircuit, beside_published, published_circuits
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import load_lab


def test_the_posts_circuits_are_those_of_gemma_2_9b():
    circuits = published_circuits("gemma-2-9b")
    assert [(c.nodes, c.faithfulness) for c in circuits if c.task == "ioi"] == [
        (822, 0.88),
        (1695, 0.95),
    ]
    assert published_circuits("smollm2") == []


@pytest.mark.weights
def test_ours_have_the_published_sizes_and_tasks_that_we_lack_are_left_out():
    lab = load_lab("smollm2", layers=[17, 29])
    circuits = [
        PublishedCircuit("sva_rc", "agreement", 18, 0.94),
        PublishedCircuit("no_such_task", "?", 5, 0.5),
    ]
    [row] = beside_published(
        SplicedModel(lab), circuits, n_train=32, n_test=16, steps=20, progress=False
    )
    assert row["nodes, ours"] == row["nodes, published"] == 18
    assert row["prompts"] == 16 and "[" in row["F(C)/F(S), ours"]
