"""TOML on every Python that JetPack ships (3.10 has no tomllib), and tables that become dataclasses."""

from __future__ import annotations

import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from edge_awq.errors import EdgeAwqError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a syntax error names the file and the place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise EdgeAwqError(f"{path}: not UTF-8 text ({error.reason})", hint="convert the file to UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise EdgeAwqError(f"{path}: not valid TOML: {error}", hint="correct the line it names") from error


def from_table(kind: type[T], table: Any, where: str) -> T:
    """Make a dataclass of a table, its nested tables too; fields without a default must be there.

    Raises:
        EdgeAwqError: a key is missing or not known, or its value is of another type; ``where`` is named.
    """
    if not isinstance(table, dict):
        raise EdgeAwqError(f"{where}: {table!r} stands where a table is expected", hint="write it as a table")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    missing = {name for name, field in known.items() if _is_required(field)} - set(table)
    if wrong := sorted((set(table) - set(known)) | missing):
        expected = ", ".join(name if _is_required(field) else f"{name} (optional)" for name, field in known.items())
        raise EdgeAwqError(f"{where}: keys {', '.join(wrong)} are missing or not known",
                           hint=f"expected exactly: {expected}")
    types = get_type_hints(kind)
    return kind(**{name: _value(types[name], value, f"{where}: {name}") for name, value in table.items()})


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotation says: a plain type, a dataclass, a tuple, list or dict of them, X | None or Any."""
    if isinstance(kind, UnionType):
        if value is None:  # JSON has it, TOML does not
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
    if is_dataclass(kind):
        return from_table(kind, value, where)
    origin = get_origin(kind)
    if origin is dict and isinstance(value, dict):
        return {key: _value(get_args(kind)[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin in (tuple, list) and isinstance(value, list):
        return origin(_value(get_args(kind)[0], entry, where) for entry in value)
    return value if kind is Any else _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    """Text, numbers, truth; a whole number may stand for another."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(kind) is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    word = {tuple: "a list", list: "a list", dict: "a table", float: "a number", int: "a whole number", str: "a text",
            bool: "true or false"}[get_origin(kind) or kind]
    raise EdgeAwqError(f"{where} = {value!r}, {word} is expected", hint="correct the value")
