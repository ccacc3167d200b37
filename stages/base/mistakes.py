"""Messages about mistakes in job files and options."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)

# Messages by pydantic's type of error, where its own message mentions Python.
WORDS = {
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
    """Return a message about an unknown name that suggests the most similar known one."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5) or [
        name for name in known if name.startswith(given)
    ]
    return f"unknown {kind} {given!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line for each of pydantic's errors: the key, what is wrong and the value given."""
    return [_explain_one(details, model) for details in error.errors()]


def _explain_one(details: ErrorDetails, model: type[BaseModel]) -> str:
    where = joined(part for part in details["loc"] if part != "[key]")
    at = f"{where}: " if where else ""
    given = shown(details["input"])
    kind, context = details["type"], details.get("ctx", {})
    if kind in WORDS:
        return at + WORDS[kind].format(given=given, **context)
    if kind == "extra_forbidden":
        return unknown("key", where, model.model_fields)
    if kind == "missing":
        return f"{at}missing; it has no default"
    if kind == "value_error":
        return f"{at}{context['error']}"
    if kind == "literal_error" and isinstance(details["input"], str):
        return at + unknown("value", details["input"], re.findall(r"'([^']+)'", context["expected"]))
    must = details["msg"].replace("Input should be", "must be").replace("a valid", "a")
    return f"{at}{must}, not {given}"


def joined(where: Iterable[str | int]) -> str:
    """Format a path of keys and list indexes as in `loras[0].file`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def shown(value: object) -> str:
    """Format a value as in a job file, truncated if long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Strict(BaseModel):
    """A frozen model without type coercion or unknown keys. Docstrings of fields are their descriptions."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def checked(model: type[Model], value: object) -> Model:
    """Validate `value` as a `model`. Raise one ValueError with all mistakes."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(explain(error, model))) from None
