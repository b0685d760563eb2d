"""The spine: the values that every path from the trainable front of the network to the loss passes through."""
from __future__ import annotations

from collections.abc import Collection, Mapping


def spine(producers: Mapping[int, Collection[int]], sources: Collection[int], loss: int) -> frozenset[int]:
    """Dominators of `loss` in the data flow graph.

    Args:
        producers: for each operation those that made its inputs; only operations that carry a gradient.
        sources: operations at which the signal enters.
        loss: the operation whose output is differentiated.

    Returns:
        The operations (loss included) that no path from any source to the loss avoids; empty when there is no such path.
    """
    import networkx  # a tenth of a second: not before there is a graph

    entry = -1
    graph: networkx.DiGraph[int] = networkx.DiGraph()
    graph.add_edges_from((entry, source) for source in sources)
    graph.add_edges_from((producer, operation) for operation, made_by in producers.items() for producer in made_by)
    if loss not in graph or entry not in graph or not networkx.has_path(graph, entry, loss):
        return frozenset()
    dominator = networkx.immediate_dominators(graph, entry)
    found = set()
    current = loss
    while current != entry:
        found.add(current)
        current = dominator[current]
    return frozenset(found)
