"""Facts as prompt pairs: what a table says, in every split, as tokens of SmolLM2."""

from itertools import combinations

import pytest

from course_utils.labs.loading import load_model
from course_utils.prompts.facts import FACTS, fact_pairs
from course_utils.prompts.tasks import SPLITS, TASKS_DIR, TaskError, load_task, read_pairs
from tools.write_tasks import SIZES

ALL = [(name, split) for name in FACTS for split in SPLITS]


@pytest.mark.parametrize("name, split", ALL)
def test_the_shipped_file_is_what_the_table_says(name, split):
    pairs = fact_pairs(name, split, SIZES[split])
    assert read_pairs(TASKS_DIR / f"{name}_{split}.jsonl") == pairs
    answers = FACTS[name].answers[split]
    for pair in pairs:
        assert f" {answers[pair.case]}" == pair.clean_answer != pair.patch_answer
        assert f" {pair.case} " in pair.clean_prefix
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("name, split", ALL)
def test_the_first_round_has_every_subject_once(name, split):
    subjects = list(FACTS[name].answers[split])
    pairs = fact_pairs(name, split, len(subjects))
    if name == "capitals":  # every answer is another one
        assert [pair.case for pair in pairs] == subjects
    assert len({pair.case for pair in fact_pairs(name, split, 600)}) == len(subjects)


@pytest.mark.parametrize("one, other", combinations(SPLITS, 2))
def test_no_two_splits_share_a_subject(one, other):
    for table in FACTS.values():
        assert not set(table.answers[one]) & set(table.answers[other])


def test_the_table_of_opposites_has_both_ways_in_one_split():
    answers = FACTS["opposites"].answers
    for split in SPLITS:
        for word, opposite in answers[split].items():
            for other in SPLITS:
                if opposite in answers[other]:
                    assert other == split or word == "heavy"


@pytest.fixture(scope="module")
def smollm2_tokenizer():
    _, tokenizer = load_model("smollm2")
    return tokenizer


@pytest.mark.weights
@pytest.mark.parametrize("name, split", ALL)
def test_every_pair_fits_smollm2(name, split, smollm2_tokenizer):
    task = load_task(name, smollm2_tokenizer, split, verbose=False)
    assert not task.n_dropped and len(task) == len(fact_pairs(name, split, SIZES[split]))


def test_what_there_is_not_is_refused():
    with pytest.raises(TaskError, match="capitals, continents, opposites"):
        fact_pairs("rivers", "train", 3)
