"""Finetune a lab's SAEs so that the model with them spliced in says what the model says.

    python -m tools.finetune_saes --lab smollm2 --corpus english.txt --steps 400
    python -m tools.finetune_saes --lab qwen-coder --steps 60 --layers 8 11 18 25 \\
        --activations build/activations/qwen-coder

Squared error treats every direction alike; the model does not. A short finetune on the KL
divergence between the model's and the spliced model's next-token predictions mends most of what
matters (Karvonen 2025, "Revisiting End-To-End Sparse Autoencoder Training"). Each step splices
another random subset of the SAEs, so that they work alone and together; the reconstruction loss
stays in, so that each remains an autoencoder of what it reads. Thresholds are set anew at the end
(L0 = k on held-out text).

With ``--activations`` (see `collect_activations.py`) each step starts from the kept residual stream
at the first SAE, and gets the model's own answer from the kept one at the last: the layers before
the first are never run again. Only sessions are used, and the divergence is taken where an answer
is due (after ``]`` and a line break), and at a few other places.

A finetune this short is noisy: ``--average 0.5`` ends halfway between the SAEs that it started from
and those that it reached, which is often better than either (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models").
"""

from __future__ import annotations

import argparse
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm.auto import tqdm

from course_utils.labs.lab import hook_point
from course_utils.labs.layers import LayerStack
from course_utils.labs.loading import load_saes
from tools.train_saes import (
    KeptActivations,
    Sequences,
    add_training_options,
    held_out_residuals,
    jumprelu_sae,
    load_model,
    read_paragraphs,
    record_recipe,
    relative_squared_error,
    start_logging,
    training_prompts,
    with_default_folders,
)

log = logging.getLogger("finetune_saes")

# ---------------------------------------------------------------------------------------------
# The spliced model
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What a step is computed from.

    Attributes:
        x: the residual stream after layer ``after`` (−1: what layer 0 reads).
        places: where the model's and the spliced model's predictions are compared.
        target: the model's own log-probabilities there.
    """

    x: Float[Tensor, "batch seq d_model"]
    after: int
    places: Bool[Tensor, "batch seq"]
    target: Float[Tensor, "places vocab"]


def log_probs(
    stack: LayerStack,
    x: Float[Tensor, "batch seq d_model"],
    after: int,
    places: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "places vocab"]:
    """What the model says at some places, from the residual stream after a layer on."""
    x = stack.run(x, range(after + 1, stack.n_layers))
    return stack.logits(stack.norm(x[places])).float().log_softmax(-1)


def spliced_log_probs(
    stack: LayerStack, saes: dict[int, SAE], batch: Batch, *, autocast: bool = False
) -> tuple[Float[Tensor, "places vocab"], Float[Tensor, " saes"]]:
    """What the model says with these SAEs spliced in, and the reconstruction error of each."""
    x, after, errors = batch.x, batch.after, []
    for layer in sorted(saes):
        x, after = stack.run(x, range(after + 1, layer + 1)), layer
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
            x_hat = reconstruct(saes[layer], x)
        errors.append(reconstruction_error(x_hat, x.detach()))
        x = x_hat.to(x.dtype)
    return log_probs(stack, x, after, batch.places), torch.stack(errors)


def reconstruct(
    sae: SAE, x: Float[Tensor, "batch seq d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """Decode what fires. The threshold is a constant here: it is set anew at the end."""
    W = dict(sae.named_parameters())
    pre = (x - W["b_dec"].to(x.dtype)) @ W["W_enc"] + W["b_enc"]
    f = torch.nn.functional.threshold(pre, W["threshold"][0].item(), 0.0)
    return f @ W["W_dec"] + W["b_dec"]


def reconstruction_error(
    x_hat: Float[Tensor, "batch seq d_model"], x: Float[Tensor, "batch seq d_model"]
) -> Float[Tensor, ""]:
    """Mean relative squared error a number, in units of the median token (see `train_saes.py`)."""
    scale = x.float().norm(dim=-1).median() / x.shape[-1] ** 0.5
    error = relative_squared_error(x_hat.flatten(0, 1) / scale, x.flatten(0, 1) / scale)
    return error.sum(1).mean() / x.shape[-1]


# ---------------------------------------------------------------------------------------------
# What a step sees
# ---------------------------------------------------------------------------------------------


class Data(Protocol):
    """Batches, and which SAEs to splice. ``WARM_UP``: steps until the rate is full."""

    WARM_UP: ClassVar[int]

    def batch(self, step: int) -> Batch: ...

    def draw(self, layers: list[int]) -> list[int]: ...


class FromText:
    """Sequences of text; predictions are compared at every token. SAEs at intervals are spliced."""

    WARM_UP: ClassVar[int] = 20

    def __init__(self, stack: LayerStack, sequences: Sequences, batch_size: int, seed: int):
        self.stack, self.sequences, self.batch_size = stack, sequences, batch_size
        self.rng = random.Random(seed)

    @torch.no_grad()
    def batch(self, step: int) -> Batch:
        return self.of(self.sequences.batch(step, self.batch_size))

    @torch.no_grad()
    def of(self, tokens: Tensor) -> Batch:
        """Some sequences as a batch."""
        x = self.stack.embed(tokens)
        places = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return Batch(x, -1, places, log_probs(self.stack, x, -1, places))

    def draw(self, layers: list[int]) -> list[int]:
        offset, gap = self.rng.randrange(3), self.rng.choice((1, 2, 2, 3, 5))
        return layers[::-1][offset % gap :: gap] or [layers[-1]]


N_OTHER_PLACES = 4
"""At so many places of each sequence, drawn at random, the divergence is taken besides those where
an answer is due.
"""


class FromKept:
    """Kept activations of sessions; predictions are compared where an answer is due and at a few
    other places. Half of the steps splice all SAEs, the others a random subset.
    """

    WARM_UP: ClassVar[int] = 10

    def __init__(self, stack: LayerStack, sequences: KeptSequences, batch_size: int, seed: int):
        self.stack, self.sequences, self.batch_size = stack, sequences, batch_size
        self.rng = random.Random(seed)

    @torch.no_grad()
    def batch(self, step: int) -> Batch:
        x, last, places = self.sequences.batch(step, self.batch_size)
        others = torch.randint(places.shape[1], (len(places), N_OTHER_PLACES))
        places[torch.arange(len(places))[:, None], others] = True
        model = self.stack.model
        x, last = (stream.to(model.device, model.dtype) for stream in (x, last))
        places = places.to(model.device)
        target = log_probs(self.stack, last, self.sequences.last, places)
        return Batch(x, self.sequences.first, places, target)

    def draw(self, layers: list[int]) -> list[int]:
        if self.rng.random() < 0.5:
            return layers
        return self.rng.sample(layers, self.rng.randint(1, len(layers)))


class KeptSequences:
    """Sessions from the shards that `collect_activations.py` wrote and that are not held out, a
    batch a step.
    """

    def __init__(self, folder: Path, first: int, tokenizer, seed: int):
        self.paths, self.seed = KeptActivations.shards(folder)[False], seed
        with safe_open(self.paths[0], framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("blocks.")]
        self.last = max(int(name.split(".")[1]) for name in names)
        self.first = first
        self.due = torch.tensor(
            [i for i in range(len(tokenizer)) if tokenizer.decode([i]).endswith("]\n")]
        )

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream after the first and after the last kept layer ``[size, seq,
        d_model]``, and where an answer is due.
        """
        rng = random.Random(f"{self.seed}/{step}")
        for _ in range(1000):
            with safe_open(rng.choice(self.paths), framework="pt") as file:
                sessions = (file.get_tensor("kind") == 0).nonzero()[:, 0].tolist()
                if not sessions:
                    continue
                rows = rng.sample(sessions, min(size, len(sessions)))
                first, last = (
                    file.get_tensor(hook_point(layer))[rows].float()
                    for layer in (self.first, self.last)
                )
                return first, last, torch.isin(file.get_tensor("tokens")[rows, 1:], self.due)
        raise ValueError("there is no session among the kept activations: collect more.")


# ---------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------


def finetune(stack: LayerStack, saes: dict[int, SAE], data: Data, args: argparse.Namespace) -> None:
    """Adam on KL(model ‖ spliced) + ``--mse`` · the sum of the reconstruction errors, the rate
    falling to 0.
    """
    parameters = [
        parameter
        for sae in saes.values()
        for name, parameter in sae.named_parameters()
        if name != "threshold"
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=args.lr, fused=True)
    divergences: list[float] = []
    for step in tqdm(range(args.steps), desc="finetuning", mininterval=5):
        warm, left = min(1, (step + 1) / data.WARM_UP), 1 - step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * left
        batch = data.batch(step)
        active = {layer: saes[layer] for layer in data.draw(sorted(saes))}
        prediction, errors = spliced_log_probs(
            stack, active, batch, autocast=args.dtype == torch.bfloat16
        )
        divergence = kl_div(prediction, batch.target, log_target=True, reduction="none")
        divergence = divergence.sum(-1).mean()
        (divergence + args.mse * errors.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        divergences.append(divergence.item())
        if (step + 1) % args.log_every == 0:
            log.info(
                "step %d/%d KL %.3f (last: %d SAEs, error %.3f each)",
                step + 1, args.steps, sum(divergences) / len(divergences),
                len(active), errors.mean().item(),
            )  # fmt: skip
            divergences.clear()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training_options(parser)
    parser.add_argument(
        "--saes", type=Path, help="a folder with the SAEs to start from (default: --out)"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--mse", type=float, default=2.0, help="weight of the reconstruction loss")
    parser.add_argument("--prompt-share", type=float, default=0.4)
    parser.add_argument(
        "--average", type=float, default=1.0, help="how far to go from the old weights to the new"
    )
    parser.set_defaults(lr=1e-4, batch_size=32, seed=1)
    args = with_default_folders(parser.parse_args(argv))
    if not (args.corpus or args.activations):
        parser.error("text to train on is wanted: --corpus FILE …, or --activations FOLDER")
    start_logging(args, "finetune.log")
    model, tokenizer = load_model(args)
    saes = load_saes(args.saes or args.out, args.layers, device=args.device, dtype=torch.float32)
    log.info("%s", vars(args))
    stack = LayerStack(model, tokenizer.bos_token_id)
    start = {
        layer: {name: p.detach().clone() for name, p in sae.named_parameters()}
        for layer, sae in saes.items()
    }
    if args.activations:
        kept = KeptSequences(args.activations, min(saes), tokenizer, args.seed)
        finetune(stack, saes, FromKept(stack, kept, args.batch_size, args.seed), args)
        calibration = KeptActivations(args.activations, list(saes)).held_out
    else:
        paragraphs, unseen = read_paragraphs(args.corpus)
        prompts = training_prompts(3000, args.seed)
        sequences = Sequences(
            paragraphs,
            prompts,
            tokenizer,
            seq_len=args.seq_len,
            seed=args.seed,
            prompt_share=args.prompt_share,
        )
        finetune(stack, saes, FromText(stack, sequences, args.batch_size, args.seed), args)
        calibration = held_out_residuals(model, tokenizer, unseen, prompts, args)
    for layer, sae in saes.items():
        with torch.no_grad():
            for name, parameter in sae.named_parameters():
                parameter.copy_(torch.lerp(start[layer][name], parameter, args.average))
        done = jumprelu_sae(
            dict(sae.named_parameters()), layer, args, calibration[hook_point(layer)]
        )
        done.save_model(args.out / f"layer_{layer}")
        log.info("saved %s", args.out / f"layer_{layer}")
    record_recipe("finetuning", args)


if __name__ == "__main__":
    main()
