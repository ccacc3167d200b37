"""Write docs/job-keys.md from the job model.

python -m tools.job_keys
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stages.all_stages import all_stages
from stages.annotators import ANNOTATORS, published_names
from stages.base.json_types import Json
from stages.diffusion.attention_backends import BACKENDS
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job
from stages.jobs.machine import MachineSettings
from stages.smoothers import SMOOTHERS
from tools.json_schema import Schema, schema_of

PAGE = Path(__file__).parent.parent / "docs" / "job-keys.md"

HEAD = """# Job keys

Generated from `stages/jobs/job.py` by `python -m tools.job_keys`; `diffsynth schema` prints the same as JSON Schema.
A job file is one JSON object. Relative paths in it are relative to the file. Any key can be given on the command line
as `--set key=value`; relative paths there are relative to the current folder.

"""


def page() -> str:
    """Return the text of the page."""
    stage_of = {key: name for name, stage in reversed(all_stages().items()) for key in stage.reads}
    types = schema_of(Job)["properties"]
    rows = [
        f"| `{key}` | {_type(types[key])} | {_default(field)} | {_flat(field.description)} | {stage_of.get(key, '')} |"
        for key, field in sorted(Job.model_fields.items(), key=lambda item: item[0] in MachineSettings.model_fields)
    ]
    table = "| key | type | default | meaning | makes stale |\n|---|---|---|---|---|\n" + "\n".join(rows)
    return HEAD + table + "\n\n" + "\n".join([_annotators(), _smoothers(), _schedulers(), _backends()])


def _annotators() -> str:
    lines = [
        "## Annotators (`controlnet_processor`)",
        "",
        "| name | DiffSynth's name | options (default) | map |",
        "|---|---|---|---|",
    ]
    published = {str(ours["name"]): _published(name, ours) for name, ours in published_names().items()}
    for name, model in ANNOTATORS.built_in.items():
        lines.append(
            f"| `{name}` | {published.get(name, '')} | {_options(model, skip='name')} | {_flat(model.__doc__)} |"
        )
    return "\n".join(lines) + "\n"


def _published(name: str, settings: Mapping[str, Json]) -> str:
    """Return DiffSynth's name of an annotator, with the options that it sets."""
    options = ", ".join(f"`{key}` `{json.dumps(value)}`" for key, value in settings.items() if key != "name")
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
        "| name | most steps | highest `guidance_scale` | what it does |",
        "|---|---|---|---|",
    ]
    for name, sampler in SAMPLERS.items():
        guidance = f"{sampler.most_guidance:g}" if sampler.most_guidance else ""
        lines.append(f"| `{name}` | {sampler.most_steps} | {guidance} | {sampler.description} |")
    return "\n".join(lines) + "\n"


def _backends() -> str:
    lines = [
        "## Attention backends (`attention_backend`)",
        "",
        "| name | what it is | needs an NVIDIA GPU | `auto` can choose it | to install |",
        "|---|---|---|---|---|",
    ]
    for name, backend in BACKENDS.items():
        gpu, chosen = ("yes" if applies else "" for applies in (backend.cuda_only, backend.competes))
        lines.append(f"| `{name}` | {backend.description} | {gpu} | {chosen} | {backend.install} |")
    return "\n".join(lines) + "\n"


def _options(model: type[BaseModel], skip: str = "") -> str:
    options = {key: field for key, field in model.model_fields.items() if key != skip}
    return ", ".join(f"`{key}` ({_default(field)})" for key, field in options.items())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{json.dumps(value.model_dump() if isinstance(value, BaseModel) else value)}`"


def _type(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "$ref" in schema or schema.get("type") == "object":
        return "object"
    bounds = {
        ">": schema.get("exclusiveMinimum"),
        "≥": schema.get("minimum"),
        "<": schema.get("exclusiveMaximum"),
        "≤": schema.get("maximum"),
    }
    limits = [f"{sign} {bound:.15g}" for sign, bound in bounds.items() if bound is not None]
    return f"{schema.get('type', 'any')}{' ' if limits else ''}{', '.join(limits)}"


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE)
