"""Attribution's ranking: its variant is the best on dev, its circuits are those of its scores."""

import pytest

from course_utils.circuits.attribution import variants
from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.masks import SAEMasks
from course_utils.studies.ranking import N_KEPT, Ranking, best_ranking
from tools import learn_circuits

SIZES = (10, 30)


@pytest.fixture(scope="module")
def ranking(spliced, task, means):
    return best_ranking(spliced, task[:8], task[8:], means=means, sizes=SIZES, steps=2)


def test_the_variant_is_the_one_whose_circuits_have_the_smallest_gap_on_dev(
    ranking, spliced, task, means
):
    scores = variants(spliced, task[:8], means=means, steps=2)
    on_dev = Evaluation(spliced, task[8:], means)
    gaps = {
        name: sum(
            on_dev.faithfulness(SAEMasks.from_scores(score, n, rank="signed")).gap.value
            for n in SIZES
        )
        / len(SIZES)
        for name, score in scores.items()
    }
    assert ranking.variant == min(gaps, key=gaps.__getitem__) and set(ranking.gaps) == set(gaps)
    for name, gap in gaps.items():
        assert ranking.gaps[name] == pytest.approx(gap, abs=1e-4)
    assert (ranking.n_prompts, ranking.n_dev, ranking.steps) == (8, 4, 2)


def test_a_circuit_has_the_nodes_with_the_largest_scores(ranking, spliced, task, means):
    scores = variants(spliced, task[:8], means=means, steps=2)[ranking.variant]
    for n in SIZES:
        expected = SAEMasks.from_scores(scores, n, rank="signed").nodes()
        assert set(ranking.circuit(n, means.latents).nodes()) == set(expected)
    values = [scores[name][position, latent].item() for name, position, latent in ranking.nodes]
    assert values == sorted(values, reverse=True)


def test_a_ranking_is_read_as_it_was_written(ranking, tmp_path):
    ranking.save(tmp_path / "a" / "ranking.json")
    assert Ranking.load(tmp_path / "a" / "ranking.json") == ranking


@pytest.mark.parametrize("text", ["[1]", "{}", '{"nodes": [[1]]}', '{"nodes": []}'])
def test_a_file_with_something_else_is_refused(tmp_path, text):
    path = tmp_path / "ranking.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no ranking"):
        Ranking.load(path)


def test_more_nodes_than_there_are_is_an_error(ranking, means):
    n = len(ranking.nodes)
    assert n <= N_KEPT
    with pytest.raises(ValueError, match=f"{n + 1} nodes are wanted, and this ranking has {n}"):
        ranking.circuit(n + 1, means.latents)


def test_the_tool_ranks_the_tasks_that_have_no_ranking_yet(lab, task, tmp_path, monkeypatch):
    asked_for = []
    monkeypatch.setattr(learn_circuits, "MASKS_DIR", tmp_path)
    monkeypatch.setattr(learn_circuits, "CIRCUITS", {"one": (5,), "other": (10, 20)})
    monkeypatch.setattr(learn_circuits, "load_lab", lambda name: lab)
    monkeypatch.setattr(
        learn_circuits,
        "load_task",
        lambda name, tokenizer, split, n: asked_for.append((name, split)) or task,
    )
    there = learn_circuits.ranking_path("one", "some-lab")
    there.parent.mkdir()
    there.write_text("there")
    monkeypatch.setattr(learn_circuits, "N_SCORED", 4)
    monkeypatch.setattr(learn_circuits, "SCORING", {"steps": 2})
    learn_circuits.rank_nodes("some-lab", n_dev=6)
    assert there.read_text() == "there"
    made = Ranking.load(tmp_path / "other" / "ranking_some-lab.json")
    assert (made.n_prompts, made.n_dev, made.steps) == (4, 12, 2)
    assert asked_for == [("other", "train"), ("other", "dev")]
