"""The calls of earlier passes, as a tree: a step that makes the same calls again is measured without being analysed again.

Each node of the tree is one call with what was found out about it; its children are the calls that followed it in one pass or another. A pass that
leaves the known paths is analysed from there on, and its calls become a new branch.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradcheck_doctor.observe.collector import Cell

if TYPE_CHECKING:
    from gradcheck_doctor.observe.gradient_hook import GradientHook
    from gradcheck_doctor.observe.graph import Graph, Node

LIMIT = 60_000         # calls kept; a model whose calls are new on every step is analysed on every step
BRANCHES = 64          # different calls that may follow one call
ANY, OUTSIDE = -2, -1  # who made the first argument: not compared, nobody we saw


class Call:
    """One call of a torch function in one place of the pass."""

    __slots__ = ("cell", "dtype", "external", "following", "func", "hooks", "inplace", "kind", "made_by", "measured", "module", "named", "node",
                 "ordinal", "outputs", "quick", "weight")

    def __init__(self, func: Callable[..., Any] | None, module: nn.Module | None, node: Node | None) -> None:
        self.func, self.module, self.node = func, module, node
        self.following: list[Call] = []
        self.made_by = ANY                      # index of the operation that made the first argument
        self.weight: Tensor | None = None       # the parameter that is the second argument
        self.external: tuple[Node, Cell] | None = None       # the input node that the first argument is, and where its sample goes
        self.quick = False                      # it can be measured again without being analysed
        self.measured = self.inplace = False
        self.outputs = 0                        # length of the tuple it returns, 0 for a tensor
        self.dtype: torch.dtype | None = None
        self.named: str | None = None           # the dtype's name, None for the usual one
        self.cell = Cell(None if node is None else node.forward)
        self.kind: tuple[int, str] = (0, "")    # what its ordinal counts, and what it is after this call
        self.ordinal = 0
        self.hooks: list[GradientHook] = []              # they take the gradients of its outputs

    def fits(self, args: tuple[Any, ...], graph: Graph) -> bool:
        """The arguments come from where they came before."""
        if self.weight is not None and (len(args) < 2 or args[1] is not self.weight):
            return False
        if self.made_by == ANY:
            return True
        if not args or not isinstance(args[0], Tensor):
            return False
        maker = graph.maker(args[0])
        return maker == self.made_by if self.made_by != OUTSIDE else maker is None

    def hook_at(self, output: int) -> GradientHook | None:
        """The hook for output number `output` of the autograd node, None when there is none yet."""
        for hook in self.hooks:
            if hook.output == output:
                return hook
        return None

    def hooked(self, hook: GradientHook) -> GradientHook:
        self.hooks.append(hook)
        return hook


class Tree:
    """Where the current pass is among the calls known."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.root = self.here = Call(None, None, None)
        self.size = 0

    def restart(self) -> None:
        """A new pass begins."""
        self.here = self.root

    def next(self, func: Callable[..., Any], module: nn.Module | None, args: tuple[Any, ...]) -> Call | None:
        """The known call that this one repeats, None when there is none that can be measured quickly."""
        for call in self.here.following:
            if call.quick and call.module is module and (call.func is func or call.func == func) and call.fits(args, self.graph):
                return call
        return None

    def learn(self, call: Call) -> None:
        """The pass went on with `call`, which was analysed."""
        for place, known in enumerate(self.here.following):
            if known.module is call.module and known.node is call.node and known.func == call.func and known.quick == call.quick:
                call.following = known.following                    # what is known of it now, say a weight that was replaced
                self.here.following[place] = self.here = call
                return
        if self.size >= LIMIT or len(self.here.following) >= BRANCHES:
            self.root, self.size = Call(None, None, None), 0
            self.here = call                                        # not in the tree: the rest of this pass is not kept
            return
        self.size += 1
        self.here.following.append(call)
        self.here = call
