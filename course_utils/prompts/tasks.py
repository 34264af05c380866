"""Prompt pairs and their tokens: what the model is asked, and what it would be asked instead.

A circuit explains a *difference*. Each example is a pair: a clean prompt, where the right next
token is ``clean_answer``, and a patch prompt that differs in the one thing under study, where it is
``patch_answer`` (or is undetermined). How much the model sees the difference is one number, the
*logit difference* logit(clean answer) − logit(patch answer) at the last position.

The pairs of a task are lines of a file, ``data/tasks/<task>_<split>.jsonl``; `grammar.py` says what
is in those of the course. `load_task` reads one and turns it into tokens.

Prompts of one task have one length in tokens, so that "position 4" means the same thing in all of
them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from course_utils import DATA
from course_utils.prompts.tokens import pad_right, token_ids

TASKS_DIR = DATA / "tasks"
SPLITS = ("train", "test")
MIN_PAIRS = 4
"""Fewer prompt pairs than this make no task: `load_task` raises."""
HOW_TO_WRITE = "Write the task files with: python -m tools.write_tasks"


@dataclass(frozen=True)
class PromptPair:
    """One line of a task file: a clean prompt, the patch prompt, and the answer to each.

    Answers carry their leading space (" is"). ``case`` names the kind of prompt, such as
    ``singular_plural`` (the numbers of its two nouns, in the order of the text) or ``ABBA``.
    """

    clean_prefix: str
    patch_prefix: str
    clean_answer: str
    patch_answer: str
    case: str


KEYS = tuple(field.name for field in fields(PromptPair))
TENSORS = ("clean", "patch", "clean_answers", "patch_answers", "lengths")


@dataclass(frozen=True, eq=False)
class Task:
    """Prompt pairs as tokens, of one length or padded to one. Everything downstream takes one of
    these.

    Two tasks are equal if they have the same name, split and pairs, and the same tokens on the same
    device. Equal tasks have the same hash.

    Attributes:
        name: where the pairs come from, e.g. ``"sva_nounpp"``; a file's stem for files of your own.
        split: ``"train"``, ``"test"`` or ``""`` for a file without splits.
        pairs: the text, in the order of the rows of the tensors.
        clean, patch: token ids ``[n, seq]``; column 0 is BOS where ``has_bos``.
        clean_answers, patch_answers: token ids ``[n]``.
        lengths: ``[n]``, tokens in each prompt, BOS included, where shorter ones are padded on the
            right; None where all prompts are of one length.
        position_labels: one readable label a column, e.g. ``["<bos>", "The", …]``.
        n_dropped: how many pairs `load_task` left out, by reason.
    """

    name: str
    split: str
    pairs: tuple[PromptPair, ...]
    clean: Int[Tensor, "n seq"]
    patch: Int[Tensor, "n seq"]
    clean_answers: Int[Tensor, " n"]
    patch_answers: Int[Tensor, " n"]
    has_bos: bool
    position_labels: tuple[str, ...]
    n_dropped: dict[str, int]
    lengths: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def seq_len(self) -> int:
        """Tokens in a prompt (the longest), BOS included."""
        return self.clean.shape[1]

    def __getitem__(self, rows: int | slice | Iterable[int] | Tensor) -> Task:
        """A task of the chosen rows: ``task[3]``, ``task[:16]``, ``task[[3, 5]]``,
        ``task[case_is_abba]`` (booleans).
        """
        if isinstance(rows, int):
            rows = [rows]
        index = torch.arange(len(self))[rows if isinstance(rows, slice | Tensor) else list(rows)]
        return replace(
            self,
            pairs=tuple(self.pairs[i] for i in index.tolist()),
            clean=self.clean[index],
            patch=self.patch[index],
            clean_answers=self.clean_answers[index],
            patch_answers=self.patch_answers[index],
            lengths=None if self.lengths is None else self.lengths[index],
        )

    def to(self, device: torch.device | str) -> Task:
        """The same task with its tensors on ``device``, ``lengths`` too."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return self._identity == other._identity and all(
            _equal(getattr(self, name), getattr(other, name)) for name in TENSORS
        )

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, str, tuple[PromptPair, ...], bool]:
        return self.name, self.split, self.pairs, self.has_bos

    def __repr__(self) -> str:
        split = f", {self.split}" if self.split else ""
        return f"Task({self.name!r}{split}: {len(self)} pairs of {self.seq_len} tokens)"


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are on one device with the same values; also where neither is there."""
    if a is None or b is None:
        return a is b
    return a.device == b.device and torch.equal(a, b)


class TaskError(ValueError):
    """A task that cannot be used: the message says which file and line, and what would be right."""


# ---------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------


def available_tasks() -> list[str]:
    """The names that `load_task` knows, e.g. ``["ioi", "sva_nounpp", …]``."""
    return sorted({path.name.rsplit("_", 1)[0] for path in TASKS_DIR.glob("*_train.jsonl")})


def load_task(
    name: str | Path,
    tokenizer: Any,
    split: str = "train",
    *,
    n: int | None = None,
    prepend_bos: bool = True,
    pad: bool = False,
    verbose: bool = True,
) -> Task:
    """Read a task and turn it into tokens that fit one another.

    Keeps the pairs whose prompts have the commonest length and whose two answers are single,
    different tokens, and says how many it dropped.

    Args:
        name: one of `available_tasks`, or the path of a JSON-lines file in the same format.
        tokenizer: the lab's tokenizer (``lab.tokenizer``).
        split: ``"train"`` or ``"test"``; ignored for a path.
        n: keep at most the first ``n`` usable pairs (1 or more).
        prepend_bos: put the tokenizer's BOS token first, if it has one.
        pad: keep prompts of every length, and pad the shorter ones on the right. "Position 4" then
            means another place in each of them: masks with one number per latent
            (``per_position=False``) suit such tasks.
        verbose: print what was dropped.

    Raises:
        TaskError: unknown name or split; a malformed line; fewer than `MIN_PAIRS` usable pairs;
            ``n`` below 1.
    """
    if n is not None and n < 1:
        raise TaskError(f"n must be 1 or more, not {n}.")
    path = _find(name, split)
    task_name, split = (path.stem, "") if _is_path(name) else (str(name), split)

    pairs = read_pairs(path)
    usable, dropped = _usable([_encode(pair, tokenizer) for pair in pairs])
    if not pad:
        usable, of_other_length = _of_the_commonest_length(usable)
        dropped |= of_other_length
    why = "; ".join(f"{count} {reason}" for reason, count in dropped.items())
    if len(usable) < MIN_PAIRS:
        raise TaskError(
            f"{path}: only {len(usable)} of {len(pairs)} prompt pairs fit this tokenizer, and a "
            f"task needs {MIN_PAIRS} or more. Dropped: {why or 'none'}. Use prompts of one length "
            "in tokens and answers of one token (mind the leading space)."
        )
    if dropped and verbose:
        print(f"{task_name}: kept {len(usable)} of {len(pairs)} prompt pairs (dropped: {why})")

    usable = usable[:n]
    bos = [tokenizer.bos_token_id] if prepend_bos and tokenizer.bos_token_id is not None else []
    clean, lengths = pad_right([bos + encoded.clean for encoded in usable])
    patch, _ = pad_right([bos + encoded.patch for encoded in usable])
    return Task(
        name=task_name,
        split=split,
        pairs=tuple(encoded.pair for encoded in usable),
        clean=clean,
        patch=patch,
        clean_answers=torch.tensor([encoded.clean_answer[0] for encoded in usable]),
        patch_answers=torch.tensor([encoded.patch_answer[0] for encoded in usable]),
        has_bos=bool(bos),
        position_labels=_position_labels(tokenizer, clean, lengths, has_bos=bool(bos)),
        n_dropped=dropped,
        lengths=lengths if pad else None,
    )


@dataclass(frozen=True)
class _EncodedPair:
    """A prompt pair and its tokens, without BOS."""

    pair: PromptPair
    clean: list[int]
    patch: list[int]
    clean_answer: list[int]
    patch_answer: list[int]

    def misfit(self) -> str:
        """Why the pair cannot be used; empty if it can."""
        if len(self.clean_answer) != 1 or len(self.patch_answer) != 1:
            return "answer of more than one token"
        if self.clean_answer == self.patch_answer:
            return "both answers are the same token"
        if len(self.clean) != len(self.patch):
            return "clean and patch of different lengths"
        return ""


def _encode(pair: PromptPair, tokenizer: Any) -> _EncodedPair:
    return _EncodedPair(
        pair,
        clean=token_ids(tokenizer, pair.clean_prefix),
        patch=token_ids(tokenizer, pair.patch_prefix),
        clean_answer=token_ids(tokenizer, pair.clean_answer),
        patch_answer=token_ids(tokenizer, pair.patch_answer),
    )


def _usable(encoded: Sequence[_EncodedPair]) -> tuple[list[_EncodedPair], dict[str, int]]:
    """The pairs that can be used by themselves, and how many cannot, by reason."""
    misfits = [one.misfit() for one in encoded]
    usable = [one for one, misfit in zip(encoded, misfits) if not misfit]
    return usable, dict(Counter(filter(None, misfits)))


def _of_the_commonest_length(
    encoded: Sequence[_EncodedPair],
) -> tuple[list[_EncodedPair], dict[str, int]]:
    """The pairs whose prompts have the commonest length, and how many have another."""
    if not encoded:
        return [], {}
    lengths = Counter(len(one.clean) for one in encoded)
    [(length, count)] = lengths.most_common(1)
    others = len(encoded) - count
    same = [one for one in encoded if len(one.clean) == length]
    return same, {f"not {length} tokens long": others} if others else {}


def _position_labels(
    tokenizer: Any, clean: Int[Tensor, "n seq"], lengths: Int[Tensor, " n"], *, has_bos: bool
) -> tuple[str, ...]:
    """The token where every prompt has the same one, an example in brackets where they differ."""
    labels = []
    for position in range(clean.shape[1]):
        column = clean[lengths > position, position]
        text = tokenizer.decode([column[0].item()]).strip() or "␣"
        labels.append(text if (column == column[0]).all() else f"[{text}]")
    if has_bos:
        labels[0] = "<bos>"
    return tuple(labels)


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.endswith(".jsonl")


def _find(name: str | Path, split: str) -> Path:
    """The file of a task."""
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise TaskError(f"no such task file: {path}")
        return path
    known = available_tasks()
    if not known:
        raise TaskError(f"no task files in {TASKS_DIR}. {HOW_TO_WRITE}")
    if name not in known:
        raise TaskError(
            f"unknown task {name!r}. Known tasks: {', '.join(known)}; or give the path of a .jsonl "
            f"file with the keys {', '.join(KEYS)}."
        )
    if split not in SPLITS:
        raise TaskError(f"split must be 'train' or 'test', not {split!r}")
    path = TASKS_DIR / f"{name}_{split}.jsonl"
    if not path.is_file():
        raise TaskError(f"{path} is missing. {HOW_TO_WRITE}")
    return path


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def read_pairs(path: Path) -> list[PromptPair]:
    """The prompt pairs of a task file, one a line; blank lines are passed over.

    Raises:
        TaskError: naming file and line, where a line is no JSON object or lacks one of the keys.
    """
    pairs = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    pairs.append(_pair(text))
            except UnicodeDecodeError as error:
                raise TaskError(
                    f"{path}, line {number}: not UTF-8 ({error}). Save the file as UTF-8."
                ) from error
            except TaskError as error:
                raise TaskError(f"{path}, line {number}: {error}") from error
    return pairs


def _pair(line: str) -> PromptPair:
    """The prompt pair of a line; ``case`` may be missing."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"not JSON ({error}). One object a line, please.") from error
    if not isinstance(record, dict):
        raise TaskError(f"a JSON object is wanted, not {type(record).__name__}.")
    values = {"case": ""} | record
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise TaskError(f"no {', '.join(missing)}. A pair has the keys {', '.join(KEYS)}.")
    wrong = [
        key
        for key in KEYS
        if not isinstance(values[key], str) or (key != "case" and not values[key])
    ]
    if wrong:
        raise TaskError(f"{', '.join(wrong)} must be text and not empty.")
    return PromptPair(**{key: values[key] for key in KEYS})


def write_pairs(pairs: Iterable[PromptPair], path: Path) -> None:
    """Write pairs as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs),
        encoding="utf-8",
        newline="\n",
    )
