"""Run a code model over interpreter sessions, Python source and English, and keep its residual
stream for `train_saes.py`.

    python -m tools.collect_activations --lab qwen-coder --corpus english.txt --tokens 150000
    python -m tools.train_saes --lab qwen-coder --activations build/activations/qwen-coder …

For a model of this size the forward pass is most of the work, so it is done once: what it leaves
behind is read as often as the SAEs want to. Every 25th shard is held out, with source files and
paragraphs of its own. Sequence ``i`` is the same in every run with the same seed. One shard at a
time is written; stop it and run the same command again to go on.

The sessions are of the course's kinds (dictionaries and lists, and what is asked of them), with
what Python itself answers. Their keys are any words that are one token, but no key of the dev or
test prompts in any spelling: an SAE that has learned a direction for each name it knows would be no
use for names that it does not know.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import io
import json
import keyword
import logging
import random
import re
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from course_utils.labs.lab import hook_point
from course_utils.prompts.sessions import DICTIONARIES, KEYS, LISTS
from course_utils.prompts.tokens import token_ids
from tools.train_saes import ROOT, KeptActivations, load_model, read_paragraphs, residuals

log = logging.getLogger("collect_activations")

SHARES = {"session": 0.75, "python": 0.17, "english": 0.08}
"""Which part of the sequences is what."""
TESTED = {key.lower() for key in KEYS["dev"] + KEYS["test"]}

# ---------------------------------------------------------------------------------------------
# Sessions
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """One-token words to make keys of: the train split's names, and any others."""

    names: tuple[str, ...]
    capitalised: tuple[str, ...]
    lower: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer) -> Words:
        """Those of a tokenizer. None is a key of dev or test in any spelling."""
        words = sorted(
            word for word in tokenizer.get_vocab() if word.isascii() and word.lower() not in TESTED
        )
        capitalised = tuple(word for word in words if re.fullmatch("[A-Z][a-z]{2,9}", word))
        lower = tuple(word for word in words if re.fullmatch("[a-z]{3,9}", word))
        return cls(KEYS["train"], capitalised, lower)

    def draw(self, rng: random.Random, n: int) -> list[str]:
        """``n`` different words."""
        drawn: dict[str, None] = {}
        while len(drawn) < n:
            kind = rng.choices((self.names, self.capitalised, self.lower), (35, 45, 20))[0]
            drawn[rng.choice(kind)] = None
        return list(drawn)


def transcript(lines: list[str]) -> str:
    """What the interpreter shows when these lines are typed: each with its answer, errors
    included.
    """
    names: dict = {}
    shown = []
    for line in lines:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                exec(compile(line, "<stdin>", "single"), names)
            except Exception as error:
                print("Traceback (most recent call last):")
                print('  File "<stdin>", line 1, in <module>')
                print(f"{type(error).__name__}: {error}")
        shown.append(f">>> {line}\n{out.getvalue()}")
    return "".join(shown)


def plain_dictionary(words: Words, rng: random.Random) -> list[str]:
    """A dictionary as in the course's tasks, and questions of it."""
    *keys, missing = words.draw(rng, 6)
    variable = rng.choice(DICTIONARIES["train"])
    items = ", ".join(f"'{key}': {value}" for key, value in zip(keys, rng.sample(range(10), 5)))
    there = rng.sample(keys, 3)
    asked = rng.choice(([missing], [there[0], missing], [there[0], there[1], missing], there))
    return [f"{variable} = {{{items}}}"] + [f"{variable}['{key}']" for key in asked]


def other_dictionary(words: Words, rng: random.Random) -> list[str]:
    """Dictionaries of other sizes and kinds, keys that look alike, comments, and other
    questions.
    """
    keys = words.draw(rng, rng.randint(3, 7))
    odd = rng.choice(words.names if rng.random() < 0.5 else keys)
    twists = [
        odd.lower(),
        odd.upper(),
        f"{words.draw(rng, 1)[0]} {odd}",
        f"{odd} {words.draw(rng, 1)[0]}",
        odd + rng.choice(("ie", "a", "s", "2", "son")),
    ]
    twists = [twist for twist in twists if twist.lower() not in TESTED]
    keys[rng.randrange(len(keys))] = rng.choice(twists)
    kind = rng.choice(("digit", "digit", "number", "word", "key"))
    values = {
        "digit": lambda: str(rng.randrange(10)),
        "number": lambda: str(rng.randrange(100)),
        "word": lambda: repr(words.draw(rng, 1)[0]),
        "key": lambda: repr(rng.choice([odd, *keys])),
    }
    variable = rng.choice(DICTIONARIES["train"]) if rng.random() < 0.6 else rng.choice(words.lower)
    if keyword.iskeyword(variable) or variable in dir(builtins):
        variable = "rank"
    comment = (
        f"  # {rng.choice(('no', 'without', 'with', 'see', 'not'))} {odd}"
        if rng.random() < 0.15
        else ""
    )
    lines = [f"{variable} = {{{', '.join(f'{key!r}: {values[kind]()}' for key in keys)}}}{comment}"]
    if rng.random() < 0.15:
        lines.insert(0, f"{rng.choice(DICTIONARIES['train'])} = {{{odd!r}: {rng.randrange(10)}}}")
    ask = (
        lambda: f"{variable}[{odd!r}]",
        lambda: f"{variable}[{rng.choice(keys)!r}]",
        lambda: f"{variable}[{words.draw(rng, 1)[0]!r}]",
        lambda: f"{odd!r} in {variable}",
        lambda: f"{variable}.get({odd!r})",
        lambda: f"len({variable})",
        lambda: f"{variable}[{odd!r}] = {rng.randrange(10)}",
        lambda: f"del {variable}[{rng.choice(keys)!r}]",
    )
    return lines + [
        rng.choices(ask, (4, 4, 3, 1, 1, 1, 1, 1))[0]() for _ in range(rng.randint(1, 3))
    ]


def plain_list(words: Words, rng: random.Random) -> list[str]:
    """A list as in the course's tasks, and questions of it."""
    variable, items = rng.choice(LISTS["train"]), rng.sample(range(10), 5)
    inside, beyond = rng.sample(range(5), 3), rng.randrange(5, 10)
    asked = rng.choice(([beyond], [inside[0], beyond], [inside[0], inside[1], beyond], inside))
    return [f"{variable} = {items}"] + [f"{variable}[{index}]" for index in asked]


def other_list(words: Words, rng: random.Random) -> list[str]:
    """Lists of other lengths and kinds, and other questions."""
    variable, n = rng.choice(LISTS["train"]), rng.randint(2, 9)
    items = rng.choice(
        (
            [rng.randrange(10) for _ in range(n)],
            [rng.randrange(100) for _ in range(n)],
            words.draw(rng, n),
        )
    )
    ask = (
        lambda: f"{variable}[{rng.randrange(12)}]",
        lambda: f"{variable}[-{rng.randint(1, n)}]",
        lambda: f"len({variable})",
        lambda: f"{variable}[{rng.randrange(n)}:]",
        lambda: f"{variable}.append({rng.randrange(10)})",
    )
    return [f"{variable} = {items}"] + [
        rng.choices(ask, (6, 1, 1, 1, 1))[0]() for _ in range(rng.randint(1, 4))
    ]


SESSIONS = {plain_dictionary: 50, other_dictionary: 25, plain_list: 15, other_list: 10}


def session(words: Words, rng: random.Random) -> str:
    """The transcript of one session."""
    kind = rng.choices(list(SESSIONS), list(SESSIONS.values()))[0]
    return transcript(kind(words, rng))


# ---------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------


class Source:
    """Token sequences ``[seq_len]`` that start with BOS: sequence ``i`` of one part, trained on or
    held out.
    """

    def __init__(self, tokenizer, corpora: list[Path], *, seq_len: int, seed: int):
        self.tokenizer, self.seq_len, self.seed = tokenizer, seq_len, seed
        self.words = Words.of(tokenizer)
        self.paragraphs = dict(zip((False, True), read_paragraphs(corpora)))
        if not self.paragraphs[True]:
            raise ValueError(
                "the corpus has too few paragraphs to hold any out: "
                "40 or more of over 40 characters are wanted."
            )
        stdlib = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        self.files = {False: [p for i, p in enumerate(stdlib) if i % 10], True: stdlib[::10]}

    def sequence(self, i: int, held_out: bool) -> tuple[list[int], int]:
        """The tokens, and which of `SHARES` they are."""
        rng = random.Random(f"{self.seed}/{held_out}/{i}")
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        row = [self.tokenizer.bos_token_id]
        while len(row) < self.seq_len:
            row += token_ids(self.tokenizer, getattr(self, f"_{kind}")(rng, held_out))
        return row[: self.seq_len], list(SHARES).index(kind)

    def _session(self, rng: random.Random, held_out: bool) -> str:
        return session(self.words, rng)

    def _python(self, rng: random.Random, held_out: bool) -> str:
        lines = rng.choice(self.files[held_out]).read_text(
            encoding="utf-8", errors="replace"
        ).splitlines(keepends=True) or ["pass\n"]
        start = rng.randrange(len(lines))
        return "".join(lines[start : start + 12])

    def _english(self, rng: random.Random, held_out: bool) -> str:
        return rng.choice(self.paragraphs[held_out]) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lab", default="qwen-coder")
    parser.add_argument(
        "--model", type=Path, help="a folder with a Hugging Face model, instead of the lab's"
    )
    parser.add_argument(
        "--bos", help="the token that starts every sequence (default: the tokenizer's BOS)"
    )
    parser.add_argument(
        "--corpus", type=Path, nargs="+", required=True, help="plain English, one paragraph a line"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 8, 11, 14, 18, 25])
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--seq-len", type=int, default=56)
    parser.add_argument("--batch-size", type=int, default=48, help="sequences a shard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--out", type=Path, help="default: build/activations/<lab>")
    args = parser.parse_args(argv)
    args.out = args.out or ROOT / "build" / "activations" / args.lab
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = {
        name: getattr(args, name) for name in ("lab", "layers", "seq_len", "batch_size", "seed")
    }
    record = args.out / "settings.json"
    if record.exists() and json.loads(record.read_text()) != settings:
        parser.error(
            f"{args.out} holds shards made with other settings: {record.read_text()}. "
            f"Give the same, or another --out."
        )
    record.write_text(json.dumps(settings))
    model, tokenizer = load_model(args)
    source = Source(tokenizer, args.corpus, seq_len=args.seq_len, seed=args.seed)
    per_shard = args.batch_size * (args.seq_len - 1)
    for shard in range(-(-args.tokens // per_shard)):
        path = args.out / f"shard_{shard:04d}.safetensors"
        if path.exists():
            continue
        held_out = shard % KeptActivations.HELD_OUT_EVERY == 0
        rows, kinds = zip(
            *(
                source.sequence(shard * args.batch_size + i, held_out)
                for i in range(args.batch_size)
            )
        )
        tokens = torch.tensor(rows)
        started = time.perf_counter()
        streams = residuals(model, tokens.to(args.device), args.layers)
        tensors = {
            hook_point(layer): streams[hook_point(layer)].to("cpu", torch.float16).contiguous()
            for layer in args.layers
        }
        bad = [name for name, x in tensors.items() if not x.isfinite().all()]
        if bad:
            raise RuntimeError(f"activations at {bad} do not fit into float16.")
        part = path.with_suffix(".part")
        save_file({**tensors, "tokens": tokens, "kind": torch.tensor(kinds)}, part)
        part.replace(path)
        log.info("%s: %.0f tokens/s", path.name, per_shard / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
