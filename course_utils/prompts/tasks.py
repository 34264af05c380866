"""Prompt pairs and their tokens: what the model is asked, and what it would be asked instead.

A circuit explains a *difference*. Each example is a pair: a clean prompt, where the right next
token is ``clean_answer``, and a patch prompt that differs in the one thing under study, where it is
``patch_answer`` (or is undetermined). How much the model sees the difference is one number, the
*logit difference* logit(clean answer) − logit(patch answer) at the last position.

Three families are generated here, all with separate vocabularies for training and testing:

- subject–verb agreement (SVA; Finlayson et al. 2021, and the splits of Marks et al. 2024): the
  patch prompt has the subject in the other number. "The athlete near the cars" → " is", not " are".
- indirect object identification (IOI; Wang et al. 2022): "When Mary and John went to the store,
  John gave a drink to" → " Mary". The patch prompt has three other names, so nothing determines the
  answer.
- look-ups in Python's interpreter (`sessions.py`; for models of code): a key that is missing, or an
  index beyond a list's end → "Trace" of "Traceback". The patch prompt has the key, or an index
  within.

Prompts of one task have one length in tokens, so that "position 4" means the same thing in all of
them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from course_utils import DATA

TASKS_DIR = DATA / "tasks"
SPLITS = ("train", "test")
MIN_PAIRS = 4
"""Fewer prompt pairs than this make no task: `load_task` raises."""


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


@dataclass(frozen=True)
class Task:
    """Prompt pairs as tokens, of one length or padded to one. Everything downstream takes one of
    these.

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
        """The same task with its tensors on ``device``."""
        tensors = ("clean", "patch", "clean_answers", "patch_answers")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def __repr__(self) -> str:
        split = f", {self.split}" if self.split else ""
        return f"Task({self.name!r}{split}: {len(self)} pairs of {self.seq_len} tokens)"


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
    tokenizer,
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
    task_name = str(name) if not _is_path(name) else Path(name).stem
    pairs = read_pairs(path)
    bos_id = tokenizer.bos_token_id if prepend_bos else None

    encoded = []
    dropped: Counter[str] = Counter()
    for pair in pairs:
        answers = [_encode(tokenizer, text) for text in (pair.clean_answer, pair.patch_answer)]
        prompts = [_encode(tokenizer, text) for text in (pair.clean_prefix, pair.patch_prefix)]
        if any(len(answer) != 1 for answer in answers):
            dropped["answer of more than one token"] += 1
        elif answers[0] == answers[1]:
            dropped["both answers are the same token"] += 1
        elif len(prompts[0]) != len(prompts[1]):
            dropped["clean and patch of different lengths"] += 1
        else:
            encoded.append((pair, prompts, answers))
    if encoded and not pad:
        length = Counter(len(prompts[0]) for _, prompts, _ in encoded).most_common(1)[0][0]
        same = [item for item in encoded if len(item[1][0]) == length]
        dropped[f"not {length} tokens long"] += len(encoded) - len(same)
        encoded = same
    n_dropped = {reason: count for reason, count in dropped.items() if count}
    why = "; ".join(f"{count} {reason}" for reason, count in n_dropped.items())
    if len(encoded) < MIN_PAIRS:
        raise TaskError(
            f"{path}: only {len(encoded)} of {len(pairs)} prompt pairs fit this tokenizer, and a task needs "
            f"{MIN_PAIRS} or more. Dropped: {why or 'none'}. Use prompts of one length in tokens and answers "
            "of one token (mind the leading space)."
        )
    if n_dropped and verbose:
        print(f"{task_name}: kept {len(encoded)} of {len(pairs)} prompt pairs (dropped: {why})")

    encoded = encoded[:n]
    bos = [] if bos_id is None else [bos_id]
    lengths = torch.tensor([len(bos) + len(prompts[0]) for _, prompts, _ in encoded])
    clean, patch = (_padded([bos + prompts[i] for _, prompts, _ in encoded]) for i in (0, 1))
    return Task(
        name=task_name,
        split="" if _is_path(name) else split,
        pairs=tuple(pair for pair, _, _ in encoded),
        clean=clean,
        patch=patch,
        clean_answers=torch.tensor([answers[0][0] for _, _, answers in encoded]),
        patch_answers=torch.tensor([answers[1][0] for _, _, answers in encoded]),
        has_bos=bos_id is not None,
        position_labels=_position_labels(tokenizer, clean, lengths, bos_id is not None),
        n_dropped=n_dropped,
        lengths=lengths if pad else None,
    )


def _padded(rows: list[list[int]]) -> Int[Tensor, "n seq"]:
    """Token 0 fills the end of short rows: attention is causal, so it changes nothing before it."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def read_pairs(path: Path) -> list[PromptPair]:
    """The lines of a task file.

    Raises:
        TaskError: naming file and line, where a line is no JSON object or lacks one of the keys.
    """
    pairs = []
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise TaskError(
                    f"{path}, line {number}: not UTF-8 ({error}). Save the file as UTF-8."
                ) from error
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise TaskError(
                    f"{path}, line {number}: not JSON ({error}). One object a line, please."
                ) from error
            if not isinstance(record, dict):
                raise TaskError(
                    f"{path}, line {number}: a JSON object is wanted, not {type(record).__name__}."
                )
            record.setdefault("case", "")
            missing = [key for key in KEYS if key not in record]
            if missing:
                raise TaskError(
                    f"{path}, line {number}: no {', '.join(missing)}. A pair has the keys {', '.join(KEYS)}."
                )
            wrong = [
                key
                for key in KEYS
                if not isinstance(record[key], str) or (key != "case" and not record[key])
            ]
            if wrong:
                raise TaskError(
                    f"{path}, line {number}: {', '.join(wrong)} must be text and not empty."
                )
            pairs.append(PromptPair(**{key: record[key] for key in KEYS}))
    return pairs


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or str(name).endswith(".jsonl")


def _find(name: str | Path, split: str) -> Path:
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise TaskError(f"no such task file: {path}")
        return path
    if name not in available_tasks():
        raise TaskError(
            f"unknown task {name!r}. Known tasks: {', '.join(available_tasks())}; or give the path of a .jsonl file "
            f"with the keys {', '.join(KEYS)}."
        )
    if split not in SPLITS:
        raise TaskError(f"split must be 'train' or 'test', not {split!r}")
    path = TASKS_DIR / f"{name}_{split}.jsonl"
    if not path.is_file():
        raise TaskError(f"{path} is missing. Write it with: python -m tools.write_tasks")
    return path


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _position_labels(
    tokenizer, clean: Int[Tensor, "n seq"], lengths: Int[Tensor, " n"], has_bos: bool
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


# ---------------------------------------------------------------------------------------------
# Generating
# ---------------------------------------------------------------------------------------------


def write_pairs(pairs: Iterable[PromptPair], path: Path) -> None:
    """Write pairs as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs),
        encoding="utf-8",
    )
