"""Prompt pairs and their tokens: what the model is asked, and what it would be asked instead.

A circuit explains a *difference*. Each example is a pair: a clean prompt, where the right next
token is ``clean_answer``, and a patch prompt that differs in the one thing under study, where it is
``patch_answer`` (or is undetermined). How much the model sees the difference is one number, the
*logit difference* logit(clean answer) − logit(patch answer) at the last position.

The pairs of a task are lines of a file, ``data/tasks/<task>_<split>.jsonl``; `grammar.py` says what
is in those of the course. `load_task` reads one and turns it into tokens.

Prompts of one task have one length in tokens, so that "position 4" means the same thing in all of
them. The token of an answer is the one that it adds to its prompt: what the tokens of prompt +
answer have after those of the prompt. Where the prompt's own tokens change with an answer behind
it, the model never sees what the file means, and the pair is dropped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from course_utils import DATA
from course_utils.prompts.tokens import continuation, pad_right, special_tokens, token_ids

TASKS_DIR = DATA / "tasks"
SPLITS = ("train", "dev", "test")
"""Learn on train, choose on dev, and report on test, which no choice has seen."""
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
TEXTS = KEYS[:4]
"""The keys whose text becomes tokens."""
TENSORS = ("clean", "patch", "clean_answers", "patch_answers", "lengths")


@dataclass(frozen=True, eq=False)
class Task:
    """Prompt pairs as tokens, of one length or padded to one. Everything downstream takes one of
    these.

    Two tasks are equal if they have the same name, split and pairs, and the same tokens on the same
    device. Equal tasks have the same hash.

    Attributes:
        name: where the pairs come from, e.g. ``"sva_nounpp"``; a file's stem for files of your own.
        split: ``"train"``, ``"dev"``, ``"test"`` or ``""`` for a file without splits.
        pairs: the text, in the order of the rows of the tensors.
        clean, patch: token ids ``[n, seq]``; column 0 is BOS where ``has_bos``.
        clean_answers, patch_answers: token ids ``[n]``, each the one that the answer adds to both
            prompts of its pair.
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

    Keeps the pairs whose prompts have the commonest length and whose two answers add single,
    different tokens to both prompts, and says how many it dropped.

    Args:
        name: one of `available_tasks`, or the path of a file of your own: text that ends in
            ``.json`` or ``.jsonl`` or has a path separator is a path, and ``~`` is your home
            folder. The file holds JSON objects, one a line or all in one list, with the keys of
            `PromptPair` (``case`` may be missing). Other keys are ignored.
        tokenizer: the lab's tokenizer (``lab.tokenizer``).
        split: ``"train"``, ``"dev"`` or ``"test"``; ignored for a path.
        n: keep at most the first ``n`` usable pairs (1 or more).
        prepend_bos: put the tokenizer's BOS token first, if it has one.
        pad: keep prompts of every length, and pad the shorter ones on the right. "Position 4" then
            means another place in each of them: masks with one number per latent
            (``per_position=False``) suit such tasks.
        verbose: print what was dropped, which keys were ignored, and in how many pairs an
            answer carries on the last word of a prompt.

    Raises:
        TaskError: unknown name or split; a malformed line; a special token inside a text; fewer
            than `MIN_PAIRS` usable pairs; most answers not fitting behind their prompts; ``n``
            below 1.
    """
    if n is not None and n < 1:
        raise TaskError(f"n must be 1 or more, not {n}.")
    path = _find(name, split)
    task_name, split = (path.stem, "") if is_path(name) else (str(name), split)

    file = _read(path)
    fit = _fit(file, tokenizer, pad=pad)
    fit.require_enough(path)
    if verbose:
        for remark in (file.remark(), fit.remark()):
            if remark:
                print(f"{task_name}: {remark}")

    usable = fit.usable[:n]
    bos = [tokenizer.bos_token_id] if prepend_bos and tokenizer.bos_token_id is not None else []
    clean, lengths = pad_right([bos + encoded.clean for encoded in usable])
    patch, _ = pad_right([bos + encoded.patch for encoded in usable])
    return Task(
        name=task_name,
        split=split,
        pairs=tuple(encoded.pair for encoded in usable),
        clean=clean,
        patch=patch,
        clean_answers=torch.tensor([encoded.clean_answer for encoded in usable]),
        patch_answers=torch.tensor([encoded.patch_answer for encoded in usable]),
        has_bos=bool(bos),
        position_labels=_position_labels(tokenizer, clean, lengths, has_bos=bool(bos)),
        n_dropped=fit.dropped,
        lengths=lengths if pad else None,
    )


def kept_by_tokenizer(
    names: Iterable[str | Path], tokenizers: Mapping[str, Any], split: str = "train"
) -> list[dict[str, str | int]]:
    """How many prompt pairs of each task fit each tokenizer, as rows for a ``pandas.DataFrame``.

    Args:
        names: tasks, as `load_task` takes them.
        tokenizers: tokenizers by the name of their lab.
        split: as in `load_task`.

    Returns:
        A row for each task: ``task``; ``pairs``, how many its file has; under the name of each lab,
        how many of them `load_task` would keep (fewer than `MIN_PAIRS` make no task); ``dropped``,
        why each lab lost others, and empty where none did.

    Raises:
        TaskError: unknown name or split; a malformed line.
    """
    rows = []
    for name in names:
        path = _find(name, split)
        file = _read(path)
        row: dict[str, str | int] = {
            "task": path.stem if is_path(name) else str(name),
            "pairs": len(file.pairs),
        }
        whys = {}
        for lab_name, tokenizer in tokenizers.items():
            row[lab_name], whys[lab_name] = _kept(file, tokenizer)
        row["dropped"] = " | ".join(f"{lab_name}: {why}" for lab_name, why in whys.items() if why)
        rows.append(row)
    return rows


def _kept(file: _TaskFile, tokenizer: Any) -> tuple[int, str]:
    """How many pairs of a file fit a tokenizer, and why others do not."""
    try:
        fit = _fit(file, tokenizer, pad=False)
    except TaskError as error:  # a special token
        return 0, str(error)
    return len(fit.usable), fit.why


# ---------------------------------------------------------------------------------------------
# Pairs as tokens
# ---------------------------------------------------------------------------------------------


SPACE_BEHIND_PROMPT = "prompt ends in a space: move it to the start of the answer"
TWO_SPACES = "two spaces between prompt and answer: take one away"
NO_SPACE = "answer merges with the prompt's last word: start the answer with a space"
MERGED = "tokens of the prompt change when the answer follows: end the prompt elsewhere"
SEAMS = (SPACE_BEHIND_PROMPT, TWO_SPACES, NO_SPACE, MERGED)
"""What can be wrong where prompt and answer meet, and what to change."""


class _Misfit(Exception):
    """A pair that cannot be used."""

    def __init__(self, reason: str, example: str):
        super().__init__(reason)
        self.reason, self.example = reason, example


@dataclass(frozen=True)
class _EncodedPair:
    """A prompt pair and its tokens, without BOS."""

    pair: PromptPair
    clean: list[int]
    patch: list[int]
    clean_answer: int
    patch_answer: int

    @property
    def run_on(self) -> str:
        """A prompt whose last word an answer carries on, and that answer ("car" + "is"); or ""."""
        pair = self.pair
        for prompt in (pair.clean_prefix, pair.patch_prefix):
            for answer in (pair.clean_answer, pair.patch_answer):
                if _runs_on(prompt, answer):
                    return _seam(prompt, answer)
        return ""


@dataclass(frozen=True)
class _Fit:
    """Which pairs of a file fit a tokenizer.

    Attributes:
        usable: those that do.
        dropped: how many others there are, by reason.
        examples: a pair for each reason, in words.
    """

    usable: list[_EncodedPair]
    dropped: dict[str, int]
    examples: dict[str, str]

    @property
    def n_pairs(self) -> int:
        return len(self.usable) + sum(self.dropped.values())

    @property
    def why(self) -> str:
        """How many were dropped for which reason; empty if none was."""
        return "; ".join(f"{count} {reason}" for reason, count in self.dropped.items())

    def require_enough(self, path: Path) -> None:
        """Raise `TaskError` where too few pairs are left, or most fail where prompt and answer
        meet.
        """
        of_all = f"{len(self.usable)} of {self.n_pairs} prompt pairs fit this tokenizer"
        failing = [reason for reason in SEAMS if reason in self.dropped]
        if 2 * sum(self.dropped[reason] for reason in failing) > self.n_pairs:
            commonest = max(failing, key=self.dropped.__getitem__)
            raise TaskError(
                f"{path}: only {of_all}, since most answers do not fit behind their prompts. "
                f"Dropped: {self.why}. For example: {self.examples[commonest]}."
            )
        if len(self.usable) < MIN_PAIRS:
            raise TaskError(
                f"{path}: only {of_all}, and a task needs {MIN_PAIRS} or more. "
                f"Dropped: {self.why or 'none'}. {self._hint()}"
            )

    def _hint(self) -> str:
        """What to change, with an example of the commonest reason, if there is one."""
        hint = "Use prompts of one length in tokens and answers of one token."
        if not self.examples:
            return hint
        commonest = max(self.examples, key=self.dropped.__getitem__)
        return f"{hint} For example: {self.examples[commonest]} ({commonest})."

    def remark(self) -> str:
        """What one should know of the pairs; empty if all is well."""
        remarks = []
        if self.dropped:
            remarks.append(
                f"kept {len(self.usable)} of {self.n_pairs} prompt pairs (dropped: {self.why})"
            )
        run_on = [encoded.run_on for encoded in self.usable if encoded.run_on]
        if run_on:
            remarks.append(
                f"in {len(run_on)} pairs an answer carries on the last word of a prompt "
                f"({run_on[0]}); an answer that is a word of its own starts with a space"
            )
        return ". ".join(remarks)


def _fit(file: _TaskFile, tokenizer: Any, *, pad: bool) -> _Fit:
    """The pairs of a file as tokens, those that can be used, of the commonest length unless padded.

    Raises:
        TaskError: a special token inside a text.
    """
    everything = "\n".join(getattr(pair, key) for pair in file.pairs for key in TEXTS)
    named = {i: token for i, token in special_tokens(tokenizer).items() if token in everything}
    usable, dropped, examples = [], Counter(), {}
    for pair, place in zip(file.pairs, file.places, strict=True):
        _require_plain_text(pair, place, named, tokenizer)
        try:
            usable.append(_encode(pair, tokenizer))
        except _Misfit as misfit:
            dropped[misfit.reason] += 1
            examples.setdefault(misfit.reason, misfit.example)
    of_other_length = {}
    if not pad:
        usable, of_other_length = _of_the_commonest_length(usable)
    return _Fit(usable, dict(dropped) | of_other_length, examples)


def _require_plain_text(
    pair: PromptPair, place: str, special: Mapping[int, str], tokenizer: Any
) -> None:
    """Raise `TaskError` where a text of a pair holds a special token, such as a second BOS.

    Args:
        place: where the pair is.
        special: the special tokens that may be in it, by id.
    """
    for key in TEXTS:
        text = getattr(pair, key)
        inside = [i for i, token in special.items() if token in text]
        inside = set(inside).intersection(token_ids(tokenizer, text)) if inside else set()
        if inside:
            tokens = ", ".join(repr(special[i]) for i in sorted(inside))
            raise TaskError(
                f"{place}: {key} holds {tokens}, special in this tokenizer. Prompts and answers "
                "are plain text, and load_task puts BOS before them: take it out."
            )


def _encode(pair: PromptPair, tokenizer: Any) -> _EncodedPair:
    """The tokens of a pair.

    Raises:
        _Misfit: a pair that cannot be used by itself.
    """
    clean, patch = token_ids(tokenizer, pair.clean_prefix), token_ids(tokenizer, pair.patch_prefix)
    prompts = {pair.clean_prefix: clean, pair.patch_prefix: patch}
    clean_answer, patch_answer = (
        _answer_token(answer, prompts, tokenizer)
        for answer in (pair.clean_answer, pair.patch_answer)
    )
    if clean_answer == patch_answer:
        raise _Misfit(
            "both answers are the same token", f"{pair.clean_answer!r}, {pair.patch_answer!r}"
        )
    if len(clean) != len(patch):
        raise _Misfit(
            "clean and patch of different lengths",
            f"{len(clean)} tokens in {pair.clean_prefix!r}, {len(patch)} in {pair.patch_prefix!r}",
        )
    return _EncodedPair(pair, clean, patch, clean_answer, patch_answer)


def _answer_token(answer: str, prompts: Mapping[str, list[int]], tokenizer: Any) -> int:
    """The one token that an answer adds to each of two prompts, given with their tokens.

    Both, since both answers are compared after the clean prompt and after the patch prompt.

    Raises:
        _Misfit: no such token.
    """
    added = set()
    for prompt, prompt_ids in prompts.items():
        ids = continuation(tokenizer, prompt, answer, prompt_ids)
        wrong = _wrong_seam(prompt, answer, holds=ids is not None)
        if ids is None or wrong:
            raise _Misfit(wrong, _seam(prompt, answer))
        if len(ids) != 1:
            reason = "answer of more than one token" if ids else "answer that adds no token"
            raise _Misfit(reason, _seam(prompt, answer))
        added.add(ids[0])
    if len(added) > 1:
        raise _Misfit("answer whose token depends on the prompt", repr(answer))
    return added.pop()


def _wrong_seam(prompt: str, answer: str, *, holds: bool) -> str:
    """Which of `SEAMS` is wrong; empty if none.

    Args:
        holds: whether the prompt has the same tokens with the answer behind it.
    """
    ends_in_one_space = prompt[-1:] == " " and not prompt[-2:-1].isspace()
    if ends_in_one_space and answer[:1] == " ":
        return TWO_SPACES  # more than one are somebody's indentation
    if holds:
        return ""
    if prompt[-1:] == " ":
        return SPACE_BEHIND_PROMPT
    return NO_SPACE if _runs_on(prompt, answer) else MERGED


def _runs_on(prompt: str, answer: str) -> bool:
    """Whether an answer carries on the last word of a prompt, in a script that parts its words."""
    return all(letter.lower() != letter.upper() for letter in (prompt[-1:], answer[:1]))


def _seam(prompt: str, answer: str, *, most: int = 40) -> str:
    """Prompt and answer, the prompt by its end."""
    end = prompt if len(prompt) <= most else f"…{prompt[-most:]}"
    return f"{end!r} + {answer!r}"


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


def is_path(name: str | Path) -> bool:
    """Whether this is a path and not the name of a task."""
    if isinstance(name, Path):
        return True
    separators = {"/", os.sep, os.altsep or os.sep}
    return name.endswith((".json", ".jsonl")) or any(mark in name for mark in separators)


def _find(name: str | Path, split: str) -> Path:
    """The file of a task."""
    if is_path(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise TaskError(f"no such task file: {path}")
        return path
    known = available_tasks()
    if not known:
        raise TaskError(f"no task files in {TASKS_DIR}. {HOW_TO_WRITE}")
    if name not in known:
        raise TaskError(
            f"unknown task {name!r}. Known tasks: {', '.join(known)}; or give the path of a .jsonl "
            f"or .json file with the keys {', '.join(KEYS)}."
        )
    if split not in SPLITS:
        raise TaskError(f"split must be 'train', 'dev' or 'test', not {split!r}")
    path = TASKS_DIR / f"{name}_{split}.jsonl"
    if not path.is_file():
        raise TaskError(f"{path} is missing. {HOW_TO_WRITE}")
    return path


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TaskFile:
    """What a task file holds.

    Attributes:
        pairs: its prompt pairs.
        places: where each of them is, for messages: file and line, or file and entry.
        ignored: the keys that mean nothing here, in the order in which they first appear.
    """

    pairs: list[PromptPair]
    places: list[str]
    ignored: list[str]

    def remark(self) -> str:
        """Which keys were ignored; empty if none was."""
        return f"ignored the keys {', '.join(self.ignored)}" if self.ignored else ""


def read_pairs(path: Path) -> list[PromptPair]:
    """The prompt pairs of a task file: JSON objects, one a line (blank lines are passed over), or
    all in one list.

    Raises:
        TaskError: naming file and line, or the number of the entry in the list, where that is no
            JSON object or lacks one of the keys.
    """
    return _read(path).pairs


def _read(path: Path) -> _TaskFile:
    """A task file, with what is said of it later."""
    text = _text_of(path)
    is_list = text.lstrip().startswith("[")
    pairs, places, ignored = [], [], {}
    for place, record in _list_of(text, path) if is_list else _lines_of(text, path):
        try:
            pairs.append(_pair(record))
        except TaskError as error:
            raise TaskError(f"{place}: {error}") from error
        places.append(place)
        ignored |= dict.fromkeys(key for key in record if key not in KEYS)
    return _TaskFile(pairs, places, list(ignored))


def _text_of(path: Path) -> str:
    """The text of a file, without a byte-order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise TaskError(
            f"{path}, line {number}: not UTF-8 ({error}). Save the file as UTF-8."
        ) from error


def _list_of(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of one JSON list, and where each is."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(error, path, error.lineno) from error
    for number, entry in enumerate(entries, start=1):
        yield f"{path}, entry {number}", entry


def _lines_of(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The JSON values of lines, and where each is."""
    for number, line in enumerate(text.split("\n"), start=1):  # U+2028 may be part of a text
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise _not_json(error, path, number) from error


def _not_json(error: json.JSONDecodeError, path: Path, line: int) -> TaskError:
    return TaskError(
        f"{path}, line {line}: not JSON ({error.msg}, column {error.colno}). One object a line, "
        "please, or one list of objects."
    )


def _pair(record: Any) -> PromptPair:
    """The prompt pair of a JSON object; ``case`` may be missing."""
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
