"""The program in processes of its own that start at once: forked from one that has imported the large libraries."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe

from diffsynth_cli import __main__ as program

IMPORTED = ["diffsynth_cli.commands.stages", "diffsynth_cli.outputs", "stages.video.video_file", "zarr"]
IMPORTED += ["stages.all_stages", "stages.diffusion.denoise"]
NONE: Mapping[str, str] = {}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(IMPORTED)


class Program:
    """`diffsynth` with these arguments, running. From the start, it does with signals what the program does.

    Args:
        arguments: What follows `diffsynth` on the command line.
        path: Folders to import from, before others.
        environment: Further environment variables.

    Attributes:
        out: What it prints.
        err: What it prints on standard error.
    """

    def __init__(self, *arguments: object, path: Sequence[str] = (), environment: Mapping[str, str] = NONE):
        pipes = [Pipe(duplex=False) for _ in range(3)]
        ends = [end for _, end in pipes]
        self.process = SERVER.Process(target=_run, args=([*map(str, arguments)], [*path], {**environment}, *ends))
        self.process.start()
        for end in ends:
            end.close()
        self.out, self.err = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end, _ in pipes[:2])
        self._words = pipes[2][0]
        self._words.recv()

    @property
    def pid(self) -> int:
        """Its process ID."""
        assert self.process.pid is not None
        return self.process.pid

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end. Return its exit code (minus a signal that ended it) and the rest of what it printed."""
        with self.out, self.err:
            printed = self.out.read(), self.err.read()
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode, *printed

    def peak(self) -> float:
        """Wait for its end and return its peak memory in MB, what it shares with its parent included."""
        code, _, error = self.finish()
        assert code == 0, error
        peak: float = self._words.recv()
        return peak


def _run(
    arguments: list[str],
    path: list[str],
    environment: dict[str, str],
    out: Connection,
    err: Connection,
    words: Connection,
) -> None:
    """Run the program. Say in `words` when it has begun, and how much memory it took."""
    os.environ |= environment
    for number, end in enumerate((out, err), 1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.path[:0] = path
    sys.argv[1:] = arguments
    main = program.main

    def begun(arguments: Sequence[str] | None = None) -> int:
        words.send("begun")
        return main(arguments)

    program.main = begun
    try:
        program.entry()
    finally:
        words.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
