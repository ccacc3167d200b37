"""The commands that run stages."""

from __future__ import annotations

from collections.abc import Callable

from diffsynth_cli import jobs
from diffsynth_cli.console import reporter, show_next
from diffsynth_cli.engines import EngineName
from diffsynth_cli.options import (
    MACHINE_OPTIONS,
    Debug,
    Engine,
    Force,
    GpusPerWorker,
    JobFile,
    Json,
    Preview,
    Quiet,
    RayAddress,
    Restart,
    Set,
    Workers,
    with_options,
)


def stage_command(name: str) -> Callable[..., None]:
    """Return the command that runs this stage or, for `run`, all. They take the same options, as Makefiles need."""

    @with_options(*MACHINE_OPTIONS)
    def command(
        job: JobFile,
        *,
        overrides: Set = None,
        preview: Preview = False,
        force: Force = False,
        restart: Restart = False,
        quiet: Quiet = False,
        engine: Engine = EngineName.LOCAL,
        ray_address: RayAddress = "auto",
        workers: Workers = None,
        gpus_per_worker: GpusPerWorker = None,
        events: Json = False,
        debug: Debug = False,
        **machine: object,
    ) -> None:
        given = jobs.with_settings(overrides, machine)
        result = jobs.run(
            job,
            None if name == "run" else [name],
            overrides=given,
            restart=restart,
            preview=preview,
            force=force,
            engine=engine,
            ray_address=ray_address,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            reporter=reporter(quiet, events),
        )
        if name == "run" and result.video is not None and not (quiet or events):
            show_next(f"look at it with: diffsynth report {jobs.arguments(job, given)}")

    return command
