"""Train JumpReLU SAEs on several layers of one model, from one stream of activations.

    python -m tools.train_saes --lab smollm2 --corpus english.txt --tokens 5000000

What matters, and why (measured on SmolLM2-135M):

- *Short sequences.* The course's prompts live at positions 1 to 20. SAEs trained on 128-token text
  alone destroy them. So a training sequence has 32 tokens: BOS, then a sentence from its start; one
  in four starts with a prompt of the course's kinds (train split only), and goes on with text.
- *BOS is left out.* Its norm is a hundred times everybody else's, and it is never spliced.
- *Every token counts by its relative error.* In the early layers many " the" tokens are ten times
  longer than the median; in squared error each would outweigh a hundred others. Its weight is
  divided by its squared length, as the RMSNorm that reads it does.

For a model whose forward pass is most of the work, `collect_activations.py` does it once;
``--activations`` then names its folder, and the SAEs see those tokens as often as ``--tokens`` asks
for, shuffled anew each time.

The trainer is SAELens' `MultiSAETrainer`; the SAE is its BatchTopK SAE with the batch threshold
taken from a sample of rows (sorting 8 million numbers a step is what makes it slow on a CPU). It
stops, saves and resumes: run the same command again. The result is in SAELens' own format, 16-bit
safetensors.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils.labs import loading
from course_utils.labs.lab import hook_point
from course_utils.prompts.grammar import CODE_TASKS, GENERATORS, TRANSFER_TASKS, generate_pairs
from course_utils.prompts.tokens import token_rows

ROOT = Path(__file__).resolve().parent.parent

log = logging.getLogger("train_saes")

PROMPT_SHARE = 0.25
"""Share of the sequences that start with a prompt of the course's kinds."""
HELD_OUT_SHARE = 0.03
"""Share of the corpus' paragraphs that no SAE is trained on."""


# ---------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------


class Sequences:
    """Training sequences ``[n, seq_len]``: BOS, a sentence's start, and the text that follows it.

    Sequence ``i`` is the same in every run with the same seed, so that a resumed run goes on where
    it stopped.
    """

    def __init__(
        self,
        paragraphs: list[str],
        prompts: list[str],
        tokenizer,
        *,
        seq_len: int,
        seed: int,
        prompt_share: float = PROMPT_SHARE,
    ):
        self.bos_id, self.seq_len = tokenizer.bos_token_id, seq_len
        self.seed, self.prompt_share = seed, prompt_share
        sentences = [
            s for p in paragraphs for s in re.split(r'(?<=[.!?”"]) +(?=[A-Z“"])', p.strip()) if s
        ]
        self.starts = token_rows(tokenizer, sentences)
        self.continuations = token_rows(tokenizer, [" " + sentence for sentence in sentences])
        self.prompts = token_rows(tokenizer, prompts)
        self._epoch, self._shuffled = -1, []

    def __len__(self) -> int:
        """How many sentences there are: sequences in one epoch."""
        return len(self.starts)

    def batch(self, step: int, size: int) -> Tensor:
        """``size`` sequences for training step ``step``: each sentence starts one before any starts
        two.
        """
        rng = random.Random(f"{self.seed}/{step}")
        rows = []
        for i in range(step * size, (step + 1) * size):
            epoch, place = divmod(i, len(self))
            if epoch != self._epoch:
                self._epoch = epoch
                self._shuffled = random.Random(f"{self.seed}/epoch {epoch}").sample(
                    range(len(self)), len(self)
                )
            sentence = self._shuffled[place]
            row = [self.bos_id]
            if self.prompts and rng.random() < self.prompt_share:
                row += rng.choice(self.prompts) + self.continuations[sentence]
            else:
                row += self.starts[sentence]
            while len(row) < self.seq_len:
                sentence = (sentence + 1) % len(self)
                row += self.continuations[sentence]
            rows.append(row[: self.seq_len])
        return torch.tensor(rows)


def read_paragraphs(corpora: list[Path]) -> tuple[list[str], list[str]]:
    """The paragraphs (one a line) of plain-text files: those to train on, and those held out."""
    paragraphs = [
        line
        for path in corpora
        for line in path.read_text(encoding="utf-8").splitlines()
        if len(line) > 40
    ]
    random.Random("held out").shuffle(paragraphs)
    n_held_out = int(len(paragraphs) * HELD_OUT_SHARE)
    return paragraphs[n_held_out:], paragraphs[:n_held_out]


@functools.cache
def training_prompts(n_per_task: int, seed: int) -> list[str]:
    """Prompts of the course's kinds from the train vocabulary, clean or patch, with their answer
    where they have one.
    """
    rng = random.Random(seed)
    prompts = []
    for name in (name for name in GENERATORS if name not in CODE_TASKS + TRANSFER_TASKS):
        n = n_per_task // 20 if name == "sva_simple" else n_per_task
        for pair in generate_pairs(name, "train", n, seed=seed + 1):
            prefix, answer = rng.choice(
                [(pair.clean_prefix, pair.clean_answer), (pair.patch_prefix, pair.patch_answer)]
            )
            prompts.append(
                prefix + answer if name != "ioi" or prefix == pair.clean_prefix else prefix
            )
    return prompts


# ---------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def residuals(model, tokens: Tensor, layers: list[int]) -> dict[str, Tensor]:
    """The residual stream after each layer, BOS left out: ``{hook name: [batch, seq - 1,
    d_model]}``.
    """
    caught: dict[str, Tensor] = {}

    def catch(layer: int):
        def hook(module, args, output):
            caught[hook_point(layer)] = (output[0] if isinstance(output, tuple) else output)[
                :, 1:
            ].clone()

        return hook

    handles = [model.model.layers[layer].register_forward_hook(catch(layer)) for layer in layers]
    try:
        model.model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return caught


def activation_stream(
    model, sequences: Sequences, layers: list[int], batch_size: int, step: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Batches ``{hook name: [batch_size * (seq_len - 1), d_model]}``, for ever."""
    while True:
        batch = residuals(model, sequences.batch(step, batch_size).to(model.device), layers)
        yield {name: x.flatten(0, 1).clone() for name, x in batch.items()}
        step += 1


class KeptActivations:
    """The shards of `collect_activations.py`, in memory (16-bit): most to train on, every
    `HELD_OUT_EVERY`-th held out.

    Attributes:
        kind: ``[n]`` for the tokens held out: which part of the data each is from.
    """

    HELD_OUT_EVERY = 25

    def __init__(self, folder: Path, layers: list[int]):
        self.paths = self.shards(folder)
        self.layers = layers
        self.rows, self.held_out = (self._read(self.paths[part]) for part in (False, True))
        self.kind = torch.cat([self._kinds(path) for path in self.paths[True]])

    @classmethod
    def shards(cls, folder: Path) -> dict[bool, list[Path]]:
        """The files to train on (False) and those held out (True).

        Raises:
            FileNotFoundError: one of the two is empty.
        """
        parts: dict[bool, list[Path]] = {False: [], True: []}
        for path in sorted(folder.glob("shard_*.safetensors")):
            number = int(path.stem.removeprefix("shard_"))
            parts[number % cls.HELD_OUT_EVERY == 0].append(path)
        if not all(parts.values()):
            raise FileNotFoundError(
                f"{folder} needs two shards or more, with one held out. "
                f"Run tools/collect_activations.py first."
            )
        return parts

    def _read(self, paths: list[Path]) -> dict[str, Tensor]:
        rows: dict[str, list[Tensor]] = {hook_point(layer): [] for layer in self.layers}
        for path in paths:
            with safe_open(path, framework="pt") as file:
                for name, parts in rows.items():
                    parts.append(file.get_tensor(name).flatten(0, 1))
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def _kinds(self, path: Path) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("kind").repeat_interleave(file.get_tensor("tokens").shape[1] - 1)

    def __len__(self) -> int:
        """Tokens to train on."""
        return len(next(iter(self.rows.values())))

    def stream(self, size: int, seed: int, step: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches of ``size`` tokens, for ever: every token once before any comes twice (but for a
        rest at an epoch's end).
        """
        per_epoch = len(self) // size
        if per_epoch == 0:
            raise ValueError(
                f"a step takes {size} tokens, and there are only {len(self)}: "
                f"collect more, or take a smaller --batch-size."
            )
        epoch, order = -1, torch.empty(0)
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(
                    len(self), generator=torch.Generator().manual_seed(1000 * seed + epoch)
                )
            rows = order[(step % per_epoch) * size : (step % per_epoch + 1) * size]
            yield {name: x[rows].float() for name, x in self.rows.items()}
            step += 1


# ---------------------------------------------------------------------------------------------
# The SAE while it trains
# ---------------------------------------------------------------------------------------------


class SampledBatchTopKSAE(BatchTopKTrainingSAE):
    """SAELens' BatchTopK SAE, made fast on a CPU.

    The threshold above which latents fire is the (1 − k/d_sae) quantile of the pre-activations of
    `SAMPLE_ROWS` tokens instead of the whole batch; the decoder's rows are kept at norm 1; a
    token's squared error is divided by its squared norm where that is above the average; dead
    latents learn the rest of the reconstruction error (the auxiliary loss of Gao et al. 2024, A.2).
    """

    SAMPLE_ROWS = 128
    AUX_CANDIDATES = 512
    AUX_K = 64

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden_pre = (x - self.b_dec.detach().to(x.dtype)) @ self.W_enc + self.b_enc
        with torch.no_grad():
            sample = (
                hidden_pre[torch.randperm(len(x), device=x.device)[: self.SAMPLE_ROWS]]
                .flatten()
                .float()
            )
            threshold = sample.kthvalue(
                int(len(sample) * (1 - self.cfg.k / self.cfg.d_sae))
            ).values.clamp(min=0)
            rate = self.cfg.topk_threshold_lr
            self.topk_threshold.mul_(1 - rate).add_(rate * threshold.double())
        return torch.nn.functional.threshold(hidden_pre, threshold.item(), 0.0), hidden_pre

    def training_forward_pass(self, step_input):
        with torch.no_grad():
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        return super().training_forward_pass(step_input)

    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        """Nothing: the threshold is set where it is used, in `encode_with_hidden_pre`."""

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts @ self.W_dec + self.b_dec

    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        mask = step_input.dead_neuron_mask
        dead = mask.nonzero().squeeze(1) if mask is not None else hidden_pre.new_empty(0)
        if len(dead) == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        dead = dead[torch.randperm(len(dead), device=dead.device)[: self.AUX_CANDIDATES]]
        values, index = hidden_pre[:, dead].topk(min(self.AUX_K, len(dead)), dim=1, sorted=False)
        acts = torch.zeros_like(hidden_pre[:, dead]).scatter(1, index, values.relu())
        error = (step_input.sae_in - sae_out).detach()
        loss = self.mse_loss_fn(acts @ self.W_dec[dead], error).sum(dim=1).mean()
        return {"auxiliary_reconstruction_loss": self.cfg.aux_loss_coefficient * loss}


def relative_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error ``[batch, d]``, divided by the token's mean square where that is above 1."""
    target = target.float()
    weight = 1 / target.pow(2).mean(dim=1, keepdim=True).clamp(min=1)
    return weight * (prediction.float() - target).pow(2)


# ---------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------


def build_trainer(
    args: argparse.Namespace, d_model: int, stream: Iterator[dict[str, Tensor]]
) -> MultiSAETrainer:
    torch.manual_seed(args.seed)
    saes = {}
    for layer in args.layers:
        cfg = BatchTopKTrainingSAEConfig(
            d_in=d_model,
            d_sae=args.width,
            k=args.k,
            topk_threshold_lr=0.02,
            aux_loss_coefficient=1 / 32,
            rescale_acts_by_decoder_norm=False,
            decoder_init_norm=1.0,
            normalize_activations="expected_average_only_in",
            device=args.device,
        )
        saes[f"layer_{layer}"] = SampledBatchTopKSAE(cfg)
        saes[f"layer_{layer}"].mse_loss_fn = relative_squared_error
    samples_per_step = args.batch_size * (args.seq_len - 1)
    steps = args.tokens // samples_per_step
    trainer = MultiSAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * samples_per_step,
            train_batch_size_samples=samples_per_step,
            lr=args.lr,
            lr_end=args.lr,
            device=args.device,
            autocast=args.dtype == torch.bfloat16,
            dead_feature_window=max(1, 200_000 // samples_per_step),
            n_batches_for_norm_estimate=8,
            logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=str(args.checkpoints),
        ),
        saes,
        {f"layer_{layer}": hook_point(layer) for layer in args.layers},
        stream,
    )
    # The same Adam in one kernel a step; a schedule that a resumed run may prolong.
    for single in trainer.trainers.values():
        single.optimizer = torch.optim.Adam(single.sae.parameters(), lr=args.lr, fused=True)
        single.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            single.optimizer, lambda step: learning_rate(step, steps)
        )
    return trainer


def estimate_scales(trainer: MultiSAETrainer) -> None:
    """What each SAE's activations are multiplied with, from the first batches, as `fit` does it."""
    n = trainer.cfg.n_batches_for_norm_estimate
    batches = [next(trainer.data_provider) for _ in range(n)]
    for name, single in trainer.trainers.items():
        hook = trainer.hook_names[name]
        single.activation_scaler.estimate_scaling_factor(
            d_in=single.sae.cfg.d_in,
            data_provider=iter([batch[hook] for batch in batches]),
            n_batches_for_norm_estimate=n,
        )


def learning_rate(step: int, steps: int) -> float:
    """Relative to the maximum: a warm-up over 100 steps, and a decay to a tenth over the last
    fifth.
    """
    return min(1.0, (step + 1) / 100, 0.1 + 0.9 * max(0, steps - step) / (steps / 5))


def train(trainer: MultiSAETrainer, args: argparse.Namespace) -> None:
    """SAELens' `MultiSAETrainer.fit`, with a log line, checkpoints by the clock, and a start
    anywhere.
    """
    steps = trainer.cfg.total_training_steps
    window: dict[str, list[float]] = {name: [] for name in trainer.saes}
    last_save = time.monotonic()
    bar = tqdm(
        total=steps,
        initial=trainer.n_training_steps,
        unit="step",
        desc="training SAEs",
        mininterval=5,
    )
    while trainer.n_training_steps < steps:
        batch = next(trainer.data_provider)
        for name, single in trainer.trainers.items():
            out = single.step(batch[trainer.hook_names[name]])
            single.n_training_steps += 1
            if trainer.n_training_steps % 10 == 0:
                window[name].append(unexplained_variance(out.sae_in, out.sae_out))
        trainer.n_training_steps += 1
        bar.update()
        if trainer.n_training_steps % args.log_every == 0:
            dead = [str(int(single.dead_neurons.sum())) for single in trainer.trainers.values()]
            mean = [f"{sum(values) / len(values):.3f}" for values in window.values() if values]
            lr = next(iter(trainer.trainers.values())).optimizer.param_groups[0]["lr"]
            log.info(
                "step %d/%d lr %.1e | unexplained %s | dead %s",
                trainer.n_training_steps, steps, lr, " ".join(mean), " ".join(dead),
            )  # fmt: skip
            window = {name: [] for name in trainer.saes}
        if time.monotonic() - last_save > 60 * args.checkpoint_minutes:
            save_checkpoint(trainer, args.checkpoints)
            last_save = time.monotonic()
    bar.close()
    save_checkpoint(trainer, args.checkpoints)


def unexplained_variance(x: Tensor, x_hat: Tensor) -> float:
    """Σ‖x − x̂‖² / Σ‖x − mean‖², over the tokens no longer than 6 times the median token."""
    x, x_hat = x.detach().float(), x_hat.detach().float()
    norms = x.norm(dim=1)
    usual = norms < 6 * norms.median()
    x, x_hat = x[usual], x_hat[usual]
    return ((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()


def save_checkpoint(trainer: MultiSAETrainer, folder: Path) -> None:
    """Write a checkpoint, then name it in LATEST: a cut while writing leaves the one before in
    force.
    """
    name = f"step_{trainer.n_training_steps % 2}"
    trainer.save_checkpoint(name)
    (folder / "LATEST.part").write_text(name)
    (folder / "LATEST.part").replace(folder / "LATEST")
    log.info("checkpoint at step %d in %s", trainer.n_training_steps, folder / name)


def resume(trainer: MultiSAETrainer, folder: Path) -> bool:
    """Go on from the newest checkpoint, if there is one."""
    if not (folder / "LATEST").exists():
        return False
    trainer.load_checkpoint(folder / (folder / "LATEST").read_text())
    for single in trainer.trainers.values():
        single.sae.W_dec.data = single.sae.W_dec.data.contiguous()
    log.info("resumed at step %d", trainer.n_training_steps)
    return True


@torch.no_grad()
def finished_sae(single, layer: int, args: argparse.Namespace, calibration: Tensor) -> JumpReLUSAE:
    """The trained SAE as a JumpReLU SAE on activations as they are, with latents in their units."""
    sae, scale = single.sae, single.activation_scaler.scaling_factor
    W = {"W_enc": sae.W_enc, "W_dec": sae.W_dec}
    for name in ("b_enc", "b_dec"):
        W[name] = getattr(sae, name) / scale  # it saw activations times `scale`
    return jumprelu_sae(W, layer, args, calibration)


@torch.no_grad()
def jumprelu_sae(
    W: Mapping[str, Tensor], layer: int, args: argparse.Namespace, calibration: Tensor
) -> JumpReLUSAE:
    """A JumpReLU SAE in 16 bits, decoder rows of norm 1, whose threshold gives L0 = k on
    ``calibration``. ``W`` has its W_enc, b_enc, W_dec and b_dec.
    """
    norm, b_dec = W["W_dec"].norm(dim=1), W["b_dec"]
    W_enc, b_enc, W_dec = W["W_enc"] * norm, W["b_enc"] * norm, W["W_dec"] / norm[:, None]
    pre = (calibration.float() - b_dec) @ W_enc + b_enc
    threshold = (
        pre.flatten().kthvalue(int(pre.numel() * (1 - args.k / len(b_enc)))).values.clamp(min=0)
    )
    metadata = SAEMetadata(
        model_name=args.lab,
        hook_name=hook_point(layer),
        context_size=args.seq_len,
        prepend_bos=True,
    )
    cfg = JumpReLUSAEConfig(
        d_in=len(b_dec),
        d_sae=len(b_enc),
        dtype="float16",
        apply_b_dec_to_input=True,
        metadata=metadata,
    )
    done = JumpReLUSAE(cfg)
    done.load_state_dict(
        dict(
            W_enc=W_enc,
            b_enc=b_enc,
            W_dec=W_dec,
            b_dec=b_dec,
            threshold=threshold.expand_as(b_enc).clone(),
        )
    )
    return done.half()


def record_recipe(stage: str, args: argparse.Namespace) -> None:
    """Write how the SAEs were made into their metrics.json."""
    path = args.out / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    settings = {
        name: value
        for name, value in vars(args).items()
        if name not in ("checkpoints", "out", "saes", "model", "activations")
    }
    settings["corpus"] = [corpus.name for corpus in args.corpus]
    settings = {name: value for name, value in settings.items() if value not in (None, [])}
    metrics.setdefault("recipe", {})[stage] = {
        name: value if isinstance(value, (int, float, str, list)) else str(value)
        for name, value in settings.items()
    }
    path.write_text(json.dumps(metrics, indent=1) + "\n")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What training and finetuning both need to know."""
    add = parser.add_argument
    add("--lab", default="smollm2", help="whose model to train on; also the folder in data/saes/")
    add("--model", type=Path, help="a folder with a Hugging Face model, instead of the lab's")
    add("--bos", help="the token that starts every sequence (default: the tokenizer's BOS)")
    add("--corpus", type=Path, nargs="+", default=[], help="plain text, one paragraph a line")
    add("--activations", type=Path, help="a folder that collect_activations.py filled, instead")
    add("--layers", type=int, nargs="+", default=list(range(2, 30, 3)))
    add("--width", type=int, default=4096)
    add("--k", type=int, default=60, help="latents on per token, on average")
    add("--seq-len", type=int, default=32)
    add("--batch-size", type=int, default=64, help="sequences a step")
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", type=lambda name: getattr(torch, name), default=torch.bfloat16)
    add("--checkpoints", type=Path, help="default: build/saes/<lab>")
    add("--out", type=Path, help="default: data/saes/<lab>")
    add("--log-every", type=int, default=50)


def start_logging(args: argparse.Namespace, file: str) -> None:
    """Log to the terminal and to a file beside the checkpoints."""
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(args.checkpoints / file)]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)


def with_default_folders(args: argparse.Namespace) -> argparse.Namespace:
    """``args`` with the folders that follow from the lab's name."""
    args.checkpoints = args.checkpoints or ROOT / "build" / "saes" / args.lab
    args.out = args.out or ROOT / "data" / "saes" / args.lab
    return args


def load_model(args: argparse.Namespace):
    """The Hugging Face model and tokenizer to train on: the lab's, or those in ``--model``."""
    if args.model is None:
        model, tokenizer = loading.load_model(args.lab, device=args.device, dtype=args.dtype)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = (
            AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
            .to(args.device)
            .eval()
        )
    if args.bos:
        tokenizer.bos_token = args.bos
    return model.requires_grad_(False), tokenizer


def held_out_residuals(
    model, tokenizer, paragraphs: list[str], prompts: list[str], args: argparse.Namespace
) -> dict[str, Tensor]:
    """The residual stream on 128 sequences of held-out text: ``{hook name: [tokens, d_model]}``."""
    sequences = Sequences(paragraphs, prompts, tokenizer, seq_len=args.seq_len, seed=args.seed)
    streams = residuals(model, sequences.batch(0, 128).to(args.device), args.layers)
    return {name: x.flatten(0, 1) for name, x in streams.items()}


@dataclass(frozen=True)
class Activations:
    """What a run trains on.

    Attributes:
        stream: batches from a step on, for ever.
        held_out: what the thresholds are calibrated on.
    """

    d_model: int
    stream: Callable[[int], Iterator[dict[str, Tensor]]]
    held_out: Callable[[], dict[str, Tensor]]

    @classmethod
    def of_text(cls, args: argparse.Namespace) -> Activations:
        """The model run on a corpus and on prompts, as the training goes on."""
        model, tokenizer = load_model(args)
        paragraphs, unseen = read_paragraphs(args.corpus)
        prompts = training_prompts(3000, args.seed)
        sequences = Sequences(paragraphs, prompts, tokenizer, seq_len=args.seq_len, seed=args.seed)
        log.info("%d sentences, %d prompts, %s", len(sequences), len(prompts), vars(args))

        def stream(step: int) -> Iterator[dict[str, Tensor]]:
            return activation_stream(model, sequences, args.layers, args.batch_size, step)

        def held_out() -> dict[str, Tensor]:
            return held_out_residuals(model, tokenizer, unseen, prompts, args)

        return cls(model.config.hidden_size, stream, held_out)

    @classmethod
    def of_kept(cls, kept: KeptActivations, args: argparse.Namespace) -> Activations:
        """Those that were collected before."""
        log.info("%d tokens, %d held out, %s", len(kept), len(kept.kind), vars(args))
        size = args.batch_size * (args.seq_len - 1)

        def stream(step: int) -> Iterator[dict[str, Tensor]]:
            return kept.stream(size, args.seed, step)

        d_model = next(iter(kept.rows.values())).shape[1]
        return cls(d_model, stream, lambda: kept.held_out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training_options(parser)
    parser.add_argument("--tokens", type=int, default=5_000_000, help="activations a layer")
    parser.add_argument("--checkpoint-minutes", type=float, default=8)
    args = with_default_folders(parser.parse_args(argv))
    if not (args.corpus or args.activations):
        parser.error("text to train on is wanted: --corpus FILE …, or --activations FOLDER")
    start_logging(args, "train.log")
    kept = KeptActivations(args.activations, args.layers) if args.activations else None
    activations = Activations.of_kept(kept, args) if kept else Activations.of_text(args)

    trainer = build_trainer(args, activations.d_model, activations.stream(0))
    if not resume(trainer, args.checkpoints):
        estimate_scales(trainer)
    trainer.data_provider = activations.stream(trainer.n_training_steps)
    for sae in trainer.saes.values():
        sae.to(args.device)
    train(trainer, args)

    calibration = activations.held_out()
    for layer in args.layers:
        single = trainer.trainers[f"layer_{layer}"]
        done = finished_sae(single, layer, args, calibration[hook_point(layer)])
        done.save_model(args.out / f"layer_{layer}")
        log.info("saved %s", args.out / f"layer_{layer}")
    record_recipe("training", args)
    if kept:
        settings = json.loads((args.activations / "settings.json").read_text())
        collected = argparse.Namespace(out=args.out, corpus=[], tokens=len(kept), **settings)
        record_recipe("activations", collected)


if __name__ == "__main__":
    main()
