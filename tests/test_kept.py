"""Answers that were kept are those that were given, and are for their own prompts only."""

import pytest
import torch
from safetensors.torch import save_file

from course_utils.studies.dictionaries import FAMILIES, HONEST, LAST, QUERIED, Answers, attacks
from course_utils.studies.kept import KeptAnswers, KeptError, prompts_hash

SITES = ((1, QUERIED), (3, LAST))


def made_up(n: int, seed: int) -> Answers:
    """Answers with latents of which two in three are 0."""
    generator = torch.Generator().manual_seed(seed)
    latents = {
        site: (torch.randn(n, 24, generator=generator) - 0.4).relu().half().float()
        for site in SITES
    }
    return Answers(
        tuple("Trace" if i % 3 else str(i) for i in range(n)),
        torch.rand(n, generator=generator),
        latents,
    )


@pytest.fixture
def asked():
    return {family: attacks(family, 4) for family in HONEST}


@pytest.fixture
def given(asked):
    return {family: made_up(4, i) for i, family in enumerate(asked)}


def refuse_to_ask():
    raise AssertionError("was asked")


def assert_same(found: Answers, expected: Answers) -> None:
    assert found.top == expected.top
    torch.testing.assert_close(found.p_missing, expected.p_missing, atol=0, rtol=0)
    assert set(found.latents) == set(expected.latents)
    for site, f in expected.latents.items():
        torch.testing.assert_close(found.latents[site], f, atol=0, rtol=0)


def test_what_is_read_is_what_was_given_list_by_list(tmp_path, asked, given):
    path = tmp_path / "some" / "answers.safetensors"
    keep = KeptAnswers(path, read=False)
    plain = {family: Answers(one.top, one.p_missing) for family, one in given.items()}
    assert keep("with latents", asked, lambda: given) == given
    assert keep("without", asked, lambda: plain) == plain
    again = KeptAnswers(path, read=True)
    for name, expected in (("with latents", given), ("without", plain)):
        found = again(name, asked, refuse_to_ask)
        assert list(found) == list(asked)
        for family in asked:
            assert_same(found[family], expected[family])


def test_latents_lose_no_more_than_float16_does(tmp_path, asked):
    exact = {
        family: Answers(("7",) * 4, torch.rand(4), {SITES[0]: 30 * torch.rand(4, 24)})
        for family in asked
    }
    KeptAnswers(tmp_path / "a", read=False)("x", asked, lambda: exact)
    found = KeptAnswers(tmp_path / "a", read=True)("x", asked, refuse_to_ask)
    for family in asked:
        f, g = (some[family].latents[SITES[0]] for some in (found, exact))
        torch.testing.assert_close(f, g, atol=0, rtol=1e-3)


def test_answers_to_other_prompts_are_refused(tmp_path, asked, given):
    path = tmp_path / "answers.safetensors"
    KeptAnswers(path, read=False)("some", asked, lambda: given)
    again = KeptAnswers(path, read=True)
    others = [
        {family: attacks(family, 4, seed=1) for family in HONEST},
        {family: attacks(family, 3) for family in HONEST},
        {family: attacks(family, 4) for family in reversed(HONEST)},
        {FAMILIES[0]: attacks(FAMILIES[0], 4), HONEST[0]: asked[HONEST[0]]},
    ]
    for other in others:
        with pytest.raises(KeptError, match="'some': .* to other prompts. .*run the full profile"):
            again("some", other, refuse_to_ask)
    with pytest.raises(KeptError, match="'none': .* holds none"):
        again("none", asked, refuse_to_ask)


def test_a_file_that_is_not_there_or_holds_something_else_is_refused(tmp_path):
    with pytest.raises(KeptError, match="no answers at .*nowhere. Run the full profile"):
        KeptAnswers(tmp_path / "nowhere", read=True)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(KeptError, match="holds no answers"):
        KeptAnswers(tmp_path / "other", read=True)


def test_the_hash_is_of_all_prompts_in_order(asked):
    assert prompts_hash(asked) == prompts_hash(dict(enumerate(asked.values())))
    assert prompts_hash(asked) != prompts_hash({1: asked[HONEST[1]], 0: asked[HONEST[0]]})
