"""The default lab for real (its weights are fetched on the first run), and what `load_lab` refuses."""

import time

import pytest
import torch

from course_utils.labs import LABS, LabError, fast_dtype, load_lab, load_saes, sae_metrics
from course_utils.splice import SplicedModel
from course_utils.tasks import load_task
from course_utils.weights import converted

GAP_6 = [5, 11, 17, 23, 29]


@pytest.fixture(scope="module")
def smollm2():
    return load_lab("smollm2", layers=GAP_6)


def test_an_unknown_lab_lists_the_known_ones():
    with pytest.raises(LabError, match="unknown lab 'smollm3'.*smollm2"):
        load_lab("smollm3")


def test_a_layer_without_an_sae_lists_those_that_have_one():
    with pytest.raises(LabError, match=r"no SAE for layer 6.*\[2, 5, 8, 11, 14, 17, 20, 23, 26, 29\]"):
        load_lab("smollm2", layers=[5, 6])


def test_a_folder_without_saes_is_named(tmp_path):
    with pytest.raises(LabError, match=f"{tmp_path.name}; there are SAEs for layers \\[\\]"):
        load_saes(tmp_path, [3], device="cpu", dtype=torch.float32)


def test_smollm2_loads_from_the_cache_in_under_15_seconds():
    converted(LABS["smollm2"].weights)  # fetch first, if this machine never has
    start = time.perf_counter()
    lab = load_lab("smollm2")
    assert time.perf_counter() - start < 15
    assert lab.sae_layers == list(range(2, 30, 3)) and lab.d_model == 576


def test_the_fast_dtype_is_the_one_that_multiplies_faster_here():
    def seconds(dtype):
        a = torch.ones(512, 512, dtype=dtype)
        a @ a
        start = time.perf_counter()
        a @ a
        return time.perf_counter() - start

    found = fast_dtype("cpu")
    ratio = seconds(torch.float32) / seconds(torch.bfloat16)
    assert found == (torch.bfloat16 if ratio > 1.5 else torch.float32) or 0.7 < ratio < 3  # near the border, either


def test_smollm2_knows_who_got_the_ring(smollm2):
    tokens = smollm2.tokenizer.bos_token + "When Laura and Aaron went to the park, Aaron gave a ring to"
    ids = torch.tensor([smollm2.tokenizer(tokens, add_special_tokens=False)["input_ids"]])
    assert smollm2.tokenizer.decode(smollm2.model(ids)[0, -1].argmax()) == " Laura"


@pytest.mark.parametrize("name", ["sva_nounpp", "sva_rc", "ioi"])
def test_the_shipped_saes_do_what_their_metrics_say(smollm2, name):
    """On a third of the held-out prompts, the share of the logit difference that is left is the measured one."""
    [row] = [r for r in sae_metrics("smollm2")["held_out_prompts"] if (r["task"], r["gap"], r["error"]) == (name, 6, "drop")]
    assert row["layers"] == GAP_6
    task = load_task(name, smollm2.tokenizer, "test", n=50)
    spliced = SplicedModel(smollm2, GAP_6)
    share = (spliced.logit_diff(task).mean() / spliced.model_logit_diff(task).mean()).item()
    width = row["kept"]["high"] - row["kept"]["low"]
    assert abs(share - row["kept"]["value"]) < 1.5 * width
    assert share > 0.3


def test_bos_is_the_token_that_preceded_plain_text_in_pretraining(smollm2):
    """With it the model is right more often than with the chat token that the tokenizer calls BOS."""
    task = load_task("sva_nounpp", smollm2.tokenizer, "test", n=60)
    chat = task.clean.clone()
    chat[:, 0] = smollm2.tokenizer.convert_tokens_to_ids("<|im_start|>")
    with torch.no_grad():
        right = [
            (logits.gather(1, task.clean_answers[:, None]) > logits.gather(1, task.patch_answers[:, None])).float().mean()
            for logits in (smollm2.model(task.clean)[:, -1], smollm2.model(chat)[:, -1])
        ]
    assert right[0] > 0.9 and right[0] > right[1]
