"""Modules: registration, names, graphs made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
from popxl_addons import Module, NamedTensors, VariableFactory
from popxl_addons.module import _Aux, _CalledGraphsGradInfoRefs, _VarGrads


def spec() -> popxl.TensorSpec:
    return popxl.TensorSpec((2, 3), popxl.float32)


def zeros() -> np.ndarray:
    return np.zeros((2, 3), "float32")


class Shift(Module):
    """x + b."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        b = self.add_variable_input("b", zeros)
        return x + b


class Twice(Module):
    """Two sub-modules, one made in the constructor, one in build, and its own variable."""

    def __init__(self, cache: bool = False) -> None:
        super().__init__(cache=cache)
        self.first = Shift()

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        self.second = Shift()
        own = self.add_variable_input("own", zeros)
        return self.second(self.first(x)) + own


class Written(Module):
    """Has a gradient of its own."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        self.aux["x"] = x
        return x + x

    def build_grad(self, dy: popxl.Tensor) -> popxl.Tensor:
        return dy + dy


def test_sub_modules_register_under_their_attribute(ir: popxl.Ir):
    factories, graph = Twice().create_graph(spec())
    keys = ["first.b", "own", "second.b"]
    assert sorted(factories.keys_flat()) == sorted(graph.args.keys_flat()) == keys
    inputs = graph.graph.inputs
    assert inputs[0].name == "x"
    assert [t.name for t in inputs[1:]] == ["own", "first/b", "second/b"]
    assert graph.args.first.b == inputs[2]


def test_a_top_level_module_has_bare_names_and_scopes_end(ir: popxl.Ir):
    _, graph = Shift().create_graph(spec())
    assert [t.name for t in graph.graph.inputs] == ["x", "b"]

    class Failing(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            raise RuntimeError("stop")

    class Outer(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            self.inner = Failing()
            return self.inner(x)

    with pytest.raises(RuntimeError, match="stop"):
        Outer().create_graph(spec())
    assert popxl.context.get_current_context().name_scopes == []


def test_one_module_makes_many_graphs(ir: popxl.Ir):
    module = Twice()
    made = [module.create_graph(spec()) for _ in range(3)]
    assert len({graph.graph for _, graph in made}) == 3
    for factories, graph in made:
        assert len(factories.keys_flat()) == 3
        assert set(graph.args.tensors) <= set(graph.graph.inputs)
    assert module._variable_factories.to_dict() == {}


def test_a_failed_build_leaves_the_module_usable(ir: popxl.Ir):
    class Picky(Module):
        def build(self, x: popxl.Tensor, fail: bool) -> popxl.Tensor:
            b = self.add_variable_input("b", zeros)
            if fail:
                raise RuntimeError("stop")
            return x + b

    module = Picky()
    with pytest.raises(RuntimeError, match="stop"):
        module.create_graph(spec(), True)
    factories, _ = module.create_graph(spec(), False)
    assert factories.keys_flat() == ["b"]


def test_names_clash(ir: popxl.Ir):
    module = Module()
    module.a = Shift()
    with pytest.raises(ValueError, match="'a' already exists"):
        module.a = Shift()
    module.plain = None
    module.plain = Shift()

    class Double(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            self.add_variable_input("b", zeros)
            return x + self.add_variable_input("b", zeros)

    with pytest.raises(ValueError, match="already exists"):
        Double().create_graph(spec())


class Layers(Module):
    """One graph, called for each of n layers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        factories, graph = Shift().create_graph(x)
        for i in range(self.n):
            args = self.add_variable_inputs(i, factories)
            assert isinstance(args, NamedTensors)
            (x,) = graph.bind(args).call(x)
        return x


def test_outlined_layers(ir: popxl.Ir):
    module = Layers(12)
    for _ in range(2):
        factories, graph = module.create_graph(spec())
        assert factories.keys_flat() == [f"{i}.b" for i in range(12)]
        # The prefix is not part of the tensors' names.
        assert {t.name.partition("__")[0] for t in graph.graph.inputs} == {"x", "b"}
        assert len(graph.graph.inputs) == 13
    with pytest.raises(ValueError, match="not negative"):
        Module().add_variable_inputs(-1, factories)


def test_tied_tensors_become_named_args(ir: popxl.Ir):
    class Tied(Module):
        def build(self, x: popxl.Tensor, shared: popxl.Tensor) -> popxl.Tensor:
            factories, graph = Shift().create_graph(x)
            args = self.add_variable_inputs("shift", factories)
            args.insert("shared", shared)
            return graph.bind(args).call(x)[0]

    factories, graph = Tied().create_graph(spec(), spec())
    assert factories.keys_flat() == ["shift.b"]
    assert graph.args.shift.shared == graph.graph.inputs[1]


def test_lists(ir: popxl.Ir):
    class Listed(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            self.layers = Module.from_list([Shift() for _ in range(2)])
            for layer in self.layers:
                x = layer(x)
            assert self.layers[1] is self.layers.get("1")
            return x

    factories, graph = Listed().create_graph(spec())
    assert factories.keys_flat() == ["layers.0.b", "layers.1.b"]
    assert [t.name for t in graph.graph.inputs] == ["x", "0/b", "1/b"]
    with pytest.raises(AttributeError):
        iter(Shift())


def test_from_variable_factories(ir: popxl.Ir):
    class Holder(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            self.held = Module.from_variable_factories([VariableFactory(zeros, name="w")])
            return x + self.held[0]

    factories, graph = Holder().create_graph(spec())
    assert factories.keys_flat() == ["held.0"]
    assert graph.args.held[0].name == "w"


def test_dotted_names_and_factories(ir: popxl.Ir):
    class Dotted(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            self.add_variable_input("a.b", zeros)
            self.add_variable_input("a.c", zeros, overwrite=True)
            self.add_variable_factory(VariableFactory(zeros, name="f"))
            with pytest.raises(ValueError, match="neither a name"):
                self.add_variable_factory(VariableFactory(zeros))
            return x

    module = Dotted()
    for _ in range(2):
        factories, graph = module.create_graph(spec())
        assert factories.keys_flat() == graph.args.keys_flat() == ["a.b", "a.c", "f"]


def test_sharded_variables(ir4: popxl.Ir):
    class Sharded(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            t = self.add_replica_sharded_variable_input("w", lambda: np.zeros((4, 2), "float32"))
            assert (t.shape, t.meta_shape) == ((2,), (4, 2))
            return x

    factories, _ = Sharded().create_graph(spec())
    assert factories.w.meta_shape == (4, 2)


def test_cached_graphs(ir: popxl.Ir):
    module = Twice(cache=True)
    first_factories, first = module.create_graph(spec())
    factories, graph = module.create_graph(spec())
    assert graph.graph is first.graph
    assert factories.keys_flat() == first_factories.keys_flat() == graph.args.keys_flat()
    factories.pop("own")
    assert "own" in module.create_graph(spec())[0]
    _, other = module.create_graph(popxl.TensorSpec((1, 3), popxl.float32))
    assert other.graph is not first.graph


def test_tensor_arguments_come_in_the_order_of_the_signature(ir: popxl.Ir):
    class Two(Module):
        def build(self, a: popxl.Tensor, k: int, b: popxl.Tensor, *, c: popxl.Tensor) -> Any:
            w = self.add_variable_input("w", zeros)
            return a + w, b, c

    _, graph = Two().create_graph(c=spec(), b=spec(), k=3, a=spec())
    assert [t.name for t in graph.graph.inputs] == ["a", "b", "c", "w"]


def test_modules_without_their_constructor_can_be_built_inline(ir: popxl.Ir):
    class Bare(Module):
        def __init__(self) -> None:
            self.k = 2

        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            return x + x

    graph = ir.create_graph(Bare(), spec())
    assert len(graph.inputs) == 1
    with pytest.raises(AttributeError):
        Bare().create_graph(spec())


def test_hand_written_gradients_are_not_called_inline(ir: popxl.Ir):
    x = popxl.variable(zeros())
    with pytest.raises(RuntimeError, match="`build_grad` has been implemented"):
        Written()(x)
    with pytest.warns(UserWarning, match="`build_grad` has been implemented"):
        Written(grad_inlining_error="warning")(x)
    Written(grad_inlining_error="none")(x)
    _, graph = Written().create_graph(x)
    assert "x" in graph._aux
    assert Written().implements_grad_graph
    assert not Shift().implements_grad_graph


def test_constructor_errors(ir: popxl.Ir):
    with pytest.raises(ValueError, match="cannot use graph caching"):
        Written(cache=True)
    with pytest.raises(ValueError, match="grad_inlining_error should be one of"):
        Module(grad_inlining_error="maybe")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="build_grad"):
        Shift().build_grad()


def test_call_module(ir: popxl.Ir):
    class Caller(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            (y,) = self.call_module(Shift())(x)
            (z,) = self.call_module(Shift(), "other")(y)
            return z

    factories, graph = Caller().create_graph(spec())
    assert factories.keys_flat() == graph.args.keys_flat() == ["Shift.b", "other.b"]
    assert len(graph.graph.called_graphs) == 2


def test_aux_is_written_forwards():
    aux = _Aux()
    aux["k"] = 3
    with pytest.raises(RuntimeError, match="get items within the `build_graph`"):
        _ = aux["k"]
    assert "k" in aux.copy()
    assert repr(aux) == "Aux({'k': 3})"


def test_gradients_of_variables_are_checked(ir: popxl.Ir):
    w = popxl.variable(zeros(), name="w")
    grads = _VarGrads({"w": w})
    grads["w"] = w
    assert grads["w"] is w
    with pytest.raises(TypeError, match="Not a tensor"):
        grads["w"] = 3  # type: ignore[assignment]
    with pytest.raises(KeyError, match="Not a variable"):
        grads["v"] = w
    with pytest.raises(ValueError, match="Shape or meta-shape"):
        grads["w"] = popxl.variable(np.zeros(2, "float32"))
    with pytest.raises(RuntimeError, match="within the `build_graph` method"):
        _VarGrads()["w"] = w


def test_gradient_information_of_called_graphs(ir: popxl.Ir):
    _, a = Shift().create_graph(spec())
    _, b = Shift().create_graph(spec())
    parent, child = _CalledGraphsGradInfoRefs(), _CalledGraphsGradInfoRefs({a: "inner"})
    parent.add_submap(child)
    parent.add_submap({b: "mapped"})
    parent.add(b, "near")
    assert parent.consolidate() == {a.graph: "inner", b.graph: "near"}
    parent.clear()
    assert parent.consolidate() == {a.graph: "inner"}
