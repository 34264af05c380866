"""Running text: what is replaced by itself changes nothing, and the loss is the model's own."""

import pytest
import torch

from course_utils.circuits.reconstruction import loss_recovered, residual_stream, text_loss
from course_utils.prompts.text import TEXT_DIR, load_text


@pytest.fixture(scope="module")
def resid(lab, task):
    return residual_stream(lab, 1, task.clean, batch_size=5)


def test_the_residual_stream_is_what_the_model_says_without_bos(lab, task, resid):
    with torch.no_grad():
        states = lab.hf_model(task.clean, output_hidden_states=True).hidden_states
    torch.testing.assert_close(resid, states[2][:, 1:], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_models_cross_entropy_from_the_second_token_on(lab, task, resid):
    with torch.no_grad():
        logits = lab.hf_model(task.clean).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].flatten(0, 1), task.clean[:, 2:].flatten(), reduction="none"
    )
    expected = expected.view(len(task.clean), -1).mean(1)
    torch.testing.assert_close(
        text_loss(lab, 1, task.clean, resid, batch_size=5), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        text_loss(lab, 1, task.clean, resid, lambda x: x), expected, rtol=1e-4, atol=1e-5
    )


def test_replacing_the_residual_stream_is_a_hook_on_the_model(lab, task, resid):
    def halve(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        x = torch.cat([x[:, :1], x[:, 1:] / 2], dim=1)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = lab.hf_model.model.layers[1].register_forward_hook(halve)
    try:
        with torch.no_grad():
            logits = lab.hf_model(task.clean).logits
    finally:
        handle.remove()
    expected = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].flatten(0, 1), task.clean[:, 2:].flatten()
    )
    torch.testing.assert_close(
        text_loss(lab, 1, task.clean, resid, lambda x: x / 2).mean(), expected, rtol=1e-4, atol=1e-5
    )


def test_loss_recovered_is_one_for_the_model_and_zero_for_the_ablation():
    model, ablated = torch.rand(20), 5 + torch.rand(20)
    assert (
        loss_recovered(model, model, ablated).value,
        loss_recovered(model, ablated, ablated).value,
    ) == (1, 0)
    halfway = loss_recovered(model, (model + ablated) / 2, ablated)
    assert (
        halfway.value == pytest.approx(0.5)
        and halfway.low == pytest.approx(0.5)
        and halfway.high == pytest.approx(0.5)
    )


def test_pieces_follow_each_other_within_a_passage_and_start_with_bos(lab, tmp_path):
    words = " near by the is are was were".split(" ")[1:]
    passage = "The " + " ".join(words)
    (tmp_path / "train.txt").write_text(f"{passage}\n{passage}\n")
    tokens = load_text(lab.tokenizer, seq_len=4, folder=tmp_path)
    ids = lab.tokenizer(passage, add_special_tokens=False)["input_ids"]
    assert tokens[:, 0].eq(lab.tokenizer.bos_token_id).all() and len(ids) == 8
    assert tokens[:, 1:].tolist() == [ids[:3], ids[3:6]] * 2
    assert len(load_text(lab.tokenizer, n=3, seq_len=4, folder=tmp_path)) == 3


def test_what_is_not_there_is_refused(lab, tmp_path):
    (tmp_path / "train.txt").write_text("The near by the\n")
    with pytest.raises(ValueError, match="no text 'test'; there is train"):
        load_text(lab.tokenizer, "test", folder=tmp_path)
    with pytest.raises(ValueError, match="train has 1 pieces of 4 tokens, fewer than 2"):
        load_text(lab.tokenizer, "train", n=2, seq_len=4, folder=tmp_path)


def test_the_shipped_text_is_plain_small_and_split_without_overlap():
    files = {
        name: (TEXT_DIR / f"{name}.txt").read_text(encoding="utf-8")
        for name in ("train", "held_out")
    }
    assert sum(map(len, files.values())) < 300_000
    assert all(text.isascii() for text in files.values())
    train, held_out = (set(files[name].splitlines()) for name in ("train", "held_out"))
    assert not train & held_out and len(train) > 300 and len(held_out) > 50
