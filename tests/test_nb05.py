"""Notebook 05's checkers accept the solutions and name the bug in wrong versions.

The solutions agree with `evaluate`, or with the slow and plain way.
"""

import inspect
import itertools

import pytest
import torch
from readers import WrongVersions, attempt, cases

from course_utils.circuits.evaluate import areas, jaccard
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


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_solution_is_right_and_every_stub_is_open(name):
    assert book.checked(book.solutions[name]).status == "right"
    assert book.checked(attempt(nb05, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_exercise_has_a_checker_and_a_docstring(name):
    assert name in book.checkers and len(inspect.getdoc(book.solutions[name])) > 100


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
        "one value a prompt": """
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
        "F(∅) is missing in the first two": """
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
        "the third does not know F(∅)": """
            m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean()
            return torch.stack([(c - e) / (m - e), (c - e) / (s - e), (c - e) / (s - e)])
        """,
    },
    "knock_out": {
        "you changed the masks that you were given": """
            for h, p, i in nodes:
                masks[h][p, i] = 0
            return masks
        """,
        "switched the latents off at every position": """
            copies = {h: m.clone() for h, m in masks.items()}
            for h, p, i in nodes:
                copies[h][:, i] = 0
            return SAEMasks(list(copies), list(copies.values()))
        """,
        "the other way round": """
            copies = {h: torch.zeros_like(m) for h, m in masks.items()}
            for h, p, i in nodes:
                copies[h][p, i] = masks[h][p, i]
            return SAEMasks(list(copies), list(copies.values()))
        """,
        "nothing is knocked out": """
            copies = {h: m.clone() for h, m in masks.items()}
            return SAEMasks(list(copies), list(copies.values()))
        """,
        "to return SAEMasks, not dict": """
            copies = {h: m.clone() for h, m in masks.items()}
            return copies
        """,
        "those without a knocked-out node too": """
            copies = {h: m.clone() for h, m in masks.items()}
            for h, p, i in nodes:
                copies[h][p, i] = 0
            return SAEMasks([EARLY], [copies[EARLY]])
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
        "has the shape [4, 4], and [4, 2] is wanted": """
            return torch.stack([evaluate(knock_out(circuit, k)) for k in subsets])
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
        "a dictionary with the nodes as keys": "return [torch.zeros(3) for node in nodes]",
    },
}


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_a_wrong_version_is_refused_for_the_right_reason(name, body, says):
    checked = book.checked(attempt(nb05, name, body))
    assert checked.status == "wrong" and says in checked.says, checked.says


def test_every_checker_refuses_at_least_three_wrong_versions():
    assert set(WRONG) == set(book.solutions) and all(len(wrong) >= 3 for wrong in WRONG.values())


def test_knocked_out_nodes_are_those_that_the_library_takes_out():
    circuit = toy_circuit(FIRST, IDLE, LAST, HARM)
    knocked_out = nb05.knock_out(circuit, [FIRST, LAST])
    assert knocked_out.to_json() == without(circuit, [FIRST, LAST]).to_json()
    assert set(knocked_out.nodes()) == {IDLE, HARM}
    assert set(circuit.nodes()) == {FIRST, IDLE, LAST, HARM}  # stays as it was


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
