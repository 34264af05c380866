"""Prompts that go on from their last tokens give what whole forward passes give."""

import pytest
import torch
from conftest import N_LAYERS

from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.starts import Start
from course_utils.labs.lab import Lab, hook_point

CLAMPS = {
    "nothing": {},
    "first SAE": {(hook_point(1), -2, 2): 60.0, (hook_point(1), -2, 5): 0.0},
    "first SAE, last token": {(hook_point(1), -1, 2): 9.0},
    "last SAE": {(hook_point(3), -1, 7): -9.0},
    "both": {(hook_point(1), -2, 2): 9.0, (hook_point(3), -1, 7): 9.0},
}


def prompts(lab: Lab, n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens after BOS, of lengths 6, 9 and 7 in turn, padded on the right."""
    lengths = torch.tensor([6, 9, 7]).repeat(n)[:n]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, len(lab.tokenizer), (n, 9), generator=generator)
    tokens[:, 0] = lab.tokenizer.bos_token_id
    return tokens * (torch.arange(9) < lengths[:, None]), lengths


def whole_pass(spliced, tokens, lengths, held) -> torch.Tensor:
    """The same by a whole forward pass over the padded prompts."""
    items = [Held(name, lengths + place, i, value) for (name, place, i), value in held.items()]
    prefix = spliced.prefix(tokens, lengths=lengths)
    return spliced.run(prefix, latents=holding(spliced, items)).normed


@torch.no_grad()
@pytest.mark.parametrize("held", CLAMPS.values(), ids=CLAMPS)
def test_going_on_from_a_start_equals_a_whole_pass_on_every_architecture(any_lab, held):
    spliced = SplicedModel(any_lab, error="keep")
    tokens, lengths = prompts(any_lab)
    found = Start.of(spliced, tokens, lengths).run(held)
    torch.testing.assert_close(
        found, whole_pass(spliced, tokens, lengths, held), atol=1e-5, rtol=1e-5
    )
    plain = spliced.model_run(tokens, lengths).normed
    assert torch.allclose(found, plain, atol=1e-4, rtol=1e-4) == (not held)


@torch.no_grad()
@pytest.mark.parametrize(("n_last", "batch_size"), [(2, 1), (2, 2), (3, None), (4, 2)])
@pytest.mark.parametrize("has_bos", [True, False])
def test_how_many_tokens_are_run_again_and_at_once_makes_no_difference(
    lab, n_last, batch_size, has_bos
):
    spliced = SplicedModel(lab, error="keep", has_bos=has_bos)
    tokens, lengths = prompts(lab)
    start = Start.of(spliced, tokens, lengths, n_last=n_last, batch_size=batch_size)
    for held in CLAMPS.values():
        torch.testing.assert_close(
            start.run(held), whole_pass(spliced, tokens, lengths, held), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_a_start_is_as_it_was_after_it_was_used(lab):
    spliced = SplicedModel(lab, error="keep")
    start = Start.of(spliced, *prompts(lab))
    before = start.run({})
    start.run(CLAMPS["both"])
    torch.testing.assert_close(start.run({}), before, atol=0, rtol=0)
    assert len(start) == 9


@torch.no_grad()
def test_going_on_runs_the_last_tokens_only_and_no_layer_before_the_change(lab):
    spliced = SplicedModel(lab, error="keep")
    start, ran = Start.of(spliced, *prompts(lab, 2)), []
    handles = [
        layer.register_forward_hook(lambda m, args, out, i=i: ran.append((i, args[0].shape[1])))
        for i, layer in enumerate(lab.hf_model.model.layers)
    ]
    start.run({(hook_point(1), -2, 2): 9.0})
    for handle in handles:
        handle.remove()
    assert set(ran) == {(layer, 2) for layer in range(2, N_LAYERS)}


@torch.no_grad()
def test_many_prompts_are_read_without_the_unembedding(lab):
    """For the last token of each, torch would copy it: 15 GB with a model of 1.5 billion."""
    spliced, rows = SplicedModel(lab, error="keep"), []
    unembedding = spliced.stack.model.get_output_embeddings()
    handle = unembedding.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    Start.of(spliced, *prompts(lab))
    handle.remove()
    assert set(rows) <= {1}


@pytest.mark.parametrize("error", ["drop", "mean"])
def test_errors_must_be_kept(lab, error):
    with pytest.raises(ValueError, match=f"error='keep'.*not '{error}'"):
        Start.of(SplicedModel(lab, error=error), *prompts(lab))


def test_prompts_that_are_too_short_or_none_at_all_are_refused(lab):
    spliced = SplicedModel(lab, error="keep")
    tokens, lengths = prompts(lab)
    with pytest.raises(ValueError, match="6 tokens .* no more than the 5 that are to be run again"):
        Start.of(spliced, tokens, lengths, n_last=5)
    with pytest.raises(ValueError, match="no prompt to start from"):
        Start.of(spliced, tokens[:0], lengths[:0])


def test_what_cannot_be_held_is_refused(lab):
    start = Start.of(SplicedModel(lab, error="keep"), *prompts(lab))
    for place in (-3, 0, 1):
        with pytest.raises(ValueError, match=f"place {place}: .* from −2 to −1"):
            start.run({(hook_point(1), place, 2): 1.0})
        with pytest.raises(ValueError, match=f"place {place}: .* from −2 to −1"):
            start.latents(hook_point(1), place)
    with pytest.raises(ValueError, match="nothing is spliced at blocks.2"):
        start.latents(hook_point(2), -1)
    with pytest.raises(ValueError, match="nothing is spliced at blocks.2"):
        start.run({(hook_point(2), -1, 2): 1.0})
    with pytest.raises(ValueError, match="latents 0 to 23, and no 24"):
        start.run({(hook_point(1), -1, 24): 1.0})
