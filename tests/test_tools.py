"""The SAE trainer, on a tiny model and a tiny corpus."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_hf_model, tiny_tokenizer
from sae_lens import SAE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import finetune_saes
import train_saes
from train_saes import Sequences, jumprelu_sae, learning_rate, relative_squared_error, training_prompts

from course_utils.tasks import VOCABULARIES


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a tiny model and a corpus of made-up sentences."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    model = tiny_hf_model("llama", len(tiny_tokenizer()))
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    people = VOCABULARIES["train"].people
    lines = [
        f"The {people[i]} near the {people[-i - 1]} is by the {people[i // 2]}. The {people[i]} was near the {people[i // 3]}." for i in range(60)
    ]
    (folder / "corpus.txt").write_text("\n".join(lines))
    return folder


def run_training(workplace, name, tokens, monkeypatch=None):
    arguments = [
        "--model", workplace / "model", "--corpus", workplace / "corpus.txt", "--layers", 1, 2, "--width", 32, "--k", 4, "--seq-len", 8,
        "--batch-size", 6, "--dtype", "float32", "--device", "cpu", "--tokens", tokens, "--checkpoints", workplace / name, "--out", workplace / f"{name}-out",
        "--log-every", 10, "--lab", "tiny",
    ]  # fmt: skip
    train_saes.main([str(argument) for argument in arguments])
    return {layer: SAE.load_from_disk(workplace / f"{name}-out" / f"layer_{layer}", dtype="float32") for layer in (1, 2)}


def test_training_stops_resumes_and_writes_saes_that_saelens_reads(workplace, monkeypatch):
    tokens = 6 * 7 * 120
    whole = run_training(workplace, "whole", tokens)
    saved = train_saes.save_checkpoint

    def save_and_stop(trainer, folder):
        saved(trainer, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_saes, "save_checkpoint", save_and_stop)
    monkeypatch.setattr(train_saes, "learning_rate", lambda step, steps: learning_rate(step, 120))
    with pytest.raises(KeyboardInterrupt):
        run_training(workplace, "parts", 6 * 7 * 50)
    monkeypatch.setattr(train_saes, "save_checkpoint", saved)
    log = (workplace / "parts" / "LATEST").read_text()
    assert (workplace / "parts" / log / "layer_1").is_dir()
    resumed = run_training(workplace, "parts", tokens)
    for layer in (1, 2):
        assert whole[layer].cfg.architecture() == "jumprelu" and whole[layer].W_dec.shape == (32, 16)
        torch.testing.assert_close(whole[layer].W_dec.norm(dim=1), torch.ones(32), atol=2e-3, rtol=0)
        assert torch.nn.functional.cosine_similarity(resumed[layer].W_dec, whole[layer].W_dec).mean() > 0.9
    recipe = json.loads((workplace / "whole-out" / "metrics.json").read_text())["recipe"]["training"]
    assert recipe["tokens"] == tokens and recipe["seed"] == 0 and recipe["corpus"] == ["corpus.txt"]


def test_training_learns_to_rebuild_the_residual_stream(workplace):
    sae = run_training(workplace, "long", 6 * 7 * 250)[2]
    args = SimpleNamespace(model=workplace / "model", dtype=torch.float32, device="cpu", bos=None)
    model, tokenizer = train_saes.load_model(args)
    held_out = train_saes.read_paragraphs([workplace / "corpus.txt"])[1]
    x = train_saes.residuals(model, Sequences(held_out, [], tokenizer, seq_len=8, seed=3).batch(0, 40), [2])["blocks.2.hook_resid_post"].flatten(0, 1)
    assert train_saes.unexplained_variance(x, sae(x)) < 0.5
    assert 2 < (sae.encode(x) > 0).float().sum(1).mean() < 8


def test_finetuning_brings_the_spliced_model_closer(workplace):
    run_training(workplace, "tuned", 6 * 7 * 60)
    args = SimpleNamespace(model=workplace / "model", dtype=torch.float32, device="cpu", bos=None)
    model, tokenizer = train_saes.load_model(args)
    tokens = Sequences(["The artist is near the boy."] * 4, [], tokenizer, seq_len=8, seed=9).batch(0, 4)

    def divergence():
        saes = {layer: SAE.load_from_disk(workplace / "tuned-out" / f"layer_{layer}", dtype="float32") for layer in (1, 2)}
        splice = finetune_saes.Splice(model, saes, autocast=False)
        with torch.no_grad():
            target, found = (splice.logits(tokens, active).log_softmax(-1) for active in (set(), {1, 2}))
        return (target.exp() * (target - found)).sum(-1).mean().item()

    before = divergence()
    arguments = [
        "--model", workplace / "model", "--corpus", workplace / "corpus.txt", "--layers", 1, 2, "--k", 4, "--seq-len", 8, "--batch-size", 6, "--lab", "tiny",
        "--dtype", "float32", "--device", "cpu", "--steps", 60, "--lr", 3e-3, "--checkpoints", workplace / "tuned", "--out", workplace / "tuned-out",
    ]  # fmt: skip
    finetune_saes.main([str(argument) for argument in arguments])
    assert divergence() < before
    assert "finetuning" in json.loads((workplace / "tuned-out" / "metrics.json").read_text())["recipe"]


def make_sequences(prompt_share=0.25, n=40):
    people = VOCABULARIES["train"].people
    return Sequences([f"The {people[i]} is near the {people[i + 1]}." for i in range(n)], ["The boy by the girl"], tiny_tokenizer(), seq_len=8, seed=0, prompt_share=prompt_share)


def test_sequences_start_with_bos_and_are_the_same_at_the_same_step():
    one, two = make_sequences(), make_sequences()
    one.batch(0, 16), one.batch(1, 16)
    batch = one.batch(4, 16)
    assert torch.equal(batch, two.batch(4, 16)) and not torch.equal(batch, two.batch(3, 16))
    assert batch.shape == (16, 8) and (batch[:, 0] == tiny_tokenizer().bos_token_id).all()


def test_every_sentence_starts_one_sequence_before_any_starts_two():
    batch = make_sequences(prompt_share=0.0).batch(0, 40)
    assert len({tuple(row[:3].tolist()) for row in batch}) == 40


def test_the_wanted_share_of_sequences_starts_with_a_prompt():
    batch = make_sequences(prompt_share=0.25).batch(0, 1000)
    prompt = torch.tensor(tiny_tokenizer()("The boy by the girl", add_special_tokens=False)["input_ids"])
    assert 0.2 < (batch[:, 1:6] == prompt).all(1).float().mean() < 0.3


def test_training_prompts_hold_no_word_of_the_test_vocabulary():
    test = VOCABULARIES["test"]
    forbidden = {*test.people, *test.things, *test.names, *test.places, *test.objects}
    words = {word.strip(",.") for prompt in training_prompts(300, seed=0) for word in prompt.split()}
    assert len(words) > 100 and not words & forbidden


def test_held_out_paragraphs_are_not_trained_on_and_always_the_same(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"Paragraph number {i} has to be long enough to be kept here." for i in range(200)))
    training, held_out = train_saes.read_paragraphs([path])
    assert len(held_out) == 6 and not set(training) & set(held_out) and len(training) + len(held_out) == 200
    assert train_saes.read_paragraphs([path])[1] == held_out


def test_the_learning_rate_warms_up_and_decays_to_a_tenth():
    assert learning_rate(0, 1000) == pytest.approx(0.01) and learning_rate(500, 1000) == 1
    assert learning_rate(900, 1000) == pytest.approx(0.55) and learning_rate(1000, 1000) == pytest.approx(0.1)


def test_a_long_token_counts_by_its_relative_error():
    target = torch.tensor([[1.0, 1.0], [100.0, 100.0], [0.1, 0.1]])
    loss = relative_squared_error(1.1 * target, target)
    torch.testing.assert_close(loss, torch.tensor([[0.01, 0.01], [0.01, 0.01], [1e-4, 1e-4]]))


def test_the_finished_sae_fires_k_latents_on_average_and_has_unit_decoder_rows():
    torch.manual_seed(0)
    x = 5 * torch.randn(500, 16)
    args = SimpleNamespace(k=4, lab="tiny", seq_len=8)
    W_enc, b_enc, W_dec, b_dec = torch.randn(16, 32), torch.randn(32), 3 * torch.randn(32, 16), torch.randn(16)
    sae = jumprelu_sae(W_enc, b_enc, W_dec, b_dec, 1, args, x).float()
    assert (sae.encode(x) > 0).float().sum(1).mean() == pytest.approx(4, abs=0.1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32), atol=2e-3, rtol=0)
    pre = (x - b_dec) @ W_enc + b_enc
    on = sae.encode(x) > 0
    torch.testing.assert_close(sae.decode(sae.encode(x)), (pre * on) @ W_dec + b_dec, atol=0.3, rtol=1e-2)


