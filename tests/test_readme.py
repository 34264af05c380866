"""The README's own examples, run as they stand there."""

import functools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import tiny_sae, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.circuits import experiments

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def example(word: str) -> str:
    """The one example in which a word stands."""
    [code] = [code for code in EXAMPLES if word in code]
    return code


def test_every_example_is_run_here():
    assert len(EXAMPLES) == 3


@pytest.mark.weights
def test_the_ten_lines_find_a_small_circuit_that_does_most_of_the_work(capsys):
    names: dict = {}
    exec(example("learn_masks"), names)
    value, low, high = map(float, re.findall(r"-?\d+\.\d+", capsys.readouterr().out)[-3:])
    assert 18 <= names["circuit"].n_nodes <= 22
    assert 0.7 < low < value < high < 1.2
    assert len(example("learn_masks").strip().splitlines()) <= 10


def test_a_lab_of_ones_own_is_made_of_folders_and_names(tmp_path, monkeypatch):
    """SAEs that come from the registry are fetched when they are first used, so not here."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=18,
        num_attention_heads=2,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained("path/or/hub-name")
    tokenizer.save_pretrained("path/or/hub-name")
    tiny_sae().save_model("path/to/sae")
    names: dict = {}
    of_the_readme = """("release", "sae_id of SAELens' registry")"""
    assert of_the_readme in example("from_parts")
    real = '("gpt2-small-res-jb", "blocks.8.hook_resid_pre")'
    exec(example("from_parts").replace(of_the_readme, real), names)
    lab = names["lab"]
    assert lab.sae_layers == [8, 16] and lab.name == "hub-name"
    assert lab.saes[8].cfg.d_in == lab.d_model == 16


def test_a_sweep_is_one_line_for_many_circuits(tmp_path, monkeypatch):
    """With work that takes no time in place of learning and judging, and threads in place of
    processes, which `test_experiments.py` tries.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "_spawned", ThreadPoolExecutor)
    work = functools.partial(experiments.sweep, work=lambda point: {"seed": point.seed})
    monkeypatch.setattr(experiments, "sweep", work)
    names: dict = {}
    exec(example("sweep("), names)
    results = experiments.read_results("results.jsonl")
    assert len(results) == len(names["points"]) == 2 * 3 * 3
    assert {result.point.task for result in results} == {"sva_nounpp", "ioi"}
    assert all(result.result == {"seed": result.point.seed} for result in results)
