"""Notebook 06's checkers accept the course's solutions and name the bug in wrong versions; the
solutions agree with `attacks` and `explain`.
"""

import ast
import inspect
import textwrap

import pytest
import torch

from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import auc
from course_utils.teaching import nb06 as sheet
from course_utils.teaching.nb06 import book


def attempt(name, body):
    """A reader's version of an exercise, with the signature that the course gave it."""
    arguments = ", ".join(inspect.signature(book.solutions[name]).parameters)
    space = {**vars(sheet), "torch": torch}
    exec(
        compile(
            f"def {name}({arguments}):\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}",
            "<reader>",
            "exec",
        ),
        space,
    )
    return book.exercise(space[name])


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_solution_is_right_and_every_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_exercise_has_a_checker_and_a_docstring(name):
    assert name in book.checkers and len(inspect.getdoc(book.solutions[name])) > 100


RIGHT = [
    ("p_missing", "e = (logits - logits.amax(1, keepdim=True)).exp()\nreturn sum(e[:, i] for i in ids) / e.sum(1)"),
    ("separations", "a, b = present[:, None], missing[None]\nreturn ((a > b).double() + 0.5 * (a == b).double()).mean((0, 1))"),
    ("separations", "return torch.stack([((p[:, None] - q).sign() / 2 + 0.5).mean() for p, q in zip(present.T, missing.T)])"),
    ("hold", "f = f.clone()\nfor b, n in enumerate(lengths.tolist()):\n    for i, v in latents.items():\n        f[b, n + place, i] = v\nreturn f"),
    ("predicted_share", "t = (missing.mean() + present.mean()) / 2\nreturn (attack > t).double().mean()"),
    ("predicted_share", "t = missing.mean() + (present.mean() - missing.mean()) / 2\nreturn sum(float(x) > t for x in attack) / len(attack)"),
    ("lift", "return torch.tensor([fooled.gather(1, signal.argmax(1, keepdim=True)).double().mean(), fooled.double().mean()])"),
    ("mended", "share = lambda a, b: float((~b[a]).double().mean()) if a.any() else 0\nreturn torch.tensor([share(fooled_before, fooled_after), share(right_before, right_after)])"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body"), RIGHT)
def test_other_ways_to_write_it_are_right_too(name, body):
    assert str(book.checked(attempt(name, body))) == f"✅ {name}"


P = "p = logits.softmax(-1)\n"
WINS = "a, b = present[:, None], missing\nabove, equal, below = (a > b).float().mean((0, 1)), (a == b).float().mean((0, 1)), (a < b).float().mean((0, 1))\n"
SORTED = """
    values, n, m = torch.cat([present[:2], missing, present[2:]]), len(present), len(missing)
    ranks = torch.argsort(values, dim=0, stable=True).argsort(0) + 1
    return ((ranks[:2].sum(0) + ranks[2 + m :].sum(0)) - n * (n + 1) / 2) / (n * m)
"""
ZIPPED = """
    pairs = [(p, q) for p in present for q in missing]
    total = sum((p > q).float() + 0.5 * (p == q).float() for p, q in pairs)
    return total / (len(present) * len(present))
"""
HELD = "held, rows = f.clone(), torch.arange(len(f))\nfor i, v in latents.items():\n    {}\nreturn held"
SHARE = (
    "a, b = missing.mean(), present.mean()\nabove = lambda t: (attack > t).float().mean().item()\n"
)
LIFT = "e, g, c = fooled.float(), torch.arange(len(fooled)), signal.argmax(1)\nhit, chance = e[g, c].mean(), e.mean()\n"
BOTH = """
    gone, broken = (fooled_before & ~fooled_after).sum(), (right_before & ~right_after).sum()
    f1, f2, r1, r2 = (x.sum() for x in (fooled_before, fooled_after, right_before, right_after))
    n, m = len(fooled_before), len(right_before)
    c, d = f1.clamp(min=1), r1.clamp(min=1)
    return torch.stack([{}, {}])
"""
WRONG = [
    # 6.1
    ("p_missing", "return logits[:, ids].softmax(-1).sum(-1)", "then they always add up to 1"),
    ("p_missing", "return logits[:, ids].sum(-1)", "you added up logits"),
    ("p_missing", P + "return p[:, ids].max(-1).values", "the likeliest of the tokens alone"),
    ("p_missing", P + "return p[:, ids].mean(-1)", "you averaged over the tokens"),
    ("p_missing", "return logits.softmax(0)[:, ids].sum(-1)", "runs over the prompts"),
    ("p_missing", "return logits.flatten().softmax(0).reshape(logits.shape)[:, ids].sum(-1)", "over all prompts at once"),
    ("p_missing", "return logits.log_softmax(-1)[:, ids].sum(-1)", "these are log-probabilities, added up"),
    ("p_missing", P + "return p[:, ids].prod(-1)", "you multiplied the probabilities"),
    ("p_missing", P + "return p[:, ids].sum(-1).log()", "the logarithm of the probability"),
    ("p_missing", P + "return 1 - p[:, ids].sum(-1)", "how likely everything else is"),
    ("p_missing", P + "return p[:, ids[0]]", "the first token only"),
    ("p_missing", P + "return p[:, ids]", "one value for each of the tokens"),
    ("p_missing", P + "return p[:, ids].sum(-1).mean()", "you averaged over prompts"),
    ("p_missing", "return torch.isin(logits.argmax(-1), torch.tensor(ids)).float()", "yes or no"),
    ("p_missing", "return logits.exp()[:, ids].sum(-1) / logits.exp().sum(-1)", "with 1,000 added to all logits"),
    ("p_missing", P + "return p[:, list(ids)].sum(-1).squeeze()", "for a single prompt, has the shape []"),
    ("p_missing", P + "return p[:, ids].sum(-1).tolist()", "to be a tensor, not list"),
    ("p_missing", P + "p[:, ids].sum(-1)", "Is the return missing?"),
    ("p_missing", P + "return p[:, ids].sum(0)", "has the shape [3], and [4] is wanted"),
    # 6.2
    ("separations", WINS + "return above", "ties count nothing with you"),
    ("separations", WINS + "return above + equal", "ties count fully with you"),
    ("separations", WINS + "return above / (above + below)", "comes out as NaN"),
    ("separations", WINS + "return (above / (above + below)).nan_to_num(0.5)", "you left ties out of the count"),
    ("separations", WINS + "return below + equal / 2", "present and missing have changed places"),
    ("separations", "return ((present > missing).float() + 0.5 * (present == missing).float()).mean(0)", "They are no pairs"),
    ("separations", "return (present > missing).float().mean(0)", "row by row, and without ties"),
    ("separations", "return present.mean(0) - missing.mean(0)", "the difference of the means"),
    ("separations", "return 0.5 + 0.5 * ((present > 0).float().mean(0) - (missing > 0).float().mean(0))", "how often the latent fires"),
    ("separations", WINS + "s = above + equal / 2\nreturn torch.maximum(s, 1 - s)", "you folded it"),
    ("separations", WINS + "return above - below", "from −1 to 1"),
    ("separations", WINS + "return (above + equal / 2) * len(present) * len(missing)", "you counted pairs"),
    ("separations", WINS + "return (above + equal / 2).mean()", "one number for all latents"),
    ("separations", "return (present[:, None] > missing).float().mean().item()", "to be a tensor, not float"),
    ("separations", SORTED, "those with ties are not"),
    ("separations", ZIPPED, "you divide by n · n"),
    ("separations", ZIPPED.replace("len(present) * len(present)", "len(missing) * len(missing)"), "you divide by m · m"),
    ("separations", "return sum((present > missing.roll(i, 0)).float() + 0.5 * (present == missing.roll(i, 0)).float() for i in range(len(missing))).mean(0) / len(missing)", "n and m can differ"),
    ("separations", "present = present[: len(missing)]\n" + WINS + "return above + equal / 2", "the longer table's last rows are left out"),
    ("separations", "(present[:, None] > missing).float().mean((0, 1))", "Is the return missing?"),
    ("separations", "return (present[:, None] > missing).float().mean((1, 2))", "has the shape [4], and [6] is wanted"),
    # 6.3
    ("hold", HELD.format("held[:, place, i] = v"), "you counted from the end of the padded rows"),
    ("hold", HELD.format("held[..., i] = v"), "at every position"),
    ("hold", HELD.format("f[rows, lengths + place, i] = v").replace("return held", "return f"), "you changed the f that you were given"),
    ("hold", HELD.format("f[rows, lengths + place, i] = v"), "you changed the f that you were given"),
    ("hold", "lengths += place\n" + HELD.format("held[rows, lengths, i] = v"), "you changed the lengths"),
    ("hold", HELD.format("held[rows, lengths + place, i] += v"), "you added the value"),
    ("hold", HELD.format("held[rows, lengths + place + 1, i] = v"), "one token too late"),
    ("hold", HELD.format("held[rows, lengths + place - 1, i] = v"), "one token too early"),
    ("hold", HELD.format("held[rows, lengths - place, i] = v"), "beyond the prompt's end"),
    ("hold", HELD.format("held[:, lengths[0] + place, i] = v"), "the first prompt's length for all"),
    ("hold", HELD.format("held[:, lengths.max() + place, i] = v"), "the longest prompt's length for all"),
    ("hold", HELD.format("held[0, lengths[0] + place, i] = v"), "only the first prompt has changed"),
    ("hold", HELD.format("held[:, lengths + place, i] = v"), "Each place goes with its own row"),
    ("hold", HELD.format("held[rows, lengths - 1, i] = v"), "you hold it whatever the place is"),
    ("hold", HELD.format("held[rows, lengths + place] = v"), "latents that are not to be held have changed"),
    ("hold", HELD.format("held[rows, lengths + place, i] = v").replace("f.clone()", "torch.zeros_like(f)"), "you started from zeros"),
    ("hold", HELD.format("held[rows, lengths + place, i] = v\n    return held"), "only the first of the latents"),
    ("hold", HELD.format("held = f.clone(); held[rows, lengths + place, i] = v"), "only the last of the latents"),
    ("hold", HELD.format("held[rows, lengths + place, i] = v or held[rows, lengths + place, i]"), "0 is a value, too"),
    ("hold", "return f.clone()", "nothing is held"),
    ("hold", HELD.format("held[rows, lengths + place, i] = v").replace("f.clone()", "f.float().clone()"), "Keep the kind of number"),
    ("hold", HELD.format("held[rows, lengths + place, i] = v").replace("return held", ""), "Is the return missing?"),
    ("hold", HELD.format("held[rows, lengths + place, i] = v").replace("return held", "return held[rows, lengths + place]"), "has the shape [3, 5], and [3, 9, 5]"),
    ("hold", HELD.format("held[rows, lengths + place, i] = v").replace("return held", "return held.tolist()"), "to be a tensor, not list"),
    # 6.4
    ("predicted_share", SHARE + "return (attack < (a + b) / 2).float().mean().item()", "the share below the threshold"),
    ("predicted_share", SHARE + "return (attack > (a + b) / 2).sum().item()", "you counted the attacks"),
    ("predicted_share", SHARE + "return above(attack.mean())", "the attacks' own mean"),
    ("predicted_share", SHARE + "return above(attack.median())", "the attacks' own median"),
    ("predicted_share", SHARE + "return above(a)", "the mean where the key is missing"),
    ("predicted_share", SHARE + "return above(b)", "the mean where the key is present"),
    ("predicted_share", SHARE + "return above(torch.cat([missing, present]).mean())", "you pooled the honest prompts"),
    ("predicted_share", SHARE + "return above(a + b)", "the half is missing"),
    ("predicted_share", SHARE + "return above((b - a) / 2)", "half of the distance"),
    ("predicted_share", SHARE + "return above((missing.median() + present.median()) / 2)", "between medians"),
    ("predicted_share", SHARE + "return above((missing.max() + present.min()) / 2)", "two odd prompts would set it"),
    ("predicted_share", SHARE + "return above(missing.max())", "the highest honest prompt"),
    ("predicted_share", SHARE + "return above(0)", "your threshold is 0"),
    ("predicted_share", SHARE + "return attack > (a + b) / 2", "not a verdict on each"),
    ("predicted_share", SHARE + "return (attack > (a + b) / 2).float().mean(0, keepdim=True)", "not a tensor of the shape [1]"),
    ("predicted_share", SHARE + "return f'{above((a + b) / 2):.0%}'", "to be a number, not str"),
    ("predicted_share", SHARE + "return str(above((a + b) / 2))", "to be a number, not str"),
    ("predicted_share", SHARE + "above((a + b) / 2)", "Is the return missing?"),
    ("predicted_share", "t = (missing + present) / 2\nreturn (attack > t).float().mean().item()", "raised RuntimeError"),
    # 6.5
    ("lift", LIFT + "return torch.stack([e.amax(1).mean(), chance])", "you peeked"),
    ("lift", LIFT + "return torch.stack([e[g, (signal * e).argmax(1)].mean(), chance])", "you peeked"),
    ("lift", LIFT + "return torch.stack([e[g, signal.argmin(1)].mean(), chance])", "the weakest signal"),
    ("lift", LIFT + "return torch.stack([e[:, signal.mean(0).argmax()].mean(), chance])", "the same candidate's number in all groups"),
    ("lift", LIFT + "return torch.stack([e.flatten()[signal.argmax()], chance])", "one choice over all groups"),
    ("lift", LIFT + "return torch.stack([e[signal.argmax(0), torch.arange(signal.shape[1])].mean(), chance])", "the other way round"),
    ("lift", LIFT + "return torch.stack([hit, hit])", "over the chosen ones only"),
    ("lift", LIFT + "out = torch.ones_like(fooled)\nout[g, c] = False\nreturn torch.stack([hit, e[out].mean()])", "leaves the chosen ones out"),
    ("lift", LIFT + "return torch.stack([chance, hit])", "the two have changed places"),
    ("lift", LIFT + "return torch.stack([hit, hit - chance])", "the second is the difference"),
    ("lift", LIFT + "return torch.stack([hit, hit / chance])", "the second is the ratio"),
    ("lift", LIFT + "return hit - chance", "the difference alone"),
    ("lift", LIFT + "return hit / chance", "the ratio alone"),
    ("lift", LIFT + "return hit", "the first share alone"),
    ("lift", LIFT + "return torch.stack([e[g, c].sum() / e.sum(), chance])", "divided by how many candidates fool"),
    ("lift", LIFT + "return torch.stack([e[g, c].sum() / e.numel(), chance])", "divided by the number of candidates"),
    ("lift", LIFT + "return torch.stack([e[g, c].sum(), e.sum()])", "you counted; wanted are shares"),
    ("lift", LIFT + "return hit, chance", "to be a tensor, not tuple"),
    ("lift", LIFT + "torch.stack([hit, chance])", "Is the return missing?"),
    ("lift", LIFT + "return torch.stack([e[g, c], e.mean(1)])", "has the shape [2, 8], and [2] is wanted"),
    # 6.6
    ("mended", BOTH.format("gone / n", "broken / m"), "you divided by all prompts"),
    ("mended", BOTH.format("gone / n", "broken / d"), "the first is a share of all attacks"),
    ("mended", BOTH.format("gone / c", "broken / m"), "the second is a share of all honest prompts"),
    ("mended", BOTH.format("(f1 - f2) / c", "(r1 - r2) / d"), "Follow each prompt, not the totals"),
    ("mended", BOTH.format("(f1 - f2) / c", "broken / d"), "the first is the net change"),
    ("mended", BOTH.format("gone / c", "(r1 - r2) / d"), "the second is the net change"),
    ("mended", BOTH.format("(f1 - f2) / n", "(r1 - r2) / m"), "how the totals change"),
    ("mended", BOTH.format("gone / c", "1 - broken / d"), "the share that is still right"),
    ("mended", BOTH.format("1 - gone / c", "broken / d"), "the share that still fools"),
    ("mended", BOTH.format("1 - gone / c", "1 - broken / d"), "both are the shares that stay"),
    ("mended", BOTH.format("broken / d", "gone / c"), "the two have changed places"),
    ("mended", BOTH.format("(n - f2) / n", "broken / d"), "the first does not look at before"),
    ("mended", BOTH.format("(n - f2) / n", "(m - r2) / m"), "you do not look at before"),
    ("mended", BOTH.format("gone / (n - f2)", "broken / (m - r2)"), "what does not fool (is not right) after"),
    ("mended", BOTH.format("gone", "broken"), "you counted; wanted are shares"),
    ("mended", BOTH.format("gone / c", "broken / d").replace("torch.stack([gone / c, broken / d])", "gone / c - broken / d"), "you gave one number"),
    ("mended", BOTH.format("gone / f1", "broken / d"), "if no attack fooled before, you divide by zero"),
    ("mended", BOTH.format("gone / c", "broken / r1"), "if no honest prompt was right before, you divide by zero"),
    ("mended", "share = lambda a, b: (a & ~b).sum().item() / a.sum().item()\nreturn torch.tensor([share(fooled_before, fooled_after), share(right_before, right_after)])", "if no attack fooled before, you divide by zero"),
    ("mended", "share = lambda a, b: (~b[a]).float().mean() if a.any() else torch.tensor(1.0)\nreturn torch.stack([share(fooled_before, fooled_after), share(right_before, right_after)])", "if no attack fooled before, the pair of shares is off"),
    ("mended", BOTH.format("gone / c", "broken / d").replace("torch.stack([gone / c, broken / d])", "gone / c, broken / d"), "to be a tensor, not tuple"),
    ("mended", BOTH.format("gone / c", "broken / d").replace("return ", ""), "Is the return missing?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "body", "says"), [pytest.param(*case, id=f"{case[0]}: {case[2]}") for case in WRONG]
)
def test_a_wrong_version_is_refused_for_the_right_reason(name, body, says):
    found = book.checked(attempt(name, body))
    assert found.status == "wrong" and says in found.says


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_checker_refuses_at_least_five_wrong_versions(name):
    assert sum(case[0] == name for case in WRONG) >= 5


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
        book.checked(attempt(*case[:2])).says
        for case in WRONG
        if case[0] == name and not case[2].startswith("raised")
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
        sheet.p_missing(logits, ids).double(), torch.stack(slow), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(
        sheet.p_missing(logits, range(30)), torch.ones(5), rtol=1e-5, atol=1e-6
    )


def test_separations_are_the_courses_separation_of_each_latent():
    rng = torch.Generator().manual_seed(1)
    present, missing = (torch.randint(-3, 5, (n, 9), generator=rng).relu().float() for n in (7, 4))
    yes = torch.arange(11) < 7
    one_by_one = torch.tensor([auc(values, yes) for values in torch.cat([present, missing]).T])
    torch.testing.assert_close(
        sheet.separations(present, missing), one_by_one, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        sheet.separations(missing, present), 1 - one_by_one, rtol=1e-6, atol=1e-6
    )
    assert torch.equal(
        sheet.separations(torch.zeros(7, 2), torch.zeros(4, 2)), torch.full((2,), 0.5)
    )


@pytest.mark.parametrize("place", [-1, -2, -3])
def test_hold_is_what_the_library_does_with_lengths_that_count_bos(lab, place):
    spliced = SplicedModel(lab, [1])
    [name] = spliced.hook_points
    f = torch.rand(3, 6, 24, generator=torch.Generator().manual_seed(2))
    lengths, latents = torch.tensor([6, 4, 5]), {0: 1.5, 4: 0.0}
    held = [Held(name, lengths + place, latent, value) for latent, value in latents.items()]
    by_library = holding(spliced, held)[name](f)
    assert torch.equal(sheet.hold(f, lengths, latents, place), by_library)


def test_hold_changes_as_many_numbers_as_there_are_latents_in_each_prompt():
    f, lengths = (
        torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(2)),
        torch.tensor([6, 3, 4]),
    )
    changed = (sheet.hold(f, lengths, {0: 1.5, 4: 9.0}, -2) != f).nonzero().tolist()
    assert changed == [[b, n - 2, latent] for b, n in enumerate([6, 3, 4]) for latent in (0, 4)]


def test_predicted_share_by_hand():
    missing, present = (
        torch.tensor([0.0, 1.0]),
        torch.tensor([2.0, 3.0, 4.0, 3.0]),
    )  # means 0.5 and 3: the threshold is 1.75
    assert sheet.predicted_share(missing, present, torch.tensor([0.0, 1.7, 1.8, 9.0])) == 0.5
    assert (
        sheet.predicted_share(missing, present, present) == 1
        and sheet.predicted_share(missing, present, missing) == 0
    )
    assert type(sheet.predicted_share(missing, present, missing)) is float


def test_lift_is_what_a_loop_over_the_groups_finds_and_no_gain_where_the_signal_is_the_same_for_all():
    rng = torch.Generator().manual_seed(3)
    signal, fooled = torch.rand(20, 6, generator=rng), torch.rand(20, 6, generator=rng) < 0.3
    hits = [fooled[g, max(range(6), key=lambda c: signal[g, c])].item() for g in range(20)]
    assert sheet.lift(signal, fooled).tolist() == pytest.approx(
        [sum(hits) / 20, fooled.sum().item() / 120]
    )
    assert sheet.lift(fooled.float(), fooled).tolist() == pytest.approx(
        [fooled.any(1).float().mean().item(), fooled.float().mean().item()]
    )


def test_mended_is_what_a_loop_over_the_prompts_finds():
    rng = torch.Generator().manual_seed(4)
    before, after, right, still = (torch.rand(n, generator=rng) < 0.6 for n in (30, 30, 17, 17))
    mends = [not now for then, now in zip(before.tolist(), after.tolist()) if then]
    breaks = [not now for then, now in zip(right.tolist(), still.tolist()) if then]
    assert sheet.mended(before, after, right, still).tolist() == pytest.approx(
        [sum(mends) / len(mends), sum(breaks) / len(breaks)]
    )
    assert sheet.mended(before, before, right, right).tolist() == [0, 0]
    nothing = torch.zeros(3, dtype=torch.bool)
    assert sheet.mended(nothing, ~nothing, nothing, ~nothing).tolist() == [0, 0]
