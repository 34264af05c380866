"""The course's figures. Each function returns a matplotlib figure; `show` puts it in the notebook
with alt text.
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Mapping, Sequence

import circuitsvis
import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, Image, display
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from course_utils import DATA
from course_utils.circuits.explain import Context
from course_utils.circuits.frontier import Frontier
from course_utils.circuits.masks import Node, SAEMasks
from course_utils.circuits.statistics import Interval
from course_utils.prompts.tasks import Task

COLOURS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#000000")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 3)), (0, (8, 3)))
AXIS_LABELS = {
    "vs_model": "faithfulness  (F(C) − F(∅)) / (F(M) − F(∅))",
    "vs_spliced": "faithfulness  (F(C) − F(∅)) / (F(S) − F(∅))",
    "raw": "faithfulness  F(C) / F(S)",
    "gap": "gap per prompt (0 is best)",
}


FIGURES_DIR = DATA / "figures"


def show(figure: Figure, alt: str, *, keep: str | None = None) -> None:
    """Display a figure as a PNG with alternative text for those who do not see it.

    Args:
        keep: where authors build the notebooks in full, the PNG goes into ``data/figures`` too,
            under this name. The README shows it.
    """
    png = picture(figure, alt)
    if keep and os.environ.get("COURSE_BUILD") and os.environ.get("COURSE_PROFILE") != "quick":
        FIGURES_DIR.mkdir(exist_ok=True)
        (FIGURES_DIR / f"{keep}.png").write_bytes(png.data)
    display(png)


def picture(figure: Figure, alt: str) -> Image:
    """The figure as a PNG with alternative text, to display or to put in another's place."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return Image(png.getvalue(), alt=alt)


def _headed(figure: Figure, title: str) -> Figure:
    """The figure with its title above it, in lines that are no longer than it is wide."""
    figure.suptitle(textwrap.fill(title, width=int(11 * figure.get_figwidth())))
    return figure


def frontier_figure(
    frontier: Frontier, title: str, measures: Sequence[str] = ("vs_spliced", "gap")
) -> Figure:
    """Nodes (log scale) against each measure, a line a method, bars for the 95 % intervals over
    prompts.
    """
    figure, panels = plt.subplots(
        1, len(measures), figsize=(5.5 * len(measures), 4.3), layout="constrained", squeeze=False
    )
    for axes, measure in zip(panels[0], measures):
        for method, colour, marker in zip(frontier.methods, COLOURS, MARKERS):
            points = [point for point in frontier.of_method(method) if point.n_nodes > 0]
            intervals = [getattr(point.faithfulness, measure) for point in points]
            bars = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
            axes.errorbar(
                [point.n_nodes for point in points], [i.value for i in intervals], yerr=bars, label=method, color=colour,
                marker=marker, capsize=2, linewidth=1.5, markersize=5,
            )  # fmt: skip
        for level in (0, 1):
            axes.axhline(level, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("nodes (position, latent) kept")
        axes.set_ylabel(AXIS_LABELS[measure])
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(frontier.methods),
        frameon=False,
    )
    figure.suptitle(title)
    return figure


def frontier_at_size_figure(
    frontier: Frontier, masks: SAEMasks, task: Task, *, most_named: int = 60
) -> Figure:
    """Left, every method's faithfulness against F(S), with a line at this circuit's size. Right,
    the circuit's latents.

    Args:
        masks: the circuit; its latents are named by number, by layer (row) and position (column).
        most_named: circuits with more nodes than that are counted, not named.
    """
    n = masks.get_num_latents()
    named: dict[tuple[str, int], list[int]] = {}
    for hook_point, position, latent in masks.nodes():
        named.setdefault((hook_point, position), []).append(latent)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 4.6), layout="constrained", gridspec_kw={"width_ratios": (2, 3)}
    )
    left.axvline(n, color="grey", linewidth=6, alpha=0.3)
    for method, colour, marker in zip(frontier.methods, COLOURS, MARKERS):
        points = [point for point in frontier.of_method(method) if point.n_nodes > 0]
        x, intervals = (
            [point.n_nodes for point in points],
            [point.faithfulness.vs_spliced for point in points],
        )
        bars = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
        left.errorbar(
            x,
            [i.value for i in intervals],
            yerr=bars,
            label=method,
            color=colour,
            marker=marker,
            capsize=2,
            linewidth=1.5,
            markersize=5,
        )
    left.set_xscale("log")
    left.set_xlabel("nodes kept")
    left.set_ylabel(AXIS_LABELS["vs_spliced"])
    left.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    positions = sorted({position for _, position in named})
    for column, position in enumerate(positions):
        for row, hook_point in enumerate(masks.hook_points):
            latents = named.get((hook_point, position), [])
            text = (
                f"{len(latents)} latents"
                if n > most_named and latents
                else _in_lines(latents) or "·"
            )
            right.text(column, row, text, ha="center", va="center", fontsize=8)
    right.set_xlim(-0.5, len(positions) - 0.5)
    right.set_ylim(-0.5, len(masks.hook_points) - 0.5)
    right.set_xticks(
        range(len(positions)), [task.position_labels[position] for position in positions]
    )
    right.set_yticks(
        range(len(masks.hook_points)),
        [hook_point.split(".")[1] for hook_point in masks.hook_points],
    )
    right.set_ylabel("SAE after layer")
    right.spines[["top", "right"]].set_visible(False)
    right.set_title("the latents that it keeps")
    figure.suptitle(f"The learned circuit of {n:,} nodes")
    return figure


def _in_lines(latents: Sequence[int], per_line: int = 3) -> str:
    return "\n".join(
        ", ".join(map(str, latents[i : i + per_line])) for i in range(0, len(latents), per_line)
    )


def history_figure(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """How a mask was learned: faithfulness loss, and nodes on (log scale), step by step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    steps = [record["step"] for record in history]
    left.plot(steps, [record["faithfulness_loss"] for record in history], color=COLOURS[1])
    left.set_ylabel("|LD spliced − LD masked|")
    right.plot(steps, [max(record["n_on"], 0.5) for record in history], color=COLOURS[0])
    right.set_yscale("log")
    right.set_ylabel("nodes with θ > 0")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure


def circuit_figure(masks: SAEMasks, task: Task, title: str) -> Figure:
    """Where the nodes are: how many at each layer (row) and position (column)."""
    counts = torch.stack([(mask > 0).sum(1) for mask in masks.masks]).flip(0).cpu()
    layers = [hook_point.split(".")[1] for hook_point in masks.hook_points][::-1]
    figure, axes = plt.subplots(figsize=(1.0 + 0.75 * counts.shape[1], 1.2 + 0.45 * len(layers)))
    axes.imshow(counts.float().log1p(), cmap="cividis", aspect="auto")
    for row in range(counts.shape[0]):
        for column in range(counts.shape[1]):
            n = int(counts[row, column])
            dark = counts[row, column].float().log1p() < 0.6 * counts.float().log1p().max()
            axes.text(
                column,
                row,
                str(n) if n else "·",
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
    axes.set_xticks(range(counts.shape[1]), task.position_labels, rotation=30, ha="right")
    axes.set_yticks(range(len(layers)), layers)
    axes.set_ylabel("SAE after layer")
    axes.set_title(title, wrap=True)
    return figure


def scatter_figure(
    x: Float[Tensor, " n"],
    ys: Mapping[str, Float[Tensor, " n"]],
    x_label: str,
    y_label: str,
    title: str,
    *,
    names: Sequence[str] = (),
    off: float = 0.3,
) -> Figure:
    """Estimates against the truth, a panel each; the grey line is where they would agree.

    Args:
        names: a name for each point, written beside those that lie more than ``off`` from the line.
    """
    figure, panels = plt.subplots(
        1,
        len(ys),
        figsize=(max(4.6, 3.6 * len(ys)), 3.6),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axes, (label, y), colour in zip(panels[0], ys.items(), COLOURS[1:]):
        axes.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle=":")
        axes.scatter(x, y, s=14, color=colour, alpha=0.7)
        axes.set_title(label)
        axes.set_xlabel(x_label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(y_label)
    _headed(figure, title)
    figure.draw_without_rendering()  # names have a place on the page only once the panels have theirs
    for axes, y in zip(panels[0], ys.values()):
        points = zip(names, x.tolist(), y.tolist())
        _name_points(axes, [(name, a, b) for name, a, b in points if abs(a - b) > off])
    return figure


def _name_points(axes: plt.Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each point's name beside it, or below another name that stands there."""
    taken = []
    for name, x, y in points:
        text = axes.annotate(
            name, (x, y), (4, 0), textcoords="offset points", fontsize=7, verticalalignment="center"
        )
        while any(text.get_window_extent().overlaps(other) for other in taken):
            text.xyann = (4, text.xyann[1] - 2)
        taken.append(text.get_window_extent())


def coloured_prompt(labels: Sequence[str], values: Sequence[float]) -> None:
    """A prompt with its tokens coloured by a value each (circuitsvis).

    Away from the network circuitsvis puts 1.3 MB of script into the page; with ``COURSE_BUILD``
    set, the page loads it from the web instead, so that the notebooks in the repository stay small.
    """
    rendered = circuitsvis.tokens.colored_tokens(
        [f" {label}" for label in labels], [float(value) for value in values]
    )
    display(HTML(rendered.cdn_src) if os.environ.get("COURSE_BUILD") else rendered)


def completeness_figure(
    points: Float[Tensor, "n_subsets 2"], marks: Mapping[str, tuple[float, float]], title: str
) -> Figure:
    """F(C∖K) against F(M∖K), a point a subset; a complete circuit's lie on the dotted line.
    ``marks`` are named points.
    """
    figure, axes = plt.subplots(figsize=(5.2, 4.8), layout="constrained")
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle=":")
    axes.scatter(
        points[:, 0], points[:, 1], s=18, color=COLOURS[1], alpha=0.7, label="random subsets K"
    )
    for (name, (x, y)), colour, marker in zip(
        marks.items(), (COLOURS[0], COLOURS[3], COLOURS[4], COLOURS[5]), MARKERS[1:]
    ):
        axes.scatter([x], [y], s=60, color=colour, marker=marker, label=name, zorder=3)
    low, high = min(*axes.get_xlim(), *axes.get_ylim()), max(*axes.get_xlim(), *axes.get_ylim())
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("the circuit without K:  F(C∖K)")
    axes.set_ylabel("the whole without K:  F(S∖K)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(title, wrap=True)
    return figure


def intervals_figure(
    groups: Mapping[str, Sequence[Interval]],
    x_label: str,
    y_label: str,
    title: str,
    level: float | None = None,
) -> Figure:
    """Estimates with their intervals, a colour a group, each group from large to small; a dotted
    line at ``level``.
    """
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    place = 0
    for (name, intervals), colour, marker in zip(groups.items(), COLOURS, MARKERS):
        ordered = sorted(intervals, key=lambda interval: -interval.value)
        bars = [[i.value - i.low for i in ordered], [i.high - i.value for i in ordered]]
        places = range(place, place + len(ordered))
        axes.errorbar(
            places,
            [i.value for i in ordered],
            yerr=bars,
            fmt=marker,
            color=colour,
            markersize=5,
            capsize=2,
            label=name,
        )
        place += len(ordered) + 2
    axes.axhline(0, color="grey", linewidth=0.8)
    if level is not None:
        axes.axhline(level, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks([])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(title, wrap=True)
    return figure


def flips_figure(
    shares: Mapping[str, Interval], x_label: str, title: str, highlight: Sequence[str] = ()
) -> Figure:
    """Shares in 0…1 as horizontal bars with their intervals; the ones in ``highlight`` in orange,
    the others in blue.
    """
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.42 * len(shares)), layout="constrained")
    for row, (name, interval) in enumerate(shares.items()):
        axes.barh(
            row, interval.value, color=COLOURS[0] if name in highlight else COLOURS[2], height=0.65
        )
        axes.plot([interval.low, interval.high], [row, row], color=COLOURS[6], linewidth=1.5)
        axes.text(min(interval.high, 1) + 0.015, row, f"{interval.value:.0%}", va="center")
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}" if x <= 1 else "")
    axes.set_xlabel(x_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, wrap=True)
    return figure


def matrix_figure(
    matrix: Float[Tensor, "m m"], labels: Sequence[str], title: str, colour_label: str
) -> Figure:
    """A table of numbers in 0…1 as colours, with the numbers in it."""
    figure, axes = plt.subplots(
        figsize=(1.8 + 0.62 * len(labels), 1.3 + 0.5 * len(labels)), layout="constrained"
    )
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
    for row in range(len(labels)):
        for column in range(len(labels)):
            value = float(matrix[row, column])
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value < 0.6 else "black",
            )
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, ax=axes, label=colour_label, shrink=0.8)
    axes.set_title(title, wrap=True)
    return figure


def areas_figure(
    fractions: Sequence[float], curves: Mapping[str, Sequence[float]], title: str
) -> Figure:
    """Faithfulness against circuit size as a share of all nodes, a line a method: as the areas see
    it, and on a log scale.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained", sharey=True)
    for axes, scale in zip(panels, ("linear", "log")):
        for (name, values), colour, marker in zip(curves.items(), COLOURS, MARKERS):
            axes.plot(
                fractions,
                values,
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.5,
                label=name,
            )
        axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
        axes.axhline(0, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale(scale)
        axes.set_xlabel("share of nodes kept" + (" (log scale)" if scale == "log" else ""))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("faithfulness f")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(curves),
        frameon=False,
    )
    figure.suptitle(title)
    return figure


def directions_figure(
    features: Mapping[str, Float[Tensor, "n 2"]],
    title: str,
    *,
    found: Mapping[str, Float[Tensor, "m 2"]] | None = None,
) -> Figure:
    """Directions in the plane, a panel each: features as arrows whose tips are joined in a polygon;
    found directions as rings.

    Features shorter than 0.5, which the model hardly stores, are not joined.
    """
    figure, panels = plt.subplots(
        1,
        len(features),
        figsize=(max(4.2, 2.7 * len(features)), 3.6),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, (label, rows) in zip(panels[0], features.items()):
        rows = rows.detach().cpu()
        kept = rows[rows.norm(dim=1) > 0.5]
        around = kept[torch.atan2(kept[:, 1], kept[:, 0]).argsort()]
        axes.fill(
            *around.T.tolist(), facecolor="none", edgecolor="grey", linewidth=1, linestyle=":"
        )
        for i, row in enumerate(rows.tolist()):
            axes.annotate(
                "",
                row,
                (0, 0),
                arrowprops=dict(
                    arrowstyle="->",
                    color=COLOURS[i % len(COLOURS)],
                    linewidth=2,
                    shrinkA=0,
                    shrinkB=0,
                ),
            )
        if found is not None and label in found:
            axes.scatter(
                *found[label].detach().cpu().T.tolist(),
                s=90,
                facecolors="none",
                edgecolors="black",
                linewidths=1.4,
                zorder=3,
            )
        axes.set_title(label, fontsize=10)
        axes.set_aspect("equal")
        axes.set_xlim(-1.45, 1.45)
        axes.set_ylim(-1.45, 1.45)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("hidden dimension 1")
    panels[0][0].set_ylabel("hidden dimension 2")
    return _headed(figure, title)


def curves_figure(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    x_label: str,
    title: str,
    *,
    log: Sequence[str] = (),
) -> Figure:
    """Curves over steps: a panel for each quantity, in it a line for each run. Panels named in
    ``log`` have a logarithmic axis.
    """
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.4), layout="constrained", squeeze=False
    )
    for axes, (quantity, curves) in zip(all_axes[0], panels.items()):
        for (label, values), colour, style in zip(
            curves.items(), COLOURS, ("-", "--", "-.", ":", "-", "--", "-.")
        ):
            axes.plot(range(1, len(values) + 1), values, label=label, color=colour, linestyle=style)
        if quantity in log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(quantity)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *all_axes[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(next(iter(panels.values()))),
        frameon=False,
    )
    return _headed(figure, title)


def bars_figure(
    values: Mapping[str, Interval | float],
    y_label: str,
    title: str,
    *,
    reference: float | None = None,
) -> Figure:
    """A bar a value, with its 95 % interval where it has one, and the number on top; a dotted line
    at ``reference``.
    """
    figure, axes = plt.subplots(figsize=(1.5 + 1.3 * len(values), 3.4), layout="constrained")
    for i, value in enumerate(values.values()):
        height, top = (value.value, value.high) if isinstance(value, Interval) else (value, value)
        bar = (
            dict(yerr=[[height - value.low], [top - height]], capsize=4)
            if isinstance(value, Interval)
            else {}
        )
        axes.bar(i, height, color=COLOURS[i % len(COLOURS)], width=0.6, **bar)
        axes.annotate(
            f"{height:.3g}",
            (i, max(top, 0)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
        )
    if reference is not None:
        axes.axhline(reference, color="grey", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(values)), list(values))
    axes.set_ylabel(y_label)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, wrap=True)
    return figure


def histograms_figure(
    values: Mapping[str, Float[Tensor, " n"]],
    x_label: str,
    y_label: str,
    title: str,
    *,
    bins: int = 30,
) -> Figure:
    """A histogram a panel, side by side on one scale; a dotted line at each mean."""
    figure, panels = plt.subplots(
        1,
        len(values),
        figsize=(3.9 * len(values), 3.2),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    low, high = (f([float(f(x)) for x in values.values()]) for f in (min, max))
    for axes, (label, x), colour in zip(panels[0], values.items(), COLOURS):
        axes.hist(x.detach().cpu().tolist(), bins=bins, range=(low, high), color=colour)
        axes.axvline(float(x.float().mean()), color="black", linewidth=1, linestyle=":")
        axes.set_title(label, fontsize=10)
        axes.set_xlabel(x_label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(y_label)
    return _headed(figure, title)


def coloured_contexts(contexts: Sequence[Context]) -> None:
    """Texts in which a latent fires, their tokens coloured by its value (circuitsvis); see
    `coloured_prompt` about the page's size.
    """
    for context in contexts:
        rendered = circuitsvis.tokens.colored_tokens(context.tokens, context.values)
        display(HTML(rendered.cdn_src) if os.environ.get("COURSE_BUILD") else rendered)


def effects_figure(
    effects: Mapping[str, Mapping[str, Interval]],
    y_label: str,
    title: str,
    *,
    x_label: str = "",
    log: bool = False,
) -> Figure:
    """Points with their 95 % intervals, side by side.

    Args:
        effects: by what is compared (a colour each), and then by place on the x axis.
        log: a logarithmic y axis.
    """
    places = list(dict.fromkeys(place for of in effects.values() for place in of))
    figure, axes = plt.subplots(
        figsize=(max(5.0, 1.5 + 0.45 * len(places) * (1 + len(effects))), 3.6), layout="constrained"
    )
    for i, ((label, of), colour, marker) in enumerate(zip(effects.items(), COLOURS, MARKERS)):
        x = [places.index(place) + 0.16 * (i - (len(effects) - 1) / 2) for place in of]
        bars = [
            [interval.value - interval.low for interval in of.values()],
            [interval.high - interval.value for interval in of.values()],
        ]
        axes.errorbar(
            x,
            [interval.value for interval in of.values()],
            yerr=bars,
            fmt=marker,
            color=colour,
            capsize=3,
            markersize=6,
            label=label,
        )
    if log:
        axes.set_yscale("log")
    else:
        axes.axhline(0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    if len(effects) > 1:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
        )
    figure.suptitle(title)
    return figure


def circuit_graph_figure(
    nodes: Sequence[Node],
    kinds: Sequence[str],
    labels: Sequence[str],
    position_labels: Sequence[str],
    title: str,
    *,
    edges: Float[Tensor, "nodes nodes"] | None = None,
    least: float = 0.1,
) -> Figure:
    """The circuit as a picture: latents as dots by position (column) and layer (row), coloured by
    kind, with a word on each.

    Args:
        kinds: what each node responds to; a colour and a marker for each kind.
        labels: a few words on each node.
        edges: an arrow from v to w where ``edges[v, w]`` is at least ``least`` in size, the thicker
            the larger.
    """
    layers = sorted({int(name.split(".")[1]) for name, *_ in nodes})
    positions = sorted({position for _, position, _ in nodes})
    cells: dict[tuple[int, int], list[int]] = {}
    for i, (name, position, _) in enumerate(nodes):
        cells.setdefault(
            (layers.index(int(name.split(".")[1])), positions.index(position)), []
        ).append(i)
    heights = [
        max(len(cells.get((row, column), [])) for column in range(len(positions)))
        for row in range(len(layers))
    ]
    bottoms = [sum(heights[:row]) + 0.8 * row for row in range(len(layers))]
    where = {}
    for (row, column), inside in cells.items():
        for k, i in enumerate(inside):
            where[i] = (column, bottoms[row] + (heights[row] - len(inside)) / 2 + k)
    total = bottoms[-1] + heights[-1]
    figure, axes = plt.subplots(figsize=(12.7, 1.6 + 0.36 * total), layout="constrained")
    for row in range(len(layers)):
        axes.axhspan(
            bottoms[row] - 0.7,
            bottoms[row] + heights[row] - 0.3,
            color="black",
            alpha=0.045,
            linewidth=0,
        )
    if edges is not None:
        for v, w in (edges.abs() >= least).nonzero().tolist():
            strength = min(1.0, abs(float(edges[v, w])))
            style = dict(
                arrowstyle="-|>,head_width=0.25,head_length=0.5",
                color=plt.cm.Greys(0.35 + 0.5 * strength),
                linewidth=0.6 + 3 * strength,
            )
            bend = f"arc3,rad={-0.3 if where[v][0] == where[w][0] else 0}"
            arrow = dict(**style, shrinkA=5, shrinkB=6, connectionstyle=bend)
            axes.annotate("", xy=where[w], xytext=where[v], zorder=1, arrowprops=arrow)
    for kind, colour, marker in zip(
        sorted(set(kinds), reverse=True),
        (*COLOURS[:2], *COLOURS[3:6], COLOURS[2], COLOURS[6]),
        MARKERS,
    ):
        inside = [i for i in range(len(nodes)) if kinds[i] == kind]
        axes.scatter(
            [where[i][0] for i in inside],
            [where[i][1] for i in inside],
            s=85,
            color=colour,
            marker=marker,
            label=kind,
            zorder=3,
        )
    for i, label in enumerate(labels):
        box = dict(facecolor="white", edgecolor="none", alpha=0.8, boxstyle="round,pad=0.15")
        axes.text(
            where[i][0] + 0.035, where[i][1], label, va="center", fontsize=10.5, zorder=4, bbox=box
        )
    axes.set_xticks(
        range(len(positions)), [position_labels[position] for position in positions], fontsize=12
    )
    axes.set_yticks(
        [bottoms[row] + (heights[row] - 1) / 2 for row in range(len(layers))],
        [f"after layer {layer}" for layer in layers],
        fontsize=11,
    )
    axes.tick_params(length=0)
    axes.set_xlim(-0.3, len(positions) - 0.35)
    axes.set_ylim(-0.9, total - 0.1)
    axes.spines[:].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(5, len(set(kinds))),
        frameon=False,
        fontsize=11,
    )
    figure.suptitle(title, fontsize=14)
    return figure


def node_map_figure(mask: Float[Tensor, "seq d_sae"], labels: Sequence[str], title: str) -> Figure:
    """One SAE's mask: positions (rows) by the latents that are on somewhere (columns). Dark =
    kept.
    """
    latents = (mask > 0).any(0).nonzero()[:, 0].tolist()
    on = (mask[:, latents] > 0).float().cpu()
    figure, axes = plt.subplots(
        figsize=(max(4.5, 1.5 + 0.4 * len(latents)), 1.2 + 0.35 * len(labels)), layout="constrained"
    )
    axes.imshow(on, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    axes.set_xticks(range(len(latents)), latents, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xticks([i - 0.5 for i in range(1, len(latents))], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(labels))], minor=True)
    axes.grid(which="minor", color="grey", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("latent")
    figure.suptitle(title)
    return figure


def running_mean_figure(
    weights: Mapping[str, Float[Tensor, " n"]], errors: Mapping[str, Sequence[float]], title: str
) -> Figure:
    """Ways to keep a running mean: how much each prompt weighs in it at the end, and how far off it
    is after each batch.

    Args:
        weights: of every prompt, in the order in which they came; they sum to 1.
        errors: after each batch; relative to the size of the true mean.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for (label, weight), colour in zip(weights.items(), COLOURS):
        left.plot(
            range(1, len(weight) + 1),
            (100 * weight).tolist(),
            color=colour,
            label=label,
            linewidth=1.5,
        )
    for (label, error), colour, marker in zip(errors.items(), COLOURS, MARKERS):
        right.plot(range(1, len(error) + 1), error, color=colour, marker=marker, markersize=4)
    left.set_xlabel("prompt, in order")
    left.set_ylabel("weight in the mean (%)")
    right.set_xlabel("batches seen")
    right.set_ylabel("error, relative to the mean")
    right.set_ylim(bottom=0)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(weights),
        frameon=False,
    )
    figure.suptitle(title)
    return figure


def lines_figure(
    panels: Mapping[str, Mapping[str, Sequence[Interval]]],
    x: Sequence[float],
    x_label: str,
    title: str,
    *,
    bands: bool = False,
    marks: Sequence[float] = (),
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Estimates with their 95 % intervals along x, a panel for each quantity and a line for each
    method.

    Args:
        panels: by the label of the y axis, by the label of the line: an interval for each x.
        bands: shade the intervals; by default they are bars.
        marks: x positions with a grey line, such as the layers that have an SAE.
        levels: by the label of the y axis, a value with a dotted line, such as that of the model
            itself.
    """
    figure, axes_of = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.9), layout="constrained", squeeze=False
    )
    for axes, (y_label, lines) in zip(axes_of[0], panels.items()):
        for mark in marks:
            axes.axvline(mark, color="grey", linewidth=0.6, alpha=0.4)
        if y_label in (levels or {}):
            axes.axhline(levels[y_label], color="grey", linewidth=0.8, linestyle=":")
        for (label, intervals), colour, marker, dashes in zip(
            lines.items(), COLOURS, MARKERS, DASHES
        ):
            values, low, high = (
                [getattr(i, end) for i in intervals] for end in ("value", "low", "high")
            )
            if bands:
                axes.plot(x, values, label=label, color=colour, linewidth=1.5, linestyle=dashes)
                axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
            else:
                bars = [[v - a for v, a in zip(values, low)], [b - v for v, b in zip(values, high)]]
                axes.errorbar(
                    x,
                    values,
                    yerr=bars,
                    label=label,
                    color=colour,
                    marker=marker,
                    capsize=2,
                    linewidth=1.5,
                    markersize=5,
                )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
    legends = [axes.get_legend_handles_labels() for axes in axes_of[0]]
    if len({tuple(labels) for _, labels in legends}) == 1:
        if len(legends[0][1]) > 1:
            figure.legend(
                *legends[0], loc="outside lower center", ncols=len(legends[0][1]), frameon=False
            )
    else:
        for axes, (_, labels) in zip(axes_of[0], legends):
            if len(labels) > 1:
                axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def shares_figure(shares: Mapping[str, Interval], title: str) -> Figure:
    """Shares of what the model itself does, a bar each with its 95 % interval; the grey line is all
    of it.
    """
    figure, axes = plt.subplots(figsize=(6.5, 0.8 + 0.5 * len(shares)), layout="constrained")
    values = [share.value for share in shares.values()]
    bars = [[s.value - s.low for s in shares.values()], [s.high - s.value for s in shares.values()]]
    axes.barh(list(shares), values, xerr=bars, color=COLOURS[1], capsize=3, height=0.6)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(
        min(-0.1, *(s.low - 0.05 for s in shares.values())),
        max(1.15, *(s.high + 0.05 for s in shares.values())),
    )
    axes.set_xlabel("share kept (1 = the model itself)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, wrap=True)
    return figure
