"""Sessions with Python's interactive interpreter, as prompts: a dictionary or a list, and what is
asked of it.

    >>> age = {'Bob': 1, 'Max': 4, 'Ann': 7, 'Kim': 2, 'Luke': 5}
    >>> age['Ann']

A model of code writes what Python would say next: ``7`` here; for a key that is missing,
``Traceback (most recent …``. So the first token that it writes says whether it holds the key to be
there. Qwen's tokenizer splits "Traceback" into "Trace" and "back": the answer "missing" is the
token `MISSING`. (Some sessions on the web show only the last line of a traceback, and so the model
sometimes starts with `KEY_ERROR` or `INDEX_ERROR`.)
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass, replace
from typing import Any

from course_utils.prompts.tokens import token_ids

MISSING = "Trace"
KEY_ERROR = "Key"
INDEX_ERROR = "Index"
SAYS_MISSING = (MISSING, KEY_ERROR, INDEX_ERROR)
"""Tokens that open an error message: a model that answers with one of them says that the key (or
the index) is not there.
"""

N_ENTRIES = 5


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text, without its line breaks."""
    return tuple(text.split())


KEYS = {
    "train": word_list("""
        Michael Jessica Matthew Jennifer Daniel James Robert Joseph Ryan Justin William Jonathan
        Brian Elizabeth Steven Rachel Michelle Emily Charles Jacob Patrick Kelly Paul Tyler Lisa
        Alexander Emma Alice George Frank Jane Grace Arthur Harry Max Maria Tim Bob Sam Dan Alex
        Nick Josh Luke Neil Carl Bruce Louis Howard Albert Susan Karen Alan Larry Keith Craig
        Victoria Juan Charlie Billy Jay Kay Ted Hal Sid Mike Steve Greg Jon Ken Kim Brad Ross Kyle
        Cole Taylor Dallas
    """),
    "dev": word_list("""
        Ann Christopher David John Andrew Jason Sarah Anthony Eric Adam Kevin Thomas Laura Richard
        Amy Jeremy Mark Aaron Stephen Sean Jamie Scott Mary Jose Anna Henry Peter Jack Kate Martin
        Simon Charlotte Edward Lewis Leo Rose Carlos Ali Tom Jim Bill Joe Ben Chris Matt Jake Ian
        Dean Roger Philip Fred Roy Carol Anne Jean Tony Jerry Gary Donald Marco Andre Johnny Jimmy
        Danny Ray Jeff Phil Ron Don Rod Len Kit Todd Russ Blake Grant Hunter Jordan Austin Georgia
        Virginia
    """),
    "test": word_list("""
        Marc Connor Dave Doug Neal Jess Lou Meg Mel Fran Hillary Chelsea Kent Gil Mari Marg Dani Una
        Flo Les Sal Ed Jo Bo Ty Vi Lu Su Li June Kat Dom Cam Roman Tai Rich Junior Hong Thor Smith
        Johnson Williams Davis Sanders Wolf Gray Sharp Texas Kansas Arizona Colorado Michigan
        Atlanta Miami Philadelphia Phoenix Toronto Mexico Rio Argentina Italy France Germany Sweden
        India Asia Africa Europe January February November
    """),
}
"""Names: one token each in Qwen's vocabulary, after a quote mark. No two splits share one.

Train and dev have first names. Few first names were left that the course's SAEs for Qwen had never
met in training, in any spelling: test has those, and surnames, places and months.
"""

# Names of variables: one token each, never a key, and in one split only.
DICTIONARIES = {
    "train": word_list("""
        rank score room team floor points price grade height year day size rate cost speed votes
        wins page row bed pay tax
    """),
    "dev": word_list("""
        age seat level count stock weight month code shift bonus goals line slot gate desk debt
    """),
    "test": word_list("""
        rating visits miles hours length width volume group zone block calls emails credit budget
        quota rent share
    """),
}
LISTS = {
    "train": word_list("""
        data values nums x numbers scores row a digits marks sample counts points weights
    """),
    "dev": word_list("items xs prices b codes sizes results steps ids rates totals"),
    "test": word_list("y c z lst seq heights ranks grades amounts temps speeds"),
}


class SessionError(ValueError):
    """Text that is no session of this kind; the message says what would be right."""


@dataclass(frozen=True)
class Session:
    """A dictionary, and a query.

    Attributes:
        entries: the items as Python source, ``(("'Bob'", "1"), …)``: a key and its value.
        query: the key that is asked for, as Python source: ``"'Ann'"``.
        variable: the dictionary's name.
        before, between: lines that are typed before the dictionary, and between it and the query.
        comment: at the end of the dictionary's line.
    """

    entries: tuple[tuple[str, str], ...]
    query: str
    variable: str = "age"
    before: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    comment: str = ""

    @property
    def dictionary(self) -> str:
        """The dictionary as Python source."""
        return "{" + ", ".join(f"{key}: {value}" for key, value in self.entries) + "}"

    @property
    def prompt(self) -> str:
        """The session up to where Python answers."""
        comment = f"  # {self.comment}" if self.comment else ""
        lines = [
            *self.before,
            f"{self.variable} = {self.dictionary}{comment}",
            *self.between,
            f"{self.variable}[{self.query}]",
        ]
        return "".join(f">>> {line}\n" for line in lines)

    def outcome(self) -> str:
        """What Python itself says: the value's repr, or ``"Trace"`` for an error. Runs the session:
        only for those written here.
        """
        names: dict = {}
        exec(
            "\n".join([*self.before, f"{self.variable} = {self.dictionary}", *self.between]), names
        )
        try:
            return repr(eval(f"{self.variable}[{self.query}]", names))
        except KeyError:
            return MISSING

    def with_entry(self, index: int, key: str, value: str | None = None) -> Session:
        """The same session with another key (and value) in one entry. Both as Python source."""
        entries = list(self.entries)
        entries[index] = (key, entries[index][1] if value is None else value)
        return replace(self, entries=tuple(entries))


def quoted(key: str) -> str:
    """A key as Python source: ``quoted("Ann")`` is ``"'Ann'"``."""
    return repr(key)


def missing_key(keys: tuple[str, ...], variables: tuple[str, ...], rng: random.Random) -> Session:
    """A dictionary of `N_ENTRIES` keys with different one-digit values, and a query for a key that
    is not among them.

    No key is a part of another (Jim, Jimmy): look-alikes are for `studies/dictionaries.py`.
    """
    while True:
        *names, query = rng.sample(keys, N_ENTRIES + 1)
        if not _one_contains_another([*names, query]):
            break
    values = rng.sample(range(10), N_ENTRIES)
    entries = tuple((quoted(name), str(value)) for name, value in zip(names, values))
    return Session(entries, quoted(query), rng.choice(variables))


def _one_contains_another(words: list[str]) -> bool:
    return any(a != b and b.lower() in a.lower() for a in words for b in words)


def with_key(session: Session, rng: random.Random) -> tuple[Session, int]:
    """The session with the queried key in place of one of the others, and which."""
    index = rng.randrange(len(session.entries))
    return session.with_entry(index, session.query), index


def list_session(variables: tuple[str, ...], rng: random.Random) -> tuple[str, str, str]:
    """A list of `N_ENTRIES` digits: the prompt with an index beyond its end, the one with an index
    within, and that one's answer.
    """
    items = rng.sample(range(10), N_ENTRIES)
    inside = rng.randrange(N_ENTRIES)
    beyond = rng.randrange(N_ENTRIES, 10)
    variable = rng.choice(variables)
    head = f">>> {variable} = {items}\n>>> {variable}"
    return f"{head}[{beyond}]\n", f"{head}[{inside}]\n", str(items[inside])


# ---------------------------------------------------------------------------------------------
# What a reader types
# ---------------------------------------------------------------------------------------------

MAX_PROMPT_TOKENS = 128
MAX_ENTRIES = 20
MAX_CHARACTERS = 2000
QUOTES = "'\"“”‘’"
EXAMPLE = "{'Bob': 1, 'Mary Ann': 2}"


def read_session(
    dictionary: str,
    query: str,
    tokenizer: Any,
    *,
    variable: str = "age",
    one_token: bool = False,
) -> Session:
    """A session from text: a dictionary as one would type it, and a key, with quotes or without.
    Nothing is executed.

    Args:
        dictionary: Python source, such as ``{'Bob': 1, 'Mary Ann': 2}``; keys are strings (or sums
            of strings), values numbers or strings. ``age = `` before it does no harm.
        query: the key that is asked for.
        one_token: insist that the queried key is one token of the prompt, as in the course's tasks.

    Raises:
        SessionError: not a dictionary, an empty one, too many entries, other keys or values, an
            empty query, a query of several tokens where one is wanted, a prompt of more than
            `MAX_PROMPT_TOKENS` tokens.
    """
    entries = _read_dictionary(dictionary)
    query = _read_query(query)
    session = Session(entries, quoted(query), variable)
    ids = token_ids(tokenizer, session.prompt)
    if len(ids) > MAX_PROMPT_TOKENS:
        raise SessionError(
            f"the prompt has {len(ids)} tokens; {MAX_PROMPT_TOKENS} at most. Take fewer or shorter "
            "entries."
        )
    if one_token and tokenizer.decode(ids[-2:-1]) != query:
        pieces = [tokenizer.decode([token]) for token in token_ids(tokenizer, query)]
        raise SessionError(
            f"the key {query!r} is not one token in the prompt ({' + '.join(pieces)}), as is "
            f"wanted here, such as {', '.join(KEYS['dev'][:4])}."
        )
    return session


def _read_dictionary(text: str) -> tuple[tuple[str, str], ...]:
    """The entries of a dictionary as Python source, each on one line."""
    source = _without_prompt_and_name(text)
    tree = _parse(source)
    if not isinstance(tree, ast.Dict):
        kind = type(tree).__name__.lower()
        raise SessionError(f"that is not a dictionary, but a {kind}. Type one, such as {EXAMPLE}.")
    if not tree.keys:
        raise SessionError(f"the dictionary is empty. Give it an entry or more, such as {EXAMPLE}.")
    if len(tree.keys) > MAX_ENTRIES:
        raise SessionError(f"{len(tree.keys)} entries are too many: {MAX_ENTRIES} at most.")
    return tuple(_read_entry(source, key, value) for key, value in zip(tree.keys, tree.values))


def _without_prompt_and_name(text: str) -> str:
    """Source of an expression, without a ``>>> age = `` in front of it."""
    return re.sub(r"^\s*(>>>)?\s*([A-Za-z_]\w*\s*=(?!=))?\s*", "", text).rstrip()


def _parse(source: str) -> ast.expr:
    """The syntax tree of an expression; nothing is evaluated."""
    if len(source) > MAX_CHARACTERS:
        raise SessionError(
            f"the dictionary has {len(source):,} characters; {MAX_CHARACTERS:,} at most. Take a "
            f"shorter one, such as {EXAMPLE}."
        )
    try:
        return ast.parse(source, mode="eval").body
    # the last two: nested too deep for the parser
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = (str(error) or "nested too deep").split(" (")[0].rstrip(".?")
        raise SessionError(
            f"that is not Python: {why}. Type a dictionary, such as {EXAMPLE}."
        ) from error


def _read_entry(source: str, key: ast.expr | None, value: ast.expr) -> tuple[str, str]:
    """An entry as Python source; ``key`` is None for ``**other``."""
    if key is None or not isinstance(_constant(key), str):
        shown = "**" if key is None else _as_typed(source, key)
        raise SessionError(
            f"the key {shown} is no string. Keys are strings in quotes, such as in {EXAMPLE}."
        )
    if _constant(value) is None:
        raise SessionError(
            f"the value {_as_typed(source, value)} is neither a number nor a string, as those in "
            f"{EXAMPLE} are."
        )
    return _on_one_line(source, key), _on_one_line(source, value)


def _read_query(query: str) -> str:
    """The queried key, without the quotes that it may have been typed with."""
    try:
        query.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SessionError(f"the key {query!r} is not text: {error.reason}.") from error
    if len(query) > 1 and query[0] in QUOTES and query[-1] in QUOTES:
        query = query[1:-1]
    if not query.strip():
        raise SessionError("no key is asked for: type one, such as Ann.")
    return query


def _constant(node: ast.expr) -> str | int | float | None:
    """The value of a number, a string, a negative number or a sum of strings; None for anything
    else.
    """
    match node:
        case ast.Constant(value=str() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            first, second = _constant(left), _constant(right)
            if isinstance(first, str) and isinstance(second, str):
                return first + second
    return None


def _as_typed(source: str, node: ast.expr) -> str:
    return ast.get_source_segment(source, node) or ast.unparse(node)


def _on_one_line(source: str, node: ast.expr) -> str:
    """A node as it was typed; where that is more than a line, as Python would show its value."""
    typed = _as_typed(source, node)
    return typed if typed.splitlines() == [typed] else repr(_constant(node))
