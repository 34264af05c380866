"""The circuits that the post published: their sizes and scores beside ours, and its mask files.

The post is "Scaling Sparse Feature Circuit Finding to Gemma 9B" (Caples, Nainani, McDougall,
rrenaud, 2025). Its repository holds one JSON file for each mask. A mask was learned per position,
and the file has the latents without the positions: a latent that was on at two positions stands
there twice. Read back, it is on at every position, so the circuit is larger than the one whose
faithfulness the file states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils import DATA
from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.splice import SplicedModel
from course_utils.prompts.tasks import available_tasks, load_task

PUBLISHED_DIR = DATA / "published"


@dataclass(frozen=True)
class PublishedCircuit:
    """A circuit of the post.

    Attributes:
        task: the task of this course that is made like the post's.
        behaviour: the post's name for it.
        nodes: the size of the circuit.
        faithfulness: F(C) / F(S), ``raw`` in `Faithfulness`.
    """

    task: str
    behaviour: str
    nodes: int
    faithfulness: float


def published_circuits(lab_name: str) -> list[PublishedCircuit]:
    """The post's circuits for a lab; none where it has none."""
    path = PUBLISHED_DIR / f"{lab_name}.json"
    if not path.exists():
        return []
    return [PublishedCircuit(**row) for row in json.loads(path.read_text())]


def beside_published(
    spliced: SplicedModel,
    circuits: list[PublishedCircuit],
    *,
    n_train: int = 256,
    n_test: int = 100,
    **settings,
) -> list[dict]:
    """Learn a mask of each published size, and judge it as the post does: by F(C) / F(S).

    Args:
        spliced: the lab of the post, with its SAEs.
        circuits: from `published_circuits`. Those whose task this course does not have are left
            out.
        n_train, n_test: prompts to learn on, and to judge on (with other words).
        settings: of `learn_masks`.

    Returns:
        A row for each: nodes and F(C) / F(S), published and ours (with its 95 % interval over
        prompts).
    """
    rows = []
    for circuit in circuits:
        if circuit.task not in available_tasks():
            continue
        train = load_task(circuit.task, spliced.lab.tokenizer, "train", n=n_train, verbose=False)
        test = load_task(circuit.task, spliced.lab.tokenizer, "test", n=n_test, verbose=False)
        means = spliced.patch_means(train.patch)
        learned = learn_masks(spliced, train, means=means, n_nodes=circuit.nodes, **settings)
        faithfulness = Evaluation(spliced, test, means).faithfulness(learned.masks)
        rows.append(
            {
                "behaviour": circuit.behaviour,
                "nodes, published": circuit.nodes,
                "F(C)/F(S), published": circuit.faithfulness,
                "nodes, ours": learned.n_nodes,
                "F(C)/F(S), ours": str(faithfulness.raw),
                "prompts": faithfulness.n,
            }
        )
    return rows


# ---------------------------------------------------------------------------------------------
# The post's mask files
# ---------------------------------------------------------------------------------------------


def load_published_mask(
    path: str | Path, saes: SplicedModel | Mapping[str, int], seq_len: int | None = None
) -> SAEMasks:
    """A mask file of the post, as masks of zeros and ones.

    The file is a JSON object, hook point → latents. The latents are one list of numbers for all
    positions, ``{"blocks.7.hook_resid_post": [12, 40]}``, or one list per position,
    ``{"blocks.7.hook_resid_post": [[], [12, 40], [40]]}``. A hook point that the file does not
    name has no latents on. Single numbers and texts beside the lists, such as ``"faithfulness"``,
    are passed over.

    Args:
        path: the file.
        saes: where there are SAEs, and how many latents each has; or the spliced model with them.
        seq_len: tokens in a prompt, BOS included, which lists per position must match. None takes
            the length that the file has.

    Returns:
        A mask for each of ``saes``, in their order: ``[seq, d_sae]`` where the file has lists per
        position, else ``[d_sae]``, the same at every position. Row 0 is BOS', which is never
        spliced: what is on there changes nothing.

    Raises:
        FileNotFoundError: no such file.
        MaskError: no JSON object of lists; a hook point without an SAE; a latent that its SAE does
            not have; lists for another number of positions than ``seq_len``; lists of both kinds;
            lists of positions in place of latents, which the post's first files hold.
    """
    path = Path(path).expanduser()
    widths = _widths(saes) if isinstance(saes, SplicedModel) else dict(saes)
    lists = _lists_in(path, widths)
    lengths = [len(entries) for entries in lists.values() if _is_per_position(entries)]
    if lengths:
        rows = _rows_of(path, lists, lengths[0] if seq_len is None else seq_len)
    else:
        rows = {name: [latents] for name, latents in lists.items()}
    empty = [[]] * len(next(iter(rows.values())))
    masks = []
    for name, d_sae in widths.items():
        mask = torch.stack([_row(path, name, row, d_sae) for row in rows.get(name, empty)])
        masks.append(mask if lengths else mask[0])
    if not lengths:
        _require_latents(path, lists, widths)
    return SAEMasks(list(widths), masks)


def _widths(spliced: SplicedModel) -> dict[str, int]:
    """How many latents each SAE has, by hook point."""
    return {name: sae.cfg.d_sae for name, sae in spliced.saes.items()}


def _lists_in(path: Path, widths: Mapping[str, int]) -> dict[str, list]:
    """The lists of a mask file, by hook point."""
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise MaskError(
            f"{path}: not JSON ({error}). A mask file is an object, hook point → list of latents."
        ) from error
    if not isinstance(record, dict):
        raise MaskError(
            f"{path}: wanted an object, hook point → list of latents, not a "
            f"{type(record).__name__}."
        )
    lists = {}
    for name, entry in record.items():
        if name not in widths and not isinstance(entry, list | dict):
            continue  # a measurement or a remark
        if name not in widths:
            raise MaskError(f"{path}: no SAE at {name!r}; there are SAEs at {list(widths)}.")
        if not isinstance(entry, list):
            raise MaskError(
                f"{path}: {name}: wanted a list of latents, or one per position, not {entry!r:.60}."
            )
        lists[name] = entry
    if not lists:
        raise MaskError(f"{path}: no list of latents; wanted some of {list(widths)}.")
    return lists


def _is_per_position(entries: list) -> bool:
    """Whether a hook point has a list per position."""
    return any(isinstance(entry, list) for entry in entries)


def _rows_of(path: Path, lists: Mapping[str, list], seq_len: int) -> dict[str, list[list]]:
    """The latents at each of ``seq_len`` positions, by hook point; an empty list stands for none.

    Raises:
        MaskError: latents without a position; another number of positions.
    """
    rows = {}
    for name, entries in lists.items():
        entries = entries or [[]] * seq_len
        if not all(isinstance(entry, list) for entry in entries):
            raise MaskError(
                f"{path}: {name}: latents without a position in a file with lists per position. "
                f"Wanted {seq_len} lists, or []."
            )
        if len(entries) != seq_len:
            raise MaskError(
                f"{path}: {name}: lists for {len(entries)} positions, and {seq_len} are wanted: "
                "one for each token of a prompt, BOS included."
            )
        rows[name] = entries
    return rows


def _row(path: Path, name: str, latents: list, d_sae: int) -> Float[Tensor, " d_sae"]:
    """Zeros, with ones at some latents.

    Raises:
        MaskError: a latent that an SAE of this width does not have.
    """
    row = torch.zeros(d_sae)
    for latent in latents:
        if type(latent) is not int:
            raise MaskError(f"{path}: {name}: a latent is a whole number, not {latent!r:.60}.")
        if not 0 <= latent < d_sae:
            raise MaskError(
                f"{path}: {name}: latent {latent} is none of {d_sae}, 0 to {d_sae - 1}. Is the "
                "mask for a wider SAE?"
            )
        row[latent] = 1
    return row


def _require_latents(path: Path, lists: Mapping[str, list], widths: Mapping[str, int]) -> None:
    """Raise `MaskError` where the numbers are positions and not latents.

    The post's first files hold the positions of the nodes by mistake: ``[2, 6, 6]`` for three nodes
    at the positions 2 and 6. Such a file repeats itself, and no number is above the first hundredth
    of an SAE's width.
    """
    repeats = [name for name, numbers in lists.items() if len(set(numbers)) < len(numbers)]
    are_low = [number < widths[name] / 100 for name, found in lists.items() for number in found]
    if repeats and all(are_low):
        raise MaskError(
            f"{path}: {repeats[0]}: these numbers look like positions and not latents, as in the "
            "post's first files: all are small, and some repeat. Wanted latents; if they are, name "
            "each once."
        )
