"""Notebook 05's checkers accept the solutions and name the bug in wrong versions.

The solutions agree with `evaluate`, or with the slow and plain way.
"""

import inspect
import itertools
import math
import textwrap

import pytest
import torch

from course_utils.circuits.evaluate import areas, jaccard
from course_utils.circuits.masks import only, without
from course_utils.teaching import nb05 as sheet
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


def attempt(name, body):
    """A reader's version of an exercise, with the signature that the course gave it."""
    arguments = ", ".join(inspect.signature(book.solutions[name]).parameters)
    space = {**vars(sheet), "torch": torch, "math": math}
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


COPY = "copies = {h: m.clone() for h, m in masks.items()}"
FORGETS = """
    import torch
    gone = []
    points = []
    for subset in subsets:
        gone += subset
        points.append(torch.stack([evaluate(knock_out(m, gone)).mean() for m in (circuit, everything)]))
    return torch.stack(points)
"""
WRONG = [
    # 5.1
    ("three_faithfulnesses", "return torch.stack([(circuit - empty) / (model - empty), (circuit - empty) / (spliced - empty), circuit / spliced]).mean(1)", "mean of the prompts' ratios"),
    ("three_faithfulnesses", "return torch.stack([(circuit - empty) / (model - empty), (circuit - empty) / (spliced - empty), circuit / spliced])", "one value a prompt"),
    ("three_faithfulnesses", "m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean(); return torch.stack([(c - e) / m, (c - e) / s, c / s])", "missing below the fraction line"),
    ("three_faithfulnesses", "m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean(); return torch.stack([c / m, c / s, c / s])", "F(∅) is missing in the first two"),
    ("three_faithfulnesses", "m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean(); return torch.stack([(m - e) / (c - e), (s - e) / (c - e), s / c])", "upside down"),
    ("three_faithfulnesses", "m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean(); return torch.stack([(c - e) / (s - e), (c - e) / (m - e), c / s])", "changed places"),
    ("three_faithfulnesses", "m, s, c, e = model.mean(), spliced.mean(), circuit.mean(), empty.mean(); return torch.stack([(c - e) / (m - e), (c - e) / (s - e), (c - e) / (s - e)])", "the third does not know F(∅)"),
    # 5.2
    ("knock_out", "for h, p, i in nodes: masks[h][p, i] = 0\nreturn masks", "you changed the masks that you were given"),
    ("knock_out", COPY + "\nfor h, p, i in nodes: copies[h][:, i] = 0\nreturn SAEMasks(list(copies), list(copies.values()))", "switched the latents off at every position"),
    ("knock_out", "copies = {h: torch.zeros_like(m) for h, m in masks.items()}\nfor h, p, i in nodes: copies[h][p, i] = masks[h][p, i]\nreturn SAEMasks(list(copies), list(copies.values()))", "the other way round"),
    ("knock_out", COPY + "\nreturn SAEMasks(list(copies), list(copies.values()))", "nothing is knocked out"),
    ("knock_out", COPY + "\nreturn copies", "to return SAEMasks, not dict"),
    ("knock_out", COPY + "\nfor h, p, i in nodes: copies[h][p, i] = 0\nreturn SAEMasks([EARLY], [copies[EARLY]])", "those without a knocked-out node too"),
    # 5.3
    ("completeness_points", "return torch.stack([torch.stack([evaluate(knock_out(m, k)).mean() for m in (everything, circuit)]) for k in subsets])", "the circuit comes first"),
    ("completeness_points", FORGETS, "Start from the whole circuit every time"),
    ("completeness_points", "return torch.stack([torch.stack([evaluate(knock_out(circuit, k)).mean(), evaluate(toy_circuit(*k)).mean()]) for k in subsets])", "the second column is K alone"),
    ("completeness_points", "return torch.stack([torch.stack([evaluate(knock_out(circuit, k)).mean(), evaluate(everything).mean()]) for k in subsets])", "K leaves both"),
    ("completeness_points", "return torch.stack([(evaluate(knock_out(circuit, k)).mean() - evaluate(knock_out(everything, k)).mean()).abs() for k in subsets])", "the points themselves are wanted"),
    ("completeness_points", "return torch.stack([evaluate(knock_out(circuit, k)) for k in subsets])", "has the shape [4, 4], and [4, 2] is wanted"),
    # 5.4
    ("drop_each", "return torch.stack([evaluate(knock_out(circuit, [v])) - evaluate(circuit) for v in nodes])", "the sign is wrong"),
    ("drop_each", "return torch.stack([evaluate(circuit) - evaluate(knock_out(circuit, nodes[: i + 1])) for i in range(len(nodes))])", "One at a time"),
    ("drop_each", "return torch.stack([evaluate(circuit) - evaluate(toy_circuit(v)) for v in nodes])", "you kept one node and dropped the others"),
    ("drop_each", "return torch.stack([(evaluate(circuit) - evaluate(knock_out(circuit, [v]))).abs() for v in nodes])", "sizes only"),
    ("drop_each", "return torch.stack([(evaluate(circuit) - evaluate(knock_out(circuit, [v]))).mean() for v in nodes])", "you averaged over prompts"),
    ("drop_each", "whole = evaluate(circuit)\nrows = []\nfor h, p, i in nodes:\n    circuit[h][p, i] = 0\n    rows.append(whole - evaluate(circuit))\nreturn torch.stack(rows)", "put each node back"),
    # 5.5
    ("chance_jaccard", "return (n_a * n_b / n) / (n_a + n_b - n_a * n_b / n)", "not the ratio of the means"),
    ("chance_jaccard", "return n_a * n_b / n", "the mean overlap itself"),
    ("chance_jaccard", "return n_a * n_b / n / (n_a + n_b)", "counts shared nodes twice"),
    ("chance_jaccard", "return n_a * n_b / n / min(n_a, n_b)", "that is nesting"),
    # 5.6
    ("cpr_cmd", "k, y = torch.tensor(fractions), torch.tensor(faithfulness); return torch.stack([torch.trapezoid(y, k), torch.trapezoid(1 - y, k).abs()])", "Take |1 − f| first"),
    ("cpr_cmd", "k, y = torch.tensor(fractions), torch.tensor(faithfulness); return torch.stack([torch.trapezoid(y, k), torch.trapezoid(1 - y, k)])", "a circuit that overshoots the model is off, too"),
    ("cpr_cmd", "y = torch.tensor(faithfulness); return torch.stack([y.mean(), (1 - y).abs().mean()])", "Each trapezoid is as wide"),
    ("cpr_cmd", "k, y = torch.tensor(fractions), torch.tensor(faithfulness); return torch.stack([(y[:-1] * k.diff()).sum(), ((1 - y[:-1]).abs() * k.diff()).sum()])", "rectangles with the left value"),
    ("cpr_cmd", "k, y = torch.tensor(fractions), torch.tensor(faithfulness); return torch.stack([(y[1:] * k.diff()).sum(), ((1 - y[1:]).abs() * k.diff()).sum()])", "rectangles with the right value"),
    ("cpr_cmd", "k, y = torch.tensor(fractions), torch.tensor(faithfulness); return torch.stack([torch.trapezoid((1 - y).abs(), k), torch.trapezoid(y, k)])", "CPR and CMD have changed places"),
    # 5.7
    ("other_number", "return {(h, p, i): torch.where(is_plural, latents[h][train_is_plural, p, i].mean(), latents[h][~train_is_plural, p, i].mean()) for h, p, i in nodes}", "nothing would flip"),
    ("other_number", "return {(h, p, i): torch.where(is_plural, latents[h][~train_is_plural][..., i].mean(), latents[h][train_is_plural][..., i].mean()) for h, p, i in nodes}", "you averaged over positions too"),
    ("other_number", "return {(h, p, i): latents[h][:, p, i].mean().expand(len(is_plural)) for h, p, i in nodes}", "that is an ablation"),
    ("other_number", "return {(h, p, i): latents[h][~train_is_plural, p, i].mean() for h, p, i in nodes}", "one value for all sentences"),
    ("other_number", "return {(h, p, i): torch.where(is_plural, latents[h][~train_is_plural, i, p].mean(), latents[h][train_is_plural, i, p].mean()) for h, p, i in nodes}", "position and latent have changed places"),
    ("other_number", "return [torch.zeros(3) for node in nodes]", "a dictionary with the nodes as keys"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "body", "says"), [pytest.param(*case, id=f"{case[0]}: {case[2]}") for case in WRONG]
)
def test_a_wrong_version_is_refused_for_the_right_reason(name, body, says):
    found = book.checked(attempt(name, body))
    assert found.status == "wrong" and says in found.says


@pytest.mark.parametrize("name", list(book.solutions))
def test_every_checker_refuses_at_least_three_wrong_versions(name):
    assert sum(case[0] == name for case in WRONG) >= 3


def test_knocked_out_nodes_are_those_that_the_library_takes_out():
    circuit = toy_circuit(FIRST, IDLE, LAST, HARM)
    knocked_out = sheet.knock_out(circuit, [FIRST, LAST])
    assert knocked_out.to_json() == without(circuit, [FIRST, LAST]).to_json()
    assert set(knocked_out.nodes()) == {IDLE, HARM}
    assert set(circuit.nodes()) == {FIRST, IDLE, LAST, HARM}  # stays as it was


def test_completeness_points_are_what_is_left_of_the_circuit_and_of_the_whole():
    nodes = [FIRST, IDLE, LAST, HARM]
    circuit, everything = toy_circuit(*nodes), whole_toy()
    subsets = [[], [FIRST], [LAST, HARM], nodes]
    points = sheet.completeness_points(toy, circuit, everything, subsets)
    for point, subset in zip(points, subsets, strict=True):
        left = [node for node in nodes if node not in subset]
        left_of_whole = [node for node in everything.nodes() if node not in subset]
        assert point[0] == toy(toy_circuit(*left)).mean()
        assert point[1] == toy(toy_circuit(*left_of_whole)).mean()


def test_a_drop_is_what_the_answer_loses_without_one_node():
    nodes = [FIRST, IDLE, LAST, HARM]
    drops = sheet.drop_each(toy, toy_circuit(*nodes), nodes)
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
    assert sheet.chance_jaccard(n_a, n_b, n) == pytest.approx(sum(values) / len(values))


def test_cpr_and_cmd_are_the_librarys_areas():
    fractions, f = [0.01, 0.1, 1.0], [0.2, 1.2, 1.0]
    torch.testing.assert_close(
        sheet.cpr_cmd(fractions, f).double(), torch.stack(areas(fractions, f)), rtol=1e-6, atol=1e-7
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
