"""Options that commands share, each declared once, and options derived from the keys of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.markup import escape

from diffsynth_cli.engines import EngineName
from stages.base.cluster import CPUS_PER_WORKER
from stages.base.mistakes import explain, unknown
from stages.base.numbers import MOST
from stages.jobs.machine import MachineSettings

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., None])

JsonSchema = dict[str, Any]  # pydantic's type

# Panels of a command's help.
INPUT, OUTPUT, MACHINE, ENGINE, ADVANCED = "Input", "Output", "Machine", "Where it runs", "Advanced"


def one_of(names: Iterable[T], noun: str) -> Callable[[str], T]:
    """Return a parser for one of these names. Its message about any other name suggests the nearest."""
    known = {str(name): name for name in names}

    def parse(text: str) -> T:
        if text not in known:
            raise typer.BadParameter(unknown(noun, text, known))
        return known[text]

    return parse


def complete_key(incomplete: str) -> list[str]:
    """Complete KEY=VALUE: the names of job keys and, after the `=`, values of those that have a few."""
    from stages.annotators import ANNOTATORS
    from stages.jobs.job import Job

    key, equals, _ = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in Job.model_fields if name.startswith(key)]
    if key not in Job.model_fields:
        return []
    values = _choices(Job.model_json_schema()["properties"][key])
    if key == "controlnet_processor":
        values = [f'["{name}"]' for name in ANNOTATORS]
    return [f"{key}={value}" for value in values if f"{key}={value}".startswith(incomplete)]


def _choices(schema: JsonSchema) -> list[str]:
    """Return the values of a key that has a few, by its JSON schema."""
    if schema.get("type") == "boolean":
        return ["true", "false"]
    listed = [choice for part in schema.get("anyOf", ()) for choice in _choices(part)]
    return [*map(str, schema.get("enum") or schema.get("examples") or ()), *listed]


JobFile = Annotated[Path, typer.Argument(metavar="JOB.json", help="Job file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a job key. VALUE is JSON, or else text. Repeatable.",
        autocompletion=complete_key,
        rich_help_panel=INPUT,
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Redo this stage; with run, redo stale and damaged stages.")]
Preview = Annotated[
    bool,
    typer.Option(
        "--preview", help="Also write preview.png, a contact sheet, to the output folder.", rich_help_panel=OUTPUT
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite existing files, but never an input.", rich_help_panel=OUTPUT)
]


def output_option(metavar: str, about: str, default: str) -> object:
    """Return the option `--output`, for a path that has a default described by `default`."""
    return typer.Option("--output", "-o", metavar=metavar, help=about, show_default=default, rich_help_panel=OUTPUT)


Engine = Annotated[
    EngineName,
    typer.Option(
        parser=one_of(EngineName, "engine"),
        help="local: in this process. ray: on the machines of a Ray cluster.",
        rich_help_panel=ENGINE,
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        metavar="auto|local|HOST:PORT",
        help="Ray cluster. auto: the one in RAY_ADDRESS or on this machine. local: start one for this run.",
        rich_help_panel=ENGINE,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        help=f"Workers on the Ray cluster. Default: one per GPU or, without GPUs, per {CPUS_PER_WORKER} CPU cores.",
        rich_help_panel=ENGINE,
    ),
]
GpusPerWorker = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1024,
        help="GPUs for each worker, which computes on one. Default: 1 if the Ray cluster has GPUs and the device is "
        "not cpu, else 0.",
        rich_help_panel=ENGINE,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print events as JSON lines to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback if the command fails.")]


def odd(number: int) -> int:
    """Return `number` if it is odd, else raise BadParameter."""
    if number % 2 == 0:
        raise typer.BadParameter(f"must be odd, not {number}")
    return number


# --- options derived from a model -----------------------------------------------------------------------


def with_options(*options: inspect.Parameter) -> Callable[[Function], Function]:
    """Return a decorator that gives a command these options in place of its `**` parameter."""

    def decorate(command: Function) -> Function:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        vars(command)["__signature__"] = signature.replace(parameters=[*own, *options])
        return command

    return decorate


def options_of(
    model: type[BaseModel], panel: str, names: Iterable[str] = (), *, overrides: bool = False
) -> list[inspect.Parameter]:
    """Return an option for each key of `model`, with the key's type, bounds, choices, default and help.

    Args:
        model: A model whose keys all have defaults.
        panel: The options' panel in the command's help.
        names: Keys of the model. By default, all.
        overrides: Whether the options override a job file. If so, an option that is not given is None, and values are
            checked together with the file.
    """
    return [_option(model, name, panel, overrides) for name in names or model.model_fields]


def _option(model: type[BaseModel], name: str, panel: str, overrides: bool) -> inspect.Parameter:
    schema = model.model_json_schema()["properties"][name]
    kind, flag = _kind(schema), f"--{name.replace('_', '-')}"
    least, most = _bounds(schema)
    examples = [str(example) for example in schema.get("examples", ())]
    option = typer.Option(
        flag,
        help=escape(" ".join(schema["description"].split())),
        parser=None if kind is bool else _unchecked(kind) if overrides else _parser(model, name, kind),
        min=least,
        max=most,
        metavar=name.upper() if examples else None,
        autocompletion=(lambda: examples) if examples else None,
        show_default=not overrides,
        rich_help_panel=panel,
    )
    optional = overrides or schema.get("default") is None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if overrides else schema.get("default"),
        annotation=Annotated[Optional[kind] if optional else kind, option],  # noqa: UP045 -- `kind` may be a Literal
    )


def _kind(schema: JsonSchema) -> Any:  # a type or a Literal
    """Return the Python type of a key by its JSON schema, apart from null."""
    if "anyOf" in schema:
        return next(_kind(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    return {"integer": int, "number": float, "boolean": bool, "string": str}[schema["type"]]


def _bounds(schema: JsonSchema) -> tuple[float | None, float | None]:
    """Return the least and the greatest value of a key, to show in its help. Bounds that nobody reaches are None."""
    limited: JsonSchema = next((part for part in schema.get("anyOf", ()) if "minimum" in part), schema)
    most = limited.get("maximum", MOST)
    return limited.get("minimum"), most if most < MOST else None


def _parser(model: type[BaseModel], name: str, kind: object) -> Callable[[str], object]:
    """Return a parser that accepts what the key `name` of `model` accepts."""

    def parse(text: str) -> object:
        try:
            value = kind(text) if kind is int or kind is float else text
            return vars(model.model_validate({name: value}))[name]
        except ValidationError as error:
            raise typer.BadParameter(explain(error, model)[0].removeprefix(f"{name}: ")) from None
        except ValueError:
            raise typer.BadParameter(f"must be a number, not {text}") from None

    return parse


def _unchecked(kind: object) -> Callable[[str], object]:
    """Return a parser of numbers and texts that leaves all checks to the job's model."""

    def parse(text: str) -> object:
        try:
            return kind(text) if kind is int or kind is float else text
        except ValueError:
            return text

    return parse


DEVICE_OPTION = options_of(MachineSettings, MACHINE, ["device"])
CACHE_OPTION = options_of(MachineSettings, MACHINE, ["cache"], overrides=True)
SMOOTHING_OPTIONS = options_of(MachineSettings, MACHINE, ["device", "compile"])
MACHINE_OPTIONS = options_of(MachineSettings, MACHINE, overrides=True)
