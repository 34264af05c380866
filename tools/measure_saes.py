"""Measure a lab's SAEs on held-out text and on held-out prompts, and write
data/saes/<lab>/metrics.json.

    python -m tools.measure_saes --lab smollm2 --corpus english.txt
    python -m tools.measure_saes --lab qwen-coder --tasks dict_key dict_value list_index \\
        --activations build/activations/qwen-coder
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import Interval, bootstrap
from course_utils.labs.catalog import SAES_DIR
from course_utils.labs.lab import Lab, hook_point, load_lab
from course_utils.labs.loading import load_model
from course_utils.prompts.grammar import CODE_TASKS
from course_utils.prompts.tasks import available_tasks, load_task
from tools.collect_activations import SHARES
from tools.train_saes import KeptActivations, Sequences, read_paragraphs, residuals

GAPS = (3, 6, 9, 15)


class Spread:
    """Σ‖x − mean‖², over rows that come in parts."""

    def __init__(self) -> None:
        self.n, self.sum, self.squares = 0, torch.zeros(1, dtype=torch.double), 0.0

    def add(self, x: torch.Tensor) -> None:
        x = x.cpu().double()
        self.n += len(x)
        self.sum = self.sum + x.sum(0)
        self.squares += x.pow(2).sum().item()

    def value(self) -> float:
        return self.squares - self.sum.pow(2).sum().item() / self.n


class Account:
    """What one SAE does with tokens that come in parts: unexplained variance, L0, latents that
    never fire.

    "Usual tokens" are those no longer than 6 times the median token of the first part: in the early
    layers one token in forty is ten times longer than the others, and rules the total.
    """

    def __init__(self, sae: SAE):
        self.sae = sae
        self.error = self.usual_error = self.l0 = 0.0
        self.spread, self.usual_spread = Spread(), Spread()
        self.fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
        self.median: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, x: torch.Tensor) -> None:
        """Some tokens ``[n, d_model]``."""
        norms = x.norm(dim=1)
        if self.median is None:
            self.median = norms.median()
        usual = norms < 6 * self.median
        f = self.sae.encode(x)
        error = (x - self.sae.decode(f)).pow(2).sum(1)
        self.error += error.sum().item()
        self.usual_error += error[usual].sum().item()
        self.l0 += (f > 0).sum().item()
        self.fired |= (f > 0).any(0)
        self.spread.add(x)
        self.usual_spread.add(x[usual])

    def row(self) -> dict[str, float]:
        """What metrics.json has."""
        n = self.spread.n
        return {
            "unexplained_variance": self.error / self.spread.value(),
            "unexplained_variance_usual_tokens": self.usual_error / self.usual_spread.value(),
            "share_of_usual_tokens": self.usual_spread.n / n,
            "l0": self.l0 / n,
            "dead": 1 - self.fired.float().mean().item(),
            "n_tokens": n,
        }


def on_kept(lab: Lab, kept: KeptActivations) -> dict[str, dict[str, dict[str, float]]]:
    """`on_text`, for each part of held-out activations by itself: how narrow is what the SAEs
    know?
    """
    rows: dict[str, dict[str, dict[str, float]]] = {part: {} for part in SHARES}
    for layer, sae in lab.saes.items():
        name = hook_point(layer)
        for kind, part in enumerate(SHARES):
            account = Account(sae)
            account.add(kept.held_out[name][kept.kind == kind].float())
            rows[part][name] = account.row()
    return rows


def on_text(lab: Lab, tokens: torch.Tensor) -> dict[str, dict[str, float]]:
    """Per SAE, on held-out text, BOS left out."""
    model, _ = load_model(lab.name, dtype=torch.bfloat16)
    accounts = {hook_point(layer): Account(sae) for layer, sae in lab.saes.items()}
    for batch in tqdm(tokens.split(64), desc="held-out text"):
        for name, x in residuals(model, batch, lab.sae_layers).items():
            accounts[name].add(x.flatten(0, 1).float())
    return {name: account.row() for name, account in accounts.items()}


def kept(model: torch.Tensor, spliced: torch.Tensor, seed: int = 0) -> Interval:
    """mean(spliced) / mean(model) with a 95 % bootstrap interval over prompts."""
    return bootstrap(lambda s, m: s / m, [spliced, model], n_bootstrap=2000, seed=seed)


def placements(lab: Lab) -> dict[str, list[int]]:
    """Which SAEs to splice: SmolLM2's at every interval; those of other labs one by one, and
    all.
    """
    if lab.name == "smollm2":
        return {f"gap {gap}": lab.sae_layers[:: -(gap // 3)][::-1] for gap in GAPS}
    return {**{f"layer {layer}": [layer] for layer in lab.sae_layers}, "all": lab.sae_layers}


def on_prompts(lab: Lab, tasks: list[str], n: int) -> list[dict[str, object]]:
    """Share of the model's logit difference that is left with SAEs spliced in, on held-out prompts;
    of a single SAE, with its error dropped only.
    """
    rows = []
    for name in tasks:
        test, train = (
            load_task(name, lab.tokenizer, split, n=n, verbose=False) for split in ("dev", "train")
        )
        model = SplicedModel(lab).model_logit_diff(test)
        for place, layers in placements(lab).items():
            single = len(layers) == 1 and lab.name != "smollm2"
            for error in ("drop",) if single else ("drop", "mean"):
                spliced = SplicedModel(lab, layers, error)
                means = spliced.patch_means(train.patch) if error == "mean" else None
                left = kept(model, spliced.logit_diff(test, means=means))
                rows.append(
                    {
                        "task": name,
                        "placement": place,
                        "layers": layers,
                        "error": error,
                        "n": len(test),
                        "model_logit_diff": model.mean().item(),
                        "accuracy": (model > 0).float().mean().item(),
                        "kept": vars(left),
                    }
                )
                print(f"{name:14} {place:9} {error:5} kept {left}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lab", default="smollm2")
    parser.add_argument(
        "--corpus", type=Path, nargs="+", default=[], help="the files that the SAEs were trained on"
    )
    parser.add_argument(
        "--activations",
        type=Path,
        help="the folder of activations that they were trained on, instead",
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[name for name in available_tasks() if name not in CODE_TASKS]
    )
    parser.add_argument(
        "--sequences", type=int, default=1500, help="held-out sequences of 32 tokens"
    )
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts a task")
    args = parser.parse_args()
    if not (args.corpus or args.activations):
        parser.error(
            "what the SAEs were trained on is wanted: --corpus FILE …, or --activations FOLDER"
        )
    lab = load_lab(args.lab)
    path = SAES_DIR / args.lab / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    if args.activations:
        metrics["held_out_text"] = on_kept(lab, KeptActivations(args.activations, lab.sae_layers))
        rows = {
            f"{part} {name}": row
            for part, of_part in metrics["held_out_text"].items()
            for name, row in of_part.items()
        }
    else:
        _, held_out = read_paragraphs(args.corpus)
        sequences = Sequences(held_out, [], lab.tokenizer, seq_len=32, seed=0)
        n = min(args.sequences, len(sequences))
        rows = metrics["held_out_text"] = on_text(lab, sequences.batch(0, n))
    for name, row in rows.items():
        print(name, {key: round(value, 3) for key, value in row.items()})
    path.write_text(json.dumps(metrics, indent=1) + "\n")
    metrics["held_out_prompts"] = on_prompts(lab, args.tasks, args.prompts)
    path.write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
