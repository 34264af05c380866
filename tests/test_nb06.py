"""Notebook 06's checkers accept the solutions and name the bug in wrong versions.

The solutions agree with the library, or with the slow and plain way.
"""

import ast
import inspect
import textwrap

import pytest
import torch
from readers import WrongVersions, attempt, cases

from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import auc
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
P = "p = logits.softmax(-1)\n"
WINS = """
a, b = present[:, None], missing
above, below = (a > b).float().mean((0, 1)), (a < b).float().mean((0, 1))
equal = (a == b).float().mean((0, 1))
"""
SHARE = """
a, b = missing.mean(), present.mean()
above = lambda t: (attack > t).float().mean().item()
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
        "then they always add up to 1": "return logits[:, ids].softmax(-1).sum(-1)",
        "you added up logits": "return logits[:, ids].sum(-1)",
        "the likeliest of the tokens alone": P + "return p[:, ids].max(-1).values",
        "you averaged over the tokens": P + "return p[:, ids].mean(-1)",
        "runs over the prompts": "return logits.softmax(0)[:, ids].sum(-1)",
        "over all prompts at once": """
            return logits.flatten().softmax(0).reshape(logits.shape)[:, ids].sum(-1)
        """,
        "these are log-probabilities, added up": "return logits.log_softmax(-1)[:, ids].sum(-1)",
        "you multiplied the probabilities": P + "return p[:, ids].prod(-1)",
        "the logarithm of the probability": P + "return p[:, ids].sum(-1).log()",
        "how likely everything else is": P + "return 1 - p[:, ids].sum(-1)",
        "the first token only": P + "return p[:, ids[0]]",
        "one value for each of the tokens": P + "return p[:, ids]",
        "you averaged over prompts": P + "return p[:, ids].sum(-1).mean()",
        "yes or no": "return torch.isin(logits.argmax(-1), torch.tensor(ids)).float()",
        "with 1,000 added to all logits": """
            return logits.exp()[:, ids].sum(-1) / logits.exp().sum(-1)
        """,
        "for a single prompt, has the shape []": P + "return p[:, list(ids)].sum(-1).squeeze()",
        "to be a tensor, not list": P + "return p[:, ids].sum(-1).tolist()",
        "Is the return missing?": P + "p[:, ids].sum(-1)",
        "has the shape [3], and [4] is wanted": P + "return p[:, ids].sum(0)",
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
    "predicted_share": {
        "the share below the threshold": SHARE
        + "return (attack < (a + b) / 2).float().mean().item()",
        "you counted the attacks": SHARE + "return (attack > (a + b) / 2).sum().item()",
        "the attacks' own mean": SHARE + "return above(attack.mean())",
        "the attacks' own median": SHARE + "return above(attack.median())",
        "the mean where the key is missing": SHARE + "return above(a)",
        "the mean where the key is present": SHARE + "return above(b)",
        "you pooled the honest prompts": SHARE
        + "return above(torch.cat([missing, present]).mean())",
        "the half is missing": SHARE + "return above(a + b)",
        "half of the distance": SHARE + "return above((b - a) / 2)",
        "between medians": SHARE + "return above((missing.median() + present.median()) / 2)",
        "two odd prompts would set it": SHARE + "return above((missing.max() + present.min()) / 2)",
        "the highest honest prompt": SHARE + "return above(missing.max())",
        "your threshold is 0": SHARE + "return above(0)",
        "not a verdict on each": SHARE + "return attack > (a + b) / 2",
        "not a tensor of the shape [1]": SHARE
        + "return (attack > (a + b) / 2).float().mean(0, keepdim=True)",
        "is to be a number, not str": SHARE + "return f'{above((a + b) / 2):.0%}'",
        "to be a number, not str": SHARE + "return str(above((a + b) / 2))",
        "Is the return missing?": SHARE + "above((a + b) / 2)",
        "raised RuntimeError": """
            t = (missing + present) / 2
            return (attack > t).float().mean().item()
        """,
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
    },
}
RIGHT = [
    (
        "p_missing",
        """
        e = (logits - logits.amax(1, keepdim=True)).exp()
        return sum(e[:, i] for i in ids) / e.sum(1)
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
        "predicted_share",
        """
        t = (missing.mean() + present.mean()) / 2
        return (attack > t).double().mean()
        """,
    ),
    (
        "predicted_share",
        """
        t = missing.mean() + (present.mean() - missing.mean()) / 2
        return sum(float(x) > t for x in attack) / len(attack)
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
    logits, ids = (
        torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).double(),
        (7, 2, 29),
    )
    slow = [sum(row[i].exp() for i in ids) / sum(x.exp() for x in row) for row in logits]
    torch.testing.assert_close(
        nb06.p_missing(logits, ids).double(), torch.stack(slow), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(
        nb06.p_missing(logits, range(30)), torch.ones(5), rtol=1e-5, atol=1e-6
    )


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


def test_predicted_share_by_hand():
    missing, present = (
        torch.tensor([0.0, 1.0]),
        torch.tensor([2.0, 3.0, 4.0, 3.0]),
    )  # means 0.5 and 3: the threshold is 1.75
    assert nb06.predicted_share(missing, present, torch.tensor([0.0, 1.7, 1.8, 9.0])) == 0.5
    assert (
        nb06.predicted_share(missing, present, present) == 1
        and nb06.predicted_share(missing, present, missing) == 0
    )
    assert type(nb06.predicted_share(missing, present, missing)) is float


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
