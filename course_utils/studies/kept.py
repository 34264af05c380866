"""Answers of a full run, kept in a file, so that a quick run can show them.

A model of 1.5 billion parameters answers a few prompts per second on a CPU. A quick run that asked
three prompts of each kind would print numbers that mean nothing. So it reads what the full run was
told, and computes from that what the text says.

One file holds many lists of answers, by name, each with a hash of its prompts: answers to other
prompts are refused. Latents are kept where they are not 0, in float16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from course_utils.prompts.sessions import Session
from course_utils.studies.dictionaries import Answers, in_lists

K = TypeVar("K", bound=Hashable)
FORMAT = "answers 1"


class KeptError(ValueError):
    """Answers that are not in a file, or are to other prompts; the message says what to do."""


class KeptAnswers:
    """Answers by name: read from a file, or asked for and written to it.

    Args:
        path: the file, safetensors.
        read: True: take what the file has, and ask nothing. False: ask, and write the file anew.
    """

    def __init__(self, path: Path, *, read: bool):
        self.path, self.read = path, read
        self._records: dict[str, dict] = {}
        self._tensors: dict[str, Tensor] = {}
        if read:
            self._load()

    def __call__(
        self,
        name: str,
        asked: Mapping[K, Sequence[Session]],
        ask: Callable[[], Mapping[K, Answers]],
    ) -> dict[K, Answers]:
        """The answers to some lists of sessions.

        Args:
            name: under which they are kept.
            asked: the sessions.
            ask: how to get the answers; not called where they are read.

        Raises:
            KeptError: the file has no such answers, or they are to other prompts.
        """
        if self.read:
            return in_lists(self._recall(name, prompts_hash(asked)), asked)
        found = dict(ask())
        self._keep(name, prompts_hash(asked), [found[key] for key in asked])
        return found

    def _recall(self, name: str, prompts: str) -> Answers:
        record = self._records.get(name)
        if record is None or record["prompts"] != prompts:
            why = "holds none" if record is None else "holds answers to other prompts"
            raise KeptError(
                f"answers {name!r}: {self.path} {why}. Where prompts or their numbers have "
                'changed, run the full profile once, which writes the file: PROFILE = "full".'
            )
        n = len(record["top"])
        latents = {
            (layer, place): self._dense(f"{name}/{layer}/{place}", n, width)
            for layer, place, width in record["sites"]
        }
        return Answers(tuple(record["top"]), self._tensors[f"{name}/p_missing"], latents)

    def _dense(self, key: str, n: int, width: int) -> Tensor:
        f = torch.zeros(n * width)
        f[self._tensors[f"{key}/index"].long()] = self._tensors[f"{key}/value"].float()
        return f.view(n, width)

    def _keep(self, name: str, prompts: str, parts: Sequence[Answers]) -> None:
        sites = sorted(parts[0].latents)
        latents = {site: torch.cat([part.latents[site] for part in parts]) for site in sites}
        self._tensors[f"{name}/p_missing"] = torch.cat([part.p_missing for part in parts])
        for (layer, place), f in latents.items():
            index = f.flatten().nonzero()[:, 0]
            self._tensors[f"{name}/{layer}/{place}/index"] = index.int()
            self._tensors[f"{name}/{layer}/{place}/value"] = f.flatten()[index].half()
        self._records[name] = {
            "prompts": prompts,
            "top": [token for part in parts for token in part.top],
            "sites": [[*site, f.shape[1]] for site, f in latents.items()],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "records": json.dumps(self._records)}
        save_file(self._tensors, self.path, metadata=metadata)

    def _load(self) -> None:
        if not self.path.is_file():
            raise KeptError(
                f"no answers at {self.path}. Run the full profile once, which writes the file "
                '(PROFILE = "full"), or take a lab whose answers come with the course.'
            )
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise KeptError(f"{self.path} is safetensors, but holds no answers.")
            self._records = json.loads(metadata["records"])
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}


def prompts_hash(asked: Mapping[K, Sequence[Session]]) -> str:
    """SHA-256 of all prompts in their order."""
    prompts = [session.prompt for sessions in asked.values() for session in sessions]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
