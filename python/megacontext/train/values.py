"""Frozen dataclasses from plain values, as YAML gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from megacontext_ext.errors import InvalidArgument

Made = TypeVar("Made")


def from_values(kind: type[Made], values: Mapping[str, Any], where: str = "config") -> Made:
    """A `kind` from values by field name; mappings become the dataclasses that fields ask for, and
    lists tuples.

    Raises: InvalidArgument for a key that is no field, and what `kind` itself refuses.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise InvalidArgument(f"[{where}] keys must be of {sorted(known)}, got {unknown}")
    hints = get_type_hints(kind)
    return kind(**{name: _made(hints[name], v, f"{where}.{name}") for name, v in values.items()})


def _made(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return from_values(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_made(get_args(hint)[0], each, where) for each in value)
    return value
