"""The commands that run stages."""

from __future__ import annotations

from collections.abc import Callable

from diffsynth_cli import jobs
from diffsynth_cli.console import reporter
from diffsynth_cli.options import (
    MACHINE_OPTIONS,
    Debug,
    Force,
    JobFile,
    Json,
    Preview,
    Quiet,
    Restart,
    Set,
    with_options,
)


def stage_command(name: str) -> Callable[..., None]:
    """Return the command that runs this stage or, for `run`, all. They take the same options, as Makefiles need."""

    @with_options(*MACHINE_OPTIONS)
    def command(
        job: JobFile,
        overrides: Set = None,
        preview: Preview = False,
        force: Force = False,
        restart: Restart = False,
        quiet: Quiet = False,
        events: Json = False,
        debug: Debug = False,
        **machine: object,
    ) -> None:
        jobs.run(
            job,
            None if name == "run" else [name],
            overrides=jobs.with_settings(overrides, machine),
            restart=restart,
            preview=preview,
            force=force,
            reporter=reporter(quiet, events),
        )

    return command
