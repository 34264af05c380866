"""Dictionaries that fool a model of code: how they are written, and what the model says to them.

An honest prompt asks for a key that is missing and looks missing, or that is there and looks it. An
*attack* keeps Python's answer and changes the looks:

    >>> age = {'Bob': 1, 'Mary Ann': 2}         Python: KeyError. To a reader in a hurry: 2
    >>> age['Ann']

Families that *lure* make a missing key look present; families that *hide* make a present key look
absent. A family makes an attack from an honest session, so that the two differ in one place.

What the model's latents knew is read, or held, at two places of each prompt: the queried key and
the end.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.saes import encode
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.starts import Start
from course_utils.labs.lab import hook_point
from course_utils.prompts.grammar import generator_of
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

CIRCUITS = {"dict_key": (60, 183), "list_index": (174,)}
"""The circuits of notebook 06: wanted numbers of nodes, by task. The largest are the post's."""
LEARNING = {"steps": 40, "batch_size": 4, "lr": 0.2, "max_logit": 6.0}
"""How they are learned: settings of `learn_masks`, chosen on dev."""
N_LEARN = 64
"""On how many training prompts."""
SCORING = {"steps": 5}
"""How the nodes are scored that circuits are compared with: settings of `ranking.best_ranking`."""
N_SCORED = 32
"""On how many of the training prompts; integrated gradients cost more than a mask does."""

DRAWS_PER_SESSION = 100
"""How many sessions a family may make for each one that is wanted: some come twice, or are none of
its kind.
"""


# ---------------------------------------------------------------------------------------------
# Families
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A way to write a session that fools.

    Attributes:
        name: for tables.
        make: from an honest session whose key is missing, a session of this family. Not every name
            will do for every family: then Python's answer is not the one that `lures` promises.
        lures: True: the key is missing and should look present; False: it is there and should look
            absent.
    """

    name: str
    make: Callable[[Session, random.Random], Session]
    lures: bool = True

    def has(self, session: Session) -> bool:
        """Whether Python's answer to a session is the one that the family is about."""
        return (session.outcome() == MISSING) == self.lures


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
    ending = rng.choice(("ie", "son", "a", "y", "ton", "ette"))
    return _anywhere(session, _name(session) + ending, rng)


def _second_word(session: Session, rng: random.Random) -> Session:
    return _anywhere(session, f"{rng.choice(KEYS['train'])} {_name(session)}", rng)


def _first_word(session: Session, rng: random.Random) -> Session:
    return _anywhere(session, f"{_name(session)} {rng.choice(KEYS['train'])}", rng)


def _space(session: Session, rng: random.Random) -> Session:
    spaced = rng.choice((f"{_name(session)} ", f" {_name(session)}"))
    return _anywhere(session, spaced, rng)


def _value(session: Session, rng: random.Random) -> Session:
    index = rng.randrange(len(session.entries))
    return session.with_entry(index, session.entries[index][0], session.query)


def _comment(session: Session, rng: random.Random) -> Session:
    comment = rng.choice(("{} is missing", "without {}", "{} left", "ask {}"))
    return replace(session, comment=comment.format(_name(session)))


def _other_dictionary(session: Session, rng: random.Random) -> Session:
    other = rng.choice([name for name in DICTIONARIES["train"] if name != session.variable])
    line = f"{other} = {{{session.query}: {rng.randrange(10)}}}"
    return replace(session, before=(line,))


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
    line = f"{session.variable}.update({_name(session)}={rng.randrange(10)})"
    return replace(session, between=(line,))


def _present(session: Session, rng: random.Random) -> Session:
    there, _ = with_key(session, rng)
    return there


def _missing(session: Session, rng: random.Random) -> Session:
    return session


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
    Family("honest: missing", _missing),
    Family("honest: present", _present, lures=False),
)
"""What nothing was done to: the families are measured against these."""


def tamper(honest: Session, families: Sequence[Family], rng: random.Random) -> Session:
    """An attack on one honest session (whose key is missing), of a family drawn at random.

    Raises:
        ValueError: none of many draws gave a session on which Python's answer is the one that its
            family is about.
    """
    for _ in range(DRAWS_PER_SESSION):
        family = rng.choice(families)
        session = family.make(honest, rng)
        if family.has(session):
            return session
    names = ", ".join(repr(family.name) for family in families)
    raise ValueError(
        f"{DRAWS_PER_SESSION} draws of {names} gave no session of its family's kind from "
        f"{honest.prompt!r}. Take another session or other families."
    )


def attacks(family: Family, n: int, *, split: str = "dev", seed: int = 0) -> list[Session]:
    """``n`` different sessions of a family, with the keys of one split; the same for the same seed.

    Args:
        split: ``"train"``, ``"dev"`` or ``"test"``. Only what is reported reads test, so it is not
            the default.

    Raises:
        ValueError: unknown split; the family makes too few sessions on which Python's answer is the
            one that it is about.
    """
    return [drawn.attack for drawn in _drawn(family, n, split, seed)]


@dataclass(frozen=True)
class _Drawn:
    """How an attack came about.

    Attributes:
        honest: the session that it was made from.
        state: of the random numbers, before the family took some.
        attack: what the family made.
    """

    honest: Session
    state: tuple
    attack: Session


def _drawn(family: Family, n: int, split: str, seed: int) -> list[_Drawn]:
    """``n`` different attacks of a family, each with where it came from."""
    rng = generator_of(family.name, split, seed)
    found: dict[Session, _Drawn] = {}
    n_draws = DRAWS_PER_SESSION * n
    for _ in range(n_draws):
        honest, state = missing_key(KEYS[split], DICTIONARIES[split], rng), rng.getstate()
        attack = family.make(honest, rng)
        if family.has(attack):
            found.setdefault(attack, _Drawn(honest, state, attack))
        if len(found) == n:
            break
    if len(found) < n:
        kind = "missing" if family.lures else "there"
        raise ValueError(
            f"{n_draws:,} draws of the family {family.name!r} gave {len(found)} different "
            f"sessions in which Python says that the key is {kind}, not {n}. Ask for fewer, or "
            "change what the family's `make` returns."
        )
    return list(found.values())


def twins(family: Family, n: int, *, split: str = "dev", seed: int = 0) -> list[Session]:
    """The twin of each of ``attacks(family, n, split=split, seed=seed)``, in their order.

    A twin is the same change to the same session, made with a name that nobody asks for. A lure's
    twin has nothing to lure with, and the key is missing as before; the twin of a family that hides
    hides another entry, and the key that is asked for stands there for all to see. If the twin
    fools as often, the change itself confuses the model, and not the name.

    The two share variable, entries, values, and what is drawn at random for the change, so that
    they can be compared pair by pair.

    Raises:
        ValueError: see `attacks`; an attack of which no name makes a twin.
    """
    rng = generator_of(f"twin of {family.name}", split, seed)
    return [_twin_of(family, drawn, rng) for drawn in _drawn(family, n, split, seed)]


def _twin_of(family: Family, drawn: _Drawn, rng: random.Random) -> Session:
    """The family's change once more, with the same random numbers and another name."""
    for _ in range(DRAWS_PER_SESSION):
        decoy = _unused_key(drawn.honest, rng)
        base = drawn.honest if family.lures else _present(drawn.honest, rng)
        again = random.Random()
        again.setstate(drawn.state)
        changed = family.make(replace(base, query=decoy), again)
        made = replace(changed, query=changed.query.replace(decoy, drawn.honest.query))
        # Python's answer is to be the family's for the decoy, or its change did nothing
        if family.has(changed) and family.has(made):
            return made
    raise ValueError(
        f"{DRAWS_PER_SESSION} names gave no twin of {drawn.attack.prompt!r}, which the family "
        f"{family.name!r} made. Change what the family's `make` returns."
    )


def _unused_key(session: Session, rng: random.Random) -> str:
    """A key of the same split that the session does not use, as Python source."""
    [names] = [names for names in KEYS.values() if _name(session) in names]
    used = {key for key, _ in session.entries} | {session.query}
    return rng.choice([quoted(name) for name in names if quoted(name) not in used])


# ---------------------------------------------------------------------------------------------
# What the model says, and what its latents know
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a model says to sessions.

    Attributes:
        top: the token that it would write first, for each session.
        p_missing: ``[n]``, how likely it is to start an error message (the tokens `SAYS_MISSING`
            together), from 0 to 1.
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
        """Whether it begins a value: with a digit, or with the quote of a string.

        The values of the families' sessions are digits; one of ``as a value`` is a string.
        """
        begins = [token.isdigit() or token[:1] in ("'", '"') for token in self.top]
        return torch.tensor(begins, dtype=torch.bool)

    @property
    def says_neither(self) -> Bool[Tensor, " n"]:
        """Whether it gives neither a value nor an error message, but ``>>>``, say."""
        return ~(self.says_missing | self.says_value)

    def fooled(self, lures: bool) -> Bool[Tensor, " n"]:
        """Whether it gives a value where Python has an error, or an error where Python has a value.

        An answer of neither kind (`says_neither`) fools nobody, and is counted apart.

        Args:
            lures: whether Python says "missing".
        """
        return self.says_value if lures else self.says_missing

    def __getitem__(self, rows: slice) -> Answers:
        """The answers to some of the sessions."""
        latents = {site: f[rows] for site, f in self.latents.items()}
        return Answers(self.top[rows], self.p_missing[rows], latents)


@dataclass(frozen=True)
class Clamp:
    """Latents held at given values at one place of each prompt.

    Attributes:
        values: by (hook point, latent).
        place: counted from each prompt's end: `QUERIED` or `LAST`.
    """

    values: Mapping[tuple[str, int], float]
    place: int = QUERIED


def tokenize(
    sessions: Sequence[Session], tokenizer: Any
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

    Raises:
        ValueError: the tokenizer splits one of the tokens `SAYS_MISSING`.
    """
    sites = sorted(set(read))
    places: dict[int, list[int]] = defaultdict(list)
    for layer, place in sites:
        places[layer].append(place)
    stack, so_far = spliced.stack, _AnswersSoFar(spliced.lab.tokenizer)
    latents: dict[tuple[int, int], list[Tensor]] = {site: [] for site in sites}
    for tokens, lengths in _batches(spliced, sessions, batch_size, progress):
        x, after = stack.embed(tokens), -1
        for layer, resid in stack.walk_on(x, after, places):
            x, after = resid, layer
            for place in places[layer]:
                latents[layer, place].append(_latents_at(spliced, layer, x, lengths + place))
        so_far.add(stack.logits(stack.finish(x, after, lengths)))
    return so_far.together({site: torch.cat(pieces) for site, pieces in latents.items()})


@torch.no_grad()
def answers_with(
    spliced: SplicedModel,
    sessions: Sequence[Session],
    clamp: Clamp,
    *,
    batch_size: int | None = None,
    progress: str = "",
) -> Answers:
    """Ask the spliced model with some latents held.

    Splice with ``error="keep"`` to change nothing else. To hold one thing after the other in the
    same sessions, use `start`.

    Raises:
        ValueError: the tokenizer splits one of the tokens `SAYS_MISSING`; nothing is spliced at a
            clamp's hook point.
    """
    if spliced.error == "keep" and sessions:
        begun = start(spliced, sessions, batch_size=batch_size, progress=progress)
        return begun.answers(clamp)
    so_far = _AnswersSoFar(spliced.lab.tokenizer)
    for tokens, lengths in _batches(spliced, sessions, batch_size, progress):
        held = [
            Held(name, lengths + clamp.place, latent, value)
            for (name, latent), value in clamp.values.items()
        ]
        prefix = spliced.prefix(tokens, lengths=lengths)
        so_far.add(spliced.run(prefix, latents=holding(spliced, held)).logits)
    return so_far.together()


@dataclass(frozen=True)
class Started:
    """Sessions that a model has read up to the queried key; `start` makes them.

    Attributes:
        sessions: in order.
        at: where to go on from.
    """

    sessions: tuple[Session, ...]
    at: Start

    @torch.no_grad()
    def answers(
        self, clamp: Clamp | None = None, *, read: Iterable[tuple[int, int]] = ()
    ) -> Answers:
        """What the model says, with some latents held or with none: a pass over the last two
        tokens.

        Args:
            clamp: what is held; by default nothing, and the model itself answers.
            read: latents of the model itself to give as well, as for `answers`; layers with an SAE
                only.

        Raises:
            ValueError: see `answers_with` and `answers_each`.
        """
        sites = sorted(set(read))
        _check_one(clamp, sites)
        clamp = clamp or Clamp({})
        held = {
            (name, clamp.place, latent): value for (name, latent), value in clamp.values.items()
        }
        so_far = _AnswersSoFar(self.at.spliced.lab.tokenizer)
        for normed in self.at.run(held).split(32):
            so_far.add(self.at.spliced.stack.logits(normed))
        return so_far.together(
            {(layer, place): self.at.latents(hook_point(layer), place) for layer, place in sites}
        )


def start(
    spliced: SplicedModel,
    sessions: Sequence[Session],
    *,
    batch_size: int | None = None,
    progress: str = "",
) -> Started:
    """Read sessions up to the queried key, to hold one thing after the other there or at the end.

    What stands before does not change, and is read once. Each clamp then costs a twentieth of what
    the sessions cost.

    Args:
        spliced: with ``error="keep"``.

    Raises:
        ValueError: no session; errors that are not kept.
    """
    tokens, lengths = tokenize(sessions, spliced.lab.tokenizer)
    at = Start.of(spliced, tokens, lengths, batch_size=batch_size, progress=progress)
    return Started(tuple(sessions), at)


def answers_each(
    spliced: SplicedModel,
    asked: Mapping[K, Sequence[Session]],
    *,
    read: Iterable[tuple[int, int]] = (),
    clamp: Clamp | None = None,
    batch_size: int | None = None,
    progress: str = "",
) -> dict[K, Answers]:
    """Ask several lists of sessions in one go: for short lists, faster than one after the other.

    Args:
        read: latents to read on the way, as for `answers`.
        clamp: latents to hold, as for `answers_with`; by default none.

    Raises:
        ValueError: latents are to be held and others to be read; one or the other.
    """
    read = list(read)
    _check_one(clamp, read)
    every = [session for sessions in asked.values() for session in sessions]
    if clamp is None:
        together = answers(spliced, every, read=read, batch_size=batch_size, progress=progress)
    else:
        together = answers_with(spliced, every, clamp, batch_size=batch_size, progress=progress)
    return in_lists(together, asked)


def _check_one(clamp: Clamp | None, read: Sequence[tuple[int, int]]) -> None:
    if clamp is not None and read:
        raise ValueError("latents can be read where none are held: give read or clamp, not both.")


def in_lists(together: Answers, asked: Mapping[K, Sized]) -> dict[K, Answers]:
    """Answers to several lists of sessions, one after the other, as one for each list.

    Raises:
        ValueError: the lists do not have as many sessions as there are answers.
    """
    n = sum(map(len, asked.values()))
    if n != len(together.top):
        raise ValueError(f"{len(together.top)} answers, and lists of {n} sessions in all.")
    each, first = {}, 0
    for key, sessions in asked.items():
        each[key] = together[first : first + len(sessions)]
        first += len(sessions)
    return each


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
    """The latents of one layer's SAE at one place, in the model itself.

    The layers after that one, which write the answer, are not run.
    """
    pieces = [
        _latents_at(spliced, layer, x, lengths + place)
        for tokens, lengths in _batches(spliced, sessions, batch_size, progress)
        for _, x in spliced.stack.walk(tokens, [layer])
    ]
    return torch.cat(pieces)


def _latents_at(
    spliced: SplicedModel,
    layer: int,
    x: Float[Tensor, "batch seq_without_bos d_model"],
    positions: Int[Tensor, " batch"],
) -> Float[Tensor, "batch d_sae"]:
    """A layer's latents at one position of each prompt (BOS is position 0), in float32."""
    rows = torch.arange(len(x), device=x.device)
    f = encode(spliced.lab.saes[layer], x[rows, positions - spliced.first])
    return f.float().cpu()


def _batches(
    spliced: SplicedModel, sessions: Sequence[Session], batch_size: int | None, progress: str
) -> Iterator[tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"]]]:
    """Tokens and lengths, no wider than the longest prompt of each batch."""
    tokens, lengths = tokenize(sessions, spliced.lab.tokenizer)
    size = batch_size or min(32, spliced.batch_size(tokens.shape[1]))
    device = spliced.lab.device
    with tqdm(total=len(tokens), desc=progress, unit="prompt", disable=not progress) as bar:
        for batch, length in zip(tokens.split(size), lengths.split(size), strict=True):
            yield batch[:, : int(length.max())].to(device), length.to(device)
            bar.update(len(batch))


class _AnswersSoFar:
    """What a model says to sessions, collected batch by batch."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.missing_tokens = [one_token(tokenizer, text) for text in SAYS_MISSING]
        self.top: list[str] = []
        self.p_missing: list[Float[Tensor, " batch"]] = []

    def add(self, logits: Float[Tensor, "batch vocab"]) -> None:
        """One batch more: logits where the answers are due."""
        self.top += [self.tokenizer.decode([token]) for token in logits.argmax(-1).tolist()]
        p = logits.float().softmax(-1)
        self.p_missing.append(p[:, self.missing_tokens].sum(-1).cpu())

    def together(
        self, latents: Mapping[tuple[int, int], Float[Tensor, "n d_sae"]] | None = None
    ) -> Answers:
        """All batches' answers."""
        return Answers(tuple(self.top), torch.cat(self.p_missing), latents or {})
