"""What nothing uses and nobody would miss is gone, at every depth; all else stays."""

from __future__ import annotations

from popxl_torch.ir.records import Spec
from popxl_torch.passes.drop_dead_nodes import drop_dead_nodes
from popxl_torch.passes.ssa import Block, Functional, Node, Val, used_outside, walk

FLOAT = Spec((2,), "float32")


def _val(name: str) -> Val:
    return Val(FLOAT, name)


def _node(kind: str, inputs: list[Val], *outputs: Val, blocks: tuple[Block, ...] = ()) -> Node:
    return Node(kind, inputs, list(outputs), blocks=blocks)


def _kept(*nodes: Node, results: tuple[Val, ...] = ()) -> list[str]:
    """Kinds of the nodes that stay, nested ones after the node that holds them."""
    main = Block([], list(nodes), list(results))
    drop_dead_nodes(Functional(1, main, Block(), Block()))
    return [node.kind for node in walk(main)]


def test_a_chain_that_ends_nowhere_is_gone():
    a, b, c = map(_val, "abc")
    nodes = _node("ReadState", [], a), _node("Sin", [a], b), _node("Cos", [b], c)
    assert _kept(*nodes, results=(a,)) == ["ReadState"]


def test_what_only_a_nested_block_uses_stays():
    a, b, taken = map(_val, "abt")
    inner = Block([], [_node("HostStore", [b])])
    deep = Block([], [_node("Loop", [], blocks=(inner,))])
    nodes = _node("Sin", [a], b), _node("If", [taken], blocks=(deep, Block()))
    assert _kept(*nodes) == ["Sin", "If", "Loop", "HostStore"]


def test_dead_nodes_of_a_loop_are_gone_and_what_they_used_too():
    start, param, out, a, b, c = map(_val, "spoabc")
    body = Block([param], [_node("Cos", [a], b), _node("Add", [param, param], c)], [c])
    loop = _node("Loop", [start], out, blocks=(body,))
    nodes = _node("ReadState", [], start), _node("Sin", [start], a), loop
    assert _kept(*nodes, results=(out,)) == ["ReadState", "Loop", "Add"]


def test_effects_keep_all_blocks_around_them():
    a, b, taken = map(_val, "abt")
    stores, idle = Block([], [_node("WriteState", [a])]), Block([], [_node("Sin", [a], b)])
    middle = _node("If", [taken], blocks=(stores, Block()))
    nodes = _node("If", [taken], blocks=(Block([], [middle]), idle)), _node("If", [taken])
    assert _kept(*nodes) == ["If", "If", "WriteState"]


def test_a_load_of_remote_memory_without_use_is_gone_and_a_load_of_a_stream_is_not():
    n, a, b = map(_val, "nab")
    assert _kept(_node("RemoteLoad", [n], a), _node("HostLoad", [], b)) == ["HostLoad"]


def test_a_branch_that_is_taken_stays_for_the_trace():
    assert _kept(_node("Taken", [], blocks=(Block(),))) == ["Taken"]


def test_a_node_uses_its_inputs_and_what_its_blocks_take_from_around_them():
    start, param, a, b, c, d = map(_val, "spabcd")
    deep = Block([], [_node("Mul", [b, c], d)], [a])
    nodes = [_node("Add", [param, a], b), _node("If", [b], _val("r"), blocks=(deep,))]
    loop = _node("Loop", [start], _val("o"), blocks=(Block([param], nodes, [b]),))
    assert used_outside(loop) == [start, a, c, a]
