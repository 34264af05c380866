"""Running layer by layer equals the model itself; what cannot be run so is refused."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import tiny_hf_model, tiny_sae
from torch import nn
from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from course_utils.circuits import splice
from course_utils.circuits.saes import decode, encode, narrow_sae
from course_utils.circuits.splice import SplicedModel
from course_utils.labs import memory
from course_utils.labs.catalog import LabError
from course_utils.labs.lab import Lab
from course_utils.labs.layers import LayerError, LayerStack
from course_utils.labs.memory import FreeMemory
from course_utils.labs.requirements import numbers_per_token

BOS = 1


def prompts(n: int, seq: int) -> torch.Tensor:
    tokens = torch.randint(2, 100, (n, seq), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = BOS
    return tokens


@pytest.mark.parametrize("bos", [BOS, None])
@pytest.mark.parametrize("seq", [2, 9])
def test_layer_by_layer_gives_the_models_logits(any_lab, bos, seq):
    """Nine tokens are more than Gemma's sliding window here (4) holds."""
    stack, tokens = LayerStack(any_lab.hf_model, bos), prompts(5, seq)
    with torch.no_grad():
        x = stack.run(stack.embed(tokens), range(2))
        x = stack.run(x, range(2, stack.n_layers))
        normed = stack.norm(x[:, -1])
        expected = any_lab.hf_model(tokens).logits[:, -1]
    assert x.shape[1] == seq - (bos is not None)
    torch.testing.assert_close(stack.logits(normed), expected, atol=2e-5, rtol=1e-4)
    answers = torch.arange(5) + 3
    torch.testing.assert_close(
        stack.logits_of(normed, answers), expected[torch.arange(5), answers], atol=2e-5, rtol=1e-4
    )


def test_the_cached_bos_stays_as_it_is_for_batches_of_any_size(lab):
    stack = LayerStack(lab.hf_model, BOS)
    before = [layer.keys.clone() for layer in stack._bos_cache.layers]
    with torch.no_grad():
        whole = stack.run(stack.embed(prompts(6, 5)), range(4))
        pieces = torch.cat(
            [stack.run(stack.embed(piece), range(4)) for piece in prompts(6, 5).split([1, 3, 2])]
        )
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-5)
    assert all(
        torch.equal(layer.keys, old) and layer.get_seq_length() == 1
        for layer, old in zip(stack._bos_cache.layers, before)
    )


def test_gradients_equal_those_of_a_hook_on_the_model(lab):
    stack, tokens = LayerStack(lab.hf_model, BOS), prompts(3, 6)
    with torch.no_grad():
        x = stack.run(stack.embed(tokens), range(2))
    point = x.clone().requires_grad_()
    normed = stack.norm(stack.run(point, range(2, 4))[:, -1])
    found = torch.autograd.grad(stack.logits_of(normed, torch.tensor([3, 4, 5])).sum(), point)[0]

    there = x.clone().requires_grad_()
    handle = lab.hf_model.model.layers[2].register_forward_pre_hook(
        lambda module, args: (torch.cat([args[0][:, :1], there], dim=1),)
    )
    try:
        logits = lab.hf_model(tokens).logits[:, -1]
    finally:
        handle.remove()
    expected = torch.autograd.grad(logits[torch.arange(3), torch.tensor([3, 4, 5])].sum(), there)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_model_that_does_something_else_to_its_logits_is_refused(lab):
    class Scaled(type(lab.hf_model)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 3
            return out

    torch.manual_seed(0)
    model = Scaled(lab.hf_model.config).eval().requires_grad_(False)
    with pytest.raises(LayerError, match="Scaled.*% away from its own"):
        LayerStack(model, BOS).run(torch.randn(1, 4, 16), range(1))


class ReadsTokens(LlamaDecoderLayer):
    """A layer that adds an embedding of the tokens, as Gemma 3n's do."""

    def forward(self, hidden_states, *args, per_layer=None, **kwargs):
        return super().forward(hidden_states, *args, **kwargs) + per_layer


class PerLayer(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.layers = nn.ModuleList(
            ReadsTokens(config, i) for i in range(config.num_hidden_layers)
        )
        self.per_layer = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids, **kwargs):
        return super().forward(input_ids, per_layer=self.per_layer(input_ids), **kwargs)


@pytest.mark.parametrize("bos", [BOS, None])
def test_a_model_that_gives_its_layers_what_depends_on_the_tokens_is_refused(lab, bos):
    torch.manual_seed(0)
    stack = LayerStack(PerLayer(lab.hf_model.config).eval().requires_grad_(False), bos)
    for _ in range(2):  # what was refused is not remembered as right
        with pytest.raises(LayerError, match="PerLayer gives its layers something that depends"):
            stack.run(torch.randn(1, 4, 16), range(1))


def test_an_embedding_per_layer_that_is_the_same_for_all_tokens_is_no_obstacle(lab):
    model = PerLayer(lab.hf_model.config).eval().requires_grad_(False)
    model.per_layer.weight[:] = torch.randn(16)
    stack, tokens = LayerStack(model, BOS), prompts(3, 5)
    with torch.no_grad():
        logits = stack.logits(stack.finish(stack.embed(tokens), after=-1))
        torch.testing.assert_close(logits, model(tokens).logits[:, -1], atol=2e-5, rtol=1e-4)


SMALL = dict(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=0,
    pad_token_id=0,
    initializer_range=0.3,
)
GROUPED = dict(num_key_value_heads=1)
EXPERTS = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, **GROUPED)
LOCAL = dict(num_local_experts=2, num_experts_per_tok=1, **GROUPED)
LOW_RANK = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)
ALSO_RUN = {  # besides those of `any_lab`
    "Mistral": dict(**GROUPED, sliding_window=4),
    "Mixtral": LOCAL,
    "Qwen2Moe": dict(**EXPERTS, shared_expert_intermediate_size=16),
    "Qwen3Moe": dict(**EXPERTS, head_dim=8),
    "Gemma": dict(**GROUPED, head_dim=8),
    "GPTJ": dict(rotary_dim=4),
    "GPTNeo": dict(num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
    "Phi": {},
    "Phi3": GROUPED,
    "Olmo": GROUPED,
    "Olmo2": GROUPED,
    "Olmo3": GROUPED,
    "StableLm": GROUPED,
    "SmolLM3": GROUPED,
    "Starcoder2": GROUPED,
    "Falcon": {},
    "Mpt": dict(d_model=16, n_heads=2, n_layers=2, max_seq_len=64),
    "DeepseekV3": dict(
        **LOW_RANK,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "GptOss": dict(**LOCAL, head_dim=8),
}
DO_NOT_RUN = {
    "OPT": (dict(word_embed_proj_dim=16, ffn_dim=32), "OPTForCausalLM .*'opt'.*its decoder"),
    "Bloom": (dict(n_layer=2, n_head=2), "BloomForCausalLM .*'bloom'.*ALiBi"),
    "Mamba": (dict(state_size=4), "MambaForCausalLM .*'mamba'.*have a state"),
    "Jamba": (
        dict(**GROUPED, num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=4),
        "JambaForCausalLM .*'jamba'.*have a state",
    ),
    "Lfm2": (dict(**GROUPED, full_attn_idxs=[1]), "Lfm2ForCausalLM .*'lfm2'.*have a state"),
    "T5": (dict(d_model=16, d_ff=32, d_kv=8, num_heads=2), "'t5'.*encoder and a decoder"),
}


def small(name, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **more})
    kind = getattr(transformers, f"{name}ForCausalLM", None)
    kind = kind or getattr(transformers, f"{name}ForConditionalGeneration")
    return kind(config).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ALSO_RUN)
def test_an_architecture_that_is_said_to_run_does(name):
    model = small(name, **ALSO_RUN[name])
    stack, tokens = LayerStack(model, BOS), prompts(3, 5) % 60
    with torch.no_grad():
        x = stack.run(stack.embed(tokens), range(2))
        logits = stack.logits(stack.norm(x[:, -1]))
        torch.testing.assert_close(logits, model(tokens).logits[:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", DO_NOT_RUN)
def test_an_architecture_that_cannot_run_is_named_by_the_stack_and_by_the_lab(name, tmp_path):
    """By the lab at once, and from a folder before its weights are read: there are none."""
    settings, says = DO_NOT_RUN[name]
    model = small(name, **settings)
    with pytest.raises(LayerError, match=f"{says}.*These can: Llama"):
        LayerStack(model, BOS)
    with pytest.raises(LabError, match=f"{says}.*These can: Llama"):
        Lab("mine", model, SimpleNamespace(bos_token_id=BOS), {})
    model.config.save_pretrained(tmp_path)
    with pytest.raises(LabError, match="cannot be run layer by layer"):
        Lab.from_parts(model=tmp_path, saes={1: tiny_sae()})


def test_an_architecture_that_nobody_tried_is_named_with_its_own_error(lab):
    class Picky(type(lab.hf_model)):
        def forward(self, *args, past_key_values=None, **kwargs):
            if past_key_values is not None:
                raise ValueError("no cache, please")
            return super().forward(*args, **kwargs)

    model = Picky(lab.hf_model.config).eval()
    with pytest.raises(LayerError, match="Picky .*'llama'.*: ValueError: no cache, please"):
        LayerStack(model, BOS)


def test_too_little_memory_is_not_taken_for_an_architecture(lab, monkeypatch):
    stack = LayerStack(lab.hf_model, BOS)

    def full(tokens):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(stack, "_error_on", full)
        with pytest.raises(torch.OutOfMemoryError):
            stack.run(torch.randn(1, 4, 16), range(1))
    assert stack.run(torch.randn(1, 4, 16), range(1)).shape == (1, 4, 16)


def test_transformers_still_says_which_models_have_a_state():
    assert transformers.MambaForCausalLM._is_stateful, (
        f"transformers {transformers.__version__} says it otherwise: mend layers.cannot_run"
    )


def test_a_model_without_an_unembedding_or_layers_is_refused(lab):
    with pytest.raises(LayerError, match="no unembedding"):
        LayerStack(lab.hf_model.model)
    headless = tiny_hf_model("llama", 60)
    headless.model.layers = nn.ModuleList(list(headless.model.layers)[:2])
    with pytest.raises(LayerError, match="one list of 4 layers is wanted, and there are 0"):
        LayerStack(headless)


def test_the_bridge_shares_its_weights_with_the_model(any_lab):
    """Hooks of one's own see the same model, and cost no second copy of it (but of fused matrices,
    which TransformerLens splits).
    """
    lab, tokens = any_lab, prompts(3, 6)
    assert lab.model is lab.model
    ours = {p.data_ptr() for p in lab.hf_model.parameters()}
    theirs = [p for p in lab.model.original_model.parameters() if p.ndim == 2]
    fused = 0 if lab.hf_model.config.model_type not in ("gpt2", "gpt_neox") else 3 * 4
    assert len(theirs) > 10 and sum(p.data_ptr() not in ours for p in theirs) <= fused
    assert not any(p.requires_grad for p in theirs)
    torch.testing.assert_close(lab.model(tokens), lab.hf_model(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_narrow_sae_is_the_sae_without_the_other_latents(lab):
    sae, kept, x = lab.saes[1], torch.tensor([3, 7, 20]), torch.randn(4, 5, 16)
    small, f = narrow_sae(sae, kept), encode(sae, x)
    torch.testing.assert_close(encode(small, x), f[..., kept])
    others = torch.zeros_like(f)
    others[..., kept] = f[..., kept]
    torch.testing.assert_close(
        decode(small, f[..., kept]), decode(sae, others), atol=1e-5, rtol=1e-5
    )


def test_a_spliced_model_narrowed_to_what_fires_is_the_same_model(any_lab, task):
    spliced, task = SplicedModel(any_lab), task[:1]
    run = spliced.run(task.clean)
    kept = {name: (f != 0).flatten(0, 1).any(0).nonzero()[:, 0] for name, f in run.latents.items()}
    assert any(len(at) < 24 for at in kept.values())
    torch.testing.assert_close(
        spliced.narrow(kept).logit_diff(task), spliced.logit_diff(task), atol=1e-5, rtol=1e-5
    )
    assert spliced.saes[spliced.hook_points[0]].cfg.d_sae == 24


def test_a_prefix_can_be_used_again_and_cut(lab, task):
    spliced = SplicedModel(lab, error="keep")
    prefix = spliced.prefix(task.clean)
    for _ in range(2):
        torch.testing.assert_close(
            spliced.logit_diff_from(prefix, task, batch_size=5),
            spliced.logit_diff(task),
            atol=1e-5,
            rtol=1e-5,
        )
    later = spliced.run(prefix).prefixes[spliced.hook_points[1]]
    assert later.layer == 3
    torch.testing.assert_close(
        spliced.run(later[2:4]).logits, spliced.run(task.clean[2:4]).logits, atol=1e-5, rtol=1e-5
    )


def test_the_batch_size_follows_memory_and_length(lab, monkeypatch):
    spliced = SplicedModel(lab)

    def free(gigabytes: float) -> None:
        here = FreeMemory(int(gigabytes * 1e9), "this machine")
        monkeypatch.setattr(splice, "free_memory", lambda: here)

    free(16)
    assert (
        spliced.batch_size(8) == 512
        and spliced.batch_size(16) == 256
        and spliced.batch_size(10**6) == 1
    )
    free(0.001)
    assert 1 < spliced.batch_size(8) < 512 and spliced.batch_size(
        8, gradient=True
    ) < spliced.batch_size(8)


def test_a_tokenizer_without_bos_is_said(lab):
    plain = Lab("plain", lab.hf_model, SimpleNamespace(bos_token_id=None), lab.saes)
    with pytest.raises(ValueError, match="no BOS.*has_bos=False"):
        SplicedModel(plain)


def test_the_batch_takes_a_quarter_of_the_free_memory(lab, monkeypatch):
    """Numbers per token × 4 bytes × tokens = a quarter of what is free."""
    spliced = SplicedModel(lab)
    numbers = numbers_per_token(lab.hf_model.config, 4, 2 * 24, gradient=True)
    ten_prompts = 4 * (4 * numbers) * 8 * 10  # of eight tokens
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=ten_prompts))
    monkeypatch.setattr(memory, "free_in_groups", lambda: None)
    monkeypatch.setattr(memory, "free_address_space", lambda: None)
    assert spliced.batch_size(8, gradient=True) == 10
    monkeypatch.setattr(memory, "free_in_groups", lambda: ten_prompts // 2)  # in a container
    assert spliced.batch_size(8, gradient=True) == 5


def test_a_walk_shows_the_residual_stream_after_each_layer(any_lab):
    stack, tokens = LayerStack(any_lab.hf_model, BOS), prompts(2, 6)
    with torch.no_grad():
        hidden = any_lab.hf_model(tokens, output_hidden_states=True).hidden_states
        steps = dict(stack.walk(tokens, [2, 0, 2]))
    assert list(steps) == [0, 2]
    for layer, x in steps.items():
        torch.testing.assert_close(x, hidden[layer + 1][:, 1:], atol=2e-5, rtol=1e-4)


def test_a_walk_runs_no_layer_after_the_last_that_is_asked_for(lab, monkeypatch):
    stack, ran = LayerStack(lab.hf_model, BOS), []
    list(stack.walk(prompts(2, 6), [1]))  # the first time, all layers are recorded and checked
    run = stack._run_layer
    monkeypatch.setattr(
        stack, "_run_layer", lambda layer, *rest: ran.append(layer) or run(layer, *rest)
    )
    list(stack.walk(prompts(2, 6), [1]))
    assert ran == [0, 1]


@pytest.mark.parametrize("bos", [BOS, None])
def test_finishing_reads_each_prompts_own_last_token(lab, bos):
    """Padded prompts give what they give by themselves."""
    stack, tokens = LayerStack(lab.hf_model, bos), prompts(3, 7)
    lengths = torch.tensor([7, 4, 5])
    with torch.no_grad():
        padded = stack.finish(stack.embed(tokens), after=-1, lengths=lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = stack.finish(stack.embed(tokens[row : row + 1, :length]), after=-1)
            torch.testing.assert_close(padded[row], alone[0], atol=1e-5, rtol=1e-5)


def test_a_lab_has_one_stack_and_spliced_models_share_it(lab):
    assert lab.stack is lab.stack is SplicedModel(lab).stack is SplicedModel(lab, [1]).stack
    assert SplicedModel(lab, has_bos=False).stack.bos is None
    assert SplicedModel(lab, recompute=True).stack.recompute and not lab.stack.recompute


def test_the_cache_classes_of_transformers_are_what_the_bos_cache_is_built_on():
    """If this fails, transformers changed them: see `layers.cache_of_one_token`."""
    version = transformers.__version__
    assert hasattr(DynamicLayer, "lazy_initialization"), version
    assert "layers" in inspect.signature(Cache.__init__).parameters, version
    assert "key_states" in inspect.signature(DynamicLayer.update).parameters, version


def test_modules_of_torch_keep_parameters_where_narrow_sae_puts_them(lab):
    """If this fails, torch changed nn.Module: see `saes.narrow_sae`."""
    sae = lab.saes[1]
    assert list(sae._parameters) == [name for name, _ in sae.named_parameters()], torch.__version__
    small = narrow_sae(sae, torch.tensor([1, 2]))
    assert small.W_dec.shape[0] == 2 and sae.W_dec.shape[0] == 24, torch.__version__
