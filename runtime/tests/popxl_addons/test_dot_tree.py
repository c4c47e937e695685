"""DotTree: keys, order, references."""

from __future__ import annotations

import copy
import pickle

import pytest
from popxl_addons.dot_tree import DotTree, sanitise, to_mapping
from popxl_addons.named_tensors import NamedTensorData
from popxl_addons.utils import OrderedDict


class Other(DotTree[int]):
    """Another class of tree."""


def tree(**flat: int) -> DotTree[int]:
    return DotTree.from_dict({key.replace("__", "."): value for key, value in flat.items()})


def test_leaves_are_read_by_attribute_item_and_path():
    t = DotTree(a=1, b=DotTree(c=2, **{"0": 3}))
    assert t.a == t["a"] == t.get("a") == 1
    assert t.b.c == t["b.c"] == 2
    assert t.b[0] == t.b["0"] == t["b.0"] == getattr(t.b, "0") == 3


def test_missing_keys():
    t = tree(a__b=1)
    with pytest.raises(AttributeError, match=r"no key 'x'.*Keys: a"):
        _ = t.x
    assert not hasattr(t, "x")
    for key in ("x", "a.x", "a.b.x", 0):
        with pytest.raises(KeyError):
            t.get(key)
    assert "a.b" in t
    assert "a.x" not in t


@pytest.mark.parametrize("key", ["", "a b", ".a", "a.", "a-b", "a..b", "1a"])
def test_insert_rejects_what_is_no_identifier(key: str):
    t: DotTree[int] = DotTree()
    with pytest.raises(ValueError, match="not a valid python identifier"):
        t.insert(key, 1)
    assert t.keys_flat() == []


def test_keywords_and_digits_are_keys():
    t = DotTree.from_dict({"class": 1, "007": 2, 3: 4})
    assert t.keys() == ["class", "007", "3"]
    # Reads take digits as a number, so a key with leading zeros is out of reach (quirk).
    assert "007" not in t
    with pytest.raises(ValueError, match="not negative"):
        t.insert(-1, 0)


def test_negative_integers_count_from_the_largest_number():
    t = DotTree.from_dict({"0": "a", "1": "b", "3": "d", "x": "e"})
    assert t[-1] == "d"
    assert t[-3] == "b"
    for missing in (-2, -5):
        with pytest.raises(KeyError):
            _ = t[missing]
    with pytest.raises(ValueError, match="no numeric key"):
        _ = DotTree(a=1)[-1]


def test_a_path_leads_only_through_trees_of_the_readers_class():
    inner = Other(x=1)
    t = NamedTensorData(a=inner)
    assert t.a.x == 1
    with pytest.raises(KeyError):
        t.get("a.x")
    assert DotTree(a=inner)["a.x"] == 1
    assert list(t.to_dict()) == ["a.x"]


def test_insert_clashes_on_the_first_component():
    t = tree(a__b=1)
    with pytest.raises(ValueError, match="'a' already exists"):
        t.insert("a.c", 2)
    t.insert("a.c", 2, overwrite=True)
    assert t.to_dict() == {"a.b": 1, "a.c": 2}
    t.insert("a", DotTree(z=0), overwrite=True)
    assert t.to_dict() == {"a.z": 0}


def test_insert_stores_by_reference_and_merges_into_a_copy():
    inner = DotTree(x=1)
    t = DotTree(a=inner)
    inner.insert("y", 2)
    assert t["a.y"] == 2
    t.insert("a.z", 3, overwrite=True)
    assert "z" not in inner


def test_a_failing_nested_insert_changes_nothing():
    t = tree(a__b=1)
    before = t.a
    with pytest.raises(ValueError, match="identifier"):
        t.insert("a.c.d e", 2, overwrite=True)
    assert t.a is before
    assert t.to_dict() == {"a.b": 1}


def test_insert_below_a_leaf_discards_it():
    t = DotTree(a=1)
    t.insert("a.b", 2, overwrite=True)
    assert t.to_dict() == {"a.b": 2}


def test_update_is_shallow():
    t, other = tree(a__b=1), tree(a__c=2, d=3)
    with pytest.raises(ValueError, match="already exists"):
        t.update(other)
    t = tree(a__b=1)
    t.update(other, overwrite=True)
    assert t.to_dict() == {"a.c": 2, "d": 3}
    other.a.insert("e", 4)
    assert "a.e" not in t


def test_pop_removes_in_place():
    t = tree(a__b=1, a__c=2, d=3)
    inner = t.a
    assert t.pop("a.b") == 1
    assert inner.to_dict() == {"c": 2}
    for missing in ("x", "a.b", "d.e"):
        with pytest.raises(KeyError):
            t.pop(missing)
    with pytest.raises(AttributeError):
        t.pop(0)


def test_copy_shares_leaves_only():
    leaf = object()
    t = DotTree(a=DotTree(b=leaf))
    c = t.copy()
    c.a.insert("n", 1)
    assert c.a.b is leaf
    assert t.keys_flat() == ["a.b"]


def test_filter_keys():
    t = tree(a__b=1, a__c=2, d=3)
    assert list(t.filter_keys(["d", "a.c"]).to_dict().items()) == [("d", 3), ("a.c", 2)]
    assert t.filter_keys(["a"]).a is t.a
    with pytest.raises(ValueError, match="twice"):
        t.filter_keys(["d", "d"])
    with pytest.raises(KeyError):
        t.filter_keys(["x"])


def test_map_and_lengths():
    t = tree(a__b=1, a__c=2, d=3)
    assert t.map(lambda x: 10 * x).to_dict() == {"a.b": 10, "a.c": 20, "d": 30}
    assert (t.len(), t.len_flat()) == (2, 3)
    assert t.values_flat() == [1, 2, 3]
    assert isinstance(Other(a=1).map(str), Other)


def test_unpack_sorts_keys_as_text():
    t = DotTree.from_dict({"2": "a", "10": "b", "a.b": "c"})
    keys, leaves = t.unpack()
    assert keys == ("10", "2", "a.b")
    assert leaves == ("b", "a", "c")
    assert list(zip(*t.unpack(), strict=True)) == [("10", "b"), ("2", "a"), ("a.b", "c")]
    assert DotTree().unpack() == ([], [])


def test_pack_stops_at_the_shorter():
    assert DotTree.pack(["a", "b.c"], [1, 2, 3]).to_dict() == {"a": 1, "b.c": 2}


def test_from_dict_takes_components_that_are_method_names():
    t = DotTree.from_dict({"keys.copy": 1, "get.map.len": 2})
    assert t.to_dict() == {"keys.copy": 1, "get.map.len": 2}
    assert t["keys.copy"] == 1


def test_from_dict_keeps_passed_trees_and_does_not_change_them():
    inner = DotTree(x=1)
    assert DotTree.from_dict({"a": inner}).a is inner
    t = DotTree.from_dict({"a": inner, "a.y": 2})
    assert t.to_dict() == {"a.x": 1, "a.y": 2}
    assert inner.keys() == ["x"]


def test_from_dict_clashes():
    with pytest.raises(AttributeError, match="is a leaf"):
        DotTree.from_dict({"a": 1, "a.b": 2})
    with pytest.raises(ValueError, match="already exists"):
        DotTree.from_dict({"a.b": 2, "a": DotTree()})
    with pytest.raises(ValueError, match="identifier"):
        DotTree.from_dict({"a b.c": 1})


def test_mappings_ignore_keys_of_one_side():
    a, b = tree(x=1, y__z=2, only_a=3), tree(y__z="b2", x="b1", only_b=0)
    assert list(to_mapping(a, b).items()) == [(1, "b1"), (2, "b2")]
    assert a.to_mapping(b) == to_mapping(a, b)


def test_a_tree_has_no_value_of_its_own():
    empty: DotTree[int] = DotTree()
    assert empty
    assert empty != DotTree()
    with pytest.raises(TypeError):
        len(empty)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        iter(DotTree(a=1)).__next__()  # type: ignore[call-overload]


def test_repr_copy_and_pickle():
    t = tree(a__b=1)
    assert repr(t).startswith("DotTree(OrderedDict(")
    for other in (copy.deepcopy(t), copy.copy(t), pickle.loads(pickle.dumps(t))):
        assert other.to_dict() == {"a.b": 1}
    assert isinstance(t.to_dict(), OrderedDict)


def test_clear_keeps_nodes():
    t = tree(a__b=1, c=2)
    node = t.a
    t._clear()
    assert t.keys() == ["a"]
    assert t.a is node
    assert t.to_dict() == {}


@pytest.mark.parametrize(
    ("name", "expected"), [("linear1/w", "linear1_w"), ("1x", "_1x"), ("a.b-c", "a_b_c"), ("", "")]
)
def test_sanitise(name: str, expected: str):
    assert sanitise(name) == expected
