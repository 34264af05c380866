"""A circuit as a graph: what it refuses, how it is put together, and what is measured of it."""

import math

import pytest
import torch
from conftest import make_task, tiny_tokenizer

from course_utils.circuits.explain import Context
from course_utils.circuits.graph import (
    ANSWER,
    NO_KIND,
    CircuitGraph,
    Contrast,
    GraphEdge,
    GraphNode,
    answer_effects,
    contrasts_of,
    few_words,
    kind_of,
    latent_graph,
    measured_graph,
    values_on_prompts,
)
from course_utils.circuits.interventions import edge_effects
from course_utils.labs.lab import hook_point
from course_utils.prompts.tasks import load_task

A, B, C = hook_point(0), hook_point(1), hook_point(3)


def plain_graph(*edges, n=3):
    """Nodes in one column, one per row."""
    rows = tuple(f"row {i}" for i in range(n))
    nodes = tuple(GraphNode(str(i), i, 0, "kind") for i in range(n))
    return CircuitGraph(rows, ("word",), nodes, tuple(GraphEdge(*edge) for edge in edges))


# -- the graph ---------------------------------------------------------------------------------


def test_inputs_and_outputs_are_a_nodes_own_and_the_strongest_comes_first():
    graph = plain_graph((0, 2, 0.2), (1, 2, -0.9), (0, 1, 0.4))
    assert [(e.source, e.weight) for e in graph.inputs(2)] == [(1, -0.9), (0, 0.2)]
    assert [(e.target, e.weight) for e in graph.outputs(0)] == [(1, 0.4), (2, 0.2)]
    assert graph.inputs(0) == [] and graph.outputs(2) == []


@pytest.mark.parametrize(
    ("edge", "says"),
    [
        ((0, 3, 1.0), "nodes from 0 to 2"),
        ((1, 1, 1.0), "two different nodes"),
        ((0, 1, math.nan), "weight nan"),
    ],
)
def test_edges_that_cannot_be_are_refused(edge, says):
    with pytest.raises(ValueError, match=says):
        plain_graph(edge)


def test_nodes_beyond_the_names_and_graphs_without_nodes_are_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        CircuitGraph(("row",), ("word",), ())
    with pytest.raises(ValueError, match="column 1, and there are names for 1"):
        CircuitGraph(("row",), ("word",), (GraphNode("7", 0, 1, "kind"),))
    with pytest.raises(ValueError, match="row 2, and there are names for 1"):
        CircuitGraph(("row",), ("word",), (GraphNode("7", 2, 0, "kind"),))


# -- what a latent responds to -----------------------------------------------------------------


def test_a_kind_is_the_first_contrast_that_is_clear():
    yes = torch.tensor([True, True, True, False, False, False])
    other = torch.tensor([True, False, True, False, True, False])
    contrasts = [
        Contrast("plural subject", "singular subject", yes),
        Contrast("plural object", "singular object", other),
    ]
    assert kind_of(torch.tensor([3.0, 2, 3, 0, 0, 1]), contrasts) == "plural subject"
    assert kind_of(-torch.tensor([3.0, 2, 3, 0, 0, 1]), contrasts) == "singular subject"
    assert kind_of(torch.tensor([3.0, 0, 3, 0, 3, 0]), contrasts) == "plural object"
    assert kind_of(torch.zeros(6), contrasts) == NO_KIND


@pytest.fixture(scope="module")
def two_nouns():
    """Prompts with a subject and a distractor, whose numbers vary."""
    return load_task("sva_nounpp", tiny_tokenizer(), "dev", n=12)


def test_contrasts_come_from_the_parts_of_the_cases(two_nouns):
    task = two_nouns
    subject, other = contrasts_of(task, ["subject", "distractor"])
    assert (subject.higher, subject.lower) == ("plural subject", "singular subject")
    cases = [pair.case for pair in task.pairs]
    assert subject.yes.tolist() == [case.startswith("plural") for case in cases]
    assert other.yes.tolist() == [case.endswith("plural") for case in cases]
    with pytest.raises(ValueError, match="has not 1 parts"):
        contrasts_of(task, ["subject"])
    with pytest.raises(ValueError, match="Take more prompts"):
        contrasts_of(task[:1], ["subject", "distractor"])


def test_the_words_on_a_latent_are_its_peaks_or_behind_an_arrow_what_it_promotes():
    contexts = [Context([" the", word], [0.0, 1.0], 1) for word in (" roads", " roads", " hands")]
    assert few_words(contexts, [" is"], last=False) == "roads, hands"
    assert few_words(contexts, [" is", " has", " was"], last=True) == "→ is, has"


# -- of SAE latents ----------------------------------------------------------------------------


def test_edges_of_a_latent_graph_join_neighbouring_layers_only_and_lead_to_the_answer():
    nodes = [(A, 1, 3), (B, 2, 0), (C, 2, 5)]
    edges = torch.tensor([[0, 0.5, 0.9], [0, 0, -0.3], [0, 0, 0]])
    effects = torch.tensor([0.8, 0.7, -0.6])
    graph = latent_graph(nodes, list("xyz"), list("uvw"), ["B", "a", "b"], edges, effects=effects)
    assert graph.rows == ("after layer 0", "after layer 1", "after layer 3", "answer")
    assert [(e.source, e.target) for e in graph.edges] == [(0, 1), (1, 2), (2, 3)]
    assert [e.weight for e in graph.edges] == pytest.approx([0.5, -0.3, -0.6])
    assert [node.kind for node in graph.nodes] == ["x", "y", "z", ANSWER]
    assert graph.nodes[0].full_name == "latent 3 · after layer 0"
    assert [node.column for node in graph.nodes] == [1, 2, 2, 2]


def test_edges_below_the_least_are_left_out_and_there_is_no_answer_without_effects():
    nodes = [(A, 1, 3), (B, 2, 0)]
    edges = torch.tensor([[0, 0.09], [0, 0]])
    graph = latent_graph(nodes, list("xy"), list("uv"), ["B", "a", "b"], edges)
    assert graph.edges == () and len(graph.nodes) == 2
    assert len(latent_graph(nodes, "xy", "uv", ["B", "a", "b"], edges, least=0.05).edges) == 1


def test_nodes_without_a_position_are_refused():
    with pytest.raises(ValueError, match="each with a position"):
        latent_graph([(A, None, 3)], ["x"], ["u"], ["B"], torch.zeros(1, 1))


def test_the_effect_on_the_answer_is_the_share_of_the_logit_differences_change(spliced, task):
    nodes = firing_nodes(spliced, task)
    clean, patch = spliced.run(task.clean), spliced.run(task.patch)
    whole = patch.logit_diff(task) - clean.logit_diff(task)
    for (name, position, latent), effect in zip(nodes, answer_effects(spliced, task, nodes)):
        f = clean.latents[name].clone()
        f[:, position, latent] = patch.latents[name][:, position, latent]
        moved = spliced.run(task.clean, latents={name: f}).logit_diff(task) - clean.logit_diff(task)
        by_hand = (moved * whole).sum() / whole.pow(2).sum()
        assert effect.item() == pytest.approx(by_hand.item(), abs=1e-4)
    assert answer_effects(spliced, task, nodes).abs().max() > 1e-3


def test_values_on_prompts_are_those_of_the_first_prompt_and_its_twin(spliced, task):
    nodes = firing_nodes(spliced, task)
    for (name, position, latent), found in zip(nodes, values_on_prompts(spliced, task, nodes)):
        for key, tokens in (("this prompt", task.clean), ("its twin", task.patch)):
            f = spliced.run(tokens[:1]).latents[name][0, 1:, latent]
            assert found[key].values == pytest.approx(f.tolist(), abs=1e-5)
            assert found[key].peak == position - 1 and len(found[key].tokens) == len(f)


def test_a_measured_graph_has_all_that_is_known_of_each_latent(spliced, task):
    nodes = firing_nodes(spliced, task)
    contrasts = contrasts_of(task, ["subject"])
    graph = measured_graph(spliced, task, nodes, task.patch, contrasts, least=0)
    latents, answer = graph.nodes[:-1], graph.nodes[-1]
    assert [int(node.name) for node in latents] == [latent for _, _, latent in nodes]
    assert [graph.columns[node.column] for node in latents] == [
        task.position_labels[position] for _, position, _ in nodes
    ]
    assert answer.kind == ANSWER and answer.effect is None
    assert all(node.card.promotes and node.prompts and node.effect is not None for node in latents)
    whole = edge_effects(spliced, task.clean, task.patch, nodes)
    of_latents = [edge for edge in graph.edges if edge.target < len(nodes)]
    assert of_latents
    for edge in of_latents:
        assert edge.weight == pytest.approx(whole[edge.source, edge.target].item(), abs=1e-5)


def firing_nodes(spliced, task):
    """At the subject and at the last position, the node of each SAE whose values differ most."""
    clean, patch = (spliced.run(tokens).latents for tokens in (task.clean, task.patch))
    change = {name: (clean[name] - patch[name]).abs().sum(0) for name in clean}
    return [
        (name, position, int(change[name][position].argmax()))
        for name in change
        for position in (2, task.seq_len - 1)
    ]


def test_the_first_prompts_words_stand_without_bos(spliced):
    task = make_task(tiny_tokenizer())
    [found] = values_on_prompts(spliced, task, [(spliced.hook_points[0], 2, 0)])
    assert "".join(found["this prompt"].tokens).strip() == task.pairs[0].clean_prefix
