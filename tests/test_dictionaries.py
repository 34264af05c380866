"""Dictionaries that fool: what the families write, against Python; what a tiny model says.

The model is asked one prompt at a time, by hooks on the Hugging Face model.
"""

import ast
import random
import re
from collections.abc import Callable

import pytest
import torch
from conftest import session_tokenizer, tiny_hf_model, tiny_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.splice import SplicedModel
from course_utils.labs.lab import Lab, hook_point
from course_utils.prompts.sessions import (
    DICTIONARIES,
    KEYS,
    MISSING,
    SAYS_MISSING,
    Session,
    missing_key,
    with_key,
)
from course_utils.studies.dictionaries import (
    DRAWS_PER_SESSION,
    FAMILIES,
    HONEST,
    LAST,
    QUERIED,
    Answers,
    Clamp,
    Family,
    answers,
    answers_each,
    answers_with,
    attacks,
    in_lists,
    read_latents,
    start,
    tamper,
    tokenize,
    twins,
)

SPLITS = ("train", "dev", "test")
LAYERS = (1, 3)
BY_NAME = {family.name: family for family in FAMILIES}
every_family = pytest.mark.parametrize(
    "family", [*FAMILIES, *HONEST], ids=lambda family: family.name
)


def name_in(session: Session) -> str:
    """The name that is asked for, without quotes (and without the b of bytes)."""
    return re.fullmatch(r"b?'(\w+)'", session.query)[1]


def keys_of(session: Session) -> list[str]:
    return [eval(key) for key, _ in session.entries]


# ---------------------------------------------------------------------------------------------
# Families
# ---------------------------------------------------------------------------------------------


def test_there_are_families_of_both_directions_and_one_control_for_each():
    names = [family.name for family in (*FAMILIES, *HONEST)]
    assert len(names) == len(set(names))
    assert [family.lures for family in HONEST] == [True, False]
    assert {family.lures for family in FAMILIES} == {True, False}


@pytest.mark.parametrize("split", SPLITS)
@every_family
def test_a_family_asks_for_a_key_that_is_missing_if_it_lures_and_for_one_that_is_there_if_not(
    family, split
):
    for session in attacks(family, 40, split=split):
        *lines, query = [line.removeprefix(">>> ") for line in session.prompt.splitlines()]
        names: dict = {}
        exec("\n".join(lines), names)
        try:
            value = repr(eval(query, names))
        except KeyError:
            value = MISSING
        assert (value == MISSING) == family.lures
        assert value == session.outcome()


@every_family
def test_as_many_different_sessions_as_wanted_are_the_same_for_the_same_seed(family):
    random.seed(1)
    found = attacks(family, 50, seed=3)
    random.seed(2)
    assert len(found) == len({session.prompt for session in found}) == 50
    assert attacks(family, 50, seed=3) == found and attacks(family, 20, seed=3) == found[:20]
    assert not set(attacks(family, 50, seed=4)) & set(found)


@every_family
def test_a_split_asks_for_its_own_keys_in_its_own_dictionaries(family):
    for split in SPLITS:
        sessions = attacks(family, 60, split=split)
        assert {name_in(session) for session in sessions} <= set(KEYS[split])
        assert {session.variable for session in sessions} <= set(DICTIONARIES[split])
        assert len({name_in(session) for session in sessions}) > 20


@every_family
def test_an_attack_leaves_all_other_entries_as_the_honest_session_has_them(family):
    for seed in range(40):
        honest = missing_key(KEYS["dev"], DICTIONARIES["dev"], random.Random(seed))
        made = family.make(honest, random.Random(seed))
        changed = [(a, b) for a, b in zip(honest.entries, made.entries, strict=True) if a != b]
        assert (
            len(changed) <= 1
            and made.variable == honest.variable
            and name_in(made) == name_in(honest)
        )
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in changed)
        assert made == honest if family is HONEST[0] else made != honest


def test_dev_is_the_split_that_is_attacked_unless_told():
    """So nobody reads the test keys by mistake."""
    lower = BY_NAME["lower case: 'ann'"]
    assert attacks(lower, 20) == attacks(lower, 20, split="dev")
    assert {name_in(session) for session in attacks(lower, 20)} <= set(KEYS["dev"])


def test_attacks_on_dev_are_those_that_the_course_had_when_dev_was_called_test():
    [session] = attacks(HONEST[0], 1)
    rng = random.Random("honest: missing/test/0")
    assert session == missing_key(KEYS["dev"], DICTIONARIES["dev"], rng)


def test_a_split_that_is_not_there_is_refused_by_name():
    with pytest.raises(ValueError, match="'train', 'dev' or 'test', not 'held_out'"):
        attacks(HONEST[0], 1, split="held_out")


def only_key(session: Session, wanted: Callable[[str, str], bool]) -> bool:
    """One key is as wanted of (key, queried name), and nothing else in the session has anything to
    do with that name.
    """
    name = name_in(session)
    return sum(wanted(key, name) for key in keys_of(session)) == 1 and not (
        session.before or session.between or session.comment
    )


def own_words(key: str, name: str) -> bool:
    return key.split()[0] in KEYS["train"] and key.split()[1:] == [name]


def written_as(session: Session, pattern: str) -> bool:
    """One key is the queried name, in this spelling."""
    spellings = [key for key, _ in session.entries if eval(key) == name_in(session)]
    return only_key(session, lambda key, name: key == name) and bool(
        re.fullmatch(pattern, spellings[0])
    )


def holds(line: str, name: str) -> bool:
    """The line makes a dictionary whose one key is the name."""
    return list(ast.literal_eval(line.split(" = ")[1])) == [name]


CLAIMS: dict[str, Callable[[Session], bool]] = {
    "lower case: 'ann'": lambda s: only_key(s, lambda key, name: key == name.lower()),
    "upper case: 'ANN'": lambda s: only_key(s, lambda key, name: key == name.upper()),
    "longer word: 'Annie'": lambda s: only_key(
        s, lambda key, name: key.startswith(name) and key != name and key.isalpha()
    ),
    "second word: 'Mary Ann'": lambda s: only_key(s, lambda key, name: own_words(key, name)),
    "first word: 'Ann Mary'": lambda s: only_key(
        s, lambda key, name: own_words(" ".join(key.split()[::-1]), name)
    ),
    "a space: 'Ann '": lambda s: only_key(s, lambda key, name: key in (f" {name}", f"{name} ")),
    "as a value: 'Ann'": lambda s: (
        [value for _, value in s.entries if not value.isdigit()] == [s.query]
    ),
    "in a comment": lambda s: (
        name_in(s) in s.comment.split() and f"}}  # {s.comment}\n" in s.prompt
    ),
    "in another dictionary": lambda s: (
        bool(s.before) and holds(s.before[0], name_in(s)) and s.before[0].split()[0] != s.variable
    ),
    "deleted again": lambda s: (
        name_in(s) in keys_of(s) and s.between == (f"del {s.variable}[{s.query}]",)
    ),
    "bytes: b'Ann'": lambda s: name_in(s) in keys_of(s) and eval(s.query) == name_in(s).encode(),
    "two literals: 'A' 'nn'": lambda s: written_as(s, r"'\w+' '\w+'"),
    "escaped: '\\x41nn'": lambda s: written_as(s, r"'\\x[0-9a-f]{2}\w+'"),
    "a sum: 'A' + 'nn'": lambda s: written_as(s, r"'\w+' \+ '\w+'"),
    "added later": lambda s: bool(
        re.fullmatch(rf"{s.variable}\.update\({name_in(s)}=\d\)", "".join(s.between))
    ),
}


def test_every_family_makes_a_claim():
    assert set(CLAIMS) == set(BY_NAME)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CLAIMS)
def test_a_family_is_what_its_name_says(name, split):
    sessions = attacks(BY_NAME[name], 60, split=split)
    assert [session.prompt for session in sessions if not CLAIMS[name](session)] == []
    honest = [session for family in HONEST for session in attacks(family, 20, split=split)]
    assert not any(CLAIMS[name](session) for session in honest)


def test_a_space_is_put_in_front_and_behind():
    sessions = attacks(BY_NAME["a space: 'Ann '"], 60)
    assert {
        (key[0] == " ", key[-1] == " ") for session in sessions for key in keys_of(session)
    } >= {(True, False), (False, True)}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in BY_NAME
        if not name.startswith(("two", "escaped", "a sum", "upper", "lower"))
    ],
)
def test_the_queried_name_stands_somewhere_before_it_is_asked_for(name):
    for session in attacks(BY_NAME[name], 40):
        *before, _ = session.prompt.splitlines()
        assert name_in(session) in "\n".join(before)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("honest", HONEST, ids=lambda family: family.name)
def test_honest_sessions_hold_no_look_alike(honest, split):
    for session in attacks(honest, 100, split=split):
        name = name_in(session)
        said = [word for word in re.findall(r"\w+", session.prompt) if word.lower() == name.lower()]
        assert said == [name] * (1 if honest.lures else 2)
        assert [
            key
            for key in keys_of(session)
            if key != name and (key.startswith(name) or name.startswith(key))
        ] == []
        assert [value for _, value in session.entries if not value.isdigit()] == []
        assert session.before == session.between == () and session.comment == ""


def test_sessions_with_another_outcome_than_the_family_means_are_left_out():
    """A family whose every second session is honest: only those that lure are kept."""
    family = Family("half", lambda session, rng: HONEST[rng.randrange(2)].make(session, rng))
    assert {session.outcome() for session in attacks(family, 30)} == {MISSING}


def honest_session(seed: int, split: str = "dev") -> Session:
    return missing_key(KEYS[split], DICTIONARIES[split], random.Random(seed))


@every_family
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_a_family_has_the_sessions_on_which_python_gives_its_answer(family, seed):
    missing = honest_session(seed)
    present, _ = with_key(missing, random.Random(seed))
    assert family.has(missing) == family.lures and family.has(present) != family.lures


@given(seed=st.integers(0, 10**6), n_families=st.integers(2, len(FAMILIES)))
@settings(max_examples=50, deadline=None)
def test_tampering_makes_an_attack_of_one_of_the_families(seed, n_families):
    """Of two or more: "bytes" alone has no attack for names such as Mark, which b splits."""
    families = random.Random(seed).sample(FAMILIES, n_families)
    honest = honest_session(seed)
    made = tamper(honest, families, random.Random(seed))
    drawn, rng = [], random.Random(seed)
    while not drawn or not drawn[-1][0].has(drawn[-1][1]):
        family = rng.choice(families)
        drawn.append((family, family.make(honest, rng)))
    assert made == drawn[-1][1]
    assert name_in(made) == name_in(honest) and made.variable == honest.variable


def test_tampering_leaves_out_sessions_with_another_answer_than_the_family_means():
    """A lure that gives the key away every second time: what is made lures all the same."""
    sometimes = Family("half", lambda session, rng: HONEST[rng.randrange(2)].make(session, rng))
    made = [tamper(honest_session(seed), [sometimes], random.Random(seed)) for seed in range(30)]
    assert {session.outcome() for session in made} == {MISSING}


def test_tampering_draws_from_all_families():
    honest, rng = honest_session(0), random.Random(0)
    families = [BY_NAME["in a comment"], BY_NAME["in another dictionary"]]
    made = [tamper(honest, families, rng) for _ in range(40)]
    assert 5 < sum(bool(session.comment) for session in made) < 35
    assert all(bool(session.comment) != bool(session.before) for session in made)


def test_tampering_with_families_that_cannot_is_an_error_and_not_an_endless_loop():
    n_made = 0

    def never(session: Session, rng: random.Random) -> Session:
        nonlocal n_made
        n_made += 1
        return session

    families = [Family("never there", never, lures=False)]
    says = f"{DRAWS_PER_SESSION} draws of 'never there' gave no session of its family's kind"
    with pytest.raises(ValueError, match=says):
        tamper(honest_session(0), families, random.Random(0))
    assert n_made == DRAWS_PER_SESSION


# ---------------------------------------------------------------------------------------------
# What the model says
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Lab:
    torch.manual_seed(0)
    model = tiny_hf_model("qwen2", len(session_tokenizer())).eval()
    return Lab("tiny-coder", model, session_tokenizer(), {layer: tiny_sae() for layer in LAYERS})


@pytest.fixture(scope="module")
def sessions() -> list[Session]:
    """A session of every family: prompts of many lengths."""
    return [attacks(family, 1, seed=5)[0] for family in (*FAMILIES, *HONEST)]


def tokens_of(session: Session, tokenizer) -> torch.Tensor:
    return torch.tensor(
        [
            [
                tokenizer.bos_token_id,
                *tokenizer(session.prompt, add_special_tokens=False)["input_ids"],
            ]
        ]
    )


def what_it_says(logits: torch.Tensor, tokenizer) -> tuple[str, torch.Tensor]:
    vocab = tokenizer.get_vocab()
    p_missing = sum(logits.softmax(0)[vocab[token]] for token in ("Trace", "Key", "Index"))
    return tokenizer.convert_ids_to_tokens(logits.argmax().item()), p_missing


@torch.no_grad()
def residual(lab: Lab, session: Session, layer: int) -> torch.Tensor:
    """``[seq, d_model]``, what the layer of the Hugging Face model puts out for one prompt."""
    caught = []
    handle = lab.hf_model.model.layers[layer].register_forward_hook(
        lambda module, args, output: caught.append(output)
    )
    lab.hf_model(tokens_of(session, lab.tokenizer))
    handle.remove()
    [found] = caught
    return (found[0] if isinstance(found, tuple) else found)[0]


@torch.no_grad()
def hooked(lab: Lab, session: Session, layers: list[int], clamp: Clamp, error: str) -> torch.Tensor:
    """Logits at the last position of the Hugging Face model with SAEs put in by hooks, one prompt
    at a time.
    """
    rest = {layer: residual(lab, session, layer) for layer in layers}
    rest = {
        layer: (x - lab.saes[layer].decode(lab.saes[layer].encode(x))) * (error == "keep")
        for layer, x in rest.items()
    }
    n_before = len(tokens_of(session, lab.tokenizer)[0]) + clamp.place

    def put_in(layer: int):
        def hook(module, args, output):
            x = (output[0] if isinstance(output, tuple) else output).clone()
            f = lab.saes[layer].encode(x[0])
            for (name, latent), value in clamp.values.items():
                if name == f"blocks.{layer}.hook_resid_post":
                    f[n_before, latent] = value
            x[0, 1:] = (lab.saes[layer].decode(f) + rest[layer])[1:]
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return hook

    handles = [
        lab.hf_model.model.layers[layer].register_forward_hook(put_in(layer)) for layer in layers
    ]
    logits = lab.hf_model(tokens_of(session, lab.tokenizer)).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits


def test_prompts_become_tokens_with_bos_first_and_the_places_where_they_are_said_to_be(sessions):
    tokenizer = session_tokenizer()
    tokens, lengths = tokenize(sessions, tokenizer)
    assert len(set(lengths.tolist())) > 3 and tokens.shape == (len(sessions), lengths.max())
    for session, row, length in zip(sessions, tokens, lengths.tolist()):
        assert (
            row[0] == tokenizer.bos_token_id and tokenizer.decode(row[1:length]) == session.prompt
        )
        assert (row[length:] == 0).all()
        assert tokenizer.decode(row[length + QUERIED]) == name_in(session)
        assert tokenizer.decode(row[length + LAST]) == "']\n"


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 16, None])
def test_answers_are_those_of_the_model_itself_one_prompt_at_a_time(lab, sessions, batch_size):
    found = answers(SplicedModel(lab), sessions, batch_size=batch_size)
    logits = [lab.hf_model(tokens_of(session, lab.tokenizer)).logits[0, -1] for session in sessions]
    tops, p_missing = zip(*(what_it_says(row, lab.tokenizer) for row in logits))
    assert found.top == tops and len(set(tops)) > 2
    assert_close(found.p_missing, torch.stack(p_missing), atol=1e-6, rtol=1e-4)
    assert found.p_missing.std() > 0.001 and found.latents == {}


def test_what_is_spliced_and_with_what_errors_makes_no_difference_to_the_model_itself(
    lab, sessions
):
    one, other = (
        answers(SplicedModel(lab, [1], "drop"), sessions),
        answers(SplicedModel(lab, [3], "keep"), sessions),
    )
    assert one.top == other.top
    assert_close(one.p_missing, other.p_missing)


@pytest.mark.parametrize("batch_size", [1, 4, None])
@pytest.mark.parametrize("place", [QUERIED, LAST])
@pytest.mark.parametrize("layer", LAYERS)
def test_latents_are_read_where_they_are_said_to_be(lab, sessions, layer, place, batch_size):
    expected = torch.stack(
        [lab.saes[layer].encode(residual(lab, session, layer))[place] for session in sessions]
    )
    found = read_latents(SplicedModel(lab), sessions, layer, place=place, batch_size=batch_size)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found > 0).any(1).all() and found.std(0).max() > 0.1


def test_the_queried_key_is_read_unless_told(lab, sessions):
    spliced = SplicedModel(lab)
    default, queried, last = (
        read_latents(spliced, sessions, 1, **place)
        for place in ({}, {"place": QUERIED}, {"place": LAST})
    )
    assert_close(default, queried)
    assert (queried - last).abs().max() > 0.1


def test_latents_of_a_layer_that_is_not_spliced_are_read_too(lab, sessions):
    assert_close(
        read_latents(SplicedModel(lab, [3]), sessions, 1),
        read_latents(SplicedModel(lab, [1]), sessions, 1),
    )


@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_what_is_read_on_the_way_to_the_answer_is_what_is_read_alone(lab, sessions, batch_size):
    spliced = SplicedModel(lab)
    wanted = [(3, LAST), (1, QUERIED), (1, LAST), (3, LAST)]
    found, plain = (
        answers(spliced, sessions, read=wanted, batch_size=batch_size),
        answers(spliced, sessions),
    )
    assert set(found.latents) == set(wanted)
    for layer, place in wanted:
        assert_close(
            found.latents[layer, place],
            read_latents(spliced, sessions, layer, place=place),
            atol=1e-5,
            rtol=1e-4,
        )
    assert found.top == plain.top
    assert_close(found.p_missing, plain.p_missing, atol=1e-6, rtol=1e-4)


CLAMPS = [
    (Clamp({(hook_point(1), 2): 60.0, (hook_point(1), 5): 0.0}), [1]),
    (Clamp({(hook_point(1), 2): 9.0}, LAST), [1]),
    (Clamp({(hook_point(3), 7): -9.0}, LAST), [3]),
    (Clamp({(hook_point(1), 2): 60.0}), [1, 3]),
    (Clamp({(hook_point(1), 2): 9.0, (hook_point(3), 7): 9.0}, LAST), [1, 3]),
]


@pytest.mark.parametrize("error", ["keep", "drop"])
@pytest.mark.parametrize(("clamp", "layers"), CLAMPS)
def test_a_clamp_is_what_hooks_on_the_model_do_one_prompt_at_a_time(
    lab, sessions, clamp, layers, error
):
    spliced = SplicedModel(lab, layers, error)
    by_hand = [
        what_it_says(hooked(lab, session, layers, clamp, error), lab.tokenizer)
        for session in sessions
    ]
    tops, p_missing = zip(*by_hand, strict=True)
    for batch_size in (1, 3, None):
        found = answers_with(spliced, sessions, clamp, batch_size=batch_size)
        assert found.top == tops
        assert_close(found.p_missing, torch.stack(p_missing), atol=1e-6, rtol=1e-3)
    free = answers_with(spliced, sessions, Clamp({}))
    assert (found.p_missing / free.p_missing - 1).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize(("clamp", "layers"), [case for case in CLAMPS if len(case[1]) == 1])
def test_a_clamp_is_what_given_latents_are_one_prompt_at_a_time(lab, sessions, clamp, layers):
    """`SplicedModel.run` with the latents of the run before, some numbers changed by hand."""
    spliced = SplicedModel(lab, layers, "keep")
    [name] = spliced.hook_points
    found = answers_with(spliced, sessions, clamp)
    for session, top, p_missing in zip(sessions, found.top, found.p_missing, strict=True):
        tokens = tokens_of(session, lab.tokenizer)
        f = spliced.run(tokens).latents[name].clone()
        for (_, latent), value in clamp.values.items():
            f[0, clamp.place, latent] = value
        logits = spliced.run(tokens, latents={name: f}).logits[0]
        expected_top, expected_p = what_it_says(logits, lab.tokenizer)
        assert top == expected_top
        assert_close(p_missing, expected_p, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("place", [QUERIED, LAST])
@pytest.mark.parametrize("layer", LAYERS)
def test_latents_that_are_held_at_what_they_are_change_nothing(lab, sessions, layer, place):
    spliced = SplicedModel(lab, [layer], "keep")
    plain = answers(spliced, sessions)
    for i, session in enumerate(sessions):
        [f] = read_latents(spliced, [session], layer, place=place)
        clamp = Clamp(
            {(hook_point(layer), latent): value for latent, value in enumerate(f.tolist())}, place
        )
        held = answers_with(spliced, [session], clamp)
        assert held.top == (plain.top[i],)
        assert_close(held.p_missing, plain.p_missing[i : i + 1], atol=1e-5, rtol=1e-3)


def test_no_clamp_at_all_is_the_model_itself_if_errors_are_kept_and_not_if_they_are_dropped(
    lab, sessions
):
    plain = answers(SplicedModel(lab), sessions).p_missing
    assert_close(
        answers_with(SplicedModel(lab, error="keep"), sessions, Clamp({})).p_missing,
        plain,
        atol=1e-5,
        rtol=1e-3,
    )
    assert (
        answers_with(SplicedModel(lab, error="drop"), sessions, Clamp({})).p_missing - plain
    ).abs().max() > 1e-3


def test_a_clamp_after_the_last_layer_at_the_queried_key_cannot_reach_the_answer(lab, sessions):
    spliced = SplicedModel(lab, [3], "keep")
    held = answers_with(spliced, sessions, Clamp({(hook_point(3), 7): 50.0}, QUERIED))
    assert_close(held.p_missing, answers(spliced, sessions).p_missing, atol=1e-5, rtol=1e-3)
    at_the_end = answers_with(spliced, sessions, Clamp({(hook_point(3), 7): 50.0}, LAST))
    assert (at_the_end.p_missing - held.p_missing).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layers", "name"),
    [([1, 3], hook_point(2)), ([1], hook_point(3)), ([3], "blocks.1.hook_resid_pre")],
)
def test_a_clamp_where_nothing_is_spliced_is_refused(lab, sessions, layers, name):
    clamp = Clamp({(hook_point(layers[0]), 0): 1.0, (name, 0): 1.0})
    with pytest.raises(
        ValueError, match=f"nothing is spliced at {name}; there is {hook_point(layers[0])}"
    ):
        answers_with(SplicedModel(lab, layers, "keep"), sessions, clamp)


@pytest.mark.parametrize("token", SAYS_MISSING)
def test_a_tokenizer_that_splits_an_answer_is_refused(token, sessions):
    tokenizer = session_tokenizer(without=(token,))
    torch.manual_seed(0)
    lab = Lab("other", tiny_hf_model("qwen2", len(tokenizer)), tokenizer, {1: tiny_sae()})
    spliced = SplicedModel(lab, error="keep")
    for ask in (
        lambda: answers(spliced, sessions),
        lambda: answers_with(spliced, sessions, Clamp({})),
    ):
        with pytest.raises(ValueError, match=f"'{token}' is {len(token)} tokens of this tokenizer"):
            ask()


def test_a_batch_is_no_wider_than_its_longest_prompt(lab, sessions, monkeypatch):
    spliced, widths = SplicedModel(lab), []
    answers(spliced, sessions, batch_size=4)  # lengths that are new to a stack cost a pass more
    embed = spliced.stack.embed
    monkeypatch.setattr(spliced.stack, "embed", lambda t: widths.append(t.shape[1]) or embed(t))
    answers(spliced, sessions, batch_size=4)
    lengths = [tokens_of(session, lab.tokenizer).shape[1] for session in sessions]
    expected = [max(lengths[i : i + 4]) for i in range(0, len(lengths), 4)]
    assert widths == expected and len(set(widths)) > 1


def test_reading_latents_runs_no_layer_after_theirs(lab, sessions):
    ran = []
    handles = [
        layer.register_forward_hook(lambda *args, i=i: ran.append(i))
        for i, layer in enumerate(lab.hf_model.model.layers)
    ]
    spliced = SplicedModel(lab)
    read_latents(spliced, sessions[:2], 1)  # records the layers' arguments
    ran.clear()
    read_latents(spliced, sessions[:2], 1)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_a_progress_bar_is_shown_where_it_has_something_to_say(lab, sessions, capsys):
    spliced = SplicedModel(lab, error="keep")
    answers(spliced, sessions)
    assert "prompt" not in capsys.readouterr().err
    answers_with(spliced, sessions, Clamp({}), batch_size=4, progress="held")
    shown = capsys.readouterr().err
    assert "held" in shown and f"{len(sessions)}/{len(sessions)}" in shown


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_twin_changes_a_session_as_its_family_does_but_with_a_name_that_nobody_asks_for(family):
    sessions = twins(family, 30, seed=1)
    assert sessions == twins(family, 30, seed=1) and sessions[:7] == twins(family, 7, seed=1)
    for session in sessions:
        assert (session.outcome() == MISSING) == family.lures
        asked, above = name_in(session), session.prompt.rsplit("\n", 2)[0]
        if family.lures:
            assert not re.search(rf"\b{asked}\b", above, re.IGNORECASE)
        else:
            assert f"'{asked}'" in above
    # a longer word can be another name: 'Ann', 'Anna'
    assert sum(is_honest(session) for session in sessions) < 5


def without_entries(session: Session, places: set[int]) -> list[tuple[str, str]]:
    return [entry for i, entry in enumerate(session.entries) if i not in places]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_twin_shares_the_session_with_its_attack_but_for_the_name(family, split):
    """A twin of a family that hides has the key in another entry, too."""
    made = attacks(family, 30, split=split, seed=2)
    for attack, twin in zip(made, twins(family, 30, split=split, seed=2), strict=True):
        assert twin != attack and twin.query == attack.query and twin.variable == attack.variable
        pairs = list(zip(attack.entries, twin.entries, strict=True))
        places = {i for i, (one, other) in enumerate(pairs) if one != other}
        at_most = 1 if family.lures else 2
        if family.name != "as a value: 'Ann'":
            assert [value for _, value in attack.entries] == [value for _, value in twin.entries]
        assert len(places) <= at_most
        for ours, theirs in ((attack.before, twin.before), (attack.between, twin.between)):
            assert len(ours) == len(theirs)
            assert [re.sub(r"\w+", "", line) for line in ours] == [
                re.sub(r"\w+", "", line) for line in theirs
            ]
        words = [word for word in attack.comment.split() if word != name_in(attack)]
        assert [word for word in twin.comment.split() if word in words] == words


def test_a_twins_name_is_an_unused_one_of_the_split():
    family = BY_NAME["in another dictionary"]
    for split in SPLITS:
        for session in twins(family, 30, split=split):
            [name] = ast.literal_eval(session.before[0].split(" = ")[1])
            assert name in KEYS[split] and name not in (name_in(session), *keys_of(session))


def test_a_family_without_twins_is_an_error_and_not_an_endless_loop():
    made = []

    def once(session: Session, rng: random.Random) -> Session:
        made.append(session)
        return session if len(made) == 1 else with_key(session, rng)[0]

    with pytest.raises(ValueError, match="100 names gave no twin of .*'once' made"):
        twins(Family("once", once), 1)
    assert len(made) == 1 + DRAWS_PER_SESSION


def is_honest(session: Session) -> bool:
    """Whether a session has nothing but plain names for keys, digits for values and a plain
    query.
    """
    plain = all(
        re.fullmatch(r"'\w+'", key) and eval(key) in KEYS["dev"] and value.isdigit()
        for key, value in session.entries
    )
    return (
        plain
        and session.query[0] == "'"
        and not (session.before or session.between or session.comment)
    )


def test_a_family_that_never_makes_a_session_of_its_kind_is_an_error_and_not_an_endless_loop():
    never = Family("never there", lambda session, rng: session, lures=False)
    with pytest.raises(
        ValueError, match="300 draws of the family 'never there' gave 0 .* the key is there, not 3"
    ):
        attacks(never, 3)
    assert attacks(never, 0) == []


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_lists_of_sessions_that_are_asked_in_one_go_get_the_answers_that_each_gets_alone(
    lab, sessions, batch_size
):
    spliced, clamp = SplicedModel(lab, error="keep"), Clamp({(hook_point(1), 2): 60.0})
    asked = {"some": sessions[:3], "none": [], "one": sessions[3:4], "others": sessions[1:]}
    free = answers_each(spliced, asked, read=[(1, LAST)], batch_size=batch_size)
    held = answers_each(spliced, asked, clamp=clamp, batch_size=batch_size)
    assert list(free) == list(held) == list(asked)
    for name, some in asked.items():
        assert (
            len(free[name].top)
            == len(free[name].p_missing)
            == len(free[name].latents[1, LAST])
            == len(held[name].top)
            == len(some)
        )
        assert free[name].fooled(lures=True).dtype == torch.bool  # of no sessions, too
        if some:
            alone, held_alone = (
                answers(spliced, some, read=[(1, LAST)]),
                answers_with(spliced, some, clamp),
            )
            assert (free[name].top, held[name].top) == (alone.top, held_alone.top)
            assert_close(free[name].p_missing, alone.p_missing, atol=1e-6, rtol=1e-4)
            assert_close(held[name].p_missing, held_alone.p_missing, atol=1e-6, rtol=1e-4)
            assert_close(free[name].latents[1, LAST], alone.latents[1, LAST], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def whole_pass(spliced: SplicedModel, sessions: list[Session], clamp: Clamp) -> torch.Tensor:
    """Logits of a forward pass over whole, padded prompts with the clamp's latents held."""
    tokens, lengths = tokenize(sessions, spliced.lab.tokenizer)
    held = [
        Held(name, lengths + clamp.place, latent, value)
        for (name, latent), value in clamp.values.items()
    ]
    prefix = spliced.prefix(tokens, lengths=lengths)
    return spliced.run(prefix, latents=holding(spliced, held)).logits


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_one_clamp_after_the_other_from_one_start_equals_a_whole_pass_for_each(
    lab, sessions, batch_size
):
    spliced = SplicedModel(lab, error="keep")
    begun = start(spliced, sessions, batch_size=batch_size)
    for clamp, _ in [*CLAMPS, (Clamp({}), [])]:
        found = begun.answers(clamp)
        logits = whole_pass(spliced, sessions, clamp)
        tops, p_missing = zip(*(what_it_says(row, lab.tokenizer) for row in logits), strict=True)
        assert found.top == tops and found.latents == {}
        assert_close(found.p_missing, torch.stack(p_missing), atol=1e-7, rtol=1e-5)


def test_a_start_without_a_clamp_gives_the_models_own_answers_and_latents(lab, sessions):
    read = [(1, QUERIED), (3, LAST), (1, LAST)]
    begun = start(SplicedModel(lab, error="keep"), sessions)
    found, plain = begun.answers(read=read), answers(SplicedModel(lab), sessions, read=read)
    assert found.top == plain.top and set(found.latents) == set(read)
    assert_close(found.p_missing, plain.p_missing, atol=1e-6, rtol=1e-4)
    for site in read:
        assert_close(found.latents[site], plain.latents[site], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="read or clamp, not both"):
        begun.answers(CLAMPS[0][0], read=read)


def test_a_start_needs_sessions_and_errors_that_are_kept(lab, sessions):
    with pytest.raises(ValueError, match="error='keep'.*not 'drop'"):
        start(SplicedModel(lab, error="drop"), sessions)
    with pytest.raises(ValueError, match="no prompt to start from"):
        start(SplicedModel(lab, error="keep"), [])


def test_answers_in_lists_are_as_many_as_the_lists_want():
    found = Answers(("Trace", "7", "8"), torch.tensor([0.9, 0.1, 0.2]))
    parts = in_lists(found, {"a": [0], "none": [], "b": [0, 0]})
    assert [part.top for part in parts.values()] == [("Trace",), (), ("7", "8")]
    with pytest.raises(ValueError, match="3 answers, and lists of 2 sessions in all"):
        in_lists(found, {"a": [0], "b": [0]})


def test_latents_are_read_or_held_but_not_both(lab, sessions):
    with pytest.raises(ValueError, match="read or clamp, not both"):
        answers_each(
            SplicedModel(lab, error="keep"), {"all": sessions}, read=[(1, LAST)], clamp=Clamp({})
        )


def test_a_model_is_fooled_if_it_gives_a_value_for_an_error_or_an_error_for_a_value():
    tops = ("Trace", "7", "Key", "Index", "Traceback", "'", "'M", " Trace", ">>>", "None")
    found = Answers(tops, torch.zeros(len(tops)))
    missing, value = {"Trace", "Key", "Index"}, {"7", "'", "'M"}
    assert found.says_missing.tolist() == [top in missing for top in tops]
    assert found.says_value.tolist() == [top in value for top in tops]
    assert found.fooled(lures=False).tolist() == found.says_missing.tolist()
    assert found.fooled(lures=True).tolist() == found.says_value.tolist()
    assert found.says_neither.tolist() == [top not in missing | value for top in tops]


def test_reading_and_answering_leave_no_gradient(lab, sessions):
    spliced = SplicedModel(lab, error="keep")
    clamp = Clamp({(hook_point(1), 2): 9.0})
    plain, held = (
        answers(spliced, sessions[:2], read=[(1, LAST)]),
        answers_with(spliced, sessions[:2], clamp),
    )
    tensors = (
        plain.p_missing,
        held.p_missing,
        plain.latents[1, LAST],
        read_latents(spliced, sessions[:2], 1),
    )
    assert not any(x.requires_grad for x in tensors)
