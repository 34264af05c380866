"""Rules for the way back: the forward pass stays what it is, and gradients are told another story.

A gradient is an answer to "what if this moved a little?". The question here is "what if it were
gone?", and three rules make the one a better answer to the other:

- `layers_dropped` (GradDrop; Kramár et al. 2024, AtP*): a backward pass in which one layer passes
  nothing back but what its skip connection carries. Where a direct and an indirect effect cancel,
  the passes that drop one of them show the other.
- `norms_frozen`: a norm's scale is taken as a constant. A normalised vector's gradient has no part
  along the vector itself; with the scale frozen it has.
- `relevance` (RelP; Jafari et al. 2025, arXiv 2508.21258, after layer-wise relevance propagation):
  norms frozen, attention patterns frozen, an activation function as the factor by which it
  multiplies here, and half of a product's gradient to each factor. What comes back is a share of
  the output and not a slope: shares of one layer add up to the logit difference, but for biases.

All are context managers over a lab's layers, and act on whatever is run while they are open: the
model, its heads, or the spliced model. Run the backward pass inside, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.circuits.heads import attending
from course_utils.labs.catalog import LabError
from course_utils.labs.layers import LayerStack


class DroppedLayer:
    """Which layer passes no gradient back, to be set between backward passes.

    Attributes:
        layer: its number; None for none, the usual gradient.
    """

    def __init__(self) -> None:
        self.layer: int | None = None


@contextmanager
def layers_dropped(stack: LayerStack) -> Iterator[DroppedLayer]:
    """GradDrop: run forward once inside, then backward once per layer.

        with layers_dropped(lab.stack) as dropped:
            run = spliced.run(tokens, track_latents=True)
            for dropped.layer in range(lab.n_layers):
                torch.autograd.grad(…, retain_graph=True)

    Source: Kramár et al. 2024, "AtP*", section 3.1.2 (arXiv 2403.00745).
    """
    dropped, handles = DroppedLayer(), []

    def hook_for(number: int):
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            x_out = output[0] if isinstance(output, tuple) else output
            routed = _PastTheLayer.apply(args[0], x_out, dropped, number)
            return (routed, *output[1:]) if isinstance(output, tuple) else routed

        return hook

    for number, layer in enumerate(stack.layers):
        handles.append(layer.register_forward_hook(hook_for(number)))
    try:
        yield dropped
    finally:
        for handle in handles:
            handle.remove()


class _PastTheLayer(torch.autograd.Function):
    """A layer's output; its gradient goes through the layer or, where that is dropped, past it."""

    @staticmethod
    def forward(
        ctx: Any, x_in: Tensor, x_out: Tensor, dropped: DroppedLayer, number: int
    ) -> Tensor:
        ctx.dropped, ctx.number = dropped, number
        return x_out.clone()

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        [gradient] = grad_outputs
        if ctx.dropped.layer == ctx.number:
            return gradient, torch.zeros_like(gradient), None, None
        return None, gradient, None, None


@contextmanager
def norms_frozen(stack: LayerStack) -> Iterator[None]:
    """On the way back, every norm is the linear map that it is on this input.

    Raises:
        LabError: a model without norms that are known (RMSNorm, LayerNorm).
    """
    norms = [m for m in stack.model.modules() if _is_norm(m)]
    if not norms:
        raise LabError(f"{type(stack.model).__name__} has no RMSNorm and no LayerNorm to freeze.")
    with _outputs_replaced(norms, _as_linear_norm):
        yield


@contextmanager
def patterns_frozen(stack: LayerStack) -> Iterator[None]:
    """On the way back, attention patterns are constants: gradients go through values alone.

    Not to be used inside `Heads.run`, which has its own attention function: give it
    ``changes=frozen_patterns(heads.n_layers)``.
    """
    with attending(stack, frozen_patterns(stack.n_layers), keep=False):
        yield


def frozen_patterns(n_layers: int) -> dict[tuple[int, str], Any]:
    """The changes for `Heads.run` that make every pattern a constant."""
    return {(layer, "pattern"): Tensor.detach for layer in range(n_layers)}


@contextmanager
def relevance(stack: LayerStack, *, patterns: bool = True) -> Iterator[None]:
    """RelP's rules: gradients become shares of the output.

    Args:
        patterns: freeze attention patterns, too. False inside `Heads.run`, which takes
            `frozen_patterns`.

    Raises:
        LabError: a model whose MLPs are not known: ``down_proj`` of an ``act_fn``, gated or not.
    """
    mlps = [m for m in stack.model.modules() if hasattr(m, "down_proj") and hasattr(m, "act_fn")]
    if len(mlps) != stack.n_layers:
        raise LabError(
            f"RelP needs to know the MLPs: one act_fn and one down_proj per layer, as in Llama, "
            f"Mistral, Qwen and Gemma. {type(stack.model).__name__} has {len(mlps)} of them in "
            f"{stack.n_layers} layers."
        )
    gated = [mlp.get_submodule("down_proj") for mlp in mlps if hasattr(mlp, "up_proj")]
    activations = [mlp.get_submodule("act_fn") for mlp in mlps]
    with ExitStack() as rules:
        rules.enter_context(norms_frozen(stack))
        if patterns:
            rules.enter_context(patterns_frozen(stack))
        rules.enter_context(_outputs_replaced(activations, _as_factor))
        handles = [module.register_forward_pre_hook(_half_to_each_factor) for module in gated]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _outputs_replaced(modules: list[nn.Module], replace: Any) -> Iterator[None]:
    once = {id(module): module for module in modules}.values()  # layers may share an activation
    handles = [module.register_forward_hook(replace) for module in once]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__


@torch.no_grad()
def norm_factor(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm multiplies with on this input, elementwise: weight / scale. A LayerNorm subtracts
    the mean first.
    """
    if isinstance(norm, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.float().pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
        return scale * (1.0 if norm.weight is None else norm.weight.float())
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6))
    scale = (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    ones = torch.ones(x.shape[-1], device=x.device, dtype=x.dtype)
    # forward, and not the call: hooks that act on the norm do not see this
    return scale * norm.forward(ones).float() * (1 + eps) ** 0.5  # some norms have 1 + weight


def _as_linear_norm(norm: nn.Module, args: tuple, output: Tensor) -> Tensor:
    x = args[0]
    factor = norm_factor(norm, x).to(x.dtype)
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return _same_value(output, centred * factor)


def _as_factor(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    x = args[0]
    nearly_zero = x.detach().abs() < 1e-6
    factor = (output / torch.where(nearly_zero, torch.ones_like(x), x)).detach()
    return _same_value(output, x * torch.where(nearly_zero, torch.zeros_like(x), factor))


def _half_to_each_factor(module: nn.Module, args: tuple) -> tuple:
    product = args[0] / 2
    return (product + product.detach(), *args[1:])


def _same_value(value: Tensor, gradient_of: Tensor) -> Tensor:
    """``value`` on the way forward, ``gradient_of`` on the way back."""
    return gradient_of + (value - gradient_of).detach()
