"""Wrong versions of an exercise, made mechanically from the source of its solution.

Each mutant differs from the solution in one place: a sign turned, another axis, an index off by
one, a term dropped, two arguments swapped, a mean that became a sum, a result that lost its
gradient or its type, an input that was changed in place. A checker is to reject all of them, but
those that are the same function by another text.
"""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils.circuits.masks import SAEMasks


@dataclass(frozen=True)
class Mutant:
    """One wrong version.

    Attributes:
        kind: what was done: ``"sign"``, ``"axis"``, ``"in place"`` …
        name: the kind, the piece of the solution, and what stands there now.
        function: the wrong version, with the solution's name, parameters and defaults.
        source: its text.
    """

    kind: str
    name: str
    function: Callable
    source: str


def mutants(solution: Callable, *, gradient: Iterable[str] = ()) -> list[Mutant]:
    """All wrong versions of a solution, in the order of its text.

    Args:
        solution: a function whose source can be found. Its last statement returns.
        gradient: the parameters that a gradient is to reach; ``detach`` is a mistake only there.
    """
    original = inspect.unwrap(solution)
    tree = _bare(original)
    seen = {ast.unparse(tree)}
    found: list[Mutant] = []
    names: dict[str, int] = {}
    for kind, what, changed in itertools.chain(
        _changes_of_nodes(tree),
        _changes_of_statements(tree),
        _changes_of_parameters(tree, original, set(gradient)),
        _changes_of_the_result(tree, original, bool(set(gradient))),
    ):
        source = ast.unparse(ast.fix_missing_locations(changed))
        if source in seen:
            continue
        seen.add(source)
        name = f"{kind}: {what}"
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name} ({names[name]})"
        found.append(Mutant(kind, name, _compiled(source, original), source))
    return found


def _bare(function: Callable) -> ast.FunctionDef:
    """A function's tree, without decorators, docstring, annotations and defaults."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list, tree.returns = [], None
    for argument in [*tree.args.args, *tree.args.kwonlyargs]:
        argument.annotation = None
    tree.args.defaults, tree.args.kw_defaults = [], [None] * len(tree.args.kwonlyargs)
    if isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Constant):
        tree.body = tree.body[1:]
    return tree


def _compiled(source: str, original: Callable) -> Callable:
    """The function of a source, which sees what the original sees."""
    space = {**original.__globals__, **HELPERS}
    exec(compile(source, "<mutant>", "exec"), space)
    function = space[original.__name__]
    function.__defaults__ = original.__defaults__
    function.__kwdefaults__ = original.__kwdefaults__
    return function


Change = tuple[str, str, ast.FunctionDef]
"""Kind, what was changed into what, and the changed function."""


def _replaced(tree: ast.FunctionDef, old: ast.AST, new: ast.AST | None) -> ast.FunctionDef:
    """A copy of a tree, with ``new`` in the place of one of its nodes; None takes it out."""
    memo: dict[int, Any] = {}
    twin = copy.deepcopy(tree, memo)
    target = memo[id(old)]

    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return copy.deepcopy(new) if node is target else self.generic_visit(node)

    return Swap().visit(twin)


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


# ---------------------------------------------------------------------------------------------
# One expression
# ---------------------------------------------------------------------------------------------

OTHER_SIGN = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
OTHER_SIGN |= {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
ORDERED = (ast.Sub, ast.Div, ast.Pow, ast.MatMult)
"""Operators whose two sides cannot change places."""
IN_PLACE = {ast.Add: "add_", ast.Sub: "sub_", ast.Mult: "mul_", ast.Div: "div_"}
OTHER_COMPARISONS = {
    ast.Gt: (ast.Lt, ast.GtE),
    ast.Lt: (ast.Gt, ast.LtE),
    ast.GtE: (ast.Lt, ast.Gt),
    ast.LtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OTHER_NAMES = {
    "mean": ("sum",),
    "sum": ("mean",),
    "max": ("min",),
    "min": ("max",),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "any": ("all",),
    "all": ("any",),
    "softmax": ("log_softmax",),
    "log_softmax": ("softmax",),
    "zeros_like": ("ones_like",),
    "ones_like": ("zeros_like",),
    "zeros": ("ones",),
    "ones": ("zeros",),
    "keys": ("values",),
    "abs": ("square",),
    "sigmoid": ("tanh",),
}
TAKES_AXIS = {"sum", "mean", "norm", "any", "all", "argmax", "argmin", "amax", "amin"}
TAKES_AXIS |= {"softmax", "log_softmax", "topk", "gather", "scatter", "cat", "stack", "var", "std"}
REDUCES = {"sum", "mean", "any", "all", "argmax", "argmin", "norm"}
CAN_BE_IN_PLACE = {"abs", "relu", "clamp", "square", "pow", "neg", "sub", "add", "mul"}
FIRST_AXIS = {"gather", "scatter", "sum", "mean", "norm", "any", "all", "argmax", "argmin"}
FIRST_AXIS |= {"amax", "amin", "softmax", "log_softmax"}
"""Methods whose first positional argument is the axis."""


def _changes_of_nodes(tree: ast.FunctionDef) -> Iterator[Change]:
    """Each expression of the body, changed in each way that fits it."""
    axes = {
        id(part)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and (axis := _axis(call)) is not None
        for part in ast.walk(axis)
    }
    tensors = {argument.arg for argument in [*tree.args.args, *tree.args.kwonlyargs]}
    for node in _nodes(tree):
        if id(node) in axes:
            continue
        for kind, new in _changes(node, tensors):
            yield kind, f"{_text(node)} → {_text(new)}", _replaced(tree, node, new)


def _nodes(tree: ast.FunctionDef) -> Iterator[ast.expr]:
    """The expressions of the body that are read, not written to; from left to right."""

    def below(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store):
            yield node
        for child in ast.iter_child_nodes(node):
            yield from below(child)

    for statement in tree.body:
        yield from below(statement)


def _changes(node: ast.expr, parameters: set[str]) -> Iterator[tuple[str, ast.expr]]:
    """What may stand in an expression's place."""
    if isinstance(node, ast.BinOp):
        yield from _changes_of_binary(node, parameters)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
        yield "sign", node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for operator in OTHER_COMPARISONS.get(type(node.ops[0]), ()):
            yield "comparison", ast.Compare(node.left, [operator()], node.comparators)
    elif isinstance(node, ast.Constant):
        yield from _changes_of_constant(node)
    elif isinstance(node, ast.Call):
        yield from _changes_of_call(node, parameters)
    elif isinstance(node, ast.Subscript):
        yield from _changes_of_subscript(node)
    elif isinstance(node, ast.IfExp):
        yield "branch", ast.IfExp(node.test, node.orelse, node.body)
        yield "branch", node.body
        yield "branch", node.orelse
    elif isinstance(node, ast.List | ast.Tuple) and len(node.elts) > 1:
        for items in _neighbours_swapped(node.elts):
            yield "swapped", type(node)(items, node.ctx)


def _changes_of_binary(node: ast.BinOp, parameters: set[str]) -> Iterator[tuple[str, ast.expr]]:
    left, operator, right = node.left, node.op, node.right
    if type(operator) in OTHER_SIGN:
        yield "sign", ast.BinOp(left, OTHER_SIGN[type(operator)](), right)
    yield "dropped", left
    if not isinstance(operator, ast.Pow):
        yield "dropped", right
    if isinstance(operator, ORDERED):
        yield "swapped", ast.BinOp(right, operator, left)
    for inner, outer in ((left, "left"), (right, "right")):  # a * (b + c) → a * b + c
        if isinstance(inner, ast.BinOp) and isinstance(operator, ast.Mult | ast.Div | ast.Pow):
            if isinstance(inner.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
                if outer == "left" and isinstance(inner.op, ast.Add | ast.Sub):
                    held = ast.BinOp(inner.right, operator, right)
                    yield "brackets", ast.BinOp(inner.left, inner.op, held)
                elif outer == "right":
                    held = ast.BinOp(left, operator, inner.left)
                    yield "brackets", ast.BinOp(held, inner.op, inner.right)
    if isinstance(left, ast.Name) and left.id in parameters and type(operator) in IN_PLACE:
        method = ast.Attribute(left, IN_PLACE[type(operator)], ast.Load())
        yield "in place", ast.Call(method, [right], [])


def _changes_of_constant(node: ast.Constant) -> Iterator[tuple[str, ast.expr]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield "off by one", ast.Constant(value + 1)
        yield "off by one", _number(value - 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(value + 0.5)


def _number(value: int) -> ast.expr:
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


def _called(node: ast.Call) -> str:
    """``mean`` of ``x.mean(0)`` and of ``torch.mean(x)``."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_method(node: ast.Call) -> bool:
    """Whether a call is ``x.f(…)`` and not ``torch.f(…)``."""
    base = node.func.value if isinstance(node.func, ast.Attribute) else None
    modules = ("torch", "math")
    return base is not None and not (isinstance(base, ast.Name) and base.id in modules)


def _axis(node: ast.Call) -> ast.expr | None:
    """The expression that says along which axis a call works, if it is a number."""
    if _called(node) not in TAKES_AXIS:
        return None
    for keyword in node.keywords:
        if keyword.arg in ("dim", "axis"):
            return keyword.value
    if _is_method(node) and node.args and _called(node) in FIRST_AXIS:
        return node.args[0]
    return None


def _changes_of_call(node: ast.Call, parameters: set[str]) -> Iterator[tuple[str, ast.expr]]:
    name, axis = _called(node), _axis(node)
    if axis is not None:
        for other in {0: (1, -1), 1: (0,), -1: (0, -2)}.get(ast.literal_eval(axis), ()):
            yield "axis", _replaced(node, axis, _number(other))  # pyright: ignore
        if name in REDUCES:
            args = [argument for argument in node.args if argument is not axis]
            keywords = [keyword for keyword in node.keywords if keyword.value is not axis]
            yield "axis", ast.Call(node.func, args, keywords)
    for other in OTHER_NAMES.get(name, ()):
        if not (isinstance(node.func, ast.Name) and name == "sum"):
            yield f"{name}, not {other}", ast.Call(_renamed(node.func, other), *_arguments(node))
    if name == "norm":
        method = ast.Attribute(node, "square", ast.Load())
        yield "squared", ast.Call(method, [], [])
    if name == "topk":
        largest = ast.keyword("largest", ast.Constant(False))
        yield "smallest", ast.Call(node.func, node.args, [*node.keywords, largest])
    if name in ("var", "std"):
        unbiased = ast.keyword("correction", ast.Constant(1))
        yield "unbiased", ast.Call(node.func, node.args, [*node.keywords, unbiased])
    for items in _neighbours_swapped(node.args):
        yield "swapped", ast.Call(node.func, items, node.keywords)
    if name == "range":
        yield from _changes_of_range(node)
    if isinstance(node.func, ast.Attribute) and _is_method(node):
        yield "dropped", node.func.value
        base = node.func.value
        if isinstance(base, ast.Name) and base.id in parameters and name in CAN_BE_IN_PLACE:
            yield "in place", ast.Call(_renamed(node.func, f"{name}_"), *_arguments(node))
    elif len(node.args) == 1 and name not in ("len", "range", "arange", "stack", "tensor"):
        yield "dropped", node.args[0]


def _arguments(node: ast.Call) -> tuple[list[ast.expr], list[ast.keyword]]:
    return node.args, node.keywords


def _renamed(function: ast.expr, name: str) -> ast.expr:
    if isinstance(function, ast.Attribute):
        return ast.Attribute(function.value, name, ast.Load())
    return ast.Name(name, ast.Load())


def _changes_of_range(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    for i, argument in enumerate(node.args):
        if isinstance(argument, ast.Constant | ast.UnaryOp):
            continue  # numbers change by themselves
        for operator in (ast.Add(), ast.Sub()):
            args = list(node.args)
            args[i] = ast.BinOp(argument, operator, ast.Constant(1))
            yield "off by one", ast.Call(node.func, args, node.keywords)


def _changes_of_subscript(node: ast.Subscript) -> Iterator[tuple[str, ast.expr]]:
    index = node.slice
    yield "dropped", node.value
    if isinstance(index, ast.Tuple):
        for i, part in enumerate(index.elts):
            if isinstance(part, ast.Name):
                for operator in (ast.Add(), ast.Sub()):
                    parts = list(index.elts)
                    parts[i] = ast.BinOp(part, operator, ast.Constant(1))
                    tuple_ = ast.Tuple(parts, ast.Load())
                    yield "off by one", ast.Subscript(node.value, tuple_, node.ctx)


def _neighbours_swapped(items: list[ast.expr]) -> Iterator[list[ast.expr]]:
    """The lists in which two neighbours have changed places."""
    for i in range(len(items) - 1):
        if ast.dump(items[i]) != ast.dump(items[i + 1]):
            yield [*items[:i], items[i + 1], items[i], *items[i + 2 :]]


# ---------------------------------------------------------------------------------------------
# One statement
# ---------------------------------------------------------------------------------------------


def _changes_of_statements(tree: ast.FunctionDef) -> Iterator[Change]:
    """Each statement taken out, each loop cut short, each sum of a loop not added up."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            yield "dropped", f"{_text(node)} → (nothing)", _replaced(tree, node, ast.Pass())
            yield from _changes_of_target(tree, node.targets[0])
        if isinstance(node, ast.Expr | ast.AugAssign):
            yield "dropped", f"{_text(node)} → (nothing)", _replaced(tree, node, ast.Pass())
        if isinstance(node, ast.AugAssign):
            if type(node.op) in OTHER_SIGN:
                other = ast.AugAssign(node.target, OTHER_SIGN[type(node.op)](), node.value)
                yield "sign", f"{_text(node)} → {_text(other)}", _replaced(tree, node, other)
            plain = ast.Assign([node.target], node.value, lineno=0)
            yield "dropped", f"{_text(node)} → {_text(plain)}", _replaced(tree, node, plain)
        if isinstance(node, ast.For | ast.comprehension):
            for lower, upper, says in ((1, None, "[1:]"), (None, -1, "[:-1]"), (None, 1, "[:1]")):
                bounds = [None if end is None else _number(end) for end in (lower, upper)]
                items = ast.Call(ast.Name("list", ast.Load()), [node.iter], [])
                some = ast.Subscript(items, ast.Slice(*bounds), ast.Load())
                what = f"{_text(node.iter)} → list({_text(node.iter)}){says}"
                yield "loop", what, _replaced(tree, node.iter, some)
    yield from _changes_of_order(tree)


def _changes_of_target(tree: ast.FunctionDef, target: ast.Subscript) -> Iterator[Change]:
    """What is written to: another index, or all of an axis."""
    for kind, new in _changes_of_subscript(target):
        if kind != "dropped":
            yield kind, f"{_text(target)} → {_text(new)} =", _replaced(tree, target, new)
    if isinstance(target.slice, ast.Tuple):
        everything = ast.Slice(None, None)
        for i in range(len(target.slice.elts)):
            parts = list(target.slice.elts)
            parts[i] = everything
            all_of_it = ast.Subscript(target.value, ast.Tuple(parts, ast.Load()), target.ctx)
            what = f"{_text(target)} → {_text(all_of_it)} ="
            yield "axis", what, _replaced(tree, target, all_of_it)


def _changes_of_order(tree: ast.FunctionDef) -> Iterator[Change]:
    """Two neighbouring calls that stand alone, the other way round."""
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        for first, second in itertools.pairwise(body if isinstance(body, list) else []):
            if isinstance(first, ast.Expr) and isinstance(second, ast.Expr):
                memo: dict[int, Any] = {}
                twin = copy.deepcopy(tree, memo)
                lines = memo[id(node)].body
                i = lines.index(memo[id(first)])
                lines[i], lines[i + 1] = lines[i + 1], lines[i]
                yield "order", f"{_text(first)}; {_text(second)} → the other way round", twin


# ---------------------------------------------------------------------------------------------
# Parameters and result
# ---------------------------------------------------------------------------------------------


def _annotations(function: Callable) -> dict[str, str]:
    """The annotations as text, by parameter; the result's is ``return``."""
    return {name: str(text) for name, text in function.__annotations__.items()}


def _changes_of_parameters(
    tree: ast.FunctionDef, function: Callable, gradient: set[str]
) -> Iterator[Change]:
    """Two parameters swapped, one without its gradient, one changed in place."""
    annotations = _annotations(function)
    names = [argument.arg for argument in [*tree.args.args, *tree.args.kwonlyargs]]
    for a, b in itertools.combinations(names, 2):
        if annotations.get(a, a).split("[")[0] == annotations.get(b, b).split("[")[0]:
            yield "swapped", f"{a} ↔ {b}", _with_names_swapped(tree, a, b)
    for name in names:
        text = annotations.get(name, "")
        if name in gradient:
            first = f"{name} = without_gradient({name})"
            yield "detach", f"{name} → {name}.detach()", _with_first_line(tree, first)
        if any(word in text for word in ("Tensor", "SAEMasks", "Mapping", "Sequence", "SAE")):
            if not text.startswith(("Callable", "Iterable[Float")):
                what = f"{name} is changed after its last use"
                yield "in place", what, _with_result(tree, f"spoilt({{}}, {name})")


class _Names(ast.NodeTransformer):
    def __init__(self, a: str, b: str):
        self.other = {a: b, b: a}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.other.get(node.id, node.id), node.ctx)


def _with_names_swapped(tree: ast.FunctionDef, a: str, b: str) -> ast.FunctionDef:
    twin = copy.deepcopy(tree)
    twin.body = [_Names(a, b).visit(statement) for statement in twin.body]
    return twin


def _with_first_line(tree: ast.FunctionDef, line: str) -> ast.FunctionDef:
    twin = copy.deepcopy(tree)
    twin.body = [*ast.parse(line).body, *twin.body]
    return twin


def _with_result(tree: ast.FunctionDef, result: str) -> ast.FunctionDef:
    """The function with another result; ``{}`` in its text stands for the right one."""
    twin = copy.deepcopy(tree)
    last = twin.body[-1]
    assert isinstance(last, ast.Return) and last.value is not None
    twin.body[-1] = ast.parse(f"return {result.format(f'({ast.unparse(last.value)})')}").body[0]
    return twin


def _changes_of_the_result(
    tree: ast.FunctionDef, function: Callable, gradient: bool
) -> Iterator[Change]:
    """Another type, no gradient, a constant, an input given back."""
    annotations = _annotations(function)
    kind_of_result = annotations["return"]
    results = {
        "sign": ["times(-1, {})"],
        "constant": ["times(0, {})", "constant(1, {})", "None"],
        "factor": ["times(2, {})", "times(0.5, {})"],
        "type": ["({},)"],
    }
    if "Tensor" in kind_of_result or "SAEMasks" in kind_of_result:
        results["dtype"] = [
            f"cast(torch.{dtype}, {{}})" for dtype in ("bool", "float64", "float16", "int64")
        ]
        results["type"] += ["plain({})"]
        if gradient:
            results["detach"] = ["without_gradient({})"]
    else:
        results["dtype"] = ["as_bool({})"]
        if "int" in kind_of_result:
            results["dtype"] += ["times(1.0, {})"]
    for kind, texts in results.items():
        for text in texts:
            says = text.format("the result")
            yield kind, f"the result → {says}", _with_result(tree, text)
    names = [argument.arg for argument in [*tree.args.args, *tree.args.kwonlyargs]]
    base = kind_of_result.split("[")[0]
    for name in names:
        if annotations.get(name, "").split("[")[0] == base:
            yield "an input back", f"the result → {name}", _with_result(tree, name)


def _over(change: Callable[[Any], Any], result: Any) -> Any:
    """A result with each of its tensors and numbers changed."""
    if isinstance(result, SAEMasks):
        return SAEMasks(result.hook_points, [change(mask) for mask in result.masks])
    if isinstance(result, dict):
        return {name: _over(change, value) for name, value in result.items()}
    if isinstance(result, tuple | list):
        return type(result)(_over(change, value) for value in result)
    return change(result)


def _plain(result: Any) -> Any:
    """A result with lists or numbers in the place of its tensors."""
    if isinstance(result, SAEMasks):
        return {name: mask.tolist() for name, mask in result.items()}
    return _over(lambda value: value.tolist(), result)


def _spoilt(result: Any, given: Any) -> Any:
    """The right result, after one of the inputs was changed in place."""
    with torch.no_grad():
        if isinstance(given, torch.nn.Module):
            for tensor in given.state_dict().values():
                _spoil(tensor)
        elif isinstance(given, dict):
            for value in given.values():
                _spoilt(None, value)
            if not any(isinstance(value, Tensor) for value in given.values()):
                given.popitem()
        elif isinstance(given, list):
            given.reverse()
            given[1:] = []
        elif isinstance(given, Tensor):
            _spoil(given)
    return result


def _spoil(tensor: Tensor) -> None:
    if tensor.dtype == torch.bool:
        tensor.logical_not_()
    else:
        tensor.add_(1)


def _constant(value: float, result: Any) -> Any:
    def same(old: Any) -> Any:
        return torch.full_like(old, value) if isinstance(old, Tensor) else type(old)(value)

    return _over(same, result)


def _without_gradient(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return _over(lambda part: part.detach() if isinstance(part, Tensor) else part, value)


HELPERS = {
    "torch": torch,
    "times": lambda factor, result: _over(lambda value: factor * value, result),
    "constant": _constant,
    "cast": lambda dtype, result: _over(lambda value: value.to(dtype), result),
    "as_bool": lambda result: _over(bool, result),
    "plain": _plain,
    "without_gradient": _without_gradient,
    "spoilt": _spoilt,
}
"""What the text of a mutant calls."""
