"""Small tools."""

from __future__ import annotations

import logging

import numpy as np
import popxl
import pytest
from popxl_addons.utils import (
    OrderedDict,
    WeightsDict,
    duplicate_items,
    null_context,
    overrides,
    suffix_graph_name,
    timer,
)


def test_ordered_dict():
    d = OrderedDict(a=1, b=2)
    assert d.idx(1) == 2
    assert repr(d) == "OrderedDict({\n  'a': 1,\n  'b': 2,\n})"
    assert repr(OrderedDict()) == "OrderedDict({})"


def test_suffix_graph_name():
    assert suffix_graph_name("Linear_subgraph(3)_grad", "recomp") == "Linear_grad_recomp"


def test_duplicate_items():
    assert duplicate_items([3, 1, 2, 1, 3, 3]) == [3, 1]


def test_overrides():
    class Base:
        def f(self) -> None: ...

    class Same(Base):
        pass

    class Own(Base):
        def f(self) -> None: ...

    assert not overrides(Same, Base, "f")
    assert overrides(Own, Base, "f")


def test_null_context():
    with null_context() as value:
        assert value is None


def test_timer_logs_start_and_duration(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO), timer("Some work", log_to_wandb=False):
        assert caplog.messages == ["Starting Some work"]
    assert caplog.messages[1].startswith("Some work duration: 0.00 mins")


def test_timer_is_silent_after_an_error(caplog: pytest.LogCaptureFixture):
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(RuntimeError, match="stop"),
        timer("Work"),
    ):
        raise RuntimeError("stop")
    assert caplog.messages == ["Starting Work"]


def test_weights_dict_checks_what_it_is_given(ir4: popxl.Ir):
    group = ir4.replica_grouping(group_size=2)
    v = popxl.variable(np.zeros((2, 3), "float32"), name="v", replica_grouping=group)
    weights = WeightsDict({v: np.ones((2, 3), "float32")})
    assert list(weights) == [v]
    assert len(weights) == 1
    with pytest.raises(ValueError, match="v has dtype float32, the array float64"):
        weights[v] = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"v has host shape \(2, 3\), the array \(3,\)"):
        weights[v] = np.ones(3, "float32")
    with pytest.raises(ValueError, match="keys are popxl Variables"):
        weights["v"] = np.ones(3, "float32")  # type: ignore[index]
    del weights[v]
    assert not weights
