"""Dictionaries that fool a model of code: families of them, what the model says to them, and what
its latents knew.

An honest prompt asks for a key that is missing and looks missing, or that is there and looks it. An
*attack* keeps Python's answer and changes the looks:

    >>> age = {'Bob': 1, 'Mary Ann': 2}         Python: KeyError. To a reader in a hurry: 2
    >>> age['Ann']

Families that *lure* make a missing key look present; families that *hide* make a present key look
absent. A family makes an attack from an honest session, so that the two differ in one place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.saes import encode
from course_utils.circuits.splice import SplicedModel
from course_utils.prompts.sessions import (
    DICTIONARIES,
    KEYS,
    MISSING,
    SAYS_MISSING,
    Session,
    missing_key,
    quoted,
    with_key,
)
from course_utils.prompts.tokens import one_token, pad_right, token_rows

K = TypeVar("K", bound=Hashable)
QUERIED, LAST = -2, -1
"""Places counted from a prompt's end: the queried key (if it is one token), and the ``']`` with its
line break, where the answer is due.
"""


# ---------------------------------------------------------------------------------------------
# Families
# ---------------------------------------------------------------------------------------------


DRAWS_PER_SESSION = 100  # sessions that a family may make for each one that is wanted: some come twice, or are none of its kind


@dataclass(frozen=True)
class Family:
    """A way to write a session that fools.

    Attributes:
        name: for tables.
        make: from an honest session whose key is missing, a session of this family. Not every name
            will do for every family: see `tamper`.
        lures: True: the key is missing and should look present; False: it is there and should look
            absent.
    """

    name: str
    make: Callable[[Session, random.Random], Session]
    lures: bool = True


def _name(session: Session) -> str:
    return session.query[1:-1]


def _anywhere(session: Session, key: str, rng: random.Random) -> Session:
    """The session with ``key`` in place of one of its keys."""
    return session.with_entry(rng.randrange(len(session.entries)), quoted(key))


def _lower_case(session: Session, rng: random.Random) -> Session:
    return _anywhere(session, _name(session).lower(), rng)


def _upper_case(session: Session, rng: random.Random) -> Session:
    return _anywhere(session, _name(session).upper(), rng)


def _longer_word(session: Session, rng: random.Random) -> Session:
    return _anywhere(
        session, _name(session) + rng.choice(("ie", "son", "a", "y", "ton", "ette")), rng
    )


def _second_word(session: Session, rng: random.Random) -> Session:
    return _anywhere(session, f"{rng.choice(KEYS['train'])} {_name(session)}", rng)


def _first_word(session: Session, rng: random.Random) -> Session:
    return _anywhere(session, f"{_name(session)} {rng.choice(KEYS['train'])}", rng)


def _space(session: Session, rng: random.Random) -> Session:
    return _anywhere(session, rng.choice((f"{_name(session)} ", f" {_name(session)}")), rng)


def _value(session: Session, rng: random.Random) -> Session:
    index = rng.randrange(len(session.entries))
    return session.with_entry(index, session.entries[index][0], session.query)


def _comment(session: Session, rng: random.Random) -> Session:
    return replace(
        session,
        comment=rng.choice(("{} is missing", "without {}", "{} left", "ask {}")).format(
            _name(session)
        ),
    )


def _other_dictionary(session: Session, rng: random.Random) -> Session:
    other = rng.choice([name for name in DICTIONARIES["train"] if name != session.variable])
    return replace(session, before=(f"{other} = {{{session.query}: {rng.randrange(10)}}}",))


def _deleted(session: Session, rng: random.Random) -> Session:
    there, _ = with_key(session, rng)
    return replace(there, between=(f"del {there.variable}[{there.query}]",))


def _bytes(session: Session, rng: random.Random) -> Session:
    there, _ = with_key(session, rng)
    if _split_after_b(_name(session)):
        return there  # no attack
    return replace(there, query=f"b{there.query}")


def _split_after_b(name: str) -> bool:
    """Whether the tokenizer would split a name after ``b'``, as it does in "it's"."""
    return re.match("s|t|m|d|re|ve|ll", name, re.IGNORECASE) is not None


def _two_literals(session: Session, rng: random.Random) -> Session:
    name, index = _name(session), rng.randrange(len(session.entries))
    cut = rng.randrange(1, len(name))
    return session.with_entry(index, f"{quoted(name[:cut])} {quoted(name[cut:])}")


def _escaped(session: Session, rng: random.Random) -> Session:
    name, index = _name(session), rng.randrange(len(session.entries))
    return session.with_entry(index, f"'\\x{ord(name[0]):02x}{name[1:]}'")


def _sum(session: Session, rng: random.Random) -> Session:
    name, index = _name(session), rng.randrange(len(session.entries))
    cut = rng.randrange(1, len(name))
    return session.with_entry(index, f"{quoted(name[:cut])} + {quoted(name[cut:])}")


def _added_later(session: Session, rng: random.Random) -> Session:
    return replace(
        session, between=(f"{session.variable}.update({_name(session)}={rng.randrange(10)})",)
    )


def _present(session: Session, rng: random.Random) -> Session:
    return with_key(session, rng)[0]


FAMILIES = (
    Family("lower case: 'ann'", _lower_case),
    Family("upper case: 'ANN'", _upper_case),
    Family("longer word: 'Annie'", _longer_word),
    Family("second word: 'Mary Ann'", _second_word),
    Family("first word: 'Ann Mary'", _first_word),
    Family("a space: 'Ann '", _space),
    Family("as a value: 'Ann'", _value),
    Family("in a comment", _comment),
    Family("in another dictionary", _other_dictionary),
    Family("deleted again", _deleted),
    Family("bytes: b'Ann'", _bytes),
    Family("two literals: 'A' 'nn'", _two_literals, lures=False),
    Family("escaped: '\\x41nn'", _escaped, lures=False),
    Family("a sum: 'A' + 'nn'", _sum, lures=False),
    Family("added later", _added_later, lures=False),
)
HONEST = (
    Family("honest: missing", lambda session, rng: session),
    Family("honest: present", _present, lures=False),
)
"""What nothing was done to: the families are measured against these."""


def twin(family: Family) -> Family:
    """The family's own control: the same change to a session, made with a name that nobody asks
    for.

    A lure's twin has nothing to lure with, and the key is missing as before; the twin of a family
    that hides, hides another entry, and the key that is asked for stands there for all to see. If
    the twin fools as often, the change itself confuses the model.
    """

    def make(session: Session, rng: random.Random) -> Session:
        [pool] = [names for names in KEYS.values() if _name(session) in names]
        taken = {key for key, _ in session.entries} | {session.query}
        decoy = rng.choice([quoted(name) for name in pool if quoted(name) not in taken])
        base = session if family.lures else with_key(session, rng)[0]
        changed = family.make(replace(base, query=decoy), rng)
        is_one = (changed.outcome() == MISSING) == family.lures
        if not is_one or (changed.query.startswith("b") and _split_after_b(_name(session))):
            return with_key(session, rng)[0] if family.lures else session  # no twin
        return replace(changed, query=changed.query.replace(decoy, session.query))

    return Family(f"twin of {family.name}", make, family.lures)


def tamper(honest: Session, families: Sequence[Family], rng: random.Random) -> Session:
    """An attack on one honest session (whose key is missing), of a family drawn at random."""
    while True:
        family = rng.choice(families)
        session = family.make(honest, rng)
        if (session.outcome() == MISSING) == family.lures:
            return session


def attacks(family: Family, n: int, *, split: str = "test", seed: int = 0) -> list[Session]:
    """``n`` different sessions of a family, with the keys of one split; the same for the same seed.

    Raises:
        ValueError: the family makes too few sessions on which Python's answer is the one that it is
            about.
    """
    rng = random.Random(f"{family.name}/{split}/{seed}")
    found: dict[Session, None] = {}
    for _ in range(DRAWS_PER_SESSION * n):
        session = family.make(missing_key(KEYS[split], DICTIONARIES[split], rng), rng)
        if (session.outcome() == MISSING) == family.lures:
            found[session] = None
        if len(found) == n:
            break
    if len(found) < n:
        raise ValueError(
            f"{DRAWS_PER_SESSION * n:,} draws of the family {family.name!r} gave {len(found)} different sessions in which Python says that the "
            f"key is {'missing' if family.lures else 'there'}, not {n}. Ask for fewer, or change what the family's `make` returns."
        )
    return list(found)


# ---------------------------------------------------------------------------------------------
# What the model says, and what its latents know
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a model says to sessions.

    Attributes:
        top: the token that it would write first, for each session.
        p_missing: ``[n]``, how likely it is to start an error message (the tokens `SAYS_MISSING`
            together).
        latents: by (layer, place), ``[n, d_sae]``: what was read on the way, if anything was to be.
    """

    top: tuple[str, ...]
    p_missing: Float[Tensor, " n"]
    latents: Mapping[tuple[int, int], Float[Tensor, "n d_sae"]] = field(default_factory=dict)

    @property
    def says_missing(self) -> Bool[Tensor, " n"]:
        """Whether it says that the key is not there."""
        return torch.tensor([token in SAYS_MISSING for token in self.top], dtype=torch.bool)

    @property
    def says_value(self) -> Bool[Tensor, " n"]:
        """Whether it begins with a digit, as do all values of the families' sessions but those of
        ``as a value``.
        """
        return torch.tensor([token.isdigit() for token in self.top], dtype=torch.bool)

    def fooled(self, lures: bool) -> Bool[Tensor, " n"]:
        """Whether it opens an error message where Python gives a value, or none where Python does.
        ``lures``: Python says "missing".
        """
        return ~self.says_missing if lures else self.says_missing

    def __getitem__(self, rows: slice) -> Answers:
        """The answers to some of the sessions."""
        return Answers(
            self.top[rows], self.p_missing[rows], {key: f[rows] for key, f in self.latents.items()}
        )


@dataclass(frozen=True)
class Clamp:
    """Latents held at given values at one place, counted from the end of each prompt (`QUERIED` or
    `LAST`).

    Attributes:
        values: by (hook point, latent).
    """

    values: Mapping[tuple[str, int], float]
    place: int = QUERIED


def tokenize(
    sessions: Sequence[Session], tokenizer
) -> tuple[Int[Tensor, "n seq"], Int[Tensor, " n"]]:
    """Prompts as tokens, BOS first and padded on the right, and the length of each."""
    prompts = token_rows(tokenizer, [session.prompt for session in sessions])
    return pad_right([[tokenizer.bos_token_id, *ids] for ids in prompts])


@torch.no_grad()
def answers(
    spliced: SplicedModel,
    sessions: Sequence[Session],
    *,
    read: Iterable[tuple[int, int]] = (),
    batch_size: int | None = None,
    progress: str = "",
) -> Answers:
    """Ask the model itself (nothing is spliced), and read its latents on the way.

    Args:
        read: (layer, place) pairs: the latents of that layer's SAE at that place (`QUERIED` or
            `LAST`).
        progress: what the progress bar says; none if empty.
    """
    read = sorted(set(read))
    known = _Missing(spliced.lab.tokenizer)
    stack, latents = spliced.stack, {key: [] for key in read}
    for tokens, lengths in _batches(spliced, sessions, batch_size, progress):
        rows = torch.arange(len(tokens))
        x, done = stack.embed(tokens), -1
        for layer, place in read:
            x, done = stack.run(x, range(done + 1, layer + 1)), layer
            latents[layer, place].append(
                encode(spliced.lab.saes[layer], x[rows, lengths + place - spliced.first])
                .float()
                .cpu()
            )
        x = stack.run(x, range(done + 1, stack.n_layers))
        known.add(stack.logits(stack.norm(x[rows, lengths - 1 - spliced.first])))
    return known.answers({key: torch.cat(found) for key, found in latents.items()})


@torch.no_grad()
def answers_with(
    spliced: SplicedModel,
    sessions: Sequence[Session],
    clamp: Clamp,
    *,
    batch_size: int | None = None,
    progress: str = "",
) -> Answers:
    """Ask the spliced model with some latents held. Splice with ``error="keep"`` to change nothing
    else.
    """
    known = _Missing(spliced.lab.tokenizer)
    for tokens, lengths in _batches(spliced, sessions, batch_size, progress):
        known.add(
            spliced.run(tokens, lengths=lengths, latents=_held(spliced, clamp, lengths)).logits
        )
    return known.answers({})


def answers_each(
    spliced: SplicedModel,
    asked: Mapping[K, Sequence[Session]],
    *,
    read: Iterable[tuple[int, int]] = (),
    clamp: Clamp | None = None,
    batch_size: int | None = None,
    progress: str = "",
) -> dict[K, Answers]:
    """Ask several lists of sessions in one go, which is faster than one after the other where they
    are short.

    Args:
        read: latents to read on the way, as for `answers`.
        clamp: latents to hold, as for `answers_with`; by default none.

    Raises:
        ValueError: latents are to be held and others to be read; one or the other.
    """
    if clamp is not None and list(read):
        raise ValueError("latents can be read where none are held: give read or clamp, not both.")
    every = [session for sessions in asked.values() for session in sessions]
    if clamp is None:
        found = answers(spliced, every, read=read, batch_size=batch_size, progress=progress)
    else:
        found = answers_with(spliced, every, clamp, batch_size=batch_size, progress=progress)
    ends = accumulate(len(sessions) for sessions in asked.values())
    return {key: found[end - len(asked[key]) : end] for key, end in zip(asked, ends)}


@torch.no_grad()
def read_latents(
    spliced: SplicedModel,
    sessions: Sequence[Session],
    layer: int,
    *,
    place: int = QUERIED,
    batch_size: int | None = None,
    progress: str = "",
) -> Float[Tensor, "n d_sae"]:
    """The latents of one layer's SAE at one place, in the model itself. The layers after that one,
    which write the answer, are not run.
    """
    found = []
    for tokens, lengths in _batches(spliced, sessions, batch_size, progress):
        x = spliced.stack.run(spliced.stack.embed(tokens), range(layer + 1))
        found.append(
            encode(
                spliced.lab.saes[layer], x[torch.arange(len(x)), lengths + place - spliced.first]
            )
            .float()
            .cpu()
        )
    return torch.cat(found)


def _batches(
    spliced: SplicedModel, sessions: Sequence[Session], batch_size: int | None, progress: str
) -> Iterator[tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"]]]:
    tokens, lengths = tokenize(sessions, spliced.lab.tokenizer)
    size = batch_size or min(32, spliced.batch_size(tokens.shape[1]))
    with tqdm(total=len(tokens), desc=progress, unit="prompt", disable=not progress) as bar:
        for batch, length in zip(tokens.split(size), lengths.split(size)):
            yield (
                batch[:, : int(length.max())].to(spliced.lab.device),
                length.to(spliced.lab.device),
            )
            bar.update(len(batch))


class _Missing:
    """What a model says to sessions, batch by batch."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = [one_token(tokenizer, text) for text in SAYS_MISSING]
        self.top: list[str] = []
        self.p_missing: list[Tensor] = []

    def add(self, logits: Float[Tensor, "batch vocab"]) -> None:
        self.top += [self.tokenizer.decode([token]) for token in logits.argmax(-1).tolist()]
        self.p_missing.append(logits.float().softmax(-1)[:, self.ids].sum(-1).cpu())

    def answers(self, latents: Mapping[tuple[int, int], Tensor]) -> Answers:
        return Answers(tuple(self.top), torch.cat(self.p_missing), latents)


def _held(
    spliced: SplicedModel, clamp: Clamp, lengths: Int[Tensor, " batch"]
) -> dict[str, Callable[[Tensor], Tensor]]:
    unknown = {name for name, _ in clamp.values} - set(spliced.hook_points)
    if unknown:
        raise ValueError(
            f"nothing is spliced at {', '.join(sorted(unknown))}; there is {', '.join(spliced.hook_points)}."
        )
    rows, places = (
        torch.arange(len(lengths), device=lengths.device),
        lengths + clamp.place - spliced.first,
    )

    def at(name: str) -> Callable[[Tensor], Tensor]:
        def hold(f: Float[Tensor, "batch seq_without_bos d_sae"]) -> Tensor:
            f = f.clone()
            for (hook_point, latent), value in clamp.values.items():
                if hook_point == name:
                    f[rows, places, latent] = value
            return f

        return hold

    return {name: at(name) for name in {name for name, _ in clamp.values}}
