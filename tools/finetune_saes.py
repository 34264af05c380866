"""Finetune a lab's SAEs so that the model with them spliced in says what the model says.

    python -m tools.finetune_saes --lab smollm2 --corpus english.txt --steps 400
    python -m tools.finetune_saes --lab qwen-coder --activations build/activations/qwen-coder
    --layers 8 11 18 25 --steps 60

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
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.labs.lab import hook_point
from course_utils.labs.layers import LayerStack
from course_utils.labs.loading import load_saes
from tools.train_saes import (
    KeptActivations,
    Sequences,
    held_out_residuals,
    jumprelu_sae,
    load_model,
    read_paragraphs,
    record_recipe,
    relative_squared_error,
    training_prompts,
    with_default_folders,
)
from tools.train_saes import (
    parser as training_parser,
)

log = logging.getLogger("finetune_saes")


class Splice:
    """Forward hooks that put chosen SAEs into the residual stream and collect their reconstruction
    errors.
    """

    def __init__(self, model, saes: dict[int, SAE], autocast: bool):
        self.model, self.saes, self.autocast = model, saes, autocast
        self.active: set[int] = set()
        self.errors: list[Tensor] = []
        for layer in saes:
            model.model.layers[layer].register_forward_hook(self._hook(layer))

    def _hook(self, layer: int):
        def hook(module, args, output):
            if layer not in self.active:
                return None
            x = output[0] if isinstance(output, tuple) else output
            sae = self.saes[layer]
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                pre = (x[:, 1:] - sae.b_dec.to(x.dtype)) @ sae.W_enc + sae.b_enc
                f = torch.nn.functional.threshold(pre, sae.threshold[0].item(), 0.0)
                x_hat = f @ sae.W_dec + sae.b_dec
            scale = x.detach()[:, 1:].float().norm(dim=-1).median() / x.shape[-1] ** 0.5
            flat = lambda t: t.flatten(0, 1) / scale  # noqa: E731
            self.errors.append(
                relative_squared_error(flat(x_hat), flat(x[:, 1:].detach())).sum(1).mean()
                / x.shape[-1]
            )
            new = torch.cat([x[:, :1], x_hat.to(x.dtype)], dim=1)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    def logits(self, tokens: Tensor, active: set[int]) -> Tensor:
        """Logits ``[batch, seq - 1, vocab]`` with the SAEs of these layers spliced in; fills
        ``errors``.
        """
        self.active, self.errors = active, []
        try:
            return self.model(tokens, use_cache=False).logits[:, 1:].float()
        finally:
            self.active = set()


def finetune(splice: Splice, sequences: Sequences, args: argparse.Namespace) -> None:
    """Adam on KL(model ‖ spliced) + ``--mse`` · mean reconstruction error, the rate falling to
    0.
    """
    parameters = [
        p
        for sae in splice.saes.values()
        for name, p in sae.named_parameters()
        if name != "threshold"
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=args.lr, fused=True)
    rng = random.Random(args.seed)
    layers = sorted(splice.saes)
    seen: list[float] = []
    for step in tqdm(range(args.steps), desc="finetuning", mininterval=5):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 20) * (1 - step / args.steps)
        tokens = sequences.batch(step, args.batch_size).to(splice.model.device)
        offset, gap = rng.randrange(3), rng.choice((1, 2, 2, 3, 5))
        active = set(layers[::-1][offset % gap :: gap]) or {layers[-1]}
        with torch.no_grad():
            target = splice.logits(tokens, set()).log_softmax(-1)
        prediction = splice.logits(tokens, active).log_softmax(-1)
        kl = (
            torch.nn.functional.kl_div(prediction, target, log_target=True, reduction="none")
            .sum(-1)
            .mean()
        )
        mse = torch.stack(splice.errors).sum()
        (kl + args.mse * mse).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(kl.item())
        if (step + 1) % args.log_every == 0:
            log.info(
                "step %d/%d KL %.3f (last: %d SAEs, MSE %.3f each)",
                step + 1,
                args.steps,
                sum(seen) / len(seen),
                len(active),
                mse.item() / len(active),
            )
            seen.clear()


N_OTHER_PLACES = 4
"""At so many places of each sequence, drawn at random, the divergence is taken besides those where
an answer is due.
"""


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


def finetune_kept(
    model, saes: dict[int, SAE], sequences: KeptSequences, bos: int, args: argparse.Namespace
) -> None:
    """`finetune`, from kept activations. Half of the steps splice all SAEs, the others a random
    subset.
    """
    stack = LayerStack(model, bos)
    parameters = [
        p for sae in saes.values() for name, p in sae.named_parameters() if name != "threshold"
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=args.lr, fused=True)
    rng, seen = random.Random(args.seed), []
    layers = sorted(saes)
    for step in tqdm(range(args.steps), desc="finetuning", mininterval=5):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 10) * (1 - step / args.steps)
        x, last, due = sequences.batch(step, args.batch_size)
        places = due.clone()
        places[
            torch.arange(len(due))[:, None], torch.randint(due.shape[1], (len(due), N_OTHER_PLACES))
        ] = True
        active = layers if rng.random() < 0.5 else rng.sample(layers, rng.randint(1, len(layers)))
        logits = lambda x, done: stack.logits(
            stack.norm(stack.run(x, range(done + 1, stack.n_layers))[places])
        ).float()
        with torch.no_grad():
            target = logits(last, sequences.last).log_softmax(-1)
        errors, done = [], layers[0]
        for layer in layers:
            x, done = stack.run(x, range(done + 1, layer + 1)), layer
            if layer in active:
                sae = saes[layer]
                f = torch.nn.functional.threshold(
                    (x - sae.b_dec) @ sae.W_enc + sae.b_enc, sae.threshold[0].item(), 0.0
                )
                x_hat, scale = (
                    f @ sae.W_dec + sae.b_dec,
                    x.detach().norm(dim=-1).median() / x.shape[-1] ** 0.5,
                )
                errors.append(
                    relative_squared_error(
                        (x_hat / scale).flatten(0, 1), (x.detach() / scale).flatten(0, 1)
                    )
                    .sum(1)
                    .mean()
                    / x.shape[-1]
                )
                x = x_hat
        kl = (
            torch.nn.functional.kl_div(
                logits(x, done).log_softmax(-1), target, log_target=True, reduction="none"
            )
            .sum(-1)
            .mean()
        )
        (kl + args.mse * torch.stack(errors).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(kl.item())
        log.info(
            "step %d/%d KL %.3f with %d SAEs, mean so far %.3f, error %.3f",
            step + 1,
            args.steps,
            kl.item(),
            len(active),
            sum(seen) / len(seen),
            errors[-1].item(),
        )


def main(argv: list[str] | None = None) -> None:
    parser = training_parser(__doc__)
    parser.add_argument(
        "--saes", type=Path, help="a folder with the SAEs to start from (default: --out)"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--mse", type=float, default=2.0, help="weight of the reconstruction loss")
    parser.add_argument("--prompt-share", type=float, default=0.4)
    parser.add_argument(
        "--average",
        type=float,
        default=1.0,
        help="how far to go from the old weights to the new ones",
    )
    parser.add_argument(
        "--activations",
        type=Path,
        help="a folder that collect_activations.py filled, in place of --corpus",
    )
    parser.set_defaults(lr=1e-4, batch_size=32, seed=1)
    args = with_default_folders(parser.parse_args(argv))
    if not (args.corpus or args.activations):
        parser.error("text to train on is wanted: --corpus FILE …, or --activations FOLDER")
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(args.checkpoints / "finetune.log")],
    )  # fmt: skip
    model, tokenizer = load_model(args)
    saes = load_saes(args.saes or args.out, args.layers, device=args.device, dtype=torch.float32)
    log.info("%s", vars(args))
    start = {
        layer: {name: p.detach().clone() for name, p in sae.named_parameters()}
        for layer, sae in saes.items()
    }
    if args.activations:
        finetune_kept(
            model,
            saes,
            KeptSequences(args.activations, min(saes), tokenizer, args.seed),
            tokenizer.bos_token_id,
            args,
        )
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
        finetune(Splice(model, saes, autocast=args.dtype == torch.bfloat16), sequences, args)
        calibration = held_out_residuals(model, tokenizer, unseen, prompts, args)
    for layer, sae in saes.items():
        with torch.no_grad():
            for name, p in sae.named_parameters():
                p.copy_(torch.lerp(start[layer][name], p, args.average))
        done = jumprelu_sae(
            sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, layer, args, calibration[hook_point(layer)]
        )
        done.save_model(args.out / f"layer_{layer}")
        log.info("saved %s", args.out / f"layer_{layer}")
    record_recipe("finetuning", args)


if __name__ == "__main__":
    main()
