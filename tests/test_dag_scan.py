"""The recurrence on a graph: its law, and against the grid and the path, which are graphs too."""

import pytest
import torch

from transduce.ops.dag_scan import Dag, dag_scan
from transduce.ops.grid_scan import GATES, grid_scan
from transduce.testing.ops import check_op


def test_the_dag_scan_obeys_the_law_of_ops():
    check_op(dag_scan)


def test_a_grid_is_a_graph():
    rows, columns = 3, 4
    g = torch.Generator().manual_seed(0)
    q, k, v, gates = (
        torch.randn(2, rows, columns, 2, n, generator=g, dtype=torch.float64) for n in (3, 3, 2, len(GATES))
    )
    at = lambda y, x: y * columns + x
    right = [(at(y, x), at(y, x + 1)) for y in range(rows) for x in range(columns - 1)]
    down = [(at(y, x), at(y + 1, x)) for y in range(rows - 1) for x in range(columns)]
    graph = Dag.of(rows * columns, right + down)
    goes = ["right" if head == tail + 1 else "down" for tail, head in graph.edges.tolist()]
    flat = dict(zip(GATES, gates.flatten(1, 2).unbind(-1)))
    gate = lambda name, node: flat[name][:, node]
    came = {"right": "left", "down": "up"}
    edges, turns = graph.edges.tolist(), graph.turns.tolist()
    source = torch.stack([gate(f"source {to}", tail) for (tail, _), to in zip(edges, goes)], 1)
    mark = torch.stack([gate(f"mark {came[to]}", head) for (_, head), to in zip(edges, goes)], 1)
    transition = torch.stack([gate(f"{came[goes[a]]} to {goes[b]}", edges[a][1]) for a, b in turns], 1)
    nodes = (x.flatten(1, 2) for x in (q, k, v))
    got = dag_scan(*nodes, source, transition, mark, flat["direct"], graph)
    torch.testing.assert_close(got, grid_scan(q, k, v, gates).flatten(1, 2))


def test_its_matrix_is_what_it_computes():
    q, k, v, *gates, graph = next(case for case in dag_scan.all_cases() if case.name == "thirty nodes").args
    y = torch.einsum("bhns,bshv->bnhv", dag_scan.matrix(q, k, *gates, graph), v)
    torch.testing.assert_close(y, dag_scan.run("reference", q, k, v, *gates, graph))


def test_edges_come_after_those_that_lead_to_them():
    given = [(3, 1), (4, 3), (1, 0), (4, 0), (2, 0)]
    graph = Dag.of(5, given)
    assert all(a < b for a, b in graph.turns.tolist()) and len(graph.turns) == 2
    assert [given[i] for i in graph.order] == [tuple(e) for e in graph.edges.tolist()]
    back = graph.reversed()
    assert sorted(map(tuple, back.edges.tolist())) == sorted((b, a) for a, b in graph.edges.tolist())


@pytest.mark.parametrize("edges, said", [([(0, 1), (1, 2), (2, 0)], "cycle"), ([(0, 3)], "not one of 0 to 2")])
def test_what_is_no_dag_is_refused(edges, said):
    with pytest.raises(ValueError, match=said):
        Dag.of(3, edges)
