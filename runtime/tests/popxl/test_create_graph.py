"""ir.create_graph: what becomes an input, what an output, names, errors."""

# No `from __future__ import annotations`: by-reference inputs are found by their annotation.

import functools
from typing import Any, List, NamedTuple, Tuple  # noqa: UP035

import numpy as np
import popxl
import pytest
from popxl import ops

SPEC = popxl.TensorSpec((2,), popxl.float32)


def names(graph: popxl.Graph) -> list[str]:
    return list(graph.inputs_by_name)


def by_ref(graph: popxl.Graph) -> set[str]:
    return {tensor.name for tensor in graph._by_ref_inputs}


class Scale(popxl.Module):
    """x scaled by an input of its own."""

    def build(self, x):
        self.w = popxl.graph_input(x.shape, x.dtype, "w")
        return self.w * x


def test_tensors_become_inputs_of_the_same_spec(main: popxl.Graph, ir: popxl.Ir):
    x = popxl.variable(np.ones((2, 3), "float16"))
    graph = ir.create_graph(lambda a, b: a, x, popxl.TensorSpec((4,), popxl.int32, (8,)))
    a, b = graph.inputs
    assert (a.shape, a.dtype, a.name) == ((2, 3), popxl.float16, "a")
    assert (b.shape, b.dtype, b.meta_shape, b.name) == ((4,), popxl.int32, (8,), "b")
    assert graph.outputs == (a,)
    assert main.called_graphs == ()


def test_inputs_come_in_signature_order(ir: popxl.Ir):
    graph = ir.create_graph(lambda a, b, c: None, c=SPEC, b=SPEC, a=SPEC)
    assert names(graph) == ["a", "b", "c"]


def test_defaults_become_inputs_too(ir: popxl.Ir):
    def fn(a, b=SPEC, c=3):
        assert c == 3
        return a + b

    assert names(ir.create_graph(fn, SPEC)) == ["a", "b"]


def test_the_same_tensor_twice_makes_two_inputs(main: popxl.Graph, ir: popxl.Ir):
    x = popxl.variable(1)
    assert len(ir.create_graph(lambda a, b: None, x, x).inputs) == 2


@pytest.mark.parametrize("container", [list, tuple])
def test_sequences_become_lists(ir: popxl.Ir, container: Any):
    def fn(values):
        assert type(values) is list
        return values

    graph = ir.create_graph(fn, container([SPEC, SPEC]))
    assert names(graph) == ["values_0", "values_1"]
    assert graph.outputs == graph.inputs


def test_a_named_tuple_becomes_a_list(ir: popxl.Ir):
    class Pair(NamedTuple):
        a: Any
        b: Any

    def fn(pair):
        assert type(pair) is list

    assert names(ir.create_graph(fn, Pair(SPEC, SPEC))) == ["pair_0", "pair_1"]


def test_star_arguments(ir: popxl.Ir):
    def fn(x, *args, **kwargs):
        assert list(kwargs) == ["p", "q"]
        return [x, *args, *kwargs.values()]

    graph = ir.create_graph(fn, SPEC, SPEC, SPEC, p=SPEC, q=SPEC)
    assert names(graph) == ["x", "args_0", "args_1", "p", "q"]
    assert graph.outputs == graph.inputs


def test_keyword_only_arguments(ir: popxl.Ir):
    def fn(a, *, b):
        return a + b

    assert names(ir.create_graph(fn, SPEC, b=SPEC)) == ["a", "b"]


@pytest.mark.parametrize(
    "value", [3, "text", None, {"a": SPEC}, [[SPEC]], [], (), [1, 2], (x for x in ()), np.ones(3)]
)
def test_other_values_pass_unchanged(ir: popxl.Ir, value: Any):
    received = []
    graph = ir.create_graph(received.append, value)
    assert received[0] is value
    assert graph.inputs == ()


def test_star_arguments_without_tensors_pass_unchanged(ir: popxl.Ir):
    received: list[Any] = []

    def fn(*args, **kwargs):
        received.extend([args, kwargs])

    ir.create_graph(fn, 1, 2, a=3)
    assert received == [(1, 2), {"a": 3}]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (([SPEC, 1],), {}),
        (([1, SPEC],), {}),
        (((SPEC, None),), {}),
        (([], SPEC, 1), {}),
        (([],), {"p": SPEC, "q": 1}),
    ],
)
def test_mixtures(ir: popxl.Ir, args: Any, kwargs: Any):
    with pytest.raises(TypeError, match="can't contain a mixture"):
        ir.create_graph(lambda values, *args, **kwargs: None, *args, **kwargs)


def test_by_reference_annotations(ir: popxl.Ir):
    def fn(a: popxl.TensorByRef, b, c: List[popxl.TensorByRef], *args: popxl.TensorByRef):  # noqa: UP006
        pass

    graph = ir.create_graph(fn, SPEC, SPEC, [SPEC, SPEC], SPEC)
    assert by_ref(graph) == {"a", "c_0", "c_1", "args_0"}


def test_by_reference_tuples_and_keywords(ir: popxl.Ir):
    def fn(a: Tuple[popxl.TensorByRef], **kwargs: popxl.TensorByRef):  # noqa: UP006
        pass

    assert by_ref(ir.create_graph(fn, (SPEC,), k=SPEC)) == {"a_0", "k"}


@pytest.mark.parametrize(
    "annotation",
    [
        "popxl.TensorByRef",
        popxl.Tensor,
        list[popxl.TensorByRef],
        tuple[popxl.TensorByRef],
        Tuple[popxl.TensorByRef, popxl.TensorByRef],  # noqa: UP006
    ],
)
@pytest.mark.parametrize("argument", [SPEC, [SPEC]])
def test_only_the_exact_annotations_count(ir: popxl.Ir, annotation: Any, argument: Any):
    def fn(a):
        pass

    fn.__annotations__["a"] = annotation
    assert by_ref(ir.create_graph(fn, argument)) == set()


def test_a_list_annotation_does_not_mark_a_tensor(ir: popxl.Ir):
    def fn(a: List[popxl.TensorByRef], b: popxl.TensorByRef):  # noqa: UP006
        pass

    assert by_ref(ir.create_graph(fn, SPEC, [SPEC])) == set()


def test_graph_inputs_of_the_body_come_after_the_arguments(ir: popxl.Ir):
    def fn(x):
        first = popxl.graph_input((), popxl.int32, "first")
        popxl.graph_output(first)
        popxl.graph_input((), popxl.int32, "second")
        return x

    graph = ir.create_graph(fn, SPEC)
    assert names(graph) == ["x", "first", "second"]
    assert [t.name for t in graph.outputs] == ["first", "x"]


def test_results(ir: popxl.Ir):
    assert ir.create_graph(lambda x: None, SPEC).outputs == ()
    assert len(ir.create_graph(lambda x: x + 1.0, SPEC).outputs) == 1
    assert len(ir.create_graph(lambda x: (x, x), SPEC).outputs) == 2
    assert len(ir.create_graph(lambda x: {x: 0}, SPEC).outputs) == 1


def test_a_generator_yields_no_outputs(ir: popxl.Ir):
    assert ir.create_graph(lambda x: (t for t in [x, x]), SPEC).outputs == ()


@pytest.mark.parametrize("result", [3, "text", [1], [None]])
def test_bad_results(ir: popxl.Ir, result: Any):
    with pytest.raises(
        ValueError, match="Output of subgraph must be None, a Tensor or an iterable"
    ):
        ir.create_graph(lambda: result)


def test_a_result_of_another_graph(main: popxl.Graph, ir: popxl.Ir):
    x = popxl.variable(1)
    with pytest.raises(ValueError, match="not in the current Graph"):
        ir.create_graph(lambda: x)


def test_a_captured_tensor(main: popxl.Graph, ir: popxl.Ir):
    x = popxl.variable(1)
    with pytest.raises(ValueError, match="is not in the current Graph"):
        ir.create_graph(lambda a: a + x, x)


def test_tensors_in_a_dict_stay_foreign(main: popxl.Graph, ir: popxl.Ir):
    with pytest.raises(ValueError, match="is not in the current Graph"):
        ir.create_graph(lambda d: ops.negate(d["x"]), {"x": popxl.variable(1)})


@pytest.mark.parametrize("args", [(), (SPEC, SPEC)])
def test_arguments_that_do_not_fit(ir: popxl.Ir, args: Any):
    with pytest.raises(ValueError, match="do not match the signature") as caught:
        ir.create_graph(lambda x: None, *args)
    assert isinstance(caught.value.__cause__, TypeError)


class Callable:
    """Neither a function nor a Module."""

    def __call__(self, x):
        return x


@pytest.mark.parametrize("fn", [functools.partial(lambda x: x), Callable(), 3])
def test_other_callables(ir: popxl.Ir, fn: Any):
    message = "must be either a function or a class that extends popxl.Module"
    with pytest.raises(TypeError, match=message):
        ir.create_graph(fn, SPEC)


def test_wrapped_functions_keep_their_signature(ir: popxl.Ir):
    def fn(first, second):
        return first + second

    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args)

    assert names(ir.create_graph(wrapper, SPEC, SPEC)) == ["first", "second"]


def test_methods_and_classes(ir: popxl.Ir):
    class Pair(list):
        def __init__(self, a, b):
            super().__init__([a, b])

        def method(self, x):
            return x

    assert names(ir.create_graph(Pair([], []).method, SPEC)) == ["x"]
    graph = ir.create_graph(Pair, SPEC, SPEC)
    assert names(graph) == ["a", "b"]
    assert graph.outputs == graph.inputs


def test_every_call_makes_a_new_graph(ir: popxl.Ir):
    def fn(x):
        return x

    assert ir.create_graph(fn, SPEC) != ir.create_graph(fn, SPEC)


def test_a_failing_function(ir: popxl.Ir):
    def fn(x):
        ops.negate(x)
        raise KeyError("from fn")

    with ir.main_graph as graph:
        with pytest.raises(KeyError, match="from fn"):
            ir.create_graph(fn, SPEC)
        assert popxl.gcg() is graph
        y = popxl.d2h_stream((), popxl.int32)
        ops.host_store(y, popxl.constant(7))
    with popxl.Session(ir) as session:
        assert session.run()[y] == 7


def test_names(ir: popxl.Ir):
    def inner(x):
        return x + 1.0

    prefix = "test_names.inner_subgraph"
    first, second = ir.create_graph(inner, SPEC), ir.create_graph(inner, SPEC)
    module = ir.create_graph(Scale(), SPEC)
    assert [g.id for g in (first, second)] == [f"{prefix}(0)", f"{prefix}(1)"]
    assert first.name == first.id
    assert module.id == "Scale_subgraph(2)"
    assert first.inputs[0].id == f"{prefix}(0)/x"
    assert (first.inputs[0].name, first.inputs[0].scope) == ("x", first.id)


def test_equal_names_get_a_suffix(main: popxl.Graph, ir: popxl.Ir):
    def fn(x):
        popxl.constant(1, name="x")

    tensors = [popxl.variable(1, name="w") for _ in range(2)]
    graph = ir.create_graph(fn, tensors[0])
    assert tensors[0].id == "w"
    assert tensors[1].id == "w__t0"
    assert graph.constants[0].id == f"{graph.id}/x__t1"


def test_module_without_build():
    with pytest.raises(NotImplementedError):
        popxl.Module()(1)


def test_a_module_that_overrides_call(ir: popxl.Ir):
    class Doubled(Scale):
        def __call__(self, x):
            return super().__call__(x) * 2.0

    ops_of = ir.create_graph(Doubled(), SPEC)._pb_graph.getOps()
    assert [op.opType() for op in ops_of] == ["Mul", "Mul"]


def test_a_module_built_twice_overwrites_its_attributes(main: popxl.Graph, ir: popxl.Ir):
    module, x = Scale(), popxl.variable([1.0, 2.0])
    first = ir.create_graph(module, x)
    key = module.w
    second = ir.create_graph(module, x)
    assert key in first.inputs
    assert module.w in second.inputs
    with pytest.raises(ValueError, match="is not in the called graph"):
        ops.call(first, x, inputs_dict={module.w: x})
    assert len(ops.call(first, x, inputs_dict={key: x})) == 1
