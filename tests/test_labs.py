"""The default lab for real (its weights are fetched on the first run), labs of one's own, and what
is refused.
"""

import json

import pytest
import torch
from conftest import make_lab, make_task, tiny_hf_model, tiny_sae, tiny_tokenizer
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from transformers import AutoModelForCausalLM

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.catalog import SAES_DIR, LabError
from course_utils.labs.lab import Lab, load_lab
from course_utils.labs.loading import load_saes
from course_utils.prompts.tasks import load_task

GAP_6 = [5, 11, 17, 23, 29]


@pytest.fixture(scope="module")
def smollm2():
    return load_lab("smollm2", layers=GAP_6)


def test_an_unknown_lab_lists_the_known_ones():
    with pytest.raises(LabError, match="unknown lab 'smollm3'.*smollm2"):
        load_lab("smollm3")


def test_a_layer_without_an_sae_lists_those_that_have_one():
    with pytest.raises(
        LabError, match=r"no SAE for layer 6.*\[2, 5, 8, 11, 14, 17, 20, 23, 26, 29\]"
    ):
        load_lab("smollm2", layers=[5, 6])


def test_a_folder_without_saes_is_named(tmp_path):
    with pytest.raises(LabError, match=f"{tmp_path.name}; there are SAEs for layers \\[\\]"):
        load_saes(tmp_path, [3], device="cpu", dtype=torch.float32)


@pytest.mark.weights
def test_smollm2_has_an_sae_after_every_third_layer():
    lab = load_lab("smollm2")
    assert lab.sae_layers == list(range(2, 30, 3)) and lab.d_model == 576


@pytest.mark.weights
def test_smollm2_knows_who_got_the_ring(smollm2):
    tokens = (
        smollm2.tokenizer.bos_token + "When Laura and Aaron went to the park, Aaron gave a ring to"
    )
    ids = torch.tensor([smollm2.tokenizer(tokens, add_special_tokens=False)["input_ids"]])
    assert smollm2.tokenizer.decode(smollm2.model(ids)[0, -1].argmax()) == " Laura"


@pytest.mark.weights
@pytest.mark.parametrize("name", ["sva_nounpp", "sva_rc", "ioi"])
def test_the_shipped_saes_do_what_their_metrics_say(smollm2, name):
    """On a third of the held-out prompts, the share of the logit difference that is left is the
    measured one.
    """
    metrics = json.loads((SAES_DIR / "smollm2" / "metrics.json").read_text())
    [row] = [
        r
        for r in metrics["held_out_prompts"]
        if (r["task"], r["placement"], r["error"]) == (name, "gap 6", "drop")
    ]
    assert row["layers"] == GAP_6
    task = load_task(name, smollm2.tokenizer, "dev", n=50)
    spliced = SplicedModel(smollm2, GAP_6)
    share = (spliced.logit_diff(task).mean() / spliced.model_logit_diff(task).mean()).item()
    width = row["kept"]["high"] - row["kept"]["low"]
    assert abs(share - row["kept"]["value"]) < 1.5 * width
    assert share > 0.3


@pytest.mark.weights
def test_bos_is_the_token_that_preceded_plain_text_in_pretraining(smollm2):
    """With it the model is right more often than with the chat token that the tokenizer calls
    BOS.
    """
    task = load_task("sva_nounpp", smollm2.tokenizer, "dev", n=60)
    chat = task.clean.clone()
    chat[:, 0] = smollm2.tokenizer.convert_tokens_to_ids("<|im_start|>")
    with torch.no_grad():
        right = [
            (
                logits.gather(1, task.clean_answers[:, None])
                > logits.gather(1, task.patch_answers[:, None])
            )
            .float()
            .mean()
            for logits in (smollm2.model(task.clean)[:, -1], smollm2.model(chat)[:, -1])
        ]
    assert right[0] > 0.9 and right[0] > right[1]


# -- a lab of one's own
# ------------------------------------------------------------------------------


def saved_parts(tmp_path, architecture="qwen3"):
    """A model and two SAEs as folders, as somebody brings them."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = tiny_hf_model(architecture, len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    saes = {layer: tiny_sae() for layer in (1, 3)}
    for layer, sae in saes.items():
        sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
        sae.save_model(tmp_path / f"sae_{layer}")
    return model, saes


def test_a_lab_of_folders_equals_a_lab_of_objects(tmp_path):
    model, saes = saved_parts(tmp_path)
    objects = Lab.from_parts(model=model, tokenizer=tiny_tokenizer(), saes=saes)
    folders = Lab.from_parts(
        model=tmp_path / "model",
        saes={layer: tmp_path / f"sae_{layer}" for layer in saes},
        device="cpu",
    )
    assert folders.name == "model" and folders.sae_layers == [1, 3] and not folders.saes.loaded
    task = make_task(folders.tokenizer)
    torch.testing.assert_close(
        SplicedModel(objects).logit_diff(task), SplicedModel(folders).logit_diff(task)
    )
    assert set(folders.saes.loaded) == {1, 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saes_from_folders_take_the_models_dtype(tmp_path, dtype):
    saved_parts(tmp_path)
    lab = Lab.from_parts(
        model=tmp_path / "model", saes={1: tmp_path / "sae_1"}, device="cpu", dtype=dtype
    )
    assert lab.saes[1].W_dec.dtype == lab.dtype == dtype
    assert SplicedModel(lab).logit_diff(make_task(lab.tokenizer)).isfinite().all()


def test_a_model_without_bos_is_spliced_at_every_position(tmp_path):
    saved_parts(tmp_path)
    tokenizer = tiny_tokenizer().__class__.from_pretrained(tmp_path / "model")
    tokenizer.bos_token = None
    lab = Lab.from_parts(
        model=tmp_path / "model", tokenizer=tokenizer, saes={1: tmp_path / "sae_1"}, device="cpu"
    )
    task = make_task(lab.tokenizer)
    assert not task.has_bos
    with pytest.raises(ValueError, match=r"no BOS token: SplicedModel\(…, has_bos=False\)"):
        SplicedModel(lab)
    spliced = SplicedModel(lab, has_bos=False)
    assert (spliced.run(task.clean).latents["blocks.1.hook_resid_post"][:, 0] != 0).any()


SAES = {
    "standard": lambda: StandardSAE(StandardSAEConfig(d_in=16, d_sae=24)),
    "topk": lambda: TopKSAE(TopKSAEConfig(d_in=16, d_sae=24, k=4)),
    "gated": lambda: GatedSAE(GatedSAEConfig(d_in=16, d_sae=24)),
    "jumprelu": tiny_sae,
}


@pytest.mark.parametrize("kind", SAES)
def test_every_kind_of_sae_is_spliced_and_narrowed_exactly(kind):
    """`keep_latents=False` narrows SAEs to what fires; with whole ones the answer must be the
    same.
    """
    torch.manual_seed(0)
    saes = {layer: SAES[kind]() for layer in (1, 3)}
    for sae in saes.values():
        for parameter in sae.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    base = make_lab()
    lab = Lab.from_parts(model=base.hf_model, tokenizer=base.tokenizer, saes=saes)
    spliced, task = SplicedModel(lab), make_task(lab.tokenizer)
    whole = spliced.run(task.clean).logit_diff(task)
    torch.testing.assert_close(spliced.logit_diff(task), whole, atol=1e-5, rtol=1e-5)
    means = spliced.patch_means(task.patch)
    assert (means.latents["blocks.1.hook_resid_post"] != 0).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(saes={7: tiny_sae}), "layers 0 to 3"),
        (dict(saes={1: lambda: tiny_sae(d_in=8)}), "width 8, and the model's have 16"),
        (
            dict(saes={1: lambda: _made_for("blocks.2.hook_resid_post")}),
            r"made for blocks\.2\.hook_resid_post: give it as layer 2",
        ),
        (dict(saes={1: lambda: _made_for("blocks.1.hook_resid_pre")}), "give it as layer 0"),
        (
            dict(saes={1: lambda: _made_for("blocks.1.hook_mlp_out")}),
            "the residual stream after a layer is wanted",
        ),
        (dict(tokenizer=None), "without a tokenizer"),
        (dict(model="/no/such/folder", tokenizer=None), "no folder '/no/such/folder'"),
    ],
)
def test_parts_that_do_not_fit_say_which(change, says, monkeypatch):
    base = make_lab()
    monkeypatch.setattr("course_utils.labs.hub.unreachable", lambda: "no network in tests")
    parts = dict(model=base.hf_model, tokenizer=base.tokenizer, saes={1: tiny_sae}) | change
    parts["saes"] = {layer: sae() for layer, sae in parts["saes"].items()}
    with pytest.raises(LabError, match=says):
        Lab.from_parts(**parts)


def test_a_folder_that_holds_no_sae_is_named_when_it_is_used(tmp_path):
    base = make_lab()
    lab = Lab.from_parts(model=base.hf_model, tokenizer=base.tokenizer, saes={1: tmp_path})
    with pytest.raises(LabError, match="a folder with cfg.json"):
        lab.saes[1]


def _made_for(hook_name):
    sae = tiny_sae()
    sae.cfg.metadata.hook_name = hook_name
    return sae


def test_layers_that_wait_on_disk_give_the_same_mask_gradient(tmp_path):
    """``device_map``: layers whose weights are fetched when they are called; with activations
    recomputed on the way back.
    """
    saved_parts(tmp_path, "llama")
    saes = {layer: tmp_path / f"sae_{layer}" for layer in (1, 3)}
    here = Lab.from_parts(model=tmp_path / "model", saes=saes, device="cpu")
    parts = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    parts |= {f"model.layers.{i}": "disk" if i == 2 else "cpu" for i in range(4)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offload"
    )
    away = Lab.from_parts(model=model, tokenizer=here.tokenizer, saes=saes)
    assert away.offloaded and not here.offloaded
    gradients = []
    for lab in (here, away):
        spliced, task = SplicedModel(lab), make_task(lab.tokenizer)
        assert spliced.stack.recompute == lab.offloaded
        means = spliced.patch_means(task.patch)
        masks = [torch.full_like(f, 0.7, requires_grad=True) for f in means.latents.values()]
        spliced.run(task.clean, masks=SAEMasks(list(means.latents), masks), means=means).logit_diff(
            task
        ).sum().backward()
        gradients.append(masks[0].grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0
