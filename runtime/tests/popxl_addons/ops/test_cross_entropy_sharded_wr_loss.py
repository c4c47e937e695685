"""Cross entropy of classes that are cut over the IPUs of a replica, against torch."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from popart import popart_exception
from popxl import ops
from popxl.transforms import autodiff
from popxl_addons.ops.cross_entropy_sharded_wr_loss import cross_entropy_sharded_wr_loss

SIZES = (3, 1, 4)


@pytest.mark.parametrize("given", [True, False])
def test_losses_and_gradients(ir: popxl.Ir, given: bool, rng: np.random.Generator):
    """Three IPUs, uneven slices, a true class on each."""
    labels = np.array([0, 3, 7, 2], np.int32)
    parts = [rng.normal(size=(4, size)).astype(np.float32) for size in SIZES]
    upstream = rng.normal(size=4).astype(np.float32)

    def build(*tensors: popxl.Tensor) -> popxl.Tensor:
        placed = []
        for at, t in enumerate(tensors):
            with popxl.ipu(at % 3):
                placed.append(ops.identity(t))
        ipus = range(3) if given else None
        return cross_entropy_sharded_wr_loss(placed[:3], placed[3:], ipus)

    with popxl.in_sequence():
        tensors = [popxl.variable(a) for a in (*parts, labels, labels, labels)]
        graph = ir.create_graph(build, *tensors)
        info = autodiff(graph, grads_required=graph.inputs[:3])
        call = ops.call_with_info(graph, *tensors)
        grads = ops.call(info.graph, popxl.variable(upstream), inputs_dict=info.inputs_dict(call))
        assert call.outputs[0].shape == (4,)
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in (call.outputs[0], *grads)]
        for stream, t in zip(streams, (call.outputs[0], *grads), strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir, "ipu_hw") as session:
        loss, *found = (session.run()[s] for s in streams)
    t = torch.tensor(np.concatenate(parts, 1), dtype=torch.float64, requires_grad=True)
    wanted = torch.nn.functional.cross_entropy(t, torch.tensor(labels).long(), reduction="none")
    (grad,) = torch.autograd.grad(wanted, t, torch.tensor(upstream, dtype=torch.float64))
    np.testing.assert_allclose(loss, wanted.detach(), rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(found, 1), grad, rtol=1e-4, atol=1e-6)


class TestRefuses:
    @pytest.fixture
    def tensors(self, ir: popxl.Ir) -> list[list[popxl.Tensor]]:
        found: list[list[popxl.Tensor]] = [[], []]
        for ipu in range(2):
            with popxl.ipu(ipu):
                found[0].append(ops.init((3, 2), popxl.float32))
                found[1].append(ops.init((3,), popxl.int32))
        return found

    def test_lists_of_different_lengths(self, tensors: list[list[popxl.Tensor]]):
        logits, indices = tensors
        with pytest.raises(ValueError, match="one tensor"):
            cross_entropy_sharded_wr_loss(logits, indices[:1])
        with pytest.raises(ValueError, match="one tensor"):
            cross_entropy_sharded_wr_loss(logits, indices, [0])

    def test_logits_and_indices_apart(self, tensors: list[list[popxl.Tensor]]):
        logits, indices = tensors
        with pytest.raises(ValueError, match="different IPUs"):
            cross_entropy_sharded_wr_loss(logits, indices[::-1])

    def test_unknown_ipus(self, ir: popxl.Ir):
        t, i = popxl.variable(np.zeros((3, 2), "f4")), popxl.variable(np.zeros(3, "i4"))
        with pytest.raises(ValueError, match="Could not automatically infer"):
            cross_entropy_sharded_wr_loss([t], [i])

    def test_wrong_ranks(self, tensors: list[list[popxl.Tensor]]):
        _, indices = tensors
        with pytest.raises(popart_exception, match=r"\(samples,\)"):
            cross_entropy_sharded_wr_loss(indices, indices)
