"""The lab `qwen-coder` with its real weights. One test, so that its 6 GB are loaded once."""

import json

import pytest
import torch

from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import auc
from course_utils.labs.catalog import SAES_DIR, spec_of
from course_utils.labs.lab import hook_point, load_lab
from course_utils.prompts.sessions import SAYS_MISSING
from course_utils.prompts.tasks import load_task
from course_utils.prompts.tokens import one_token
from course_utils.studies.dictionaries import (
    FAMILIES,
    HONEST,
    LAST,
    QUERIED,
    Clamp,
    answers,
    attacks,
    read_latents,
    start,
    tokenize,
)

N = 8


@pytest.mark.weights
@pytest.mark.slow
def test_the_model_knows_missing_keys_and_the_shipped_saes_do_what_their_metrics_say():
    lab = load_lab("qwen-coder")
    assert tuple(lab.sae_layers) == spec_of("qwen-coder").placement
    spliced = SplicedModel(lab)

    # the model can do the task
    layer = lab.sae_layers[1]
    said = {
        family.lures: answers(spliced, attacks(family, N), read=[(layer, QUERIED), (layer, LAST)])
        for family in HONEST
    }
    assert said[True].says_missing.float().mean() > 0.8
    assert (~said[False].says_missing).float().mean() > 0.8

    # its latents, read on the way, are those that are read by themselves
    torch.testing.assert_close(
        said[True].latents[layer, QUERIED],
        read_latents(spliced, attacks(HONEST[0], N), layer),
        atol=1e-2,
        rtol=1e-3,
    )

    # some latent at the queried key knows that it is a repeat
    present, missing = (said[lures].latents[layer, QUERIED] for lures in (False, True))
    is_present = torch.arange(2 * N) < N
    best = (present.mean(0) - missing.mean(0)).argmax()
    assert auc(torch.cat([present, missing])[:, best], is_present) > 0.8

    # latents that are held from a start are those that a whole forward pass holds
    keep = SplicedModel(lab, error="keep")
    asked = [attacks(family, 1, split="test")[0] for family in FAMILIES[::4]]
    clamp = Clamp({(hook_point(layer), int(best)): present[:, best].mean().item()})
    tokens, lengths = tokenize(asked, lab.tokenizer)
    held = [Held(name, lengths + QUERIED, i, value) for (name, i), value in clamp.values.items()]
    whole = keep.run(keep.prefix(tokens, lengths=lengths), latents=holding(keep, held)).logits
    p_whole = (
        whole.float()
        .softmax(-1)[:, [one_token(lab.tokenizer, text) for text in SAYS_MISSING]]
        .sum(-1)
    )
    tolerance = 1e-4 if whole.dtype == torch.float32 else 0.05
    found = start(keep, asked).answers(clamp)
    torch.testing.assert_close(found.p_missing, p_whole.cpu(), atol=tolerance, rtol=tolerance)

    # with all SAEs spliced and the errors dropped, as much of the logit difference is left as was
    # measured
    metrics = json.loads((SAES_DIR / "qwen-coder" / "metrics.json").read_text())
    measured = {
        (row["task"], row["placement"], row["error"]): row["kept"]["value"]
        for row in metrics["held_out_prompts"]
    }
    for name in ("dict_key", "list_index"):
        task = load_task(name, lab.tokenizer, "dev", n=N, verbose=False)
        kept = spliced.logit_diff(task).mean() / spliced.model_logit_diff(task).mean()
        assert abs(kept.item() - measured[name, "all", "drop"]) < 0.25
