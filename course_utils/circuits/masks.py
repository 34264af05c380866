"""What is kept of each SAE: `SAEMasks`, one mask per hook point.

A mask has one number per latent, ``[d_sae]`` (the same at every position), or one per node, ``[seq,
d_sae]``. 1 keeps the latent, 0 puts its mean over the patch prompts (or zero) in its place, and
what lies between mixes the two, which is what lets a mask be learned by gradient descent:

    masked = ablation + (latent − ablation) · mask
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = "sae-masks-1"
FILE_NAME = "masks.safetensors"

Node = tuple[str, int | None, int]
"""(hook point, position, latent). The position counts BOS; None stands for every position."""

Scores = Mapping[str, Float[Tensor, "seq d_sae"]]
"""A score for every node, by hook point."""


class MaskError(ValueError):
    """A mask that does not fit; the message says where, what was wrong, and what would do."""


def ablate(
    x: Float[Tensor, "*batch"], mask: Tensor, ablation: Tensor | None = None
) -> Float[Tensor, "*batch"]:
    """ablation + (x − ablation) · mask: ``x`` where the mask is 1, ``ablation`` where it is 0.

    The ablation is zero by default.
    Half-precision latents are mixed in float32.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mask = mask.to(wide)
    if ablation is None:
        return (wide * mask).to(x.dtype)
    return torch.lerp(ablation.to(wide), wide, mask).to(x.dtype)


class SAEMasks(nn.Module):
    """Masks over SAE latents, by hook point.

    The masks are buffers, by hook point with ``/`` in place of dots: `state_dict`, `to`, `half` and
    their like see them. Gradients reach what a soft mask was computed from; `state_dict` holds its
    values.

    Args:
        hook_points: e.g. ``["blocks.5.hook_resid_post", "blocks.11.hook_resid_post"]``.
        masks: one per hook point, ``[seq, d_sae]`` or ``[d_sae]``, values in 0…1. Row 0 of a
            per-position mask belongs to BOS, which is never spliced: leave it 0.

    Raises:
        MaskError: another number of masks than hook points, a hook point twice, a mask with other
            than one or two dimensions.
    """

    def __init__(self, hook_points: Sequence[str], masks: Sequence[Tensor]):
        super().__init__()
        if len(hook_points) != len(masks):
            raise MaskError(
                f"hook points: {len(hook_points)}, masks: {len(masks)}. Give each its mask."
            )
        if len(set(hook_points)) != len(hook_points):
            raise MaskError(f"a hook point appears twice in {list(hook_points)}.")
        self.hook_points = list(hook_points)
        for hook_point, mask in zip(hook_points, masks, strict=True):
            if mask.ndim not in (1, 2):
                raise MaskError(
                    f"{hook_point}: a mask is [d_sae] or [seq, d_sae], not {list(mask.shape)}."
                )
            self.register_buffer(_buffer_name(hook_point), mask)

    @property
    def masks(self) -> list[Tensor]:
        """The masks, in the order of the hook points."""
        return [self.get_buffer(_buffer_name(hook_point)) for hook_point in self.hook_points]

    def __getitem__(self, sae_hook_point: str) -> Tensor:
        """The mask at a hook point."""
        if sae_hook_point not in self.hook_points:
            raise MaskError(
                f"no mask for {sae_hook_point!r}; there are masks for {self.hook_points}."
            )
        return self.get_buffer(_buffer_name(sae_hook_point))

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs (hook point, mask)."""
        return iter(zip(self.hook_points, self.masks, strict=True))

    def forward(
        self,
        x: Float[Tensor, "*batch seq d_sae"],
        sae_hook_point: str,
        mean_ablation: Float[Tensor, "seq d_sae"] | Float[Tensor, " d_sae"] | None = None,
    ) -> Float[Tensor, "*batch seq d_sae"]:
        """Latents ``x`` with ``mean_ablation`` (zero by default) for those that are masked out."""
        self.check(sae_hook_point, seq=x.shape[-2], d_sae=x.shape[-1])
        return ablate(x, self[sae_hook_point], mean_ablation)

    def check(self, sae_hook_point: str, seq: int, d_sae: int) -> None:
        """Raise `MaskError` if a mask does not fit latents ``[…, seq, d_sae]``."""
        mask = self[sae_hook_point]
        wanted = (seq, d_sae)[-mask.ndim :]
        if tuple(mask.shape) != wanted:
            raise MaskError(
                f"{sae_hook_point}: the mask has shape {list(mask.shape)} and the latents end in "
                f"{list(wanted)} ([seq, d_sae]). A per-position mask fits prompts of its own "
                "length only."
            )

    # -- what is in it -------------------------------------------------------------------------

    def get_num_latents(self) -> int:
        """How many latents are on, over all hook points: nodes, where masks are per position."""
        return int(sum((mask > 0).sum() for mask in self.masks))

    def print_mask_statistics(self) -> None:
        """A line per hook point: how many nodes are on, of how many, and how many per token.

        Of a mask that is the same at every position, ``[d_sae]``, it counts latents.
        """
        for hook_point, mask in self.items():
            on = int((mask > 0).sum())
            per_token = on / mask.shape[0] if mask.ndim == 2 else on
            kind = "nodes" if mask.ndim == 2 else "latents"
            print(
                f"{hook_point}: {on:,} of {mask.numel():,} {kind} on, {per_token:.2f} per token "
                f"(mask {list(mask.shape)})"
            )
        print(f"all hook points: {self.get_num_latents():,} on")

    def nodes(self) -> list[Node]:
        """Every latent that is on; its position is None for masks ``[d_sae]``."""
        nodes: list[Node] = []
        for hook_point, mask in self.items():
            for index in (mask > 0).nonzero().tolist():
                position, latent = index if mask.ndim == 2 else (None, *index)
                nodes.append((hook_point, position, latent))
        return nodes

    # -- making one ----------------------------------------------------------------------------

    @classmethod
    def full(cls, like: Scores, value: float, *, has_bos: bool = True) -> SAEMasks:
        """Masks of the shapes of ``like`` with one value everywhere; BOS' row, if any, is 0."""
        masks = []
        for scores in like.values():
            mask = torch.full_like(scores, value)
            if has_bos and mask.ndim == 2:
                mask[0] = 0
            masks.append(mask)
        return cls(list(like), masks)

    @classmethod
    def from_scores(cls, scores: Scores, n_nodes: int, *, rank: str = "abs") -> SAEMasks:
        """Keep the ``n_nodes`` best nodes over all hook points.

        Args:
            scores: one score per node.
            rank: ``"abs"`` (largest |score|) or ``"signed"`` (largest score).

        Raises:
            MaskError: a negative ``n_nodes``, or more than there are nodes; an unknown ``rank``.
        """
        total = sum(score.numel() for score in scores.values())
        if not 0 <= n_nodes <= total:
            raise MaskError(
                f"n_nodes must lie between 0 and {total} (all nodes), not be {n_nodes}."
            )
        if rank not in ("abs", "signed"):
            raise MaskError(f"rank must be 'abs' or 'signed', not {rank!r}.")
        flat = torch.cat([score.detach().flatten() for score in scores.values()])
        flat = flat.abs() if rank == "abs" else flat
        on = torch.zeros_like(flat)
        on[flat.topk(n_nodes).indices] = 1
        parts = on.split([score.numel() for score in scores.values()])
        masks = [part.view_as(score) for part, score in zip(parts, scores.values(), strict=True)]
        return cls(list(scores), masks)

    # -- files ---------------------------------------------------------------------------------

    def save(self, save_dir: str | Path, file_name: str = FILE_NAME) -> Path:
        """Write the masks as safetensors; returns the path, which `load` takes."""
        folder = Path(save_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            hook_point: mask.detach().cpu().contiguous() for hook_point, mask in self.items()
        }
        metadata = {"format": FORMAT, "hook_points": json.dumps(self.hook_points)}
        save_file(tensors, folder / file_name, metadata=metadata)
        return folder / file_name

    @classmethod
    def load(cls, save_dir: str | Path, file_name: str = FILE_NAME) -> SAEMasks:
        """Read what `save` wrote.

        Args:
            save_dir: the folder; or the file itself, and then no ``file_name``.

        Raises:
            FileNotFoundError: no such file.
            MaskError: not safetensors, or damaged; safetensors but no masks.
        """
        path = Path(save_dir).expanduser()
        names_a_file = path.is_file() or (path.suffix == ".safetensors" and not path.is_dir())
        if not names_a_file or file_name != FILE_NAME:
            path = path / file_name
        if not path.is_file():
            there = sorted(other.name for other in path.parent.glob("*.safetensors"))
            raise FileNotFoundError(
                f"no masks at {path}. Files there: {', '.join(there) or 'none'}."
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise MaskError(
                        f"{path} is safetensors, but holds no masks (its metadata has no format "
                        f"{FORMAT!r})."
                    )
                hook_points = json.loads(metadata["hook_points"])
                return cls(hook_points, [file.get_tensor(hook_point) for hook_point in hook_points])
        except SafetensorError as error:
            raise MaskError(f"{path} is damaged or no safetensors file: {error}") from error

    def to_json(self) -> dict:
        """Binary masks as text.

        ``{hook point: {"shape": [seq, d_sae], "on": [[position, latent], …]}}``
        """
        return {
            hook_point: {"shape": list(mask.shape), "on": (mask > 0).nonzero().tolist()}
            for hook_point, mask in self.items()
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Mapping]) -> SAEMasks:
        """What `to_json` wrote, as masks of zeros and ones.

        Raises:
            MaskError: a hook point without ``shape`` and ``on``, or an index outside the shape.
        """
        masks = []
        for hook_point, entry in record.items():
            if not {"shape", "on"} <= set(entry):
                raise MaskError(
                    f"{hook_point}: wanted {{'shape': …, 'on': …}}, not the keys {sorted(entry)}."
                )
            mask = torch.zeros(entry["shape"])
            for index in entry["on"]:
                inside = (0 <= i < size for i, size in zip(index, mask.shape))
                if len(index) != mask.ndim or not all(inside):
                    raise MaskError(
                        f"{hook_point}: the index {index} lies outside the shape {entry['shape']}."
                    )
                mask[tuple(index)] = 1
            masks.append(mask)
        return cls(list(record), masks)


# ---------------------------------------------------------------------------------------------
# Circuits as sets of nodes
# ---------------------------------------------------------------------------------------------


def without(masks: SAEMasks, nodes: Iterable[Node]) -> SAEMasks:
    """The same masks with some nodes off; ``masks`` stays as it is.

    Position None switches a latent off at every position.

    Raises:
        MaskError: a node outside the masks.
    """
    copies = {hook_point: mask.detach().clone() for hook_point, mask in masks.items()}
    _switch(copies, nodes, 0)
    return SAEMasks(list(copies), list(copies.values()))


def only(masks: SAEMasks, nodes: Iterable[Node], *, has_bos: bool = True) -> SAEMasks:
    """Masks of the same shapes with these nodes on, and nothing else.

    Position None switches a latent on at every position but BOS'.

    Args:
        has_bos: whether row 0 of a per-position mask belongs to BOS.

    Raises:
        MaskError: a node outside the masks.
    """
    empty = {hook_point: torch.zeros_like(mask) for hook_point, mask in masks.items()}
    _switch(empty, nodes, 1, first=int(has_bos))
    return SAEMasks(list(empty), list(empty.values()))


def _switch(
    masks: Mapping[str, Tensor], nodes: Iterable[Node], value: int, *, first: int = 0
) -> None:
    """Set nodes in place; None stands for every position from ``first`` on."""
    for hook_point, position, latent in nodes:
        if hook_point not in masks:
            raise MaskError(f"no mask for {hook_point!r}; there are masks for {list(masks)}.")
        mask = masks[hook_point]
        if not 0 <= latent < mask.shape[-1]:
            raise MaskError(f"{hook_point}: no latent {latent}; the mask has {mask.shape[-1]}.")
        if mask.ndim == 1:
            if position is not None:
                raise MaskError(
                    f"{hook_point}: the mask is the same at every position, so a node of it has "
                    f"the position None, not {position}."
                )
            mask[latent] = value
        elif position is None:
            mask[first:, latent] = value
        elif 0 <= position < len(mask):
            mask[position, latent] = value
        else:
            raise MaskError(f"{hook_point}: no position {position}; the mask has {len(mask)}.")


def random_subsets(nodes: Sequence[Node], n_subsets: int, *, seed: int) -> list[list[Node]]:
    """Random subsets of 1 to all nodes, with as many small ones as large ones.

    Sizes are drawn evenly on a log scale: half of the nodes at once are too many where nodes stand
    in series, since then nothing gets through, whatever is taken out.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = (len(nodes) + 1) ** torch.rand(n_subsets, generator=generator, dtype=torch.double)
    subsets = []
    for size in sizes.tolist():
        order = torch.randperm(len(nodes), generator=generator)[: int(size)]
        subsets.append([nodes[i] for i in sorted(order.tolist())])
    return subsets


def _buffer_name(hook_point: str) -> str:
    """A buffer's name has no dots."""
    return hook_point.replace(".", "/")


def save_circuits(circuits: Mapping[tuple[int, int], SAEMasks], path: str | Path) -> None:
    """Write binary masks by (wanted size, seed) as one JSON file, for `load_circuits`."""
    record = {f"{size} nodes, seed {seed}": one.to_json() for (size, seed), one in circuits.items()}
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record) + "\n")


def load_circuits(path: str | Path) -> dict[tuple[int, int], SAEMasks]:
    """Circuits by (wanted size, seed), as `save_circuits` wrote them.

    Raises:
        FileNotFoundError: no such file.
        MaskError: the file holds something else.
    """
    record = json.loads(Path(path).expanduser().read_text())
    try:
        return {
            (int(name.split()[0]), int(name.split()[-1])): SAEMasks.from_json(masks)
            for name, masks in record.items()
        }
    except (ValueError, IndexError, AttributeError) as error:
        raise MaskError(f"{path} holds no circuits by size and seed: {error}") from error
