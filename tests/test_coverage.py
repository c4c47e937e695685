"""docs/popxl-coverage.md says what is true of the package now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "make_coverage.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_coverage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _not_implemented(name: str) -> None:
    raise NotImplementedError(name)


def by_helper(x: int) -> int:
    """With a docstring."""
    return _not_implemented("by_helper")


def by_raise(x: int) -> int:
    raise NotImplementedError("by_raise is not implemented yet")


def to_override(x: int) -> int:
    raise NotImplementedError("override this")


def for_one_case(x: int) -> int:
    if x < 0:
        raise NotImplementedError("negative numbers are not implemented")
    return x


def as_value_error(x: int) -> int:
    raise ValueError(x)


def just_a_docstring(x: int) -> None:
    """Does nothing, on purpose."""


def test_the_documents_are_up_to_date(coverage):
    found = {package: coverage.states(package) for package in coverage.PACKAGES}
    assert coverage.DOCUMENT.read_text() == coverage.document(found), "run make coverage"
    assert coverage.README.read_text() == coverage.readme(found), "run make coverage"


@pytest.mark.parametrize("package", ["popxl", "popxl_addons"])
def test_every_listed_name_can_be_imported(coverage, package):
    def importable(name: str) -> bool:
        try:
            coverage.resolve(name)
        except LookupError:
            return False
        return True

    names = coverage.public_names(package)
    assert len(names) > 200
    assert [name for name in names if not importable(name)] == []


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (by_helper, True),
        (by_raise, True),
        (to_override, False),
        (for_one_case, False),
        (as_value_error, False),
        (just_a_docstring, False),
        (len, False),
    ],
)
def test_only_a_plain_raise_counts_as_not_implemented(coverage, function, expected):
    assert coverage.only_raises(function) is expected


def test_an_unknown_name_is_an_error(coverage):
    with pytest.raises(LookupError, match=r"popxl\.no_such_name"):
        coverage.resolve("popxl.no_such_name")


def test_a_private_name_is_not_listed(coverage):
    names = coverage.public_names("popxl")
    assert "popxl.Graph._from_pb" not in names
    assert "popxl.Graph.__init__" in names


def test_marked_sentences_are_found(coverage, tmp_path, monkeypatch):
    path = tmp_path / "popxl" / "ops" / "odd.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        '"""An op.\n\n(quirk) The sum is\na mean. More text.\n"""\n'
        "x = 1  # (quirk) one is two\n"
        'def f():\n    """(mended) Three is three."""\n'
    )
    monkeypatch.setattr(coverage, "SOURCES", tmp_path)
    quirks = [("popxl.ops.odd", "The sum is a mean."), ("popxl.ops.odd", "One is two.")]
    assert sorted(coverage.marked("quirk")) == sorted(quirks)
    assert list(coverage.marked("mended")) == [("popxl.ops.odd.f", "Three is three.")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First. (quirk) Second one. Third.", ["Second one."]),
        ("First. Second one (quirk). Third.", ["Second one."]),
        ("First. Second one. (quirk)", ["Second one."]),
        ("First (quirk: as ever). Second.", []),
        ("Nothing of the kind.", []),
    ],
)
def test_the_sentence_of_a_mark(coverage, text, expected):
    assert list(coverage.sentences_with("(quirk)", text)) == expected


@pytest.mark.parametrize("package", ["popxl", "popxl_addons"])
def test_every_name_is_there(coverage, package):
    missing = [n for n, state in coverage.states(package).items() if state == coverage.MISSING]
    assert missing == []


def test_what_is_not_applicable_says_why(coverage):
    load = "popxl_addons.transforms.pipelining.Pipelining.load"
    assert coverage.state(load) == coverage.NOT_APPLICABLE
    assert coverage.reason(load) == "a stage loads for itself, nothing runs beside compute"
