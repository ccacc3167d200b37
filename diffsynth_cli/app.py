"""The program and the list of its commands, each of which is loaded when it is called."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from diffsynth_cli import __version__
from diffsynth_cli.command import Command
from stages.all_stages import summaries

if TYPE_CHECKING:  # private, but parameters and results of public methods
    from typer._click import Command as AnyCommand
    from typer._click import Context

SETTINGS = {"help_option_names": ["-h", "--help"]}
# Panels of the program's help.
ON_JOBS, ON_VIDEOS, ON_MACHINE = "Commands on jobs", "Commands on any video or image", "Commands on this machine"


@dataclass(frozen=True)
class Entry:
    """What the program's help shows of a command, which is not loaded for it.

    Attributes:
        about: The command's help.
        module: The module of diffsynth_cli.commands that has a function of the command's name.
        panel: The panel of the program's help that lists the command.
        examples: Command lines shown at the end of the command's help.
    """

    about: str
    module: str
    examples: tuple[str, ...]
    panel: str = ON_JOBS

    @property
    def epilog(self) -> str:
        """The examples, as Typer takes them."""
        return "\n".join(["Examples:", *(f"$ {example}" for example in self.examples)]).replace("[", r"\[")


def _stage(name: str, about: str) -> Entry:
    """Return the entry of a command that runs stages."""
    return Entry(
        about,
        "stages",
        (
            f"diffsynth {name} job.json",
            f"diffsynth {name} job.json --set frame_maximum_count=8 --set output_path=trial",
            f"diffsynth {name} job.json --restart --device cuda:1 --low-vram",
        ),
    )


STAGE_COMMANDS = {**summaries(), "run": "Run all stages that are not finished, from video to video.mp4."}
COMMANDS = {
    **{name: _stage(name, about) for name, about in STAGE_COMMANDS.items()},
    "status": Entry(
        "Show which stages are done, and the command that resumes the job.",
        "job",
        ("diffsynth status job.json", "diffsynth status job.json --json"),
    ),
    "plan": Entry(
        "Measure a few frames, and show how much work a job is, how long it takes and what it costs.",
        "plan",
        (
            "diffsynth plan job.json",
            "diffsynth plan job.json --workers 1,8,64 --calibration h100.json --worker-price 2.50",
        ),
    ),
    "preview": Entry(
        "Try a job on a few frames, and values of its keys side by side, in a contact sheet.",
        "preview",
        (
            "diffsynth preview job.json",
            "diffsynth preview job.json --at 12.5 --grid seed_of_noise=1,2,3",
            """diffsynth preview job.json --grid 'prompt=["winter, snow", "autumn"]' --grid guidance_scale=3,7.5""",
        ),
    ),
    "verify": Entry(
        "Check all results of a job for damage, and show how to repair them.", "job", ("diffsynth verify job.json",)
    ),
    "clean": Entry(
        "Show what a job's cache no longer needs, with sizes, and delete it after asking.",
        "clean",
        (
            "diffsynth clean job.json",
            "diffsynth clean job.json --set 'keep=[\"deflickered\"]' --yes",
            "diffsynth clean smooth.mp4",
        ),
    ),
    "export": Entry(
        "Write the finished video again, with another codec, quality or frame rate, or as images.",
        "job",
        (
            "diffsynth export job.json --codec prores",
            "diffsynth export job.json -o small.webm --crf 40",
            "diffsynth export job.json -o fluid.mp4 --fps 2x",
            "diffsynth export job.json -o frames/ --codec png",
        ),
    ),
    "report": Entry(
        "Write a page that shows the videos side by side, what was measured and how long it took, as one HTML file.",
        "job",
        ("diffsynth report job.json", "diffsynth report job.json -o winter.html --first 2400"),
    ),
    "init": Entry(
        "Write a job file for a task, and a Makefile that runs it on a folder of videos.",
        "project",
        (
            "diffsynth init text_guided holiday.mp4 -o holiday",
            "diffsynth init restoring old.mp4 -o old --published",
        ),
    ),
    "demo": Entry(
        "Restyle a small clip with the embedded model, offline, in a minute or two.",
        "project",
        ("diffsynth demo", 'diffsynth demo --video holiday.mp4 -o trial --prompt "autumn, golden leaves"'),
    ),
    "schema": Entry(
        "Print the JSON Schema of job files, for editors.",
        "job",
        ("diffsynth schema > job.schema.json", "diffsynth schema --events"),
    ),
    "ebsynth": Entry(
        "Paint an image in the style of another, guided by pairs of images. Takes the options of the ebsynth program.",
        "ebsynth",
        (
            "diffsynth ebsynth --style painted.png --guide photo.png frame.png -o result.png",
            "diffsynth ebsynth --style s.png --weight 2 --guide a.png b.png --weight 1 --guide c.png d.png -o o.png",
        ),
        ON_VIDEOS,
    ),
    "smooth": Entry(
        "Reduce the flicker of any stylised video, or paint the frames between keyframes. Resumes if interrupted.",
        "smooth",
        (
            "diffsynth smooth original.mp4 stylised.mp4 -o smooth.mp4",
            "diffsynth smooth stylised.mp4 -o smooth.mp4 --report changes.html",
            "diffsynth smooth original.mp4 keyframes/ -o painted.mp4 --mode interpolate",
        ),
        ON_VIDEOS,
    ),
    "mask": Entry(
        "Write masks, white on black, of the people in a video or of an object that is followed through it.",
        "mask",
        ("diffsynth mask holiday.mp4 -o mask.mkv", "diffsynth mask holiday.mp4 -o dog.mkv --point 320,180"),
        ON_VIDEOS,
    ),
    "metrics": Entry(
        "Measure flicker and sharpness of stylised videos, and what smoothing invented or lost.",
        "metrics",
        (
            "diffsynth metrics original.mp4 smooth.mp4 --style stylised.mp4",
            "diffsynth metrics original.mp4 a.mp4 b.mp4 --plot curves.png --json",
        ),
        ON_VIDEOS,
    ),
    "models": Entry(
        "List the models that a job or a task reads, check their files, and download what is missing.",
        "models",
        ("diffsynth models job.json --check", "diffsynth models --task fashion --fetch", "diffsynth models --offline"),
        ON_MACHINE,
    ),
    "doctor": Entry(
        "Check whether this machine, or a job, can run, and show what to do about what is missing.",
        "doctor",
        ("diffsynth doctor", "diffsynth doctor job.json --device cuda:1", "diffsynth doctor --json"),
        ON_MACHINE,
    ),
}


class LazyGroup(TyperGroup):
    """A group that loads a command only when it is called, because declaring its options imports large libraries."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, AnyCommand | None, list[str]]:
        """Return the command that the command line names, with its options."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if name is None or listed is None else load(name), rest

    def _main_shell_completion(
        self, ctx_args: MutableMapping[str, Any], prog_name: str, complete_var: str | None = None
    ) -> None:
        """Complete a command line, if the shell asks for that. Typer has registered its own completion before."""
        from diffsynth_cli.bash import register

        register()
        super()._main_shell_completion(ctx_args, prog_name, complete_var)


def load(name: str) -> AnyCommand:
    """Return a command with its options."""
    entry = COMMANDS[name]
    module = import_module(f"diffsynth_cli.commands.{entry.module}")
    function: Callable[..., None] = module.stage_command(name) if name in STAGE_COMMANDS else getattr(module, name)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, help=entry.about, epilog=entry.epilog, cls=Command, context_settings=SETTINGS)(function)
    return get_command(alone)


app = typer.Typer(
    cls=LazyGroup,
    help="Restyle videos with Stable Diffusion and ControlNet, without flicker, stage by stage, in bounded memory.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"diffsynth-cli {__version__}")
        raise typer.Exit()


def _listed() -> None:
    """Placeholder for a command that is not loaded yet."""


for _name, _entry in COMMANDS.items():
    app.command(_name, help=_entry.about, rich_help_panel=_entry.panel)(_listed)
