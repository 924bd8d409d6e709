"""Writes plain values as TOML, which the standard library only reads. The same values give the same text."""

import json
import re
from collections.abc import Mapping
from typing import Any

from replaybench.errors import DataError

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(values: Mapping[str, Any]) -> str:
    """Returns a TOML document that `tomllib` reads back as the same values.

    Raises:
        DataError: A value has no form in TOML; names its field.
    """
    check_plain("", values)
    return "\n".join(_table_lines((), values)).strip() + "\n"


def check_plain(where: str, value: Any) -> None:
    """Refuses anything but strings, numbers, booleans, lists and tables of these."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise DataError(f"field '{where}': key {key!r} is {type(key).__name__}, expected a string.")
            _check_text(where, key)
            check_plain(f"{where}.{key}" if where else key, item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_plain(f"{where}.{index}", item)
    elif isinstance(value, str):
        _check_text(where, value)
    elif not isinstance(value, (bool, int, float)):
        raise DataError(
            f"field '{where}': {value!r} is {type(value).__name__}; "
            "a card holds strings, numbers, booleans, lists and tables. Leave absent values out."
        )


def _check_text(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"field '{where}': is not valid Unicode text ({error}). Remove the bad characters.") from error


def _table_lines(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    # Plain values come first: below a header they would belong to that header's table.
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping) or _is_table_list(value)}
    lines = [f"{_key(key)} = {_inline(value)}" for key, value in table.items() if key not in nested]
    for key, value in nested.items():
        header = ".".join(_key(part) for part in (*path, key))
        if isinstance(value, Mapping):
            lines += ["", f"[{header}]", *_table_lines((*path, key), value)]
        else:
            for item in value:
                lines += ["", f"[[{header}]]", *_table_lines((*path, key), item)]
    return lines


def _is_table_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else _inline(key)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, str):
        # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(_inline(item) for item in value) + "]"
