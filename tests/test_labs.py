"""The default lab for real (its weights are fetched on the first run), labs of one's own, and what
is refused.
"""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import make_lab, make_task, tiny_hf_model, tiny_sae, tiny_tokenizer
from sae_lens import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    Transcoder,
    TranscoderConfig,
)
from transformers import AutoModelForCausalLM

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.catalog import SAES_DIR, LabError
from course_utils.labs.lab import Lab, load_lab
from course_utils.labs.loading import centre_residual_stream, load_saes
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


def test_a_stored_bfloat16_gives_way_where_it_is_emulated_unless_it_is_asked_for(
    tmp_path, monkeypatch
):
    model, _ = saved_parts(tmp_path)
    model.bfloat16().save_pretrained(tmp_path / "model")
    parts = dict(model=tmp_path / "model", saes={1: tmp_path / "sae_1"}, device="cpu")
    assert Lab.from_parts(**parts).dtype == torch.bfloat16
    monkeypatch.setattr(
        "course_utils.labs.lab.without_emulation", lambda dtype, device: torch.float32
    )
    lab = Lab.from_parts(**parts)
    assert lab.dtype == lab.saes[1].W_dec.dtype == torch.float32
    assert Lab.from_parts(**parts, dtype=torch.bfloat16).dtype == torch.bfloat16


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


@pytest.mark.parametrize("bos", [None, " near", "<bos>"])
@pytest.mark.parametrize("from_folder", [True, False])
def test_the_bridge_starts_a_text_with_the_labs_bos(tmp_path, bos, from_folder):
    """Also where the tokenizer's folder names another."""
    base, own = make_lab(), tiny_tokenizer()
    if from_folder:
        own.save_pretrained(tmp_path)
        own = own.__class__.from_pretrained(tmp_path)
    parts = dict(model=base.hf_model, tokenizer=own, saes={1: tiny_sae()})
    lab = Lab.from_parts(**parts, bos_token=bos)
    first = lab.tokenizer.bos_token_id
    assert lab.tokenizer.bos_token == (bos or "<bos>")
    words = lab.tokenizer(["The", " the"], add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[first, *ids] for ids in words])
    assert torch.equal(lab.model.to_tokens(["The", " the"]), tokens)
    assert torch.equal(lab.model.to_tokens("The"), tokens[:1])
    assert torch.equal(lab.model.to_tokens("The", prepend_bos=False), tokens[:1, 1:])
    with torch.no_grad():
        torch.testing.assert_close(
            lab.model("The"), base.hf_model(tokens[:1]).logits, atol=1e-5, rtol=1e-5
        )


def test_the_bridge_changes_nothing_about_the_labs_tokenizer_and_makes_up_no_bos():
    base, tokenizer = make_lab(), copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token, tokenizer.eos_token = None, " near"
    lab = Lab("no bos", base.hf_model, tokenizer, {})
    [the] = tokenizer("The", add_special_tokens=False)["input_ids"]
    assert lab.model.to_tokens("The").tolist() == [[the]]
    assert tokenizer.bos_token is None and tokenizer.pad_token is None


@pytest.mark.weights
def test_the_bridge_of_smollm2_starts_as_the_tasks_do(smollm2):
    task = load_task("sva_nounpp", smollm2.tokenizer, "dev", n=2)
    assert smollm2.model.to_tokens("The")[0, 0] == task.clean[0, 0]


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


def test_a_lab_of_ones_own_wants_an_sae():
    base = make_lab()
    with pytest.raises(LabError, match=r"one layer or more is wanted.*saes=\{8: sae\}"):
        Lab.from_parts(model=base.hf_model, tokenizer=base.tokenizer, saes={})


def test_a_layer_given_as_text_is_refused_and_a_numpy_integer_is_a_number(wrong_types):
    base = make_lab()
    parts = dict(model=base.hf_model, tokenizer=base.tokenizer)
    with pytest.raises(LabError, match="the layer '1' is a str, and layers are whole numbers"):
        Lab.from_parts(**parts, saes={"1": tiny_sae()})
    lab = Lab.from_parts(**parts, saes={np.int64(1): tiny_sae()})
    assert [type(layer) for layer in lab.saes] == [int]


def test_paths_may_begin_with_the_users_home(tmp_path, monkeypatch):
    saved_parts(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    lab = Lab.from_parts(model="~/model", saes={1: "~/sae_1"}, device="cpu")
    assert lab.name == "model" and lab.saes[1].cfg.d_in == 16


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_damaged_model_folder_is_named(tmp_path, file, content):
    saved_parts(tmp_path)
    if content is None:
        (tmp_path / "model" / file).unlink()
    else:
        (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(LabError, match="the model in .*model cannot be read: .*save_pretrained"):
        Lab.from_parts(model=tmp_path / "model", saes={1: tmp_path / "sae_1"}, device="cpu")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nothing", "no SAE in .*nothing: a folder with cfg.json"),
        (("gpt2-small-res-jb", "layer_3"), "layer_3 is not found in release gpt2.*which has"),
        (("gpt3-small", "layer_3"), "no release 'gpt3-small'"),
    ],
)
def test_a_source_of_no_sae_is_named_before_the_model_is_loaded(tmp_path, source, says):
    with pytest.raises(LabError, match=says):
        Lab.from_parts(model=tmp_path / "no model", saes={1: source})


def _made_for(hook_name, **metadata):
    sae = tiny_sae()
    sae.cfg.metadata.hook_name = hook_name
    for name, value in metadata.items():
        setattr(sae.cfg.metadata, name, value)
    return sae


def lab_with(sae, layer=1, base=None):
    base = base or make_lab()
    return Lab.from_parts(model=base.hf_model, tokenizer=base.tokenizer, saes={layer: sae})


@pytest.mark.parametrize(
    "hook_name",
    [
        "",
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_pre",
        "blocks.1.hook_out",
        "model.layers.1",
        "transformer.h.1.output",
    ],
)
def test_every_name_of_the_residual_stream_after_a_layer_is_accepted(hook_name):
    assert lab_with(_made_for(hook_name)).sae_layers == [1]


@pytest.mark.parametrize(
    "hook_name",
    [
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_attn_out",
        "blocks.1.hook_resid_mid",
        "blocks.1.attn.hook_z",
        "blocks.1.ln2.hook_normalized",
        "hook_embed",
        "model.layers.1.mlp",
        "some.new.name",
    ],
)
def test_every_other_place_is_refused_with_the_names_that_would_do(hook_name):
    would_do = r"blocks\.1\.hook_resid_post, or blocks\.2\.hook_resid_pre"
    with pytest.raises(LabError, match=f"made for {hook_name}, and the resid.*: {would_do}"):
        lab_with(_made_for(hook_name))


@pytest.mark.parametrize("key", ["hook_name_out", "hf_hook_name_out", "hook_layer_out"])
def test_an_sae_that_writes_to_another_place_is_refused(key):
    sae = _made_for("blocks.1.hook_resid_post", **{key: "blocks.2.hook_mlp_out"})
    with pytest.raises(LabError, match=r"writes to blocks\.2\.hook_mlp_out: it is a transcoder"):
        lab_with(sae)


SIZE = dict(d_in=16, d_sae=24)
TRAINING = {
    StandardTrainingSAE: StandardTrainingSAEConfig(**SIZE),
    JumpReLUTrainingSAE: JumpReLUTrainingSAEConfig(**SIZE),
    BatchTopKTrainingSAE: BatchTopKTrainingSAEConfig(**SIZE, k=4),
    MatryoshkaBatchTopKTrainingSAE: MatryoshkaBatchTopKTrainingSAEConfig(
        **SIZE, k=4, matryoshka_widths=[8, 24]
    ),
}
OTHER = {
    Transcoder: TranscoderConfig(**SIZE, d_out=16, apply_b_dec_to_input=False),
    SkipTranscoder: SkipTranscoderConfig(**SIZE, d_out=16, apply_b_dec_to_input=False),
    AbsTopKSAE: AbsTopKSAEConfig(**SIZE, k=4),
    MatchingPursuitSAE: MatchingPursuitSAEConfig(**SIZE),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_an_sae_in_its_training_form_is_refused_and_its_saved_one_is_accepted(kind, tmp_path):
    torch.manual_seed(0)
    sae = kind(TRAINING[kind])
    with pytest.raises(LabError, match=rf"is a {kind.__name__}, the form.*save_inference_model"):
        lab_with(sae)
    sae.save_inference_model(tmp_path)
    loaded = lab_with(tmp_path).saes[1]
    f = torch.rand(3, 24)
    torch.testing.assert_close(loaded.decode(f), sae.decode(f))


@pytest.mark.parametrize("kind", OTHER)
def test_what_is_not_known_to_be_right_is_refused_by_its_class(kind):
    """Without a hook name: only the class says what it is."""
    with pytest.raises(LabError, match=rf"is a {kind.__name__}.*StandardSAE, TopKSAE"):
        lab_with(kind(OTHER[kind]))


def test_a_subclass_that_encodes_in_its_own_way_is_refused():
    class Doubled(StandardSAE):
        def encode(self, x):
            return 2 * super().encode(x)

    with pytest.raises(LabError, match="is a Doubled"):
        lab_with(Doubled(StandardSAEConfig(**SIZE)))


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ("expected_average_only_in", "fold_activation_norm_scaling_factor"),
        ("covariance_whitening", "fold_activation_whitening"),
        ("layer_norm", "normalize_activations='none' is wanted"),
        ("constant_norm_rescale", "normalize_activations='none' is wanted"),
    ],
)
def test_a_rescaling_that_is_not_folded_in_is_refused(scaling, says):
    sae = StandardSAE(StandardSAEConfig(**SIZE, normalize_activations=scaling))
    with pytest.raises(LabError, match=rf"\({scaling}\).*{says}"):
        lab_with(sae)


def test_what_the_message_about_an_average_norm_says_to_do_is_enough():
    sae = StandardSAE(StandardSAEConfig(**SIZE, normalize_activations="expected_average_only_in"))
    sae.fold_activation_norm_scaling_factor(0.5)
    assert lab_with(sae).sae_layers == [1]


def scaled_by_decoder_norms():
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(**SIZE, k=4, rescale_acts_by_decoder_norm=True))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return sae


def test_decoder_norms_are_refused_in_an_object_and_folded_in_from_a_folder(tmp_path):
    sae, x = scaled_by_decoder_norms(), torch.randn(5, 16)
    with pytest.raises(LabError, match="rescale_acts_by_decoder_norm.*fold_W_dec_norm"):
        lab_with(sae)
    sae.save_model(tmp_path)
    loaded = lab_with(tmp_path).saes[1]
    torch.testing.assert_close(loaded.encode(x), sae.encode(x))
    torch.testing.assert_close(loaded.decode(loaded.encode(x)), sae.decode(sae.encode(x)))
    f = loaded.encode(x)
    torch.testing.assert_close(loaded.decode(f), f @ loaded.W_dec + loaded.b_dec)


@pytest.mark.parametrize(
    "metadata",
    [
        dict(model_from_pretrained_kwargs={"center_writing_weights": True}),
        dict(center_writing_weights=True),
    ],
)
def test_an_sae_of_a_centred_model_wants_a_centred_model(metadata):
    sae = _made_for("blocks.1.hook_resid_post", **metadata)
    with pytest.raises(LabError, match=r"mean over d_model is 0.*GPT-2 only.*LlamaForCausalLM"):
        lab_with(sae)
    base = make_lab("gpt2")
    with pytest.raises(LabError, match=r"mean over d_model is 0.*centre_residual_stream\(model\)"):
        lab_with(sae, base=base)
    centre_residual_stream(base.hf_model)
    assert lab_with(sae, base=base).sae_layers == [1]


def test_an_sae_that_does_not_ask_for_a_centred_model_gets_any():
    asked = dict(model_from_pretrained_kwargs={"center_writing_weights": False, "n_devices": 1})
    sae = _made_for("blocks.1.hook_resid_post", **asked)
    assert lab_with(sae, base=make_lab("gpt2")).sae_layers == [1]


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
