"""Presets and the command line: a preset gives the defaults, options override single fields.

Every field is accepted under its dotted name (``--transformer.attention.heads``) and, where only
one field has that name, under its bare one (``--heads``).
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from simple_parsing import ArgumentGenerationMode, ArgumentParser, NestedMode
from simple_parsing.help_formatter import SimpleHelpFormatter

from config.config import MagmaConfig, Precision, word_or_none
from utils.errors import UserError

PRESETS_FILE = Path(__file__).with_name("presets.yml")

_DEST = "magma_fields"


def nearest(name: str, known: Iterable[str]) -> str:
    """What to tell about an unknown name: the nearest known one, or nothing.

    Returns:
        ``"; did you mean 'x'?"`` or ``""``.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


@cache
def _presets() -> dict[str, Any]:
    content = yaml.safe_load(PRESETS_FILE.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if not name.startswith(".")}


def preset_names() -> list[str]:
    """Names that ``--config`` and :func:`load_preset` accept."""
    return list(_presets())


def load_preset(name: str) -> MagmaConfig:
    """A new, validated configuration of a preset.

    Raises:
        UserError: the name is unknown, or the preset has a wrong field.
    """
    names = preset_names()
    if name not in names:
        raise UserError(
            f"unknown config '{name}'{nearest(name, names)} (there are: {', '.join(names)})"
        )
    config = from_mapping(MagmaConfig, _presets()[name], f"preset {name}")
    config.validate()
    return config


def from_mapping(kind: type, values: Any, where: str) -> Any:
    """A dataclass of nested mappings; fields that are not named keep their defaults.

    Args:
        kind: the dataclass.
        values: field name to value or mapping.
        where: what to call it in errors.

    Raises:
        UserError: a name that is no field (with the nearest one), or a value of a wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected fields, found {values!r}")
    types = get_type_hints(kind)
    names = [entry.name for entry in fields(kind)]
    arguments = {}
    for name, value in values.items():
        if name not in names:
            raise UserError(f"{where}: unknown field '{name}'{nearest(str(name), names)}")
        arguments[name] = _convert(types[name], value, f"{where}: {name}")
    return kind(**arguments)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML as the type of its field."""
    if is_dataclass(kind):
        return from_mapping(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        item = get_args(kind)[0]
        return tuple(_convert(item, entry, where) for entry in value)
    if kind is Precision and value in list(Precision):
        return Precision(value)
    if kind == str | None and (value is None or isinstance(value, str)):
        return word_or_none(value)
    if get_origin(kind) is UnionType:
        inner = next(entry for entry in get_args(kind) if entry is not NoneType)
        return None if value is None else _convert(inner, value, where)
    if kind is float and isinstance(value, str):
        value = _number(value)  # YAML takes 1e-3, which lacks a point, for text
    if kind is float and type(value) in (int, float):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise UserError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {value!r}")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


class _HelpFormatter(SimpleHelpFormatter):
    """Shows defaults, but not "None" where the help text tells what happens without the option."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(ArgumentParser):
    """A parser whose failures are one line, and whose help names the sections in words."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument ", "option ", 1))

    def format_help(self) -> str:
        self._preprocessing(args=[])
        for group in self._action_groups:
            name, _, path = (group.title or "").partition(" ['")
            if path:
                # simple-parsing titles a group "Class ['dest.field']:".
                field_path = path.rstrip("']:").removeprefix(_DEST).lstrip(".")
                group.title = f"fields of {field_path or 'the whole model'} ({name})"
        return super().format_help()


def _known_options(parser: ArgumentParser) -> list[str]:
    return [option for option in parser._option_string_actions if option.startswith("--")]


def _refuse_unknown(extras: Sequence[str], parser: ArgumentParser) -> None:
    if not extras:
        return
    name = extras[0].split("=", 1)[0]
    if not name.startswith("-"):
        raise UserError(f"unexpected argument '{extras[0]}'; options begin with --")
    known = _known_options(parser)
    bare = name.lstrip("-")
    dotted = [option for option in known if option.endswith(f".{bare}")]
    if len(dotted) > 1:
        raise UserError(f"option {name} is ambiguous; write {' or '.join(dotted)}")
    if dotted:
        raise UserError(f"unknown option {name}; did you mean '{dotted[0]}'?")
    raise UserError(f"unknown option {name}{nearest(name, known)} (--help lists all)")


def given_option(argv: Sequence[str], name: str) -> str | None:
    """The value of one option (``"--config"``), before the command line is read; None without it.

    Raises:
        UserError: the option lacks its value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _Parser.error.__get__(parser)  # type: ignore[method-assign]
    parser.add_argument(name, dest="value")
    value: str | None = parser.parse_known_args(argv)[0].value
    return value


def parse_config(
    argv: Sequence[str] | None,
    default: str | MagmaConfig,
    add_options: Callable[[ArgumentParser], None] | None = None,
    description: str | None = None,
    epilog: str | None = None,
) -> tuple[MagmaConfig, argparse.Namespace]:
    """Read a command line: ``--config`` chooses the defaults, field options override them.

    Args:
        argv: arguments without the program's name; None for those of this process.
        default: preset, or configuration, when ``--config`` is not given.
        add_options: adds the program's own options to the parser.
        description: what the program does, for ``--help``.
        epilog: examples, for ``--help``.

    Returns:
        the validated configuration, and the program's own options (``config`` is the preset, or
        None where there is none).

    Raises:
        UserError: unknown preset, option or ambiguous name, wrong type, fields that do not fit.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    given = given_option(argv, "--config")
    preset = default if given is None and isinstance(default, str) else given
    base = load_preset(preset) if preset is not None else default
    parser = _Parser(
        description=description,
        epilog=epilog,
        argument_generation_mode=ArgumentGenerationMode.BOTH,
        nested_mode=NestedMode.WITHOUT_ROOT,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    if add_options is not None:
        add_options(parser)
    parser.add_argument(
        "--config",
        default=preset,
        metavar="NAME",
        help=f"preset whose values are the defaults below: {', '.join(preset_names())}",
    )
    parser.add_argument("-f", dest="jupyter", help=argparse.SUPPRESS)
    parser.add_arguments(MagmaConfig, dest=_DEST, default=base)
    namespace, extras = parser.parse_known_args(argv)
    _refuse_unknown(extras, parser)
    config: MagmaConfig = getattr(namespace, _DEST)
    delattr(namespace, _DEST)
    del namespace.jupyter
    config.validate()
    return config, namespace
