"""Measure a lab's SAEs on held-out text and on held-out prompts, and write
data/saes/<lab>/metrics.json.

python -m tools.measure_saes --lab smollm2 --corpus english.txt
python -m tools.measure_saes --lab qwen-coder --activations build/activations/qwen-coder --tasks
dict_key dict_value list_index
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import Interval
from course_utils.labs.catalog import SAES_DIR
from course_utils.labs.lab import Lab, hook_point, load_lab
from course_utils.labs.loading import load_model
from course_utils.prompts.grammar import CODE_TASKS
from course_utils.prompts.tasks import available_tasks, load_task
from tools.collect_activations import SHARES
from tools.train_saes import KeptActivations, Sequences, read_paragraphs, residuals

GAPS = (3, 6, 9, 15)


@torch.no_grad()
def on_kept(lab: Lab, kept: KeptActivations) -> dict[str, dict[str, dict[str, float]]]:
    """`on_text`, for each part of held-out activations by itself: how narrow is what the SAEs
    know?
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for layer, sae in lab.saes.items():
        name = hook_point(layer)
        for kind, part in enumerate(SHARES):
            x = kept.held_out[name][kept.kind == kind].float()
            f = sae.encode(x)
            error, usual = (
                (x - sae.decode(f)).pow(2).sum(1),
                x.norm(dim=1) < 6 * x.norm(dim=1).median(),
            )
            spread = lambda rows: (x[rows] - x[rows].mean(0)).pow(2).sum().item()  # noqa: E731
            found.setdefault(part, {})[name] = {
                "unexplained_variance": error.sum().item() / spread(slice(None)),
                "unexplained_variance_usual_tokens": error[usual].sum().item() / spread(usual),
                "share_of_usual_tokens": usual.float().mean().item(),
                "l0": (f > 0).sum(1).float().mean().item(),
                "dead": 1 - (f > 0).any(0).float().mean().item(),
                "n_tokens": len(x),
            }
    return found


@torch.no_grad()
def on_text(lab: Lab, tokens: torch.Tensor) -> dict[int, dict[str, float]]:
    """Per layer, on held-out text: unexplained variance, L0 and latents that never fire. BOS left
    out.

    "usual tokens" are those no longer than 6 times the median token: in the early layers one token
    in forty is ten times longer than the others, and rules the total.
    """
    model, _ = load_model(lab.name, dtype=torch.bfloat16)
    sums = {
        layer: dict.fromkeys(("error", "usual_error", "n", "n_usual", "l0"), 0.0)
        for layer in lab.sae_layers
    }
    fired = {layer: torch.zeros(sae.cfg.d_sae, dtype=torch.bool) for layer, sae in lab.saes.items()}
    moments: dict[tuple[int, str], list[torch.Tensor]] = {}
    medians: dict[int, torch.Tensor] = {}
    for batch in tqdm(tokens.split(64), desc="held-out text"):
        for name, x in residuals(model, batch, lab.sae_layers).items():
            layer = int(name.split(".")[1])
            x = x.flatten(0, 1).float()
            sae, total = lab.saes[layer], sums[layer]
            f = sae.encode(x)
            error = (x - sae.decode(f)).pow(2).sum(1)
            usual = x.norm(dim=1) < 6 * medians.setdefault(layer, x.norm(dim=1).median())
            for kind, rows in (("all", slice(None)), ("usual", usual)):
                first, second, count = moments.setdefault(
                    (layer, kind), [torch.zeros(x.shape[1], dtype=torch.double), 0.0, 0]
                )
                part = x[rows].double()
                moments[layer, kind] = [
                    first + part.sum(0),
                    second + part.pow(2).sum().item(),
                    count + len(part),
                ]
            total["error"] += error.sum().item()
            total["usual_error"] += error[usual].sum().item()
            total["n_usual"] += usual.sum().item()
            total["n"] += len(x)
            total["l0"] += (f > 0).sum().item()
            fired[layer] |= (f > 0).any(0)

    def variance(layer: int, kind: str) -> float:
        first, second, count = moments[layer, kind]
        return second - (first.pow(2).sum() / count).item()

    return {
        layer: {
            "unexplained_variance": total["error"] / variance(layer, "all"),
            "unexplained_variance_usual_tokens": total["usual_error"] / variance(layer, "usual"),
            "share_of_usual_tokens": total["n_usual"] / total["n"],
            "l0": total["l0"] / total["n"],
            "dead": 1 - fired[layer].float().mean().item(),
            "n_tokens": int(total["n"]),
        }
        for layer, total in sums.items()
    }


def kept(model: torch.Tensor, spliced: torch.Tensor, seed: int = 0) -> Interval:
    """mean(spliced) / mean(model) with a 95 % bootstrap interval over prompts."""
    samples = torch.randint(
        len(model), (2000, len(model)), generator=torch.Generator().manual_seed(seed)
    )
    ratios = spliced[samples].mean(1) / model[samples].mean(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval((spliced.mean() / model.mean()).item(), low, high)


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
            load_task(name, lab.tokenizer, split, n=n, verbose=False) for split in ("test", "train")
        )
        model = SplicedModel(lab).model_logit_diff(test)
        for place, layers in placements(lab).items():
            for error in (
                ("drop",) if len(layers) == 1 and lab.name != "smollm2" else ("drop", "mean")
            ):
                spliced = SplicedModel(lab, layers, error)
                means = spliced.patch_means(train.patch) if error == "mean" else None
                share = kept(model, spliced.logit_diff(test, means=means))
                rows.append(
                    {
                        "task": name, "placement": place, "layers": layers, "error": error, "n": len(test),
                        "model_logit_diff": model.mean().item(), "accuracy": (model > 0).float().mean().item(), "kept": vars(share),
                    }
                )  # fmt: skip
                print(f"{name:14} {place:9} {error:5} kept {share}", flush=True)
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
            for part, found in metrics["held_out_text"].items()
            for name, row in found.items()
        }
    else:
        _, held_out = read_paragraphs(args.corpus)
        sequences = Sequences(held_out, [], lab.tokenizer, seq_len=32, seed=0)
        n = min(args.sequences, len(sequences))
        rows = metrics["held_out_text"] = {
            hook_point(layer): row for layer, row in on_text(lab, sequences.batch(0, n)).items()
        }
    for name, row in rows.items():
        print(name, {key: round(value, 3) for key, value in row.items()})
    path.write_text(json.dumps(metrics, indent=1) + "\n")
    metrics["held_out_prompts"] = on_prompts(lab, args.tasks, args.prompts)
    path.write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
