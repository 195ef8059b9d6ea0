"""pLSTM's recurrence on a directed acyclic graph: a matrix on every edge; sources, transitions, marks at its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

import torch
from torch import Tensor

from .dispatch import Case, op


@dataclass(frozen=True, eq=False)
class Dag:
    """A directed acyclic graph, made by :meth:`of`.

    ``edges`` (E,2): the node an edge leaves and the one it enters, in an order in which every edge comes after all that
    lead to it. ``turns`` (L,2): numbers of two edges of which the second leaves the node that the first enters.
    ``order`` (E,): the place of each edge in the list that :meth:`of` was given. ``num_nodes``: nodes without an edge
    count, too.
    """

    num_nodes: int
    edges: Tensor
    turns: Tensor
    order: Tensor

    @classmethod
    def of(cls, num_nodes: int, edges: Sequence[tuple[int, int]]) -> Dag:
        """The graph of these edges (several between two nodes are allowed). Raises ValueError for a cycle or a node
        that does not exist."""
        entering: list[list[int]] = [[] for _ in range(num_nodes)]
        leaving: list[list[int]] = [[] for _ in range(num_nodes)]
        for e, (tail, head) in enumerate(edges):
            if not (0 <= tail < num_nodes and 0 <= head < num_nodes):
                raise ValueError(f"edge ({tail}, {head}) names a node that is not one of 0 to {num_nodes - 1}")
            leaving[tail].append(e)
            entering[head].append(e)
        missing = [len(e) for e in entering]
        ready, order = [n for n in range(num_nodes) if not missing[n]], []
        for node in ready:  # grows while it is walked
            for e in leaving[node]:
                order.append(e)
                head = edges[e][1]
                missing[head] -= 1
                if not missing[head]:
                    ready.append(head)
        if len(order) < len(edges):
            raise ValueError("the edges have a cycle: direct them along an order of the nodes, say by number")
        place = {e: i for i, e in enumerate(order)}
        turns = [(place[a], place[b]) for b in order for a in entering[edges[b][0]]]
        as_tensor = lambda rows: torch.tensor(rows, dtype=torch.long).view(-1, 2)
        places = torch.tensor(order, dtype=torch.long)
        return cls(num_nodes, as_tensor([edges[e] for e in order]), as_tensor(turns), places)

    def reversed(self) -> Dag:
        """The same graph with every edge the other way round."""
        return Dag.of(self.num_nodes, [(head, tail) for tail, head in self.edges.tolist()])


def _check(q: Tensor, k: Tensor, v: Tensor, gates: Sequence[Tensor], graph: Dag) -> torch.dtype:
    if q.dim() != 4 or q.shape != k.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            "dag_scan needs q and k (B,N,H,K) and v (B,N,H,V), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[1] != graph.num_nodes:
        raise ValueError(f"dag_scan got {q.shape[1]} nodes and a graph of {graph.num_nodes}")
    sizes = (len(graph.edges), len(graph.turns), len(graph.edges), graph.num_nodes)
    for label, gate, size in zip(("source", "transition", "mark", "direct"), gates, sizes, strict=True):
        want = (q.shape[0], size, q.shape[2])
        if gate.shape != want:
            raise ValueError(f"dag_scan needs {label} of shape {want}, got {tuple(gate.shape)}")
    return torch.float64 if any(t.dtype == torch.float64 for t in (q, k, v, *gates)) else torch.float32


@op
def dag_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    graph: Dag,
) -> Tensor:
    """C_e = s_e k_n v_n^T + sum_e' t_(e,e') C_e' for every edge e that leaves node n, over the edges e' that enter n;
    y_n = (d_n k_n v_n^T + sum_e' m_e' C_e')^T q_n: (B,N,H,V).

    Args:
        q, k: (B,N,H,K). Scale them as you need; nothing is scaled here.
        v: (B,N,H,V).
        source, mark: (B,E,H), one for each edge, at the node it leaves and at the node it enters.
        transition: (B,L,H), one for each of ``graph.turns``.
        direct: (B,N,H).
        graph: the edges, the same for all rows.

    Returns y in float64 where an input is float64, else float32.

    Backends, in order: ``solve`` (any device: all edges at once, C = (I - T)^-1 S k v^T with T strictly triangular, as
    attention with the scalar that links every pair of nodes; O(E^2) memory), ``reference`` (one edge after the other;
    for large sparse graphs). ``dag_scan.matrix`` gives the implied node-to-node matrix.

    Raises ValueError for shapes that do not fit. Source: K. Poeppel et al., pLSTM, arXiv 2506.11997, section 3.
    """
    work = _check(q, k, v, (source, transition, mark, direct), graph)
    q, k, v, direct = (x.to(work) for x in (q, k, v, direct))
    kv = [(a[..., :, None] * b[..., None, :]) for a, b in zip(k.unbind(1), v.unbind(1))]
    source, transition, mark = (x.to(work)[..., None, None].unbind(1) for x in (source, transition, mark))
    read = [d[..., None, None] * pair for d, pair in zip(direct.unbind(1), kv)]
    states: list[Tensor] = []
    turns = iter(enumerate(graph.turns.tolist()))
    turn = next(turns, None)
    for e, (tail, head) in enumerate(graph.edges.tolist()):
        state = source[e] * kv[tail]
        while turn is not None and turn[1][1] == e:
            state = state + transition[turn[0]] * states[turn[1][0]]
            turn = next(turns, None)
        states.append(state)
        read[head] = read[head] + mark[e] * state
    outputs = [(a[..., None, :] @ memory).squeeze(-2) for a, memory in zip(q.unbind(1), read)]
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v)


_SOLVABLE = 1024
"""Edges up to which a dense triangular matrix over them (4 MB a head in float32) is reasonable."""


def _why_not_solve(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor, graph: Dag
) -> str | None:
    edges = len(graph.edges)
    return None if edges <= _SOLVABLE else f"a dense matrix over {edges} edges is larger than the edges' states"


@dag_scan.backend("solve", when=_why_not_solve)
def _solve_backend(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor, graph: Dag
) -> Tensor:
    work = _check(q, k, v, (source, transition, mark, direct), graph)
    links = _links(*(x.to(work) for x in (source, transition, mark, direct)), graph)
    q, k, v = (x.to(work).transpose(1, 2) for x in (q, k, v))
    return (((q @ k.mT) * links) @ v).transpose(1, 2)


def _links(source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor, graph: Dag) -> Tensor:
    """(B,H,N,N): by how much what node s sends reaches node n, ``direct`` on the diagonal."""
    source, transition, mark, direct = (x.transpose(1, 2) for x in (source, transition, mark, direct))
    nodes, edges = graph.num_nodes, len(graph.edges)
    (tails, heads), (early, late) = (x.to(source.device).unbind(1) for x in (graph.edges, graph.turns))
    steps = source.new_zeros(*source.shape[:2], edges * edges)
    steps = steps.index_add(2, late * edges + early, transition).unflatten(2, (edges, edges))
    # What edge e gets from each node: (I - T) R = S, the unit diagonal being implied.
    sent = source.new_zeros(*source.shape[:2], edges * nodes)
    sent = sent.index_add(2, torch.arange(edges, device=tails.device) * nodes + tails, source)
    reached = torch.linalg.solve_triangular(-steps, sent.unflatten(2, (edges, nodes)), upper=False, unitriangular=True)
    found = torch.diag_embed(direct)
    return found.index_add(2, heads, mark[..., None] * reached)


def dag_scan_matrix(
    q: Tensor, k: Tensor, source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor, graph: Dag
) -> Tensor:
    """The matrix M (B,H,N,N) with ``y[n] = sum_s M[n, s] v[s]``: (q_n . k_s) times the sum over all paths from s to n
    of the product of source, transitions and mark along them; ``direct`` on the diagonal."""
    work = _check(q, k, k, (source, transition, mark, direct), graph)
    q, k = (x.to(work).transpose(1, 2) for x in (q, k))
    return (q @ k.mT) * _links(*(x.to(work) for x in (source, transition, mark, direct)), graph)


dag_scan.matrix = dag_scan_matrix


@dag_scan.cases
def dag_scan_cases() -> Iterator[Case]:
    """Paths, random graphs, parallel edges, lonely nodes."""
    g = torch.Generator().manual_seed(0)

    def case(name: str, graph: Dag, *, heads: int = 2, tiny: bool = False) -> Case:
        sizes = (len(graph.edges), len(graph.turns), len(graph.edges), graph.num_nodes)
        node = lambda width: torch.randn(2, graph.num_nodes, heads, width, dtype=torch.float64, generator=g)
        gates = (0.7 * torch.tanh(torch.randn(2, n, heads, dtype=torch.float64, generator=g)) for n in sizes)
        args = (node(3), node(3), node(2), *gates, graph)
        return Case(name, args, grad=tuple(range(7)), tiny=tiny, scale=3.0)

    def drawn(nodes: int, share: float) -> Dag:
        chosen = torch.rand(nodes, nodes, generator=g) < share
        names = torch.randperm(nodes, generator=g).tolist()
        return Dag.of(nodes, [(names[a], names[b]) for a in range(nodes) for b in range(a + 1, nodes) if chosen[a, b]])

    yield case("tiny", drawn(4, 0.8), heads=1, tiny=True)
    yield case("path", Dag.of(9, [(n, n + 1) for n in range(8)]))
    yield case("thirty nodes", drawn(30, 0.2))
    yield case("two edges between two nodes", Dag.of(3, [(0, 1), (0, 1), (1, 2), (1, 2)]))
    yield case("no edges", Dag.of(3, []))
