"""Notebook 07's checkers accept the solutions, and name what is wrong with the classic mistakes."""

import functools
import inspect

import pytest
import torch
from readers import WrongVersions, attempt, cases

from course_utils.teaching import nb07
from course_utils.teaching.nb07 import book

WRONG: WrongVersions = {
    "share_found": {
        "signs count for nothing here": """
            wanted = set(truth.topk(n).indices.tolist())
            return len(wanted & set(estimate.topk(n).indices.tolist())) / n
        """,
        "the estimates are ranked with their signs": """
            wanted = set(truth.abs().topk(n).indices.tolist())
            return len(wanted & set(estimate.topk(n).indices.tolist())) / n
        """,
        "this is a count": """
            wanted = set(truth.abs().topk(n).indices.tolist())
            return len(wanted & set(estimate.abs().topk(n).indices.tolist()))
        """,
    },
    "qk_fixed": {
        "this is AtP": """
            scale = keys.shape[-1] ** -0.5
            pattern = (torch.einsum("bsd,bd->bs", keys, query) * scale).softmax(-1)
            change = torch.einsum("bsd,bd->bs", keys, query - patch_query) * scale
            change = pattern * (change - (pattern * change).sum(-1, keepdim=True))
            return (gradient * change).sum(-1)
        """,
        "a fall is clean − patched": """
            scale = keys.shape[-1] ** -0.5
            def pattern(q):
                return (torch.einsum("bsd,bd->bs", keys, q) * scale).softmax(-1)
            return (gradient * (pattern(patch_query) - pattern(query))).sum(-1)
        """,
        "scale 1/√d_head is missing": """
            def pattern(q):
                return torch.einsum("bsd,bd->bs", keys, q).softmax(-1)
            return (gradient * (pattern(query) - pattern(patch_query))).sum(-1)
        """,
    },
    "grad_dropped": {
        "the block's gradient is not dropped": """
            scores = []
            for dropped in range(len(blocks)):
                start = x.detach().clone().requires_grad_()
                h = start
                for block in blocks:
                    h = h + block(h)
                [gradient] = torch.autograd.grad(readout(h), start)
                scores.append((gradient * change).sum())
            return torch.stack(scores)
        """,
        "the block itself is left out": """
            scores = []
            for dropped in range(len(blocks)):
                start = x.detach().clone().requires_grad_()
                h = start
                for number, block in enumerate(blocks):
                    if number != dropped:
                        h = h + block(h)
                [gradient] = torch.autograd.grad(readout(h), start)
                scores.append((gradient * change).sum())
            return torch.stack(scores)
        """,
        "stack them into one tensor": """
            scores = []
            for dropped in range(len(blocks)):
                start = x.detach().clone().requires_grad_()
                h = start
                for number, block in enumerate(blocks):
                    update = block(h)
                    h = h + (update.detach() if number == dropped else update)
                [gradient] = torch.autograd.grad(readout(h), start)
                scores.append((gradient * change).sum())
            return scores
        """,
    },
    "direct_effect": {
        "computed anew without the component": """
            def normed(x):
                return x / x.pow(2).mean(-1, keepdim=True).sqrt() * weight
            direction = W_U[tokens] - W_U.mean(0)
            return ((normed(final) - normed(final - written)) * direction).sum(-1)
        """,
        "not centred": """
            rms = final.pow(2).mean(-1, keepdim=True).sqrt()
            return (written / rms * weight * W_U[tokens]).sum(-1)
        """,
        "the norm is missing": "return (written * (W_U[tokens] - W_U.mean(0))).sum(-1)",
    },
    "repaired": {
        "held at what it is after": """
            def rms(x):
                return x.pow(2).mean(-1, keepdim=True).sqrt()
            frozen = ((before - after) / rms(after) * direction).sum(-1)
            total = ((before / rms(before) - after / rms(after)) * direction).sum(-1)
            return direct - frozen, frozen - total
        """,
        "layers come first": """
            def rms(x):
                return x.pow(2).mean(-1, keepdim=True).sqrt()
            frozen = ((before - after) / rms(before) * direction).sum(-1)
            total = ((before / rms(before) - after / rms(after)) * direction).sum(-1)
            return frozen - total, direct - frozen
        """,
        "two tensors are wanted": "return direct",
    },
    "through_values": {
        "the attention pattern is missing": """
            back = gradient @ W_O.T @ W_V.T
            return f * ((factor * back) @ W_dec.T)
        """,
        "reads the normed stream": """
            back = gradient @ W_O.T @ W_V.T
            return f * ((pattern[:, None] * back) @ W_dec.T)
        """,
        "activations are missing": """
            back = gradient @ W_O.T @ W_V.T
            return (pattern[:, None] * factor * back) @ W_dec.T
        """,
    },
}


def test_every_exercise_has_wrong_versions():
    assert set(WRONG) == set(book.solutions) == set(book.checkers)
    assert all(len(versions) >= 3 for versions in WRONG.values())


@pytest.mark.parametrize("name", book.solutions)
def test_the_solution_is_right_and_the_stub_is_open(name):
    checked = book.checked(book.solutions[name])
    assert checked.status == "right", checked.says
    assert book.checked(attempt(nb07, name, "raise NotImplementedError")).status == "open"


@pytest.mark.parametrize(("name", "body", "says"), cases(WRONG))
def test_the_checker_names_what_is_wrong(name, body, says):
    checked = book.checked(attempt(nb07, name, body))
    assert checked.status == "wrong" and says in checked.says, checked.says


def test_what_through_values_returns_adds_up_to_what_the_head_brings():
    solution = book.solutions["through_values"]
    assert list(inspect.signature(solution).parameters)[-1] == "gradient"
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator)
    f, W_dec, W_V, W_O, g = draw(4, 6).relu(), draw(6, 5), draw(5, 3), draw(3, 5), draw(5)
    pattern, factor = draw(4).softmax(0), draw(4, 5).abs()
    whole = (pattern * ((f @ W_dec * factor) @ W_V @ W_O @ g)).sum()
    found = solution(f, W_dec, pattern, factor, W_V, W_O, g)
    torch.testing.assert_close(found.sum(), whole)


def test_the_qk_fix_is_exact_where_the_logit_difference_is_linear_in_the_pattern():
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, generator=generator)
    query, patched, keys, c = 3 * draw(2, 4), 3 * draw(2, 4), draw(2, 5, 4), draw(2, 5)

    def logit_diff(q):
        return (c * (torch.einsum("bsd,bd->bs", keys, q) / 2).softmax(-1)).sum(-1)

    true = logit_diff(query) - logit_diff(patched)
    torch.testing.assert_close(book.solutions["qk_fixed"](query, patched, keys, c), true)
