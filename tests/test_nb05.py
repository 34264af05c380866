"""Notebook 05's checkers accept the solutions and name the bug in wrong versions.

The solutions agree with `evaluate`, or with the slow and plain way.
"""

import inspect
import itertools

import pytest
import torch
from readers import WrongVersions, attempt, cases

from course_utils.circuits.evaluate import Reference, areas, jaccard, paired_difference
from course_utils.circuits.masks import only, without
from course_utils.teaching import nb05
from course_utils.teaching.fixtures import (
    FIRST,
    HARM,
    IDLE,
    LAST,
    TWIN,
    toy,
    toy_circuit,
    whole_toy,
)
from course_utils.teaching.nb05 import book
from course_utils.teaching.workbook import Wrong


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_solution_is_right_and_every_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(nb05, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_exercise_has_a_checker_and_a_docstring(name):
    assert name in book.checkers and len(inspect.getdoc(book.solutions[name])) > 100


def draws(n, n_draws, seed):
    return torch.randint(n, (n_draws, n), generator=torch.Generator().manual_seed(seed))


def ends_of(value, drawn):
    return torch.stack([value, drawn.quantile(0.025), drawn.quantile(0.975)])


NAMES = {"draws": draws, "ends_of": ends_of}
"""What wrong and right versions may call besides what the module sees."""


WRONG: WrongVersions = {
    "three_faithfulnesses": {
        "mean of the prompts' ratios": """
            return torch.stack(
                [
                    (circuit - empty) / (model - empty),
                    (circuit - empty) / (spliced - empty),
                    circuit / spliced,
                ]
            ).mean(1)
        """,
        "one value per prompt": """
            return torch.stack(
                [
                    (circuit - empty) / (model - empty),
                    (circuit - empty) / (spliced - empty),
                    circuit / spliced,
                ]
            )
        """,
        "missing below the fraction line": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / m, (c - e) / s, c / s])
        """,
        "in the first two, F(∅) is missing.": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([c / m, c / s, c / s])
        """,
        "upside down": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(m - e) / (c - e), (s - e) / (c - e), s / c])
        """,
        "changed places": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / (s - e), (c - e) / (m - e), c / s])
        """,
        "a tensor, not tuple": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return (c - e) / (m - e), (c - e) / (s - e), c / s
        """,
        "a tensor, not list": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return [(c - e) / (m - e), (c - e) / (s - e), c / s]
        """,
        "F(S) and F(C) have changed places": """
            m, c, s, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / (m - e), (c - e) / (s - e), c / s])
        """,
        "the first: brackets are missing below the fraction line": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / m - e, (c - e) / (s - e), c / s])
        """,
        "the third: the fraction is upside down": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / (m - e), (c - e) / (s - e), s / c])
        """,
        "you got the first and the third right, but not the second": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / (m - e), (c - e) / (s - m), c / s])
        """,
        "model was changed in place": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            model -= e
            return torch.stack([(c - e) / (m - e), (c - e) / (s - e), c / s])
        """,
        "the third does not know F(∅)": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / (m - e), (c - e) / (s - e), (c - e) / (s - e)])
        """,
    },
    "paired_gap": {
        "the sign is turned round": """
            return -solutions["paired_gap"](off_a, off_b, off_empty, n_draws, seed)
        """,
        "is not divided by the mean of off_empty": """
            gap = solutions["paired_gap"](off_a, off_b, off_empty, n_draws, seed)
            return gap * off_empty.mean()
        """,
        "A gap is a ratio of two means": """
            each = (off_a - off_b) / off_empty
            rows = draws(len(each), n_draws, seed)
            means = each[rows].mean(1)
            return torch.stack([each.mean(), means.quantile(0.025), means.quantile(0.975)])
        """,
        "each circuit got prompts of its own": """
            a, b = (off / off_empty.mean() for off in (off_a, off_b))
            drawn = a[draws(len(a), n_draws, seed)].mean(1) - b[draws(len(b), n_draws, 7)].mean(1)
            return ends_of((a - b).mean(), drawn)
        """,
        "its own, too": """
            rows = [draws(len(off_a), n_draws, i) for i in range(3)]
            a, b, e = (off[row].mean(1) for off, row in zip((off_a, off_b, off_empty), rows))
            return ends_of((off_a - off_b).mean() / off_empty.mean(), (a - b) / e)
        """,
        "the denominator is not drawn again": """
            off = (off_a - off_b) / off_empty.mean()
            return ends_of(off.mean(), off[draws(len(off), n_draws, seed)].mean(1))
        """,
        "the denominator has prompts of its own": """
            n = len(off_a)
            off, e = (off_a - off_b)[draws(n, n_draws, seed)], off_empty[draws(n, n_draws, 7)]
            return ends_of((off_a - off_b).mean() / off_empty.mean(), off.mean(1) / e.mean(1))
        """,
        "Are prompts drawn with replacement": """
            rows = torch.stack([torch.randperm(len(off_a)) for _ in range(n_draws)])
            a, b, e = (off[rows].mean(1) for off in (off_a, off_b, off_empty))
            return ends_of((off_a - off_b).mean() / off_empty.mean(), (a - b) / e)
        """,
        "how far single prompts spread": """
            each = (off_a - off_b) / off_empty
            return ends_of((off_a - off_b).mean() / off_empty.mean(), each)
        """,
        "those of a 90 % interval": """
            rows = draws(len(off_a), n_draws, seed)
            a, b, e = (off[rows].mean(1) for off in (off_a, off_b, off_empty))
            drawn, value = (a - b) / e, (off_a - off_b).mean() / off_empty.mean()
            return torch.stack([value, drawn.quantile(0.05), drawn.quantile(0.95)])
        """,
        "the standard deviation of the draws": """
            rows = draws(len(off_a), n_draws, seed)
            a, b, e = (off[rows].mean(1) for off in (off_a, off_b, off_empty))
            spread, value = ((a - b) / e).std(), (off_a - off_b).mean() / off_empty.mean()
            return torch.stack([value, value - spread, value + spread])
        """,
        "the upper end comes before the lower": """
            return solutions["paired_gap"](off_a, off_b, off_empty, n_draws, seed)[[0, 2, 1]]
        """,
        "another seed gives the same ends": """
            return solutions["paired_gap"](off_a, off_b, off_empty, n_draws, 5)
        """,
        "Three numbers are wanted": """
            return solutions["paired_gap"](off_a, off_b, off_empty, n_draws, seed)[1:]
        """,
        "is to be a tensor, not tuple": """
            value, low, high = solutions["paired_gap"](off_a, off_b, off_empty, n_draws, seed)
            return value, low, high
        """,
    },
    "left_without": {
        "that is its faithfulness": """
            c, s, e = (evaluate(masks).mean() for masks in (circuit, everything, nothing))
            return (c - e) / (s - e)
        """,
        "you took the circuit's nodes out of the circuit itself": """
            rest = evaluate(knock_out(circuit, circuit.nodes())).mean()
            s, e = evaluate(everything).mean(), evaluate(nothing).mean()
            return (rest - e) / (s - e)
        """,
        "no node is out": """
            s, e = evaluate(everything).mean(), evaluate(nothing).mean()
            return (s - e) / (s - e)
        """,
        "this is what is lost": """
            return 1 - solutions["left_without"](evaluate, circuit, everything, nothing)
        """,
        "you divided by what the circuit does": """
            rest = evaluate(knock_out(everything, circuit.nodes())).mean()
            c, e = evaluate(circuit).mean(), evaluate(nothing).mean()
            return (rest - e) / (c - e)
        """,
        "the mean of the prompts' shares": """
            rest = evaluate(knock_out(everything, circuit.nodes()))
            s, e = evaluate(everything), evaluate(nothing)
            return ((rest - e) / (s - e)).mean()
        """,
        "this is F without the circuit": """
            return evaluate(knock_out(everything, circuit.nodes())).mean()
        """,
        "F(∅) is missing below": """
            rest = evaluate(knock_out(everything, circuit.nodes())).mean()
            return (rest - evaluate(nothing).mean()) / evaluate(everything).mean()
        """,
    },
    "completeness_points": {
        "the circuit comes first": """
            return torch.stack(
                [
                    torch.stack(
                        [evaluate(knock_out(m, k)).mean() for m in (everything, circuit)]
                    )
                    for k in subsets
                ]
            )
        """,
        "Start from the whole circuit every time": """
            import torch

            gone = []
            points = []
            for subset in subsets:
                gone += subset
                points.append(
                    torch.stack(
                        [evaluate(knock_out(m, gone)).mean() for m in (circuit, everything)]
                    )
                )
            return torch.stack(points)
        """,
        "the second column is K alone": """
            return torch.stack(
                [
                    torch.stack(
                        [
                            evaluate(knock_out(circuit, k)).mean(),
                            evaluate(toy_circuit(*k)).mean(),
                        ]
                    )
                    for k in subsets
                ]
            )
        """,
        "K leaves both": """
            return torch.stack(
                [
                    torch.stack(
                        [evaluate(knock_out(circuit, k)).mean(), evaluate(everything).mean()]
                    )
                    for k in subsets
                ]
            )
        """,
        "the points themselves are wanted": """
            return torch.stack(
                [
                    (
                        evaluate(knock_out(circuit, k)).mean()
                        - evaluate(knock_out(everything, k)).mean()
                    ).abs()
                    for k in subsets
                ]
            )
        """,
        "has the shape [5, 4], and [5, 2] is wanted": """
            return torch.stack([evaluate(knock_out(circuit, k)) for k in subsets])
        """,
        "a tensor, not list": """
            both = circuit, everything
            return [[evaluate(knock_out(m, k)).mean() for m in both] for k in subsets]
        """,
        "you kept the prompts apart": """
            both = circuit, everything
            return torch.stack(
                [torch.stack([evaluate(knock_out(m, k)) for m in both]) for k in subsets]
            )
        """,
        "the second column (F(S∖K)) is 4 times what is wanted": """
            rows = []
            for k in subsets:
                part = evaluate(knock_out(circuit, k)).mean()
                rows.append(torch.stack([part, evaluate(knock_out(everything, k)).sum()]))
            return torch.stack(rows)
        """,
        "both columns are the circuit's": """
            rows = [evaluate(knock_out(circuit, k)).mean() for k in subsets]
            return torch.stack([torch.stack(rows)] * 2, 1)
        """,
        "a point is a row": """
            both = circuit, everything
            return torch.stack(
                [torch.stack([evaluate(knock_out(m, k)).mean() for k in subsets]) for m in both]
            )
        """,
        "how far each falls from its start": """
            both = circuit, everything
            return torch.stack(
                [
                    torch.stack(
                        [(evaluate(m) - evaluate(knock_out(m, k))).mean() for m in both]
                    )
                    for k in subsets
                ]
            )
        """,
    },
    "drop_each": {
        "the sign is wrong": """
            return torch.stack(
                [evaluate(knock_out(circuit, [v])) - evaluate(circuit) for v in nodes]
            )
        """,
        "One at a time": """
            return torch.stack(
                [
                    evaluate(circuit) - evaluate(knock_out(circuit, nodes[: i + 1]))
                    for i in range(len(nodes))
                ]
            )
        """,
        "you kept one node and dropped the others": """
            return torch.stack([evaluate(circuit) - evaluate(toy_circuit(v)) for v in nodes])
        """,
        "sizes only": """
            return torch.stack(
                [(evaluate(circuit) - evaluate(knock_out(circuit, [v]))).abs() for v in nodes]
            )
        """,
        "you averaged over prompts": """
            return torch.stack(
                [(evaluate(circuit) - evaluate(knock_out(circuit, [v]))).mean() for v in nodes]
            )
        """,
        "that are left without each node": """
            return torch.stack([evaluate(knock_out(circuit, [v])) for v in nodes])
        """,
        "shares of the whole circuit's": """
            whole = evaluate(circuit)
            return torch.stack([1 - evaluate(knock_out(circuit, [v])) / whole for v in nodes])
        """,
        "the mean of the whole circuit": """
            whole = evaluate(circuit).mean()
            return torch.stack([whole - evaluate(knock_out(circuit, [v])) for v in nodes])
        """,
        "the other way round": """
            whole = evaluate(circuit)
            return torch.stack([whole - evaluate(knock_out(circuit, [v])) for v in nodes], dim=1)
        """,
        "a tensor, not list": """
            whole = evaluate(circuit)
            return [whole - evaluate(knock_out(circuit, [v])) for v in nodes]
        """,
        "put each node back": """
            whole = evaluate(circuit)
            rows = []
            for h, p, i in nodes:
                circuit[h][p, i] = 0
                rows.append(whole - evaluate(circuit))
            return torch.stack(rows)
        """,
    },
    "chance_jaccard": {
        "not the ratio of the means": "return (n_a * n_b / n) / (n_a + n_b - n_a * n_b / n)",
        "the mean overlap itself": "return n_a * n_b / n",
        "counts shared nodes twice": "return n_a * n_b / n / (n_a + n_b)",
        "that is nesting": "return n_a * n_b / n / min(n_a, n_b)",
        "the largest overlap is missing": """
            ways = lambda k: math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
            overlaps = range(max(0, n_a + n_b - n), min(n_a, n_b))
            return sum(ways(k) * k / (n_a + n_b - k) for k in overlaps)
        """,
        "the smallest overlap is missing": """
            ways = lambda k: math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
            overlaps = range(max(0, n_a + n_b - n) + 1, min(n_a, n_b) + 1)
            return sum(ways(k) * k / (n_a + n_b - k) for k in overlaps)
        """,
        "not C(n, n_a)": """
            ways = lambda k: math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_a)
            return sum(ways(k) * k / (n_a + n_b - k) for k in range(min(n_a, n_b) + 1))
        """,
        "every overlap weighs the same": """
            overlaps = range(max(0, n_a + n_b - n), min(n_a, n_b) + 1)
            return sum(k / (n_a + n_b - k) for k in overlaps) / len(overlaps)
        """,
        "you drew with replacement": """
            p, overlaps = n_a / n, range(min(n_a, n_b) + 1)
            ways = lambda k: math.comb(n_b, k) * p**k * (1 - p) ** (n_b - k)
            return sum(ways(k) * k / (n_a + n_b - k) for k in overlaps)
        """,
        "Is the return inside the loop": """
            for k in range(max(0, n_a + n_b - n), min(n_a, n_b) + 1):
                p = math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
                return p * k / (n_a + n_b - k)
        """,
        "small cases are right, but 30 and 12 of 3,000 nodes are not": """
            if n > 100:
                return n_a * n_b / n / (n_a + n_b)
            ways = lambda k: math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
            return sum(ways(k) * k / (n_a + n_b - k) for k in range(min(n_a, n_b) + 1))
        """,
    },
    "cpr_cmd": {
        "Take |1 − f| first": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack([torch.trapezoid(y, k), torch.trapezoid(1 - y, k).abs()])
        """,
        "a circuit that overshoots the model is off, too": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack([torch.trapezoid(y, k), torch.trapezoid(1 - y, k)])
        """,
        "Each trapezoid is as wide": """
            y = torch.tensor(faithfulness)
            return torch.stack([y.mean(), (1 - y).abs().mean()])
        """,
        "rectangles with the left value": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack(
                [(y[:-1] * k.diff()).sum(), ((1 - y[:-1]).abs() * k.diff()).sum()]
            )
        """,
        "rectangles with the right value": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack([(y[1:] * k.diff()).sum(), ((1 - y[1:]).abs() * k.diff()).sum()])
        """,
        "not the mean height": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            width = k[-1] - k[0]
            return torch.stack(
                [torch.trapezoid(y, k) / width, torch.trapezoid((1 - y).abs(), k) / width]
            )
        """,
        "your area begins at k = 0": """
            k, y = torch.tensor([0.0, *fractions]), torch.tensor([0.0, *faithfulness])
            return torch.stack([torch.trapezoid(y, k), torch.trapezoid((1 - y).abs(), k)])
        """,
        "|1 − CPR|": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            cpr = torch.trapezoid(y, k)
            return torch.stack([cpr, (1 - cpr).abs()])
        """,
        "the last trapezoid is missing": """
            k, y = torch.tensor(fractions[:-1]), torch.tensor(faithfulness[:-1])
            return torch.stack([torch.trapezoid(y, k), torch.trapezoid((1 - y).abs(), k)])
        """,
        "sizes and faithfulness have changed places": """
            y, k = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack([torch.trapezoid(y, k), torch.trapezoid((1 - y).abs(), k)])
        """,
        "CMD: your strips are rectangles with the left value": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack([torch.trapezoid(y, k), ((1 - y[:-1]).abs() * k.diff()).sum()])
        """,
        "you took |1 − f| all along the lines": """
            import numpy as np

            k = np.linspace(fractions[0], fractions[-1], 100_001)
            y = np.interp(k, fractions, faithfulness)
            return torch.tensor([np.trapezoid(y, k), np.trapezoid(abs(1 - y), k)]).float()
        """,
        "a tensor, not tuple": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.trapezoid(y, k), torch.trapezoid((1 - y).abs(), k)
        """,
        "it is float64, and float32 is wanted": """
            k, y = torch.tensor(fractions).double(), torch.tensor(faithfulness).double()
            return torch.stack([torch.trapezoid(y, k), torch.trapezoid((1 - y).abs(), k)])
        """,
        "CPR and CMD have changed places": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack([torch.trapezoid((1 - y).abs(), k), torch.trapezoid(y, k)])
        """,
    },
    "other_number": {
        "nothing would flip": """
            return {
                (h, p, i): torch.where(
                    is_plural,
                    latents[h][train_is_plural, p, i].mean(),
                    latents[h][~train_is_plural, p, i].mean(),
                )
                for h, p, i in nodes
            }
        """,
        "you averaged over positions too": """
            return {
                (h, p, i): torch.where(
                    is_plural,
                    latents[h][~train_is_plural][..., i].mean(),
                    latents[h][train_is_plural][..., i].mean(),
                )
                for h, p, i in nodes
            }
        """,
        "that is an ablation": """
            return {
                (h, p, i): latents[h][:, p, i].mean().expand(len(is_plural))
                for h, p, i in nodes
            }
        """,
        "one value for all sentences": """
            return {(h, p, i): latents[h][~train_is_plural, p, i].mean() for h, p, i in nodes}
        """,
        "A silent one counts too": """
            values = {}
            for h, p, i in nodes:
                f = latents[h][:, p, i]
                singular = f[~train_is_plural & (f > 0)].mean()
                plural = f[train_is_plural & (f > 0)].mean()
                values[h, p, i] = torch.where(is_plural, singular, plural)
            return values
        """,
        "the position is one too small": """
            return {
                (h, p, i): torch.where(
                    is_plural,
                    latents[h][~train_is_plural, p - 1, i].mean(),
                    latents[h][train_is_plural, p - 1, i].mean(),
                )
                for h, p, i in nodes
            }
        """,
        "the values for plural subjects: they are means over the training sentences of both": """
            return {
                (h, p, i): torch.where(
                    is_plural,
                    latents[h][:, p, i].mean(),
                    latents[h][train_is_plural, p, i].mean(),
                )
                for h, p, i in nodes
            }
        """,
        "the values for singular subjects is 2 times": """
            return {
                (h, p, i): torch.where(
                    is_plural,
                    latents[h][~train_is_plural, p, i].mean(),
                    latents[h][train_is_plural, p, i].sum(),
                )
                for h, p, i in nodes
            }
        """,
        "every node got the values of the first": """
            h, p, i = nodes[0]
            value = torch.where(
                is_plural,
                latents[h][~train_is_plural, p, i].mean(),
                latents[h][train_is_plural, p, i].mean(),
            )
            return dict.fromkeys(nodes, value)
        """,
        "is a list of 7, and a tensor is wanted": """
            values = solutions["other_number"](latents, train_is_plural, is_plural, nodes)
            return {node: value.tolist() for node, value in values.items()}
        """,
        "position and latent have changed places": """
            return {
                (h, p, i): torch.where(
                    is_plural,
                    latents[h][~train_is_plural, i, p].mean(),
                    latents[h][train_is_plural, i, p].mean(),
                )
                for h, p, i in nodes
            }
        """,
        "a dictionary with the nodes as keys": "return [torch.zeros(7) for node in nodes]",
    },
}


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_a_wrong_version_is_refused_for_the_right_reason(name, body, says):
    checked = book.checked(attempt(nb05, name, body, **NAMES))
    assert checked.status == "wrong" and says in checked.says, checked.says


def test_every_checker_refuses_at_least_three_wrong_versions():
    assert set(WRONG) == set(book.solutions) and all(len(wrong) >= 3 for wrong in WRONG.values())


RIGHT: WrongVersions = {
    "three_faithfulnesses": {
        "numbers in one tensor": """
            m, s, c, e = (row.mean().item() for row in (model, spliced, circuit, empty))
            return torch.tensor([(c - e) / (m - e), (c - e) / (s - e), c / s])
        """,
    },
    "paired_gap": {
        "a loop over the draws, and prompts by choice": """
            generator = torch.Generator().manual_seed(seed)
            weight, drawn = torch.ones(len(off_a)), []
            for _ in range(n_draws):
                rows = weight.multinomial(len(off_a), replacement=True, generator=generator)
                drawn.append((off_a[rows].mean() - off_b[rows].mean()) / off_empty[rows].mean())
            return ends_of((off_a - off_b).mean() / off_empty.mean(), torch.stack(drawn))
        """,
        "sums in place of means": """
            rows = draws(len(off_a), n_draws, seed)
            a, b, e = (off[rows].sum(1) for off in (off_a, off_b, off_empty))
            return ends_of((off_a - off_b).sum() / off_empty.sum(), (a - b) / e)
        """,
    },
    "left_without": {
        "one minus what is lost": """
            rest = evaluate(knock_out(everything, circuit.nodes())).mean()
            s, e = evaluate(everything).mean(), evaluate(nothing).mean()
            return 1 - (s - rest) / (s - e)
        """,
        "all masks but the circuit's": """
            rest = SAEMasks(everything.hook_points, [1 - mask for mask in circuit.masks])
            s, e = evaluate(everything).mean(), evaluate(nothing).mean()
            return (evaluate(rest).mean() - e) / (s - e)
        """,
    },
    "chance_jaccard": {
        "every overlap that there might be, and a tensor": """
            ways = lambda k: math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / math.comb(n, n_b)
            overlaps = range(1, min(n_a, n_b) + 1)
            return torch.tensor([ways(k) * k / (n_a + n_b - k) for k in overlaps]).sum()
        """,
    },
    "cpr_cmd": {
        "torch's own rule": """
            k, y = torch.tensor(fractions), torch.tensor(faithfulness)
            return torch.stack([torch.trapezoid(y, k), torch.trapezoid((1 - y).abs(), k)])
        """,
    },
    "other_number": {
        "the nodes in another order": """
            values = solutions["other_number"](latents, train_is_plural, is_plural, nodes)
            return dict(reversed(values.items()))
        """,
    },
}


@pytest.mark.parametrize(("name", "body", "which"), cases(RIGHT))
def test_another_right_version_is_accepted(name, body, which):
    checked = book.checked(attempt(nb05, name, body, **NAMES))
    assert checked.status == "right", (which, checked.says)


def test_the_slips_in_a_ratio_differ_from_what_is_right_and_from_each_other():
    c, whole, e = torch.tensor(2.5), torch.tensor(3.75), torch.tensor(0.4)
    values = [(c - e) / (whole - e), *nb05._mistakes_of_a_ratio(c, whole, e).values()]
    assert min((a - b).abs() for a, b in itertools.combinations(values, 2)) > 1e-3


def test_a_part_is_named_where_the_whole_is_not():
    right = torch.tensor([[1.0, 2.0, 4.0], [3.0, 7.0, 5.0]])
    parts = {"the first": lambda table: table[0], "the second": lambda table: table[1]}

    def said_of(answer, of_parts=None):
        with pytest.raises(Wrong) as wrong:
            nb05.compare_parts(answer, right, {"mine": right + 9}, parts, of_parts, what="it")
        return str(wrong.value)

    other = torch.tensor([1.0, 5.0, 9.0])
    of_second = torch.stack([right[0], other])
    assert said_of(right + 9) == "mine" and "it has the shape" in said_of(right[0])
    assert said_of(of_second) == "you got the first right, but not the second."
    assert said_of(of_second, {"the second": {"odd": other}}) == "the second: odd"
    assert said_of(torch.stack([right[0], 3 * right[1]])).startswith("the second is 3 times")
    assert "off by up to" in said_of(torch.stack([other, other]))
    assert nb05.compare_parts(right, right, {}, parts, what="it") is None


def test_a_paired_interval_is_the_librarys():
    generator = torch.Generator().manual_seed(0)
    ld = torch.randn(4, 30, generator=generator) + torch.tensor([[2.0], [1.7], [3.0], [0.0]])
    reference = Reference(ld[2], ld[2], ld[3])
    off_a, off_b, off_empty = ((row - ld[2]).abs() for row in (ld[0], ld[1], ld[3]))
    ours = nb05.paired_gap(off_a, off_b, off_empty, 1000, 0)
    theirs = paired_difference(ld[0][None], ld[1][None], "gap", reference)
    wanted = torch.tensor([theirs.value, theirs.low, theirs.high])
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_what_is_left_is_the_wholes_without_the_circuit_and_all_of_it_without_idle_nodes():
    whole, empty = whole_toy(), toy_circuit()
    left = [nb05.left_without(toy, toy_circuit(*some), whole, empty) for some in ([IDLE], [LAST])]
    assert left[0] == 1 and left[1] == toy(without(whole, [LAST])).mean() / toy(whole).mean()


def test_completeness_points_are_what_is_left_of_the_circuit_and_of_the_whole():
    nodes = [FIRST, IDLE, LAST, HARM]
    circuit, everything = toy_circuit(*nodes), whole_toy()
    subsets = [[], [FIRST], [LAST, HARM], nodes]
    points = nb05.completeness_points(toy, circuit, everything, subsets)
    for point, subset in zip(points, subsets, strict=True):
        left = [node for node in nodes if node not in subset]
        left_of_whole = [node for node in everything.nodes() if node not in subset]
        assert point[0] == toy(toy_circuit(*left)).mean()
        assert point[1] == toy(toy_circuit(*left_of_whole)).mean()


def test_a_drop_is_what_the_answer_loses_without_one_node():
    nodes = [FIRST, IDLE, LAST, HARM]
    drops = nb05.drop_each(toy, toy_circuit(*nodes), nodes)
    assert drops.shape == (4, 4)
    for i, drop in enumerate(drops):
        others = nodes[:i] + nodes[i + 1 :]
        torch.testing.assert_close(drop, toy(toy_circuit(*nodes)) - toy(toy_circuit(*others)))
    assert (drops[0] > 0).all() and (drops[1] == 0).all() and (drops[3] == -0.5).all()


@pytest.mark.parametrize(
    ("n_a", "n_b", "n"), [(2, 3, 5), (3, 3, 6), (1, 4, 6), (5, 4, 6), (6, 2, 6)]
)
def test_chance_is_the_mean_over_all_pairs_of_circuits(n_a, n_b, n):
    pairs = itertools.product(
        itertools.combinations(range(n), n_a), itertools.combinations(range(n), n_b)
    )
    values = [jaccard(a, b) for a, b in pairs]
    assert nb05.chance_jaccard(n_a, n_b, n) == pytest.approx(sum(values) / len(values))


def test_cpr_and_cmd_are_the_librarys_areas():
    fractions, f = [0.01, 0.1, 1.0], [0.2, 1.2, 1.0]
    torch.testing.assert_close(
        nb05.cpr_cmd(fractions, f).double(), torch.stack(areas(fractions, f)), rtol=1e-6, atol=1e-7
    )


def test_the_toy_is_faithful_without_the_twin_and_incomplete():
    faithful, complete = toy_circuit(FIRST, LAST), toy_circuit(FIRST, TWIN, LAST)
    assert torch.equal(toy(faithful), toy(complete))
    assert toy(without(faithful, [FIRST])).mean() == 0 < toy(without(whole_toy(), [FIRST])).mean()


def test_the_toys_nodes_do_what_they_are_said_to_do():
    everything = whole_toy()
    assert torch.equal(toy(without(everything, [IDLE])), toy(everything))
    assert torch.equal(toy(without(everything, [HARM])), toy(everything) + 0.5)
    alone = only(everything, [LAST])
    assert (toy(alone) == 0).all() and (toy(toy_circuit(FIRST, LAST)) > 0).all()
    assert (toy(toy_circuit(TWIN, LAST)) > 0).all()
