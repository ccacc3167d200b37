"""Mistakes in what users write, in words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

WORDS = {  # by pydantic's names for kinds of mistakes, where its own words speak of Python
    "bool_type": "must be true or false, not {given}",
    "dict_type": "must be an object, not {given}",
    "int_type": "must be a whole number, not {given}",
    "model_type": "must be an object, not {given}",
    "string_too_short": "must not be empty",
    "string_unicode": "{given} is not Unicode text; rename the file if its name is not UTF-8, or set a UTF-8 locale "
    "(LC_ALL=C.UTF-8)",
    "too_long": "must hold at most {max_length}, not {actual_length}",
    "too_short": "must not be empty",
}


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """A line about a name that is not known, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5) or [
        name for name in known if name.startswith(given)
    ]
    return f"unknown {kind} {given!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line about each of pydantic's findings: key, what is wrong, what was given."""
    return [_explain_one(details, model) for details in error.errors()]


def _explain_one(details: Any, model: type[BaseModel]) -> str:
    where = joined(part for part in details["loc"] if part != "[key]")
    given = shown(details["input"])
    kind, context = details["type"], details.get("ctx", {})
    if kind in WORDS:
        return f"{where}: ".removeprefix(": ") + WORDS[kind].format(given=given, **context)
    if kind == "extra_forbidden":
        return unknown("key", where, model.model_fields)
    if kind == "missing":
        return f"{where}: missing; it has no default"
    if kind == "value_error":
        return f"{where}: {context['error']}"
    if kind == "literal_error" and isinstance(details["input"], str):
        return f"{where}: " + unknown("value", details["input"], re.findall(r"'([^']+)'", context["expected"]))
    must = details["msg"].replace("Input should be", "must be").replace("a valid", "a")
    return f"{where}: {must}, not {given}"


def joined(where: Iterable[str | int]) -> str:
    """The name of a place in a job, such as `loras[0].file`, by the keys and list indexes that lead to it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def shown(value: Any) -> str:
    """A value as it stands in a job file, cut short if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def checked(model: type[BaseModel], value: Any) -> BaseModel:
    """`value` as a `model`; all its mistakes, with the model's own keys to choose from, as one ValueError."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(explain(error, model))) from None
