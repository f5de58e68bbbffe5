"""A forward pass that recomputes only what a changed weight affects.

The bit-flip attack tries changes of one layer at a time on one fixed batch. What comes before that
layer is kept, so on average half of the network is computed. The same operations run on the same
numbers, so results are the same to the last bit.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from advprune.attacks.stored_bits import LAYERS

Values = dict[fx.Node, Any]  # what nodes of the graph gave
Step = tuple[fx.Node, Callable[[Values], Any], list[fx.Node]]
IN_PLACE = {getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "pow")}
IN_PLACE |= {operator.ifloordiv, operator.imod, operator.imatmul, operator.iand, operator.ior}
IN_PLACE |= {operator.ixor, operator.ilshift, operator.irshift, operator.setitem}
FRESH = (*LAYERS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Tracer(fx.Tracer):
    """Looks inside modules of this library and of torch, down to those without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or not _known(m)


def _known(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in ("advprune", "torch")


class Rerun:
    """A network's graph, and which nodes each of some weights reaches."""

    def __init__(self, traced: fx.GraphModule, weights: Mapping[str, torch.Tensor]) -> None:
        self.input, *nodes = traced.graph.nodes
        self.reached = {name: _reached(traced, weight) for name, weight in weights.items()}
        # Nodes whose values stay while one that needs them is computed again.
        self.kept = {
            node
            for node in (self.input, *nodes)
            for reached in self.reached.values()
            if node not in reached and not reached.isdisjoint(node.users)
        }
        done: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
        for given, last in {g: node for node in nodes for g in node.all_input_nodes}.items():
            if given not in self.kept:
                done[last].append(given)
        # A node, how its value comes from others', and whose values nobody needs afterwards.
        self.steps = [(node, _computation(traced, node), done[node]) for node in nodes]
        self.after = {
            name: [step for step in self.steps if step[0] in reached]
            for name, reached in self.reached.items()
        }

    def start(self, images: torch.Tensor) -> tuple[torch.Tensor, Values]:
        """Logits of a whole pass, and the values that later passes may need."""
        return self._run({self.input: images}, self.steps)

    def again(self, values: Values, name: str) -> tuple[torch.Tensor, Values]:
        """Logits and values after the weight `name` has changed since `values` were computed."""
        return self._run(dict(values), self.after[name])

    def _run(self, values: Values, steps: list[Step]) -> tuple[torch.Tensor, Values]:
        found = torch.empty(0)
        for node, compute, done in steps:
            found = values[node] = compute(values)
            for given in done:
                del values[given]
        return found, {node: value for node, value in values.items() if node in self.kept}


def _computation(traced: fx.GraphModule, node: fx.Node) -> Callable[[Values], Any]:
    """The value of a node from those of others."""
    args, kwargs = node.args, node.kwargs
    if node.op == "get_attr":
        return lambda _: operator.attrgetter(str(node.target))(traced)
    call = _callable(traced, node)
    if not kwargs and all(isinstance(arg, fx.Node) for arg in args):  # nothing to search through
        return lambda values: call(*[values[arg] for arg in args])  # type: ignore[index]
    return lambda values: call(
        *fx.map_arg(args, values.__getitem__), **fx.map_arg(kwargs, values.__getitem__)
    )


def _callable(traced: fx.GraphModule, node: fx.Node) -> Callable[..., Any]:
    """What is called with a node's arguments."""
    place = str(node.target)
    if node.op == "call_module":
        return traced.get_submodule(place)
    if node.op == "call_method":
        return lambda value, *more, **named: getattr(value, place)(*more, **named)
    return node.target if callable(node.target) else lambda value: value  # the output


def rerun(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Rerun | None:
    """The network's graph, sharing its weights; None where results could differ.

    That is where torch.fx cannot follow the code, where a module is foreign, where
    values that may be needed again are changed in place, or where a weight has no part in the
    logits.
    """
    if not _known(model):
        return None
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, ValueError):
        return None
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or any(_unsafe(traced, node) for node in traced.graph.nodes):
        return None
    found = Rerun(traced, weights)
    logits, *_ = found.steps[-1]
    return found if all(logits in reached for reached in found.reached.values()) else None


def _unsafe(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node may change what it is given, or do what only its author knows."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        spoils = getattr(module, "inplace", False) and not _of_no_other_use(traced, node.args[0])
        return not _known(module) or bool(spoils)
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    in_place = node.target in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    asked = bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return node.op == "call_function" and (in_place or asked)


def _of_no_other_use(traced: fx.GraphModule, node: Any) -> bool:
    """Whether a value is new memory that a single node reads, so that it may be overwritten."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), FRESH)
    return node.op == "call_function" and node.target is operator.add


def _reached(traced: fx.GraphModule, weight: torch.Tensor) -> set[fx.Node]:
    """All nodes whose value depends on a weight."""
    reached: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if _uses(traced, node, weight) or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached


def _uses(traced: fx.GraphModule, node: fx.Node, weight: torch.Tensor) -> bool:
    """Whether a node computes with a weight itself."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        return any(parameter is weight for parameter in module.parameters())
    if node.op != "get_attr":
        return False
    found: Any = traced
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found is weight
