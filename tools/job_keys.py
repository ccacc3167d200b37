"""Writes docs/job-keys.md from the job model: `python -m tools.job_keys`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.all_stages import all_stages
from stages.annotators import ANNOTATORS, published_names
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job
from stages.jobs.machine import MachineSettings
from stages.smoothers import SMOOTHERS

PAGE = Path(__file__).parent.parent / "docs" / "job-keys.md"

HEAD = """# Job keys

Made from `stages/jobs/job.py` by `python -m tools.job_keys`; `diffsynth schema` prints the same as JSON Schema.
A job file is one JSON object. Relative paths in it are relative to the file. Any key can be given on the command line
as `--set key=value`; relative paths there are relative to the current folder.

"""


def page() -> str:
    """The page's text."""
    stage_of = {key: name for name, stage in all_stages().items() for key in stage.reads}
    rows = [
        f"| `{key}` | {_type(key)} | {_default(_value(field))} | {_flat(field.description)} | {stage_of.get(key, '')} |"
        for key, field in sorted(Job.model_fields.items(), key=lambda item: item[0] in MachineSettings.model_fields)
    ]
    table = "| key | type | default | meaning | makes stale |\n|---|---|---|---|---|\n" + "\n".join(rows)
    return HEAD + table + "\n\n" + "\n".join([_annotators(), _smoothers(), _schedulers()])


def _annotators() -> str:
    lines = [
        "## Annotators (`controlnet_processor`)",
        "",
        "| name | DiffSynth's name | options (default) | map |",
        "|---|---|---|---|",
    ]
    theirs = {str(ours["name"]): _theirs(name, ours) for name, ours in published_names().items()}
    for name, model in ANNOTATORS.built_in.items():
        lines.append(f"| `{name}` | {theirs.get(name, '')} | {_options(model, skip='name')} | {_flat(model.__doc__)} |")
    return "\n".join(lines) + "\n"


def _theirs(name: str, ours: dict[str, Any]) -> str:
    """DiffSynth's name of an annotator, and which options it sets."""
    options = ", ".join(f"`{key}` `{json.dumps(value)}`" for key, value in ours.items() if key != "name")
    return f"{name} ({options})" if options else name


def _smoothers() -> str:
    lines = [
        "## Smoothers (`smoother`, `post_smoother`)",
        "",
        "| name | options (default) | what it does |",
        "|---|---|---|",
    ]
    for name, model in SMOOTHERS.built_in.items():
        lines.append(f"| `{name}` | {_options(model)} | {_flat(model.__doc__)} |")
    return "\n".join(lines) + "\n"


def _schedulers() -> str:
    lines = [
        "## Schedulers (`scheduler`)",
        "",
        "| name | steps, at most | `guidance_scale`, at most | what it does |",
        "|---|---|---|---|",
    ]
    for name, sampler in SAMPLERS.items():
        guidance = f"{sampler.most_guidance:g}" if sampler.most_guidance else ""
        lines.append(f"| `{name}` | {sampler.most_steps} | {guidance} | {sampler.description} |")
    return "\n".join(lines) + "\n"


def _options(model: type[BaseModel], skip: str = "") -> str:
    options = {key: field for key, field in model.model_fields.items() if key != skip}
    return ", ".join(f"`{key}` ({_default(_value(field))})" for key, field in options.items())


def _value(field: Any) -> Any:
    return ... if field.is_required() else field.get_default(call_default_factory=True)


def _default(value: Any) -> str:
    value = value.model_dump() if isinstance(value, BaseModel) else value
    return "required" if value is ... else f"`{json.dumps(value)}`"


def _type(key: str) -> str:
    return _schema_type(Job.model_json_schema()["properties"][key])


def _schema_type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema['items'])}"
    if "$ref" in schema or schema.get("type") == "object":
        return "object"
    bounds = {">": "exclusiveMinimum", "≥": "minimum", "<": "exclusiveMaximum", "≤": "maximum"}
    limits = [f"{sign} {schema[name]:.15g}" for sign, name in bounds.items() if name in schema]
    return f"{schema.get('type', 'any')}{' ' if limits else ''}{', '.join(limits)}"


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE)
