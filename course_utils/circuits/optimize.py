"""A learned mask: which nodes does the behaviour need?

`learn_masks` takes all the steps; `MaskLearner` takes them one by one; `LearnedMask` is what they
come to, finished or not, and can be saved. How a mask is softened, priced and brought to a wanted
size is the business of `sparsification.py`; here are the logit differences, computed with a
`SplicedModel`.

Two things are left out of the work since they cannot change a number, or hardly can. Before the
first mask acts, latents are what they are: a latent of the first SAE that is 0 on every training
prompt does nothing. And nodes that never fire while nothing is masked rarely do later
(``candidates="firing"``).
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.saes import encode
from course_utils.circuits.settings import with_changes
from course_utils.circuits.sparsification import (
    MaskSettings,
    Record,
    all_nodes,
    binary_masks,
    sparsification,
    starting_theta,
)
from course_utils.circuits.splice import PatchMeans, Prefix, SplicedModel
from course_utils.prompts.tasks import Task

FILE_NAME = "learned_mask.safetensors"
FORMAT = "scalable-sae-circuits learned mask 1"
SIZE_TOLERANCE = 0.1
"""A learned size may differ from the wanted one by this share before a warning says so."""


@dataclass
class LearnedMask:
    """What `learn_masks` comes to, finished or not.

    Attributes:
        masks: zeros and ones: the nodes with θ > 0.
        theta: the learned numbers, by hook point, ``[seq, d_sae]`` or ``[d_sae]``; −∞ for what was
            no candidate.
        history: a record per step: loss, faithfulness loss, nodes on (θ > 0), temperature, λ.
        settings: those that it was learned with.
        interrupted: whether steps are left. ``learn_masks(…, resume=this)`` goes on.
        optimizer_state: Adam's, to go on from.
        candidate_error: with ``candidates="firing"``, the mean over training prompts of |LD of the
            circuit with all nodes that were left out − LD of the circuit|; None if all were
            candidates.
    """

    masks: SAEMasks
    theta: dict[str, Float[Tensor, "*seq d_sae"]]
    history: list[Record]
    settings: MaskSettings
    interrupted: bool
    optimizer_state: dict[str, Any] = field(repr=False)
    candidate_error: float | None = None

    @property
    def n_nodes(self) -> int:
        """Nodes in the circuit."""
        return self.masks.get_num_latents()

    def save(self, folder: str | Path) -> Path:
        """Write everything, so that a resume outlives this process; returns the path."""
        path = Path(folder).expanduser() / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        adam = self.optimizer_state.get("state", {})
        tensors = {f"theta/{name}": value for name, value in self.theta.items()}
        for i, state in adam.items():
            tensors |= {f"adam/{i}/{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors |= {f"mask/{name}": mask for name, mask in self.masks.items()}
        record = {
            "settings": asdict(self.settings),
            "history": self.history,
            "interrupted": self.interrupted,
            "candidate_error": self.candidate_error,
            "param_groups": self.optimizer_state.get("param_groups", []),
            "hook_points": list(self.theta),
        }
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(tensors, path, metadata={"format": FORMAT, "record": json.dumps(record)})
        return path

    @classmethod
    def load(cls, folder: str | Path) -> LearnedMask:
        """Read what `save` wrote: its folder, or its path.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no learned mask, or damaged.
        """
        path = Path(folder).expanduser()
        path = path / FILE_NAME if path.is_dir() or path.suffix != ".safetensors" else path
        if not path.is_file():
            raise FileNotFoundError(f"no learned mask in {path}: LearnedMask.save writes one.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} holds no learned mask (format {metadata.get('format')}).")
        record = json.loads(metadata["record"])
        names, state = record["hook_points"], {}
        for key in (key for key in tensors if key.startswith("adam/")):
            _, i, what = key.split("/")
            state.setdefault(int(i), {})[what] = tensors[key]
        adam = {"state": state, "param_groups": record["param_groups"]} if state else {}
        return cls(
            masks=SAEMasks(names, [tensors[f"mask/{name}"] for name in names]),
            theta={name: tensors[f"theta/{name}"] for name in names},
            history=record["history"],
            settings=MaskSettings(**record["settings"]),
            interrupted=record["interrupted"],
            optimizer_state=adam,
            candidate_error=record["candidate_error"],
        )


def learn_masks(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    settings: MaskSettings | None = None,
    resume: LearnedMask | None = None,
    progress: bool = True,
    **changes: Any,
) -> LearnedMask:
    """Learn which nodes to keep.

        learn_masks(spliced, train, sparsity=0.1)          # a price per node
        learn_masks(spliced, train, n_nodes=20)            # a size: the price is found on the way

    Args:
        task: the training prompts.
        means: what an ablated latent is replaced by; computed from ``task.patch`` if not given.
        settings: all settings at once; or name some: ``learn_masks(spliced, task, sparsity=0.1,
            seed=1)``.
        resume: a result that was interrupted: go on from there with its settings.
        progress: show a bar with loss, nodes on and temperature.

    Returns:
        The mask. Ctrl-C does not raise: it returns the mask so far, with ``interrupted=True``;
        before the first step that is every node.

    Warns:
        UserWarning: ``n_nodes`` was missed by more than a tenth.

    Raises:
        ValueError: a setting out of range; ``n_nodes`` larger than the number of nodes; fewer
            prompts than one batch; ``resume`` had other nodes to choose from.
        TypeError: a setting that there is not.
    """
    if resume is not None:
        settings = resume.settings
    settings = with_changes(settings or MaskSettings(), changes)
    settings.check_prompts(len(task))
    try:
        learner = MaskLearner(spliced, task, means, settings, resume=resume)
    except KeyboardInterrupt:
        _say_interrupted(0 if resume is None else len(resume.history), settings)
        return resume or _nothing_learned(spliced, task, settings)
    bar = tqdm(
        total=settings.steps,
        initial=len(learner.history),
        desc="learning a mask",
        disable=not progress,
    )
    try:
        while not learner.done:
            record = learner.step()
            loss, tau = f"{record['loss']:.3f}", f"{record['tau']:.1f}"
            bar.set_postfix(loss=loss, nodes=record["n_on"], tau=tau)
            bar.update()
    except KeyboardInterrupt:
        _say_interrupted(len(learner.history), settings)
    finally:
        bar.close()
    learned = learner.finish()
    _warn_of_another_size(learned)
    return learned


def _say_interrupted(n_steps: int, settings: MaskSettings) -> None:
    print(
        f"Interrupted after {n_steps} of {settings.steps} steps; this is the mask so far. Go on "
        "with resume=…."
    )


def _nothing_learned(spliced: SplicedModel, task: Task, settings: MaskSettings) -> LearnedMask:
    """Every node, and no step taken."""
    shapes = {
        name: torch.zeros(task.seq_len, sae.cfg.d_sae, device=sae.W_dec.device)
        for name, sae in spliced.saes.items()
    }
    theta = starting_theta(shapes, settings)
    masks = binary_masks(theta, all_nodes(theta, first=spliced.first))
    return LearnedMask(masks, theta, [], settings, interrupted=True, optimizer_state={})


def _warn_of_another_size(learned: LearnedMask) -> None:
    wanted = learned.settings.n_nodes
    if wanted is None or learned.interrupted:
        return
    if abs(learned.n_nodes - wanted) > SIZE_TOLERANCE * wanted:
        warnings.warn(
            f"n_nodes={wanted} were wanted, and {learned.n_nodes} were learned. More steps "
            f"(steps={2 * learned.settings.steps}) come closer; no node was cut or added, since "
            "that breaks a circuit.",
            stacklevel=3,
        )


# ---------------------------------------------------------------------------------------------
# Step by step
# ---------------------------------------------------------------------------------------------


class MaskLearner:
    """Learns masks for a spliced model, step by step.

        learner = MaskLearner(spliced, task, means, MaskSettings(steps=20))
        while not learner.done:
            record = learner.step()
        learned = learner.finish()

    What is the same at every step is computed once, here: the passes up to the first SAE, its
    latents, and the answers of the spliced model with nothing masked.

    Args:
        spliced: the model and its SAEs.
        task: the training prompts.
        means: what an ablated latent is replaced by; computed from ``task.patch`` if not given.
        settings: `MaskSettings`, the defaults if not given.
        resume: an interrupted result to go on from.

    Raises:
        ValueError: fewer prompts than one batch; ``n_nodes`` larger than the number of nodes;
            ``resume`` had other nodes to choose from.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        task: Task,
        means: PatchMeans | None = None,
        settings: MaskSettings | None = None,
        *,
        resume: LearnedMask | None = None,
    ):
        self.settings = settings or MaskSettings()
        self.settings.check_prompts(len(task))
        self.spliced, self.task = spliced, task
        if means is None:
            means = spliced.patch_means(task.patch, lengths=task.lengths)
        self.means = means
        self.prefix = spliced.prefix(task.clean, lengths=task.lengths)
        self.target = spliced.logit_diff_from(self.prefix, task, means=self.means)

        candidates = self._candidates()
        self.kept = {name: self._kept(name, some) for name, some in candidates.items()}
        self.narrow = spliced.narrow(self.kept)
        self.narrow_means = self.means.narrow(self.kept)
        self.first_latents = _first_latents(self.narrow, self.prefix)
        self.learning = sparsification(
            self._starting_theta(resume),
            {name: some[..., self.kept[name]] for name, some in candidates.items()},
            len(task),
            self.settings,
            to_lose=self._to_lose(),
            history=resume.history if resume else (),
            optimizer_state=resume.optimizer_state if resume else None,
        )

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.learning.done

    @property
    def history(self) -> list[Record]:
        """A record per step so far."""
        return self.learning.history

    def step(self) -> Record:
        """Take one optimisation step; returns its record."""
        rows, masks = self.learning.rows(), self.learning.soft_masks()
        here = rows.to(self.target.device)
        run = self.narrow.run(
            self.prefix[here],
            masks=masks,
            means=self.narrow_means,
            latents={name: f[here] for name, f in self.first_latents.items()},
            keep_latents=False,
        )
        gaps = self.target[here] - run.logit_diff(self.task[rows])
        return self.learning.update(gaps, masks)

    def finish(self) -> LearnedMask:
        """The mask so far. More steps may follow: the result does not change with them."""
        theta = {name: self._widened(name, value) for name, value in self.learning.theta.items()}
        masks = SAEMasks(list(theta), [(value > 0).float() for value in theta.values()])
        firing_only = self.settings.candidates == "firing"
        return LearnedMask(
            masks=masks,
            theta=theta,
            history=list(self.history),
            settings=self.settings,
            interrupted=not self.done,
            optimizer_state=copy.deepcopy(self.learning.optimizer.state_dict()),
            candidate_error=self._candidate_error(masks, theta) if firing_only else None,
        )

    # -- which nodes can matter -----------------------------------------------------------------

    @torch.no_grad()
    def _candidates(self) -> dict[str, Bool[Tensor, "*seq d_sae"]]:
        """The nodes to choose from, by hook point.

        Latents that are 0 on every clean prompt and in the mean over patch prompts are left out: at
        the first SAE always, which is exact, since no mask comes before it; with ``"firing"``
        everywhere and position by position, which is right as long as nothing is masked.
        """
        nodes = all_nodes(
            starting_theta(self.means.latents, self.settings), first=self.spliced.first
        )
        everywhere = self.settings.candidates == "firing"
        names = self.spliced.hook_points if everywhere else self.spliced.hook_points[:1]
        fires = {name: self.means.latents[name] != 0 for name in names}
        size = self.spliced.batch_size(self.task.seq_len)
        for first in range(0, len(self.task), size):
            batch = self.prefix[first : first + size]
            if everywhere:
                latents = self.spliced.run(batch, means=self.means).latents
            else:
                latents = _first_latents(self.spliced, batch)
            for name, f in latents.items():
                fires[name] |= (f != 0).any(0)
        for name, fired in fires.items():
            at_any = not everywhere or nodes[name].ndim == 1
            nodes[name] &= fired.any(0) if at_any else fired
        return nodes

    def _kept(self, name: str, candidates: Bool[Tensor, "*seq d_sae"]) -> Int[Tensor, " kept"]:
        """The latents with a candidate; all of a TopK SAE, which cannot choose k of fewer."""
        if getattr(self.spliced.saes[name].cfg, "k", 1) > 1:
            candidates = torch.ones_like(candidates)
        return candidates.reshape(-1, candidates.shape[-1]).any(0).nonzero()[:, 0]

    @torch.no_grad()
    def _to_lose(self) -> float:
        """Mean |LD_spliced − LD_∅|; computed only where a wanted size needs it."""
        if self.settings.n_nodes is None:
            return 1.0
        nothing = SAEMasks.full(self.narrow_means.latents, 0.0)
        empty = self.narrow.logit_diff_from(
            self.prefix, self.task, masks=nothing, means=self.narrow_means
        )
        return max((empty - self.target).abs().mean().item(), 1e-3)

    def _starting_theta(self, resume: LearnedMask | None) -> dict[str, Float[Tensor, "..."]]:
        """θ₀ for every candidate, or what an earlier run had come to."""
        start = starting_theta(self.narrow_means.latents, self.settings)
        if resume is None:
            return start
        self._check_resume(resume, start)
        return {
            name: theta[..., self.kept[name]].to(self.target.device).nan_to_num(neginf=-1.0)
            for name, theta in resume.theta.items()
        }

    def _check_resume(self, resume: LearnedMask, start: Mapping[str, Tensor]) -> None:
        """Raise ValueError if an earlier run had other nodes than this one, or some of them."""
        sizes = {name: sae.cfg.d_sae for name, sae in self.spliced.saes.items()}
        wide = {name: (*value.shape[:-1], sizes[name]) for name, value in start.items()}
        adam = resume.optimizer_state.get("state", {})
        moments = [state["exp_avg"].shape for state in adam.values()]
        if wide != {name: tuple(theta.shape) for name, theta in resume.theta.items()} or (
            moments and moments != [value.shape for value in start.values()]
        ):
            raise ValueError(
                "resume: that run had other nodes to choose from. Go on with the same prompts, "
                "SAEs, per_position, candidates."
            )

    def _widened(self, name: str, theta: Float[Tensor, "*seq kept"]) -> Float[Tensor, "*seq d_sae"]:
        """A copy of θ for all latents: −∞ for what is no candidate."""
        theta = theta.detach().masked_fill(~self.learning.candidates[name], -torch.inf)
        wide = theta.new_full((*theta.shape[:-1], self.spliced.saes[name].cfg.d_sae), -torch.inf)
        wide[..., self.kept[name]] = theta
        return wide

    def _candidate_error(self, masks: SAEMasks, theta: Mapping[str, Tensor]) -> float:
        """How far nodes that were left out move LD, when they join the circuit ``masks``."""
        joined = [mask.masked_fill(theta[name].isneginf(), 1) for name, mask in masks.items()]
        circuit, with_left_out = (
            self.spliced.logit_diff_from(self.prefix, self.task, masks=both, means=self.means)
            for both in (masks, SAEMasks(masks.hook_points, joined))
        )
        return (with_left_out - circuit).abs().mean().item()


@torch.no_grad()
def _first_latents(
    spliced: SplicedModel, prefix: Prefix
) -> dict[str, Float[Tensor, "batch seq d_sae"]]:
    """What the first SAE finds, the same at every step; a row of 0 in front where BOS is."""
    name = spliced.hook_points[0]
    f = encode(spliced.saes[name], prefix.resid)
    return {name: torch.nn.functional.pad(f, (0, 0, spliced.first, 0))}
