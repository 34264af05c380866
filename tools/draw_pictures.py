"""Draw the README's pictures from what the repository ships.

    python -m tools.draw_pictures                    # both, into data/figures/
    python -m tools.draw_pictures --only frontier
    python -m tools.draw_pictures --out FOLDER

``circuit.png`` is the circuit of 17 nodes that notebook 05 puts on trial, with edges, kinds and
words measured on test prompts (one minute, on one core; the weights of SmolLM2 are needed).
``frontier.png`` is read from the frontier of notebook 04; it needs no model. Draw both again
whenever notebook 04 has learned its circuits again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course_utils import Frontier, SAEMasks, SplicedModel, load_lab, load_task
from course_utils.circuits.frontier import MASKS_DIR
from course_utils.circuits.graph import ANSWER, CircuitGraph, contrasts_of, measured_graph
from course_utils.display.circuit_view import circuit_picture
from course_utils.display.figures import DPI, FIGURES_DIR, frontier_figure
from course_utils.labs.catalog import spec_of
from course_utils.prompts.text import load_text

LAB, TASK, CIRCUIT = "smollm2", "sva_nounpp", "17 nodes, seed 0"
PLACES = ("BOS", "The", "subject", "preposition", "the", "second noun")
N_PROMPTS, N_TEXTS = 32, 250
METHODS = {
    "learned mask": "learned mask",
    "IG to means, mean of |·|": "IG best",
    "IG": "IG",
    "AtP": "AtP",
    "random": "random",
}
"""The frontier's methods that are drawn, and what they are called in the picture: of the two
variants of IG that notebook 04 chose on dev, the one with the smaller gap is "IG best"."""


def draw_circuit() -> Figure:
    """The shipped circuit, with what its latents respond to and pass on."""
    lab = load_lab(LAB)
    record = json.loads((MASKS_DIR / TASK / f"circuits_{LAB}.json").read_text())[CIRCUIT]
    spliced = SplicedModel(lab, spec_of(LAB).placement)
    test = load_task(TASK, lab.tokenizer, "test", n=N_PROMPTS)
    texts = load_text(lab.tokenizer, "train")
    graph = measured_graph(
        spliced,
        test,
        SAEMasks.from_json(record).nodes(),
        texts[:: len(texts) // N_TEXTS],
        contrasts_of(test, ["subject", "second noun"]),
        columns=headings(PLACES, test.position_labels),
        answer="right − wrong verb",
    )
    return circuit_picture(graph, circuit_title(graph))


def headings(places: tuple[str, ...], labels: tuple[str, ...]) -> list[str]:
    """What stands below each column: its part of the sentence, and the example's word."""
    return [f"{place}\n“{label.strip('[]')}”" for place, label in zip(places, labels, strict=True)]


def circuit_title(graph: CircuitGraph) -> str:
    """The finding: how many latents, and how many edges lead from word to word."""
    n_latents = sum(node.kind != ANSWER for node in graph.nodes)
    columns = [node.column for node in graph.nodes]
    crossing = sum(columns[edge.source] != columns[edge.target] for edge in graph.edges)
    return (
        f"{n_latents} latents carry the subject's number to the verb: "
        f"{crossing} of {len(graph.edges)} edges lead from word to word"
    )


def draw_frontier() -> Figure:
    """Faithfulness and gap against the number of nodes, on held-out sentences."""
    frontier = shown_frontier()
    return frontier_figure(frontier, frontier_title(frontier))


def shown_frontier() -> Frontier:
    """The shipped frontier with the methods that are drawn, by the names that they have here."""
    frontier = Frontier.load(MASKS_DIR / TASK / f"frontier_{LAB}.json")
    points = [
        replace(point, method=name)
        for method, name in METHODS.items()
        for point in frontier.of_method(method)
    ]
    return replace(frontier, points=points)


def frontier_title(frontier: Frontier) -> str:
    """The finding: at how many sizes the learned mask has the smallest mean gap."""
    sizes = frontier.shared_sizes(frontier.methods)
    best = [
        min(frontier.methods, key=lambda name: frontier.mean(name, size, "gap").value)
        for size in sizes
    ]
    n_best = best.count("learned mask")
    where = "every size" if n_best == len(sizes) else f"{n_best} of {len(sizes)} sizes"
    return f"Prompt by prompt, the learned mask is the closest to the spliced model at {where}"


PICTURES: Mapping[str, Callable[[], Figure]] = {"circuit": draw_circuit, "frontier": draw_frontier}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES))
    parser.add_argument("--out", type=Path, default=FIGURES_DIR)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        path = arguments.out / f"{name}.png"
        figure = PICTURES[name]()
        figure.savefig(path, dpi=DPI, bbox_inches="tight")
        plt.close(figure)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
