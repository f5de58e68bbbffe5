"""A forward pass that recomputes only what a changed weight affects.

The bit-flip attack tries changes of one layer at a time on one fixed batch. What comes before that
layer is kept. The same operations run on the same numbers: results are the same to the last bit.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

Values = dict[fx.Node, Any]  # what nodes of the graph gave
TRIED = 8  # images on which partial passes are compared with the network's own


class _Tracer(fx.Tracer):
    """Looks inside modules, down to those without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children())


class Rerun:
    """A network's graph, sharing its weights; which nodes each of some weights reaches, and which
    nodes' values are kept, as one that needs them is computed again."""

    def __init__(self, traced: fx.GraphModule, weights: Mapping[str, Tensor]) -> None:
        self.interpreter = fx.Interpreter(traced)
        self.input, *self.nodes = traced.graph.nodes
        self.reached: dict[str, list[fx.Node]] = {}
        self.kept: set[fx.Node] = set()
        for name, weight in weights.items():
            reached: dict[fx.Node, None] = {}  # in the order of the graph
            for node in self.nodes:
                used: list[Tensor] = []
                if node.op == "call_module":
                    used = list(traced.get_submodule(str(node.target)).parameters())
                elif node.op == "get_attr":
                    used = [operator.attrgetter(str(node.target))(traced)]
                if any(one is weight for one in used) or reached.keys() & node.all_input_nodes:
                    reached[node] = None
            needed = {given for node in reached for given in node.all_input_nodes}
            self.reached[name], self.kept = list(reached), self.kept | (needed - reached.keys())

    def start(self, images: Tensor) -> tuple[Tensor, Values]:
        """Logits of a whole pass, and the values that later passes may need."""
        return self._run({self.input: images}, self.nodes)

    def again(self, values: Values, name: str) -> tuple[Tensor, Values]:
        """Logits and values after the weight `name` has changed since `values` were computed."""
        return self._run(dict(values), self.reached[name])

    def _run(self, values: Values, nodes: list[fx.Node]) -> tuple[Tensor, Values]:
        self.interpreter.env = values
        for node in nodes:
            args, kwargs = self.interpreter.fetch_args_kwargs_from_env(node)
            values[node] = getattr(self.interpreter, node.op)(node.target, args, kwargs)
            for given in self.interpreter.user_to_last_uses.get(node, ()):
                if given not in self.kept:
                    del values[given]
        return values[self.nodes[-1]], {n: value for n, value in values.items() if n in self.kept}


@torch.no_grad()
def rerun(model: nn.Module, weights: Mapping[str, Tensor], images: Tensor) -> Rerun | None:
    """The network's graph; None where results could differ: where a module is neither of this
    library nor of torch, torch.fx cannot follow the code, a weight has no part in the logits, or a
    partial pass on some of `images` `[N, C, H, W]` gives other logits than the network, as where
    values that are needed again are changed in place."""
    homes = {type(module).__module__.partition(".")[0] for module in model.modules()}
    if not homes <= {"advprune", "torch"}:
        return None
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, ValueError):
        return None
    if sum(node.op == "placeholder" for node in traced.graph.nodes) != 1:
        return None
    found, few = Rerun(traced, weights), images[:TRIED]
    if not all(found.nodes[-1] in reached for reached in found.reached.values()):
        return None
    logits, (first, values) = model(few), found.start(few)
    again = (found.again(values, name)[0] for name in weights)
    return found if all(torch.equal(logits, one) for one in (first, *again)) else None
