"""Writes in place whose order a program leaves open are refused when the session is made."""

# No string annotations here: popxl recognises TensorByRef by identity.

from collections.abc import Callable

import numpy as np
import popxl
import pytest
from popart import popart_exception
from popxl import ops

Build = Callable[[popxl.Tensor], object]


def session(build: Build, sequenced: bool = False, check: bool = True) -> popxl.Session:
    ir = popxl.Ir()
    ir._pb_ir.getSessionOptions().enableInplaceAmbiguityChecking = check
    with ir.main_graph:
        x = popxl.variable(np.ones((4, 2), "float32"), name="x")
        if sequenced:
            with popxl.in_sequence():
                build(x)
        else:
            build(x)
    return popxl.Session(ir, "ipu_model")


def by_reference(t: popxl.TensorByRef) -> None:
    ops.relu_(t)


def called(x: popxl.Tensor) -> popxl.Graph:
    return popxl.gir().create_graph(by_reference, x)


def reader_then_writer(x: popxl.Tensor):
    ops.exp(x)
    ops.relu_(x)


def writer_then_reader(x: popxl.Tensor):
    ops.relu_(x)
    ops.exp(x)


def two_writers(x: popxl.Tensor):
    ops.relu_(x)
    ops.relu_(x)


def through_an_alias(x: popxl.Tensor):
    ops.relu_(x.T_)
    ops.exp(x.reshape_((8,)))


def through_a_concatenation(x: popxl.Tensor):
    ops.relu_(ops.concat_([x, popxl.variable(np.ones((4, 2), "float32"))]))
    ops.exp(x)


def slice_and_whole(x: popxl.Tensor):
    ops.relu_(ops.slice_(x, 0, 2, axis=0))
    ops.exp(x)


def two_calls(x: popxl.Tensor):
    ops.call(called(x), x)
    ops.call(called(x), x)


def loop_and_store(x: popxl.Tensor):
    ops.repeat(called(x), 2, x)
    ops.host_store(popxl.d2h_stream(x.shape, x.dtype), x)


def inside_a_graph(x: popxl.Tensor):
    ops.call(popxl.gir().create_graph(two_writers, x), x)


def remote_load(x: popxl.Tensor):
    ops.remote_load_(popxl.remote_buffer(x.shape, x.dtype, 1), 0, x)
    ops.exp(x)


AMBIGUOUS = [
    reader_then_writer,
    writer_then_reader,
    two_writers,
    through_an_alias,
    through_a_concatenation,
    slice_and_whole,
    two_calls,
    loop_and_store,
    inside_a_graph,
    remote_load,
]


@pytest.mark.parametrize("build", AMBIGUOUS)
def test_is_refused(build: Build):
    with pytest.raises(popart_exception, match=r"^Inplacing ambiguity detected\.") as error:
        session(build)
    assert __file__ in str(error.value)


@pytest.mark.parametrize("build", AMBIGUOUS)
def test_is_accepted_in_sequence(build: Build):
    session(build, sequenced=True)


@pytest.mark.parametrize("build", AMBIGUOUS)
def test_the_check_can_be_switched_off(build: Build):
    session(build, check=False)


def results_are_used(x: popxl.Tensor):
    ops.exp(ops.relu_(ops.add_(x, ops.exp(x))))


def written_once(x: popxl.Tensor):
    ops.relu_(x)


def two_readers(x: popxl.Tensor):
    ops.exp(x)
    ops.relu(x)


def copies(x: popxl.Tensor):
    ops.relu_(x.T)
    ops.relu_(x[:])


def two_slices(x: popxl.Tensor):
    ops.relu_(ops.slice_(x, 0, 2, axis=0))
    ops.relu_(ops.slice_(x, 2, 4, axis=0))


def two_halves_of_a_concatenation(x: popxl.Tensor):
    y = popxl.variable(np.ones((4, 2), "float32"))
    ops.relu_(ops.concat_([x, ops.relu_(y)]))


def calls_by_value(x: popxl.Tensor):
    g = popxl.gir().create_graph(lambda t: ops.relu_(t), x)
    ops.call(g, x)
    ops.call(g, x)


def a_gradient_updates_its_weight(x: popxl.Tensor):
    g = popxl.gir().create_graph(lambda t: ops.sum(ops.exp(t)), x)
    d = popxl.transforms.autodiff(g)
    info = ops.call_with_info(g, x)
    (dx,) = ops.call(d.graph, 1.0, inputs_dict=d.inputs_dict(info))
    ops.scaled_add_(x, dx, b=-0.1)


def by_constraint(x: popxl.Tensor):
    two_writers(x)
    handle = popxl.gcg()._pb_graph
    handle.topoCons().insert(*handle.getOps())


@pytest.mark.parametrize(
    "build",
    [
        results_are_used,
        written_once,
        two_readers,
        copies,
        two_slices,
        two_halves_of_a_concatenation,
        calls_by_value,
        a_gradient_updates_its_weight,
        by_constraint,
    ],
)
def test_is_no_ambiguity(build: Build):
    session(build)


def test_shards_that_the_host_exchanges_are_ordered_by_their_fragments():
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        _, shard = popxl.replica_sharded_variable(np.ones(4, "float32"))
        ops.var_updates.accumulate_(shard, shard + 1.0)
    popxl.Session(ir, "ipu_model")
