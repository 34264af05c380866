"""Notebook 06's checkers accept the solutions and name the bug in wrong versions.

The solutions agree with the library, or with the slow and plain way.
"""

import ast
import inspect
import random
import textwrap

import pytest
import torch
from readers import WrongVersions, attempt, cases

from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import auc
from course_utils.prompts.sessions import DICTIONARIES, KEYS, MISSING, missing_key, quoted
from course_utils.teaching import nb06
from course_utils.teaching.nb06 import book


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_solution_is_right_and_every_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(nb06, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_exercise_has_a_checker_and_a_docstring(name):
    assert name in book.checkers and len(inspect.getdoc(book.solutions[name])) > 100


# Beginnings that wrong versions share, and wrong versions with one line of their own
P = "p, first = logits.softmax(-1), sorted({m[0] for m in messages})\n"
WINS = """
a, b = present[:, None], missing
above, below = (a > b).float().mean((0, 1)), (a < b).float().mean((0, 1))
equal = (a == b).float().mean((0, 1))
"""
SHARE = """
a, b = honest[~is_present].mean(), honest[is_present].mean()
share = lambda t: ((family > t) if lures else ~(family > t)).float().mean()
"""
FIT = """
scores = torch.zeros(len(f))
for one in family.unique():
    own = family == one
    fit = ~own
    high, low = f[fit & there].mean(0), f[fit & ~there].mean(0)
"""
PAIR = """
name = session.query[1:-1]
put = lambda key: session.with_entry(index, quoted(key))
twice = lambda one: put(one + one)
from dataclasses import replace
"""
CENTRED = """
    scores[own] = (f[own] - (high + low) / 2) @ (high - low)
return scores
"""
LIFT = """
e, g, c = fooled.float(), torch.arange(len(fooled)), signal.argmax(1)
hit, chance = e[g, c].mean(), e.mean()
"""
MENDED = """
gone, broken = (fooled_before & ~fooled_after).sum(), (right_before & ~right_after).sum()
f1, f2, r1, r2 = (x.sum() for x in (fooled_before, fooled_after, right_before, right_after))
n, m = len(fooled_before), len(right_before)
c, d = f1.clamp(min=1), r1.clamp(min=1)
"""
SORTED = """
    values, n, m = torch.cat([present[:2], missing, present[2:]]), len(present), len(missing)
    ranks = torch.argsort(values, dim=0, stable=True).argsort(0) + 1
    return ((ranks[:2].sum(0) + ranks[2 + m :].sum(0)) - n * (n + 1) / 2) / (n * m)
"""


def held(line: str, *, start: str = "f.clone()", end: str = "return held") -> str:
    """`hold` with one line in its loop."""
    return f"""
held, rows = {start}, torch.arange(len(f))
for i, v in latents.items():
    {line}
{end}
"""


def zipped(n_pairs: str) -> str:
    """`separations` by a loop over pairs, of which there are said to be so many."""
    return f"""
pairs = [(p, q) for p in present for q in missing]
total = sum((p > q).float() + 0.5 * (p == q).float() for p, q in pairs)
return total / ({n_pairs})
"""


WRONG: WrongVersions = {
    "p_missing": {
        "then they always add up to 1": P + "return logits[:, first].softmax(-1).sum(-1)",
        "you added up logits": P + "return logits[:, first].sum(-1)",
        "you counted it twice": P + "return p[:, [m[0] for m in messages]].sum(-1)",
        "you counted all tokens of the messages. Only one": P
        + "return p[:, sorted({t for m in messages for t in m})].sum(-1)",
        "some of them twice": P + "return p[:, [t for m in messages for t in m]].sum(-1)",
        "a message's tokens. The logits": P
        + "return sum(p[:, list(m)].prod(-1) for m in messages)",
        "the last token of each message": P
        + "return p[:, sorted({m[-1] for m in messages})].sum(-1)",
        "the likeliest of the first tokens alone": P + "return p[:, first].max(-1).values",
        "you averaged over the tokens": P + "return p[:, first].mean(-1)",
        "you averaged over the messages": P + "return p[:, [m[0] for m in messages]].mean(-1)",
        "runs over the prompts": P + "return logits.softmax(0)[:, first].sum(-1)",
        "over all prompts at once": P
        + "return logits.flatten().softmax(0).reshape(logits.shape)[:, first].sum(-1)",
        "these are log-probabilities, added up": P
        + "return logits.log_softmax(-1)[:, first].sum(-1)",
        "the probabilities of the first tokens": P + "return p[:, first].prod(-1)",
        "the logarithm of the probability": P + "return p[:, first].sum(-1).log()",
        "how likely everything else is": P + "return 1 - p[:, first].sum(-1)",
        "the first message only": P + "return p[:, messages[0][0]]",
        "left out the first message": P
        + "return p[:, sorted({m[0] for m in messages[1:]})].sum(-1)",
        "left out the last message": P
        + "return p[:, sorted({m[0] for m in messages[:-1]})].sum(-1)",
        "several values per prompt": P + "return p[:, first]",
        "you averaged over prompts": P + "return p[:, first].sum(-1).mean()",
        "yes or no": P + "return torch.isin(logits.argmax(-1), torch.tensor(first)).float()",
        "with 1,000 added to all logits": P
        + "return logits.exp()[:, first].sum(-1) / logits.exp().sum(-1)",
        "for a single prompt, has the shape []": P + "return p[:, first].sum(-1).squeeze()",
        "to be a tensor, not list": P + "return p[:, first].sum(-1).tolist()",
        "Is the return missing?": P + "p[:, first].sum(-1)",
        "has the shape [3], and [4] is wanted": P + "return p[:, first].sum(0)",
    },
    "separations": {
        "ties count nothing with you": WINS + "return above",
        "ties count fully with you": WINS + "return above + equal",
        "comes out as NaN": WINS + "return above / (above + below)",
        "you left ties out of the count": WINS + "return (above / (above + below)).nan_to_num(0.5)",
        "present and missing have changed places": WINS + "return below + equal / 2",
        "They are no pairs": """
            return ((present > missing).float() + 0.5 * (present == missing).float()).mean(0)
        """,
        "row by row, and without ties": "return (present > missing).float().mean(0)",
        "the difference of the means": "return present.mean(0) - missing.mean(0)",
        "how often the latent fires": """
            return 0.5 + 0.5 * ((present > 0).float().mean(0) - (missing > 0).float().mean(0))
        """,
        "you folded it": WINS + "s = above + equal / 2\nreturn torch.maximum(s, 1 - s)",
        "from −1 to 1": WINS + "return above - below",
        "you counted pairs": WINS + "return (above + equal / 2) * len(present) * len(missing)",
        "one number for all latents": WINS + "return (above + equal / 2).mean()",
        "to be a tensor, not float": "return (present[:, None] > missing).float().mean().item()",
        "those with ties are not": SORTED,
        "you divide by n · n": zipped("len(present) ** 2"),
        "you divide by m · m": zipped("len(missing) ** 2"),
        "n and m can differ": """
            return sum(
                (present > missing.roll(i, 0)).float()
                + 0.5 * (present == missing.roll(i, 0)).float()
                for i in range(len(missing))
            ).mean(0) / len(missing)
        """,
        "the longer table's last rows are left out": "present = present[: len(missing)]\n"
        + WINS
        + "return above + equal / 2",
        "Is the return missing?": "(present[:, None] > missing).float().mean((0, 1))",
        "has the shape [4], and [6] is wanted": """
            return (present[:, None] > missing).float().mean((1, 2))
        """,
    },
    "hold": {
        "you counted from the end of the padded rows": held("held[:, place, i] = v"),
        "at every position": held("held[..., i] = v"),
        "the values are right, but f was changed in place": held(
            "f[rows, lengths + place, i] = v", end="return f"
        ),
        "nothing is held. Besides, f was changed in place": held("f[rows, lengths + place, i] = v"),
        "but lengths was changed in place": "lengths += place\n"
        + held("held[rows, lengths, i] = v"),
        "you added the value": held("held[rows, lengths + place, i] += v"),
        "one token too late": held("held[rows, lengths + place + 1, i] = v"),
        "one token too early": held("held[rows, lengths + place - 1, i] = v"),
        "beyond the prompt's end": held("held[rows, lengths - place, i] = v"),
        "the first prompt's length for all": held("held[:, lengths[0] + place, i] = v"),
        "the longest prompt's length for all": held("held[:, lengths.max() + place, i] = v"),
        "only the first prompt has changed": held("held[0, lengths[0] + place, i] = v"),
        "Each place goes with its own row": held("held[:, lengths + place, i] = v"),
        "you hold it whatever the place is": held("held[rows, lengths - 1, i] = v"),
        "latents that are not to be held have changed": held("held[rows, lengths + place] = v"),
        "you started from zeros": held(
            "held[rows, lengths + place, i] = v", start="torch.zeros_like(f)"
        ),
        "only the first of the latents": held(
            "held[rows, lengths + place, i] = v\n    return held"
        ),
        "only the last of the latents": held(
            "held = f.clone(); held[rows, lengths + place, i] = v"
        ),
        "0 is a value, too": held(
            "held[rows, lengths + place, i] = v or held[rows, lengths + place, i]"
        ),
        "nothing is held": "return f.clone()",
        "Keep the kind of number": held(
            "held[rows, lengths + place, i] = v", start="f.float().clone()"
        ),
        "Is the return missing?": held("held[rows, lengths + place, i] = v", end=""),
        "has the shape [3, 5], and [3, 9, 5]": held(
            "held[rows, lengths + place, i] = v", end="return held[rows, lengths + place]"
        ),
        "to be a tensor, not list": held(
            "held[rows, lengths + place, i] = v", end="return held.tolist()"
        ),
    },
    "attack_and_twin": {
        "the two have changed places": PAIR + "return twice(decoy), twice(name)",
        "the twin is the attack once more": PAIR + "return twice(name), twice(name)",
        "the attack holds the key that is asked for": PAIR + "return put(name), twice(decoy)",
        "the attack has the key 'Annie'": PAIR + "return put(name + 'ie'), twice(decoy)",
        "the twin has the key 'Kim'. The name is to be written twice": PAIR
        + "return twice(name), put(decoy)",
        "the twin asks for 'Kim'": PAIR
        + "return twice(name), replace(twice(decoy), query=quoted(decoy))",
        "the attack asks for 'AnnAnn'": PAIR
        + "return replace(session, query=quoted(2 * name)), twice(decoy)",
        "the attack is the honest session, unchanged": PAIR + "return session, twice(decoy)",
        "without quotes": PAIR + "return session.with_entry(index, 2 * name), twice(decoy)",
        "the attack changes entry 0, and index is 2": PAIR
        + "return session.with_entry(0, quoted(2 * name)), twice(decoy)",
        "changes more than one entry": PAIR
        + "return twice(name).with_entry(1, quoted(decoy)), twice(decoy)",
        "has '0' for a value": PAIR
        + "return session.with_entry(index, quoted(2 * name), repr('0')), twice(decoy)",
        "differs from the honest session in more than one entry": PAIR
        + "return replace(twice(name), variable='age'), twice(decoy)",
        "not str and str": PAIR + "return quoted(2 * name), quoted(2 * decoy)",
        "return two sessions": PAIR + "return twice(name)",
        "Is the return missing?": PAIR + "twice(name), twice(decoy)",
    },
    "predicted_fooled": {
        "the model would be right": SHARE + "return 1 - share((a + b) / 2)",
        "this is the share on which the model would be right": SHARE
        + "return (family > (a + b) / 2).float().mean()",
        "you counted prompts": SHARE + "return share((a + b) / 2) * len(family)",
        "exactly at the threshold": SHARE
        + "t = (a + b) / 2\nreturn ((family >= t) if lures else ~(family >= t)).float().mean()",
        "the family's own mean": SHARE + "return share(family.mean())",
        "the family's own median": SHARE + "return share(family.median())",
        "the mean where the key is missing": SHARE + "return share(a)",
        "the mean where the key is present": SHARE + "return share(b)",
        "one mean over all honest prompts": SHARE + "return share(honest.mean())",
        "the median over all honest prompts": SHARE + "return share(honest.median())",
        "the half is missing": SHARE + "return share(a + b)",
        "half of the distance": SHARE + "return share((b - a) / 2)",
        "between medians": SHARE
        + "return share((honest[~is_present].median() + honest[is_present].median()) / 2)",
        "two odd prompts would set the threshold": SHARE
        + "return share((honest[~is_present].max() + honest[is_present].min()) / 2)",
        "the highest honest prompt": SHARE + "return share(honest[~is_present].max())",
        "the 95th percentile": SHARE + "return share(honest[~is_present].quantile(0.95))",
        "the lowest honest prompt": SHARE + "return share(honest[is_present].min())",
        "the 5th percentile": SHARE + "return share(honest[is_present].quantile(0.05))",
        "your threshold is 0": SHARE + "return share(0)",
        "not a verdict on each": SHARE + "return family > (a + b) / 2",
        "not a tensor of the shape [1]": SHARE + "return share((a + b) / 2)[None]",
        "it is a float, and a tensor is wanted": SHARE + "return share((a + b) / 2).item()",
        "is to be a tensor, not str": SHARE + "return f'{share((a + b) / 2):.0%}'",
        "Is the return missing?": SHARE + "share((a + b) / 2)",
    },
    "lift": {
        "it sees the signal": LIFT + "return torch.stack([e.amax(1).mean(), chance])",
        "you peeked": LIFT + "return torch.stack([e[g, (signal * e).argmax(1)].mean(), chance])",
        "the weakest signal": LIFT + "return torch.stack([e[g, signal.argmin(1)].mean(), chance])",
        "the same candidate's number in all groups": LIFT
        + "return torch.stack([e[:, signal.mean(0).argmax()].mean(), chance])",
        "one choice over all groups": LIFT
        + "return torch.stack([e.flatten()[signal.argmax()], chance])",
        "the other way round": LIFT
        + "return torch.stack([e[signal.argmax(0), torch.arange(signal.shape[1])].mean(), chance])",
        "over the chosen ones only": LIFT + "return torch.stack([hit, hit])",
        "leaves the chosen ones out": LIFT
        + "out = torch.ones_like(fooled)\nout[g, c] = False\n"
        + "return torch.stack([hit, e[out].mean()])",
        "the two have changed places": LIFT + "return torch.stack([chance, hit])",
        "the second is the difference": LIFT + "return torch.stack([hit, hit - chance])",
        "the second is the ratio": LIFT + "return torch.stack([hit, hit / chance])",
        "the difference alone": LIFT + "return hit - chance",
        "the ratio alone": LIFT + "return hit / chance",
        "the first share alone": LIFT + "return hit",
        "divided by how many candidates fool": LIFT
        + "return torch.stack([e[g, c].sum() / e.sum(), chance])",
        "divided by the number of candidates": LIFT
        + "return torch.stack([e[g, c].sum() / e.numel(), chance])",
        "you counted; wanted are shares": LIFT + "return torch.stack([e[g, c].sum(), e.sum()])",
        "to be a tensor, not tuple": LIFT + "return hit, chance",
        "Is the return missing?": LIFT + "torch.stack([hit, chance])",
        "has the shape [2, 8], and [2] is wanted": LIFT
        + "return torch.stack([e[g, c], e.mean(1)])",
    },
    "mended": {
        "you divided by all prompts": MENDED + "return torch.stack([gone / n, broken / m])",
        "the first is a share of all attacks": MENDED
        + "return torch.stack([gone / n, broken / d])",
        "the second is a share of all honest prompts": MENDED
        + "return torch.stack([gone / c, broken / m])",
        "Follow each prompt, not the totals": MENDED
        + "return torch.stack([(f1 - f2) / c, (r1 - r2) / d])",
        "the first is the net change": MENDED + "return torch.stack([(f1 - f2) / c, broken / d])",
        "the second is the net change": MENDED + "return torch.stack([gone / c, (r1 - r2) / d])",
        "how the totals change": MENDED + "return torch.stack([(f1 - f2) / n, (r1 - r2) / m])",
        "the share that is still right": MENDED + "return torch.stack([gone / c, 1 - broken / d])",
        "the share that still fools": MENDED + "return torch.stack([1 - gone / c, broken / d])",
        "both are the shares that stay": MENDED
        + "return torch.stack([1 - gone / c, 1 - broken / d])",
        "the two have changed places": MENDED + "return torch.stack([broken / d, gone / c])",
        "the first does not look at before": MENDED
        + "return torch.stack([(n - f2) / n, broken / d])",
        "you do not look at before": MENDED + "return torch.stack([(n - f2) / n, (m - r2) / m])",
        "what does not fool (is not right) after": MENDED
        + "return torch.stack([gone / (n - f2), broken / (m - r2)])",
        "you counted; wanted are shares": MENDED + "return torch.stack([gone, broken])",
        "you gave one number": MENDED + "return gone / c - broken / d",
        "if no attack fooled before, you divide by zero and get": MENDED
        + "return torch.stack([gone / f1, broken / d])",
        "if no honest prompt was right before, you divide by zero": MENDED
        + "return torch.stack([gone / c, broken / r1])",
        "if no attack fooled before, you divide by zero": """
            share = lambda a, b: (a & ~b).sum().item() / a.sum().item()
            return torch.tensor(
                [share(fooled_before, fooled_after), share(right_before, right_after)]
            )
        """,
        "if no attack fooled before, the pair of shares is right but at 0": """
            share = lambda a, b: (~b[a]).float().mean() if a.any() else torch.tensor(1.0)
            return torch.stack(
                [share(fooled_before, fooled_after), share(right_before, right_after)]
            )
        """,
        "to be a tensor, not tuple": MENDED + "return gone / c, broken / d",
        "Is the return missing?": MENDED + "torch.stack([gone / c, broken / d])",
        "if one attack fooled before": MENDED
        + "return torch.stack([gone / f1.clamp(min=2), broken / d])",
    },
    "held_out_scores": {
        "all families are in it": FIT.replace("~own", "there | ~there") + CENTRED,
        "the prompt's own family, and on nothing else": FIT.replace("~own", "own") + CENTRED,
        "one prompt at a time": """
            scores = torch.zeros(len(f))
            for i in range(len(f)):
                fit = torch.arange(len(f)) != i
                high, low = f[fit & there].mean(0), f[fit & ~there].mean(0)
                scores[i] = (f[i] - (high + low) / 2) @ (high - low)
            return scores
        """,
        "the sign is wrong": FIT + CENTRED.replace("(high - low)", "(low - high)"),
        "do not start from the point halfway": FIT + CENTRED.replace(" - (high + low) / 2", ""),
        "start from the mean of all prompts": FIT
        + CENTRED.replace("(high + low) / 2", "f[fit].mean(0)"),
        'start from the mean of "there"': FIT + CENTRED.replace("(high + low) / 2", "high"),
        'start from the mean of "missing"': FIT + CENTRED.replace("(high + low) / 2", "low"),
        "a norm of 1": FIT
        + CENTRED.replace("(high - low)", "torch.nn.functional.normalize(high - low, dim=0)"),
        "you gave yes or no": FIT
        + CENTRED.replace("scores", "(scores > 0).float()", 2).replace(
            "(scores > 0).float()[own]", "scores[own]"
        ),
        "to be a tensor, not list": FIT
        + CENTRED.replace("return scores", "return scores.tolist()"),
        "Is the return missing?": FIT + CENTRED.replace("return ", ""),
        "has the shape": FIT + CENTRED.replace("return scores", "return scores[:, None]"),
    },
}
RIGHT = [
    (
        "p_missing",
        """
        e = (logits - logits.amax(1, keepdim=True)).exp()
        return sum(e[:, i] for i in {m[0] for m in messages}) / e.sum(1)
        """,
    ),
    (
        "separations",
        """
        a, b = present[:, None], missing[None]
        return ((a > b).double() + 0.5 * (a == b).double()).mean((0, 1)).float()
        """,
    ),
    (
        "separations",
        """
        columns = zip(present.T, missing.T)
        return torch.stack([((p[:, None] - q).sign() / 2 + 0.5).mean() for p, q in columns])
        """,
    ),
    (
        "hold",
        """
        f = f.clone()
        for b, n in enumerate(lengths.tolist()):
            for i, v in latents.items():
                f[b, n + place, i] = v
        return f
        """,
    ),
    (
        "attack_and_twin",
        """
        made = []
        for name in (session.query.strip("'"), decoy):
            entries = list(session.entries)
            entries[index] = (f"'{name}{name}'", entries[index][1])
            made.append(Session(tuple(entries), session.query, session.variable))
        return made
        """,
    ),
    (
        "predicted_fooled",
        """
        a, b = honest[~is_present].mean(), honest[is_present].mean()
        missing = family <= a + (b - a) / 2
        return 1 - missing.float().mean() if lures else missing.float().mean()
        """,
    ),
    (
        "lift",
        """
        hits = fooled.gather(1, signal.argmax(1, keepdim=True))
        return torch.tensor([hits.float().mean(), fooled.float().mean()])
        """,
    ),
    (
        "mended",
        """
        share = lambda a, b: float((~b[a]).double().mean()) if a.any() else 0
        mends = share(fooled_before, fooled_after)
        return torch.tensor([mends, share(right_before, right_after)])
        """,
    ),
    (
        "held_out_scores",
        """
        scores = []
        for row, one in zip(f, family):
            others = [(g, bool(t)) for g, t, k in zip(f, there, family) if k != one]
            high = torch.stack([g for g, t in others if t]).mean(0)
            low = torch.stack([g for g, t in others if not t]).mean(0)
            scores.append(((row - low).square().sum() - (row - high).square().sum()) / 2)
        return torch.stack(scores)
        """,
    ),
]


@pytest.mark.parametrize(("name", "body"), RIGHT)
def test_other_ways_to_write_it_are_right_too(name, body):
    assert str(book.checked(attempt(nb06, name, body))) == f"✅ {name}"


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_a_wrong_version_is_refused_for_the_right_reason(name, body, says):
    checked = book.checked(attempt(nb06, name, body))
    assert checked.status == "wrong" and says in checked.says, checked.says


def test_every_checker_refuses_at_least_five_wrong_versions():
    assert set(WRONG) == set(book.solutions) and all(len(wrong) >= 5 for wrong in WRONG.values())


def pieces(name):
    """Every piece of a solution's code that would give it away: its statements, and the calls,
    operations and look-ups in them.
    """
    function = ast.parse(inspect.getsource(book.solutions[name])).body[0]
    nodes = [node for statement in function.body[1:] for node in ast.walk(statement)]
    code = [
        ast.unparse(node)
        for node in nodes
        if isinstance(node, ast.stmt | ast.Call | ast.BinOp | ast.Subscript | ast.Compare)
    ]
    return {"".join(text.split()) for text in code if len(text) > 5}


@pytest.mark.parametrize("name", list(book.solutions))
def test_no_message_holds_a_piece_of_the_solutions_code(name):
    checker = ast.parse(textwrap.dedent(inspect.getsource(book.checkers[name])))
    texts = [
        node.value
        for node in ast.walk(checker)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    texts += [
        book.checked(attempt(nb06, name, body)).says
        for says, body in WRONG[name].items()
        if not says.startswith("raised")
    ]
    assert len(pieces(name)) > 3 and len(texts) > 10
    assert not [
        (piece, text) for piece in pieces(name) for text in texts if piece in "".join(text.split())
    ]


def test_p_missing_is_the_sum_of_exponentials_over_the_sum_of_all():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).double()
    messages = [[7, 3], [2], [29, 7], [7, 1]]
    slow = [sum(row[i].exp() for i in (7, 2, 29)) / sum(x.exp() for x in row) for row in logits]
    torch.testing.assert_close(nb06.p_missing(logits, messages), torch.stack(slow))
    every = [[token, 0] for token in range(30)]
    torch.testing.assert_close(nb06.p_missing(logits, every), torch.ones(5).double())


def test_separations_are_the_courses_separation_of_each_latent():
    rng = torch.Generator().manual_seed(1)
    present, missing = (torch.randint(-3, 5, (n, 9), generator=rng).relu().float() for n in (7, 4))
    yes = torch.arange(11) < 7
    one_by_one = torch.tensor([auc(values, yes) for values in torch.cat([present, missing]).T])
    torch.testing.assert_close(nb06.separations(present, missing), one_by_one, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        nb06.separations(missing, present), 1 - one_by_one, rtol=1e-6, atol=1e-6
    )
    assert torch.equal(
        nb06.separations(torch.zeros(7, 2), torch.zeros(4, 2)), torch.full((2,), 0.5)
    )


@pytest.mark.parametrize("place", [-1, -2, -3])
def test_hold_is_what_the_library_does_with_lengths_that_count_bos(lab, place):
    spliced = SplicedModel(lab, [1])
    [name] = spliced.hook_points
    f = torch.rand(3, 6, 24, generator=torch.Generator().manual_seed(2))
    lengths, latents = torch.tensor([6, 4, 5]), {0: 1.5, 4: 0.0}
    held = [Held(name, lengths + place, latent, value) for latent, value in latents.items()]
    by_library = holding(spliced, held)[name](f)
    assert torch.equal(nb06.hold(f, lengths, latents, place), by_library)


def test_hold_changes_as_many_numbers_as_there_are_latents_in_each_prompt():
    f, lengths = (
        torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(2)),
        torch.tensor([6, 3, 4]),
    )
    changed = (nb06.hold(f, lengths, {0: 1.5, 4: 9.0}, -2) != f).nonzero().tolist()
    assert changed == [[b, n - 2, latent] for b, n in enumerate([6, 3, 4]) for latent in (0, 4)]


def test_an_attack_and_its_twin_differ_in_one_name_and_python_finds_neither():
    rng = random.Random(0)
    for _ in range(20):
        honest = missing_key(KEYS["dev"], DICTIONARIES["dev"], rng)
        used = {honest.query, *(key for key, _ in honest.entries)}
        decoy = rng.choice([name for name in KEYS["dev"] if quoted(name) not in used])
        attack, twin = nb06.attack_and_twin(honest, rng.randrange(5), decoy)
        assert attack.outcome() == twin.outcome() == MISSING and attack != honest != twin
        name = honest.query[1:-1]
        assert twin.prompt == attack.prompt.replace(name + name, decoy + decoy)


def test_predicted_fooled_by_hand():
    honest = torch.tensor([2.0, 0.0, 3.0, 4.0, 1.0, 3.0])
    is_present = torch.tensor([True, False, True, True, False, True])
    # means 0.5 and 3: the threshold is 1.75
    family = torch.tensor([0.0, 1.7, 1.75, 1.8, 9.0])
    assert nb06.predicted_fooled(honest, is_present, family, True).item() == pytest.approx(0.4)
    assert nb06.predicted_fooled(honest, is_present, family, False).item() == pytest.approx(0.6)
    assert nb06.predicted_fooled(honest, is_present, honest[is_present], True) == 1
    assert nb06.predicted_fooled(honest, is_present, honest[~is_present], True) == 0


def test_held_out_scores_take_nothing_from_the_own_family():
    rng = torch.Generator().manual_seed(5)
    f, there = torch.rand(20, 6, generator=rng), torch.rand(20, generator=rng) < 0.5
    family = torch.arange(20) % 4
    scores = nb06.held_out_scores(f, there, family)
    own = family == 2
    changed = torch.where(own, ~there, there)
    assert torch.equal(nb06.held_out_scores(f, changed, family)[own], scores[own])
    assert not torch.allclose(nb06.held_out_scores(f, changed, family)[~own], scores[~own])


def test_lift_is_what_a_loop_over_the_groups_finds():
    rng = torch.Generator().manual_seed(3)
    signal, fooled = torch.rand(20, 6, generator=rng), torch.rand(20, 6, generator=rng) < 0.3
    hits = [fooled[g, max(range(6), key=lambda c: signal[g, c])].item() for g in range(20)]
    assert nb06.lift(signal, fooled).tolist() == pytest.approx(
        [sum(hits) / 20, fooled.sum().item() / 120]
    )
    assert nb06.lift(fooled.float(), fooled).tolist() == pytest.approx(
        [fooled.any(1).float().mean().item(), fooled.float().mean().item()]
    )


def test_mended_is_what_a_loop_over_the_prompts_finds():
    rng = torch.Generator().manual_seed(4)
    before, after, right, still = (torch.rand(n, generator=rng) < 0.6 for n in (30, 30, 17, 17))
    mends = [not now for then, now in zip(before.tolist(), after.tolist()) if then]
    breaks = [not now for then, now in zip(right.tolist(), still.tolist()) if then]
    assert nb06.mended(before, after, right, still).tolist() == pytest.approx(
        [sum(mends) / len(mends), sum(breaks) / len(breaks)]
    )
    assert nb06.mended(before, before, right, right).tolist() == [0, 0]
    nothing = torch.zeros(3, dtype=torch.bool)
    assert nb06.mended(nothing, ~nothing, nothing, ~nothing).tolist() == [0, 0]
