"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB.json", help="The job file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any job key; the value as JSON, or else as text. Repeatable."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. Short for --set device=…")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16, bfloat16. Short for --set dtype=…")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Groups of frames that go through the networks at once; else as many as fit.")
]
LowVram = Annotated[bool, typer.Option("--low-vram", help="What is not needed at the moment leaves the GPU's memory.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the networks first: minutes, once, for faster steps on a GPU.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read models in pickles, which can run code. allow_pickle=true.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Redo this stage; with run, redo stale or damaged stages.")]
Preview = Annotated[
    bool, typer.Option("--preview", help="Also write OUTPUT/preview.png: some frames over their maps and results.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files, but never an input.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks.")]


def as_argument(path: Path) -> str:
    """A path as it can be given on a command line, where a name that begins with a dash would be an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
