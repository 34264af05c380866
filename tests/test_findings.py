"""Every solutions notebook, run by papermill in the quick profile, finds what it says.

A claim is a sentence, and an expression over the notebook's own variables that is true where the
claim holds.
"""

import json

import nbformat
import papermill
import pytest
from test_notebooks import SOURCES, solution_path

FINDINGS = {
    "00": {
        "a circuit of a few dozen nodes is far more faithful than five random ones of its size": (
            "found.vs_spliced.low > max(chance) + 0.5"
        ),
        "with every latent at its mean the model does not know the number": (
            "abs(evaluation.empty.mean()) < 0.3 * evaluation.spliced_model.mean()"
        ),
    },
    "01": {
        "two dimensions hold two features that are always there, and five rare ones": (
            "stored[1.0] == 2 and stored[densities[-1]] == 5"
        ),
        "the SAE finds the directions of the rare ones": "worst > 0.98",
        "L1 shrinks latents by more than half of what it costs, and the others do not": (
            "gaps['ReLU + L1'] > TOY_L1 / 2 and all(gaps[n] < 0.6 * gaps['ReLU + L1'] for n in "
            "('TopK', 'BatchTopK', 'JumpReLU'))"
        ),
        "the sentence on shrinkage names the largest of the others": (
            "others == max(gaps[n] for n in ('TopK', 'BatchTopK', 'JumpReLU'))"
        ),
        "fewer latents are dead with the auxiliary loss than after as much training without it": (
            "all(revival['dead of 96'][n, 'trained longer'] > 3 + revival['dead of 96'][n, "
            "'trained longer, auxiliary loss'] for n in ('TopK', 'BatchTopK'))"
        ),
        "nearly all that are revived stand for a feature": (
            "all(useful > 0.8 * back > 2 for _, back, useful in map(what_they_do, ('TopK', "
            "'BatchTopK')))"
        ),
        "the revived find features that were missing": (
            "all(revival['features found'][n, 'trained longer, auxiliary loss'] > "
            "revival['features found'][n, 'trained longer'] for n in ('TopK', 'BatchTopK'))"
        ),
        "on real activations L1 shrinks too, and the others do not": (
            "table['γ']['ReLU + L1'] < 0.9 < table['γ'].drop('ReLU + L1').min() and "
            "table['γ'].max() < 1.15"
        ),
        "the SAEs trained in the notebook explain the activations, and L1 least": (
            "table['explained variance'].drop('ReLU + L1').min() > "
            "table['explained variance']['ReLU + L1'] > 0.3"
        ),
        "JumpReLU trains its thresholds to about the L0 that is wanted": (
            "0.7 * K < table['L0']['JumpReLU'] < 1.4 * K and low < high"
        ),
        "the shipped SAE keeps most of what the model knows": "recovered['mean'].low > 0.85",
    },
    "02": {
        "with every error kept, the spliced model is the model itself": (
            "(kept_logits - model_logits).abs().max() < 1e-2"
        ),
        "many SAEs cost more than one": (
            "mean_interval(added['drop', numbers[-1]] - added['drop', numbers[0]]).low > 0"
        ),
        "nothing gets past the latents when errors are dropped": (
            "all(abs(row['drop'].value) < 1e-3 for row in leaks.values())"
        ),
        "something gets past them when errors are kept": (
            "max(row['keep'].low for row in leaks.values()) > 0.1"
        ),
        "the error that is followed by hand is the library's": (
            "torch.allclose(own_error, library['sae'].relative.mean(0), atol=1e-3, rtol=1e-2)"
        ),
        "the table of memory has every lab": "set(LABS) < set(costs)",
    },
    "03": {
        "one latent at the subject matters, and a random one there does not": (
            "mean_interval(at_subject).low > 5 * control[LABELS[SUBJECT]].abs().mean()"
        ),
        "random nodes at 0 disturb the prediction more than at their mean": "zero.low > mean.high",
        "a mask has to keep more nodes where the rest is at 0": (
            "n_learned['zero'] > 2 * n_learned['mean']"
        ),
        "a knock-out that ignores positions charges the distractor with the subject's nodes": (
            "wide > own + 1"
        ),
        "the published running mean is worth a few prompts": "effective['published'] < 0.25 * n",
        "the mask for 0 also keeps nodes that fire in nearly all sentences": (
            "n_often['zero'] > n_often['mean']"
        ),
        "a mean switches on latents that are silent in a sentence": "switched_on > on_here",
        "the recap has five sentences with the numbers of the run": (
            "len(recap) == 5 and str(n_learned['zero']) in recap[2] and f'{wide:.2f}' in recap[3]"
        ),
    },
    "04": {
        "prompt by prompt, the learned mask is closer to the model than as many random nodes": (
            "frontier.compare('learned mask', 'random', SIZES[0], 'gap').high < 0"
        ),
        "the learned mask keeps more of the answer than random nodes of its number": (
            "frontier.compare('random', 'learned mask', SIZES[0], 'vs_spliced').high < 0"
        ),
        "integrated gradients rank single nodes as patching does, roughly": "spearman['IG'] > 0.5",
        "the scores of IG add up to the effect of the patch after the last SAE": (
            "abs(scores['IG'][(at_last := spliced.hook_points[-1])].sum() - falls[at_last]) < "
            "0.05 * falls[at_last]"
        ),
        "those of AtP add up to far less after the first": (
            "scores['AtP'][(at_first := spliced.hook_points[0])].sum() < 0.5 * falls[at_first]"
        ),
        "the sentence that sums up says what the paired intervals say": (
            "(f'learned mask beats {strong[0]}' in verdict.split('By |1')[0]) "
            "== (frontier.compare('learned mask', strong[0], SIZES[0], 'gap').high < 0)"
        ),
        "a wanted size is about the size that is learned": (
            "all(0.7 * size <= one.get_num_latents() <= 1.3 * size for (size, _), one in "
            "masks.items())"
        ),
        "the recap has five sentences with the numbers of the run": (
            "len(recap) == 5 and f\"wins {n_better['gap']} by the gap\" in recap[0] "
            "and f'{ranked.max():.2f}' in recap[2]"
        ),
    },
    "05": {
        "the circuit flips the verb, and strangers in the same places do not": (
            "flip_shares['circuit latents'].low > flip_shares['strangers, same places'].high + 0.5"
        ),
        "without the circuit little is left, and without as many strangers nearly all": (
            "lefts['the circuit'].high < 0.3 and lefts[f'{len(nodes)} strangers'].low > 0.9"
        ),
        "no random circuit comes near": "found.vs_spliced.low > random_share.max() + 0.5",
        "the test of minimality finds needed nodes, and calls no padding needed": (
            "n_needed / len(nodes) > 0.15 and passengers.value == 0"
        ),
        "two seeds share far more nodes than chance": (
            "of_seeds > 0.3 and of_seeds > 50 * by_chance"
        ),
        "over the sizes learned, learned masks are closer to the model than random nodes": (
            "cmd_of['learned mask'] < cmd_of['random'] - 0.3"
        ),
        "other nodes that know the number do not flip verbs": (
            "by_knowing.high < by_circuit.low - 0.3"
        ),
        "an interval is narrower where both circuits have the same prompts": "width < apart",
        "little is left without either circuit, and all without strangers": (
            "max(left_of[name] for name in on_trial) < 0.3 and left_of['strangers'] > 0.9"
        ),
        "chance is small whatever it draws from": "max(chance_of.values()) < 0.1 * of_seeds",
        "the recap has five sentences with the numbers of the run": (
            "len(recap) == 5 and f'{n_needed} of its nodes' in recap[2] "
            "and f'{by_circuit.value:.0%} of the verbs' in recap[4]"
        ),
    },
    "06": {
        "the model knows a missing key from one that is there": (
            "control[True].value < 0.2 and control[False].value < 0.2"
        ),
        "a learned mask keeps more of the answer than random nodes of its number": (
            "frontiers['dict_key'].compare('random', 'learned mask', largest['dict_key'], "
            "'vs_spliced').high < 0"
        ),
        "the latents tell keys apart that they were not chosen on": "min(aucs.values()) > 0.9",
        "the latents that tell the kinds apart are in the circuit, far more than by chance": (
            "n_shared > 0.8 * n_telling and by_chance < 0.5 * n_telling and "
            "agreeing['chance of as many'].max() < 1e-3"
        ),
        "attribution at its best is ahead of the learned masks of 60 nodes": "apart[0].low > 0",
        "with 183 nodes the difference is small": "max(abs(apart[1].low), apart[1].high) < 0.1",
        "the repeat crosses to the end between one pair of layers": (
            "n_crossing >= 2 and n_busiest > 0.5 * n_crossing and n_fed >= 2"
        ),
        "holding the verdict turns the answer both ways, and strangers do not": (
            "min(forced[name].value for name in orange[2:]) > 0.7 and max(forced[name].value "
            "for name in forced if 'strangers' in name) < 0.3"
        ),
        "holding seen makes errors into values, and values stay values": (
            "forced[orange[0]].value > 0.7 and forced[orange[1]].value < 0.3"
        ),
        "attribution keeps most of the answer, too": (
            "frontiers['dict_key'].mean(best['dict_key'], largest['dict_key'], 'vs_spliced').low "
            "> 0.5"
        ),
        "most lures fool in most cases, and their twins seldom do": (
            "len(often) > len(luring) / 2 and twins_of_often < 0.4"
        ),
        "other spellings, longer keys and other dictionaries fool; comments and what is deleted do "
        "not": (
            "{'lower case', 'second word', 'in another dictionary'} <= {named([f]) for f in often} "
            "and {'in a comment', 'deleted again', 'bytes'} <= {named([f]) for f in seldom}"
        ),
        "if another key is deleted, the model gives no answer, and no value": (
            "named(unanswered) == 'deleted again' and all(of_twins[f].value == 0 for f in "
            "unanswered)"
        ),
        "those that hide fool less often than the lures": (
            "max(fooled[f].value for f in hiding) < min(fooled[f].value for f in often)"
        ),
        "verdict foretells the answers, and seen does not": (
            "of_all['verdict'] > 0.85 and of_all['seen'] < 0.75 and better_site == 'verdict'"
        ),
        "a difference of means there does as well as verdict, and the logit lens worse": (
            "abs(of_all['difference of means'] - of_all['verdict']) < 0.03 and "
            "of_all['logit lens'] < of_all['verdict'] - 0.03"
        ),
        "a fit to families that it has met looks better than one scored on a new family": (
            "(of := anew['seen'])['fit on half of each family'] > 0.65 and "
            "of['fit on the other families'] < 0.55"
        ),
        "at the place of verdict the fit loses nothing": (
            "(of := anew['verdict'])['fit on the other families'] > "
            "of['fit on half of each family'] - 0.05"
        ),
        "verdict finds more attacks than chance, and than seen": (
            "search['by the verdict latents']['lift'] > 1.1 and search['by the verdict latents']"
            "['lift'] > search['by the seen latents']['lift']"
        ),
        "holding seen down is a partial cure, and breaks hardly any right answer": (
            "0.2 < (of := mending['seen held down'])['attacks undone'] < 0.95 and "
            "of['broken, key present'] < 0.2 and "
            "mending['strangers of seen']['attacks undone'] < 0.2"
        ),
        "holding the verdict down is no cure": (
            "(of := mending['verdict held down'])['attacks undone'] > 0.8 and "
            "of['broken, key present'] > 0.7"
        ),
        "the quick profile reads what the model says": "n_same >= 0.8 * len(FAMILIES)",
    },
    "07": {
        "AtP misses a latent whose effect is large": (
            "latent_truth[worst[0]] > 1 and "
            "of_latents(latent_scores['AtP'][0])[worst[0]] < 0.3 * latent_truth[worst[0]]"
        ),
        "in the model itself AtP sees little of that latent's effect, and less behind SAEs": (
            "spliced_share < 0.5 * model_share + 0.05 and model_share < 0.6 and "
            "thresholds['true effect'].min() > 0.5 * thresholds['true effect'].max()"
        ),
        "the QK fix ranks queries and keys no worse than AtP": (
            "all(quality.loc['QK fix', (t, k)] >= quality.loc['AtP', (t, k)] for t in TASKS "
            "for k in ('queries', 'keys'))"
        ),
        "of latents, IG finds more than AtP": (
            "latent_quality.loc['IG', f'found of {TOP}'] >= "
            "latent_quality.loc['AtP', f'found of {TOP}']"
        ),
        "the bound is above every effect that was left out": "bound.largest > largest_left",
        "more than half of a loud head's direct effect is repaired": "share_repaired.low > 0.5",
        "later MLPs repair most of it, the norm a part, and later heads hardly any": (
            "share_mlps.value > 0.5 > share_norm.value > 0 and abs(share_heads.value) < 0.2"
        ),
        "with RelP shares add up to the logit difference after every layer, and without they do "
        "not": (
            "all(abs(i.value - whole_ld) < 0.3 * whole_ld for i in sums['RelP']) and "
            "min(abs(i.value) for i in sums['gradient · stream']) < 0.3 * whole_ld"
        ),
        "the fact falls with the latents that the head carries, and not with random ones": (
            "falls['carried by the head'][2].low > 2 * falls['random active'][2].high"
        ),
        "a learned mask of that size is closer to the model than the nodes with the largest "
        "shares": (
            "judged_circuits['learned mask'].gap.high < judged_circuits['RelP shares'].gap.low"
        ),
        "most of a fact is lost in the splice": (
            "judge.spliced_model.mean() < 0.5 * judge.model.mean()"
        ),
    },
}
REPORT = """\
import json as _json
_held = {{claim: bool(eval(expression)) for claim, expression in {claims!r}.items()}}
print("FINDINGS" + _json.dumps(_held))"""


@pytest.mark.notebook
@pytest.mark.parametrize("source", SOURCES)
def test_a_quick_run_finds_what_the_notebook_says(source, tmp_path):
    claims = FINDINGS[source.name[:2]]
    assert len(claims) >= 2
    notebook = nbformat.read(solution_path(source), as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT.format(claims=claims)))
    path = tmp_path / f"{source.stem}.ipynb"
    nbformat.write(notebook, path)
    run = papermill.execute_notebook(
        path,
        None,
        parameters={"PROFILE": "quick"},
        cwd=source.parent,
        kernel_name="python3",
        progress_bar=False,
    )
    said = "".join(
        output.text for output in run.cells[-1].outputs if output.output_type == "stream"
    )
    held = json.loads(said.partition("FINDINGS")[2])
    assert set(held) == set(claims)
    assert all(held.values()), [f"{claim}: {claims[claim]}" for claim in held if not held[claim]]
