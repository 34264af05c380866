"""Prompt pairs made by rule: vocabularies, and one generator per task.

Three families are generated. Each has a vocabulary of its own for every split: *train* to learn
on, *dev* to choose on, *test* to report on.

- subject–verb agreement (SVA; Finlayson et al. 2021, and the splits of Marks et al. 2024): "The
  athlete near the cars" → " is", not " are". The patch prompt has the subject in the other number.
  `sva_simple`, `sva_nounpp`, `sva_rc`, `sva_within_rc`; and `sva_reworded`, which says `sva_nounpp`
  in other words, place by place.
- indirect object identification (IOI; Wang et al. 2022): "When Mary and John went to the store,
  John gave a drink to" → " Mary". The patch prompt has three other names, so nothing determines the
  answer. `ioi`.
- look-ups in Python's interpreter (`sessions.py`; for models of code): a key that is missing, or an
  index beyond a list's end → "Trace" of "Traceback". The patch prompt has the key, or an index
  within. `dict_key`, `list_index`; and `dict_value`, the mirror of `dict_key`.

`generate_pairs` makes as many pairs of a task as one wants; ``python -m tools.write_tasks`` wrote
the files in ``data/tasks`` with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from course_utils.prompts.sessions import (
    DICTIONARIES,
    KEYS,
    LISTS,
    MISSING,
    list_session,
    missing_key,
    with_key,
    word_list,
)
from course_utils.prompts.tasks import SPLITS, PromptPair, TaskError

Number = Literal["singular", "plural"]


@dataclass(frozen=True)
class Vocabulary:
    """The words of one split.

    No two splits share a noun, a name, a place or an object; nor a key or a variable (see
    `sessions.py`). All splits share the small words: determiners, prepositions, auxiliaries and
    transitive verbs.

    Nouns (``people``, ``things``; both numbers) and ``names`` are single tokens of SmolLM2, with
    their leading space. Those of ``test`` are also single tokens of Qwen2.5, GPT-2 and Gemma 2 and
    3.
    """

    split: str
    people: tuple[str, ...]
    things: tuple[str, ...]
    names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


VOCABULARIES = {
    "train": Vocabulary(
        split="train",
        people=word_list("""
            artist author boy captain child client cousin dancer daughter doctor driver employee
            engineer expert farmer father friend girl guest hero hunter husband investor judge
            lawyer leader mechanic merchant monk musician neighbor officer painter partner player
            poet prince producer programmer queen resident rider scholar senator sister soldier
            speaker student surgeon thief trader traveler victim warrior winner worker voter model
            lady volunteer critic consultant designer assistant citizen competitor cook dealer
            detective dictator entrepreneur fan founder graduate immigrant inventor lover nation
            operator organizer passenger physician pioneer politician president psychologist rebel
            settler slave sponsor supervisor survivor teenager theorist user veteran youth
        """),
        things=word_list("""
            garden window boat tree door bridge church statue bicycle cabinet fountain lake road
            barn chair mirror bed hotel tent train hill island field gate museum kitchen plate clock
            camera bag box lamp painting shelf wagon rope blanket
        """),
        names=word_list("""
            Michael Jessica Matthew Jennifer Joshua Daniel James Robert Joseph Ryan Justin William
            Jonathan Brian Nicholas Heather Elizabeth Melissa Steven Timothy Rachel Lauren Jeffrey
            Michelle Benjamin Emily Charles Jacob Patrick Erin Kelly Nathan Paul Tyler Katherine
            Gregory Lisa Bryan Alexander Katie Christine Bradley Emma Alice George Frank Jane Helen
            Grace Victor Oliver Sophie Diana Arthur Harry Max Oscar Ruth Clara Ella Ivan Maria Omar
            Ahmed Tim Bob Sam Dan Alex Nick Josh Luke Neil Carl Bruce Louis Howard Albert Ralph
            Harold Susan Barbara Karen Betty Sandra Ann Marie Judy Alan Larry Terry Keith Craig
            Ronald Dennis
        """),
        places=word_list("store park school office market house library beach farm station"),
        objects=word_list("drink book ball gift letter key ring map coin hat camera pen"),
    ),
    "dev": Vocabulary(
        split="dev",
        people=word_list("""
            actor athlete brother chef clerk coach customer director editor employer executive
            fisherman guard guide historian inspector journalist king manager minister mother nurse
            owner parent pilot priest prisoner professor reporter researcher sailor scientist
            servant singer son spy teacher tourist tutor visitor wife witness writer patient mentor
            participant candidate developer analyst architect colleague composer creator delegate
            diplomat donor explorer follower governor hacker instructor landlord member miner
            observer opponent philosopher physicist planner practitioner prosecutor refugee ruler
            shareholder specialist stranger supporter swimmer tenant therapist vendor viewer
        """),
        things=word_list("""
            table car desk wall tower truck building bench river mountain fence castle flower shop
            temple ship bus valley pond forest theater bottle computer phone basket
        """),
        names=word_list("""
            Christopher Ashley Amanda David John Andrew Jason Sarah Stephanie Nicole Anthony Eric
            Adam Kevin Thomas Christina Laura Richard Amy Crystal Jeremy Mark Aaron Rebecca Stephen
            Sean Jamie Samantha Sara Angela Scott Andrea Mary Kenneth Jose Jesse Shannon Allison
            Samuel Anna Henry Peter Jack Kate Julia Martin Simon Lucy Charlotte Edward Walter Lewis
            Leo Hugo Martha Rose Eva Carlos Luis Ali Tom Jim Bill Joe Ben Chris Matt Jake Ian Dean
            Kurt Roger Philip Fred Ernest Roy Claire Linda Patricia Nancy Margaret Carol Anne Joan
            Jean Tony Jerry Douglas Gary Wayne Donald Raymond
        """),
        places=word_list("hospital restaurant shop mall airport zoo pool bakery"),
        objects=word_list("bone snack ticket cake flower guitar bottle basket toy rose"),
    ),
    "test": Vocabulary(
        split="test",
        people=word_list("""
            activist administrator adult adviser advocate agent ambassador ancestor applicant
            astronaut attorney baby beginner believer bishop borrower boss broker builder buyer
            businessman celebrity champion civilian collector commander commissioner companion
            consumer contractor contributor counselor criminal defendant defender disciple diver
            economist educator elder enemy enthusiast fighter filmmaker gentleman guardian guy heir
            helper homeowner investigator kid knight lender listener lord man migrant missionary mom
            official outsider peasant pedestrian performer photographer pirate prophet protagonist
            provider publisher pupil reader recipient reviewer seller spouse successor supplier
            taxpayer technician thinker toddler trainer trustee twin villain woman
        """),
        things=word_list("""
            airplane apartment barrel bathroom bedroom bell bike bowl brick bucket bush candle
            cannon cave cliff curtain factory flag helicopter laptop machine monument pillar
            platform pole poster rocket roof shelter sword tunnel vehicle village wheel
        """),
        names=word_list("""
            Dorothy Sharon Deborah Shirley Kathleen Janet Frances Joyce Julie Teresa Gerald Judith
            Lawrence Eugene Louise Russell Annie Antonio Stanley Leonard Wendy Manuel Curtis Norman
            Ellen Vincent Glenn Monica Esther Alfred Herbert Frederick Leslie Eleanor Edwin Jill
            Randall Lynn Sally Barry Bernard Mario Marcus Theodore Miguel Marion Calvin Lloyd Tommy
            Leon Beth Jerome Floyd Wesley Gordon Jorge Pedro Vera Maurice Vernon Gilbert Caroline
            Brett Edgar Chester Cecil Gabriel Arnold Harvey Nina Naomi Adrian Erik Jenny Fernando
            Katrina Hugh Felix Isabel Wallace Casey Julian Amelia Isaac Olivia Seth Hannah Stuart
            Lucas Edmund Sophia Colin Owen Helena Ethan
        """),
        places=word_list("supermarket gym stadium gallery bank studio clinic cinema pharmacy"),
        objects=word_list(
            "sandwich cookie necklace pencil jacket puzzle balloon towel doll wallet"
        ),
    ),
}

PREPOSITIONS = ("near", "behind", "beside", "by", "with", "opposite")

REWORDED_PREPOSITIONS = ("above", "around", "beneath", "from", "under", "without")
"""Chosen on train prompts: SmolLM2-135M-Instruct prefers the right verb on 85 to 95 % of them."""
REWORDED_SUBJECTS = ("My", "Our", "Your", "Their")
REWORDED_DISTRACTORS = ("his", "her", "my", "our", "their")
"""Determiners that go with either number, in place of `sva_nounpp`'s "The" and "the"."""

AUXILIARIES = ((" is", " are"), (" was", " were"), (" has", " have"))

TRANSITIVES = word_list("""
    like love know see hear meet follow praise help trust visit remember avoid respect fear support
    thank need
""")

NUMBERS: tuple[Number, Number] = ("singular", "plural")

IRREGULAR = {
    "child": "children",
    "thief": "thieves",
    "wife": "wives",
    "hero": "heroes",
    "shelf": "shelves",
}


def plural(noun: str) -> str:
    """The plural of the nouns used here: "child" → "children", "lady" → "ladies"."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith("man"):
        return noun[:-3] + "men"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "ch", "sh", "x")) else "s")


def third_person(verb: str) -> str:
    """The singular form of a verb: "watch" → "watches"."""
    return verb + ("es" if verb.endswith(("s", "ch", "sh", "x")) else "s")


def inflect(noun: str, number: Number) -> str:
    """The noun in the wanted number."""
    return noun if number == "singular" else plural(noun)


def _sva_pair(
    prefix: Callable[[Number], str], number: Number, verb: tuple[str, str], case: str
) -> PromptPair:
    """The clean prompt has the noun that the verb agrees with in ``number``, the patch prompt in
    the other one.

    Args:
        prefix: writes the prompt with that noun in a number.
        verb: its singular and its plural.
    """
    singular, plural_form = verb
    if number == "singular":
        return PromptPair(prefix("singular"), prefix("plural"), singular, plural_form, case)
    return PromptPair(prefix("plural"), prefix("singular"), plural_form, singular, case)


def sva_simple(words: Vocabulary, rng: random.Random) -> PromptPair:
    """Agreement with the only noun: "The athlete" → " is"."""
    subject, number = rng.choice(words.people), rng.choice(NUMBERS)
    return _sva_pair(
        lambda n: f"The {inflect(subject, n)}", number, rng.choice(AUXILIARIES), number
    )


def sva_nounpp(words: Vocabulary, rng: random.Random) -> PromptPair:
    """The nearest noun is not the subject: "The athlete near the cars" → " is"."""
    subject, distractor = rng.choice(words.people), rng.choice(words.people + words.things)
    number, other = rng.choice(NUMBERS), rng.choice(NUMBERS)
    tail = f"{rng.choice(PREPOSITIONS)} the {inflect(distractor, other)}"
    return _sva_pair(
        lambda n: f"The {inflect(subject, n)} {tail}",
        number,
        rng.choice(AUXILIARIES),
        f"{number}_{other}",
    )


def sva_reworded(words: Vocabulary, rng: random.Random) -> PromptPair:
    """`sva_nounpp` in other words: "Our athlete without their cars" → " is".

    Subject, distractor and verb stand where they stand in `sva_nounpp`, and all determiners and
    prepositions are others. So a circuit with positions of its own, found there, can be tried here.
    """
    subject, distractor = rng.choice(words.people), rng.choice(words.people + words.things)
    number, other = rng.choice(NUMBERS), rng.choice(NUMBERS)
    head = rng.choice(REWORDED_SUBJECTS)
    preposition, determiner = rng.choice(REWORDED_PREPOSITIONS), rng.choice(REWORDED_DISTRACTORS)
    tail = f"{preposition} {determiner} {inflect(distractor, other)}"
    return _sva_pair(
        lambda n: f"{head} {inflect(subject, n)} {tail}",
        number,
        rng.choice(AUXILIARIES),
        f"{number}_{other}",
    )


def sva_rc(words: Vocabulary, rng: random.Random) -> PromptPair:
    """Agreement across a relative clause: "The athlete that the managers like" → " is"."""
    subject, agent = rng.sample(words.people, 2)
    number, other = rng.choice(NUMBERS), rng.choice(NUMBERS)
    verb = rng.choice(TRANSITIVES)
    tail = f"that the {inflect(agent, other)} {third_person(verb) if other == 'singular' else verb}"
    return _sva_pair(
        lambda n: f"The {inflect(subject, n)} {tail}",
        number,
        rng.choice(AUXILIARIES),
        f"{number}_{other}",
    )


def sva_within_rc(words: Vocabulary, rng: random.Random) -> PromptPair:
    """Agreement inside the clause, with its own noun: "The athlete that the managers" → " like"."""
    subject, agent = rng.sample(words.people, 2)
    number, other = rng.choice(NUMBERS), rng.choice(NUMBERS)
    verb = rng.choice(TRANSITIVES)
    head = f"The {inflect(subject, other)} that the"
    forms = (f" {third_person(verb)}", f" {verb}")
    return _sva_pair(lambda n: f"{head} {inflect(agent, n)}", number, forms, f"{other}_{number}")


def ioi(words: Vocabulary, rng: random.Random) -> PromptPair:
    """The name that is said once: "When Mary and John went to the store, John gave a drink to" →
    " Mary".

    The case says the order of the names: ABBA has the indirect object first, BABA the repeated
    subject. The patch prompt names three other people, so that its logit difference between the
    clean names is undetermined.
    """
    indirect, subject, *others = rng.sample(words.names, 5)
    case = rng.choice(("ABBA", "BABA"))
    first, second = (indirect, subject) if case == "ABBA" else (subject, indirect)
    place, item = rng.choice(words.places), rng.choice(words.objects)

    def prompt(a: str, b: str, c: str) -> str:
        return f"When {a} and {b} went to the {place}, {c} gave a {item} to"

    return PromptPair(
        prompt(first, second, subject), prompt(*others), f" {indirect}", f" {subject}", case
    )


def dict_key(words: Vocabulary, rng: random.Random) -> PromptPair:
    """``>>> age['Ann']`` where no such key is → "Trace"; the patch prompt has it in place of
    another key: its value.

    The case says in which entry the patch prompt has the key: 1 to 5.
    """
    missing = missing_key(KEYS[words.split], DICTIONARIES[words.split], rng)
    there, index = with_key(missing, rng)
    return PromptPair(
        missing.prompt,
        there.prompt,
        MISSING,
        there.entries[index][1],
        f"entry_{index + 1}",
    )


def dict_value(words: Vocabulary, rng: random.Random) -> PromptPair:
    """The mirror of `dict_key`: the key is there → its value; it is missing from the patch
    prompt.
    """
    pair = dict_key(words, rng)
    return PromptPair(
        pair.patch_prefix, pair.clean_prefix, pair.patch_answer, pair.clean_answer, pair.case
    )


def list_index(words: Vocabulary, rng: random.Random) -> PromptPair:
    """``>>> x[7]`` where the list has five items → "Trace"; the patch prompt has an index within:
    that item.

    The case says which item the patch prompt asks for.
    """
    beyond, within, answer = list_session(LISTS[words.split], rng)
    return PromptPair(beyond, within, MISSING, answer, f"item_{within[-3]}")


CODE_TASKS = ("dict_key", "dict_value", "list_index")
"""For models of code."""
TRANSFER_TASKS = ("sva_reworded",)
"""To try on what was found elsewhere: no SAE of the course was trained on such prompts."""

GENERATORS: dict[str, Callable[[Vocabulary, random.Random], PromptPair]] = {
    "sva_simple": sva_simple,
    "sva_nounpp": sva_nounpp,
    "sva_reworded": sva_reworded,
    "sva_rc": sva_rc,
    "sva_within_rc": sva_within_rc,
    "ioi": ioi,
    "dict_key": dict_key,
    "dict_value": dict_value,
    "list_index": list_index,
}


SEED_NAMES = {"train": "train", "dev": "test", "test": "new test"}
"""The word that seeds a split.

The course began with two splits. Its first test prompts were read while choices were made, and so
became *dev*. They keep the word that they were seeded with, and so stay the same prompts.
"""


def generator_of(name: str, split: str, seed: int) -> random.Random:
    """The random numbers of one family of prompts in one split.

    Raises:
        TaskError: unknown split.
    """
    if split not in SPLITS:
        raise TaskError(f"split must be 'train', 'dev' or 'test', not {split!r}")
    return random.Random(f"{name}/{SEED_NAMES[split]}/{seed}")


def generate_pairs(name: str, split: str, n: int, seed: int = 0) -> list[PromptPair]:
    """``n`` different prompt pairs of the task ``name``, the same for the same seed.

    Raises:
        TaskError: unknown task or split, or the vocabulary allows fewer than ``n`` different pairs.
    """
    if name not in GENERATORS:
        raise TaskError(f"no generator for {name!r}; there are {', '.join(GENERATORS)}")
    if n < 1:
        raise TaskError(f"n must be 1 or more, not {n}.")
    rng = generator_of(name, split, seed)
    pairs: dict[PromptPair, None] = {}
    for _ in range(50 * n):
        pairs[GENERATORS[name](VOCABULARIES[split], rng)] = None
        if len(pairs) == n:
            return list(pairs)
    raise TaskError(
        f"{name} ({split}) has only {len(pairs)} different prompt pairs; {n} were wanted"
    )
