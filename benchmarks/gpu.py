"""Everything that only a GPU can show, in one run and one report: builds, tests, sanitizers, speed and memory.

    python -m benchmarks.gpu [--report build/gpu] [--minutes 25]

Writes REPORT/report.md and REPORT/report.json. Each step has a time limit of its own, and a step
that fails does not stop the others. Without an NVIDIA GPU, the steps run in small on the CPU and on
the emulated GPU, to test this program. The report then lists what is still owed. Exits with 1 if
a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "templates" / "demo.mp4"
REFERENCE = "tests/native/test_reference.py"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
NVIDIA = ("/usr/local/cuda/bin", "/opt/cuda/bin")  # where its tools are, which often is not on PATH
TAIL = 12_000  # characters of a step's output in the report
ENOUGH, FEW = 20, 2  # GB of GPU memory for Stable Diffusion in large batches; for one group at a time


@dataclass(frozen=True)
class Step:
    """A command, and what it shows.

    Attributes:
        title: What the command shows.
        command: The command.
        minutes: Its time limit.
        needs: A tool that it needs, "" for none.
        small: What a machine without a GPU runs instead, None if nothing can stand in for it.
    """

    title: str
    command: list[str]
    minutes: float
    needs: str = ""
    small: list[str] | None = None


@dataclass
class Outcome:
    """What a step did. `state` is passed, failed, "timed out" or owed."""

    title: str
    command: str
    state: str
    seconds: float = 0.0
    output: str = field(default="", repr=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--minutes", type=float, default=25, help="for all steps; those that remain are owed")
    given = parser.parse_args()
    given.report = given.report.resolve()
    given.report.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], *NVIDIA])
    deadline, outcomes, console = time.monotonic() + 60 * given.minutes, list[Outcome](), Console()
    for step in steps(given.report):
        console.print(f"[bold]{step.title}[/] …")
        outcomes.append(run(step, deadline, given.report / "lib" / "libebsynth.so"))
        console.print(f"  {outcomes[-1].state}, {outcomes[-1].seconds:.0f} s")
        write(given.report, outcomes)  # a run that is cut off leaves what it has
    console.print(given.report / "report.md")
    sys.exit(any(outcome.state in ("failed", "timed out") for outcome in outcomes))


def steps(report: Path) -> list[Step]:
    """Return all steps. Those that decide most come first."""
    build, library = report / "native", report / "lib"
    cmake = f"cmake -S {ROOT}/native -B {build} -DEBSYNTH_CUDA=ON -DEBSYNTH_CUDA_ARCHITECTURES={architecture()}"
    install = f"{cmake} && cmake --build {build} --parallel && cmake --install {build} --prefix {library}"
    emulate = [sys.executable, "-c", "from tests.native import emulator; print(emulator.build())"]
    on_card = [*PYTEST, "-m", "gpu"]
    emulated = [*PYTEST, "tests/native/test_cuda.py", REFERENCE, "-k", "emulated or test_cuda"]
    return [
        Step("Build the library for this GPU", ["sh", "-c", install], 4, "nvcc", emulate),
        Step("Tests of the library on CUDA", [*on_card, "tests/native"], 3, small=emulated),
        Step("Tests of everything else that needs a GPU", [*on_card, "tests", "--ignore", "tests/native"], 8),
        *(
            Step(
                f"compute-sanitizer, {tool}",
                [
                    "compute-sanitizer",
                    "--tool",
                    tool,
                    "--error-exitcode",
                    "9",
                    *on_card,
                    REFERENCE,
                ],
                3,
                "compute-sanitizer",
            )
            for tool in ("memcheck", "racecheck", "synccheck")
        ),
        Step(
            "Patch matching: pairs per second",
            benchmark("native", "--backends", "cuda", "cpu", "--threads", "0", "--repeat", "5"),
            3,
            small=benchmark("emulated", "--side", "32"),
        ),
        *smoothings(),
        *renders(),
    ]


def smoothings() -> list[Step]:
    """Return the steps that smooth videos and paint between keyframes. Two lengths show how long the start takes."""
    long = ("smoothing", "--devices", "cuda", "--lengths", "60", "236", "--size", "512", "768", "--window", "30")
    small = ("smoothing", "--lengths", "8", "--size", "64", "96", "--window", "4")
    compiled, keyframes = benchmark(*long, "--compile"), ("--keyframes", "4")
    return [
        Step("Smoothing a long video", benchmark(*long), 4, small=benchmark(*small)),
        Step("Painting between keyframes", benchmark(*long, *keyframes), 4, small=benchmark(*small, *keyframes)),
        Step("Compiled smoothing", compiled, 6, small=benchmark(*small, "--compile")),
        Step("Compiled smoothing with CUDA graphs", ["env", "TORCHINDUCTOR_CUDAGRAPHS=1", *compiled], 6),
    ]


def renders() -> list[Step]:
    """Return the steps that render with networks of the size of Stable Diffusion 1.5."""
    large = ("--device", "cuda", "--size", "512", "960", "--weights", "sd15", "--patterns", "3")
    small = benchmark("render", *_small())

    def step(title: str, minutes: float, *options: str, minimal: list[str] | None = small) -> Step:
        return Step(title, benchmark("render", str(CLIP), *large, *options), minutes, small=minimal)

    return [
        *(
            step(f"Rendering in {dtype}", 4, "--frames", "16", "--set", f"dtype={dtype}")
            for dtype in ("bfloat16", "float16")
        ),
        step(
            "Batches that do not fit are halved", 2, "--frames", "16", "--methods", "joint", "--batch-size", "64",
            "--gpu-memory", str(ENOUGH), minimal=None,
        ),
        step(
            "Offloading idle networks", 2, "--frames", "4", "--methods", "joint", "--gpu-memory", str(FEW),
            "--set", "low_vram=true", minimal=benchmark("render", *_small(), "--set", "low_vram=true"),
        ),
        step(
            "xFormers' attention", 2, "--frames", "8", "--methods", "joint", "shared",
            "--set", "attention_backend=xformers", minimal=None,
        ),
        step(
            "Compiled networks", 5, "--frames", "16", "--methods", "joint", "shared", "--steps", "4",
            "--set", "compile=true", minimal=None,
        ),
        Step(
            "Memory by length of the video",
            benchmark("render", "--device", "cuda", "--weights", "tiny", "--patterns", "--lengths", "16", "64", "256"),
            3,
            small=benchmark("render", "--device", "cpu", "--weights", "tiny", "--patterns", "--lengths", "4",
                            "--size", "64", "64"),
        ),
    ]  # fmt: skip


def _small() -> tuple[str, ...]:
    size = ("--size", "64", "64", "--frames", "2", "--patterns", "2", "--methods", "joint")
    return (str(CLIP), "--device", "cpu", "--weights", "tiny", *size)


def benchmark(name: str, *options: str) -> list[str]:
    """Return the command of one of the other benchmarks."""
    return [sys.executable, "-m", f"benchmarks.{name}", *options]


def run(step: Step, deadline: float, library: Path) -> Outcome:
    """Run a step, in small if there is no GPU. A step for which no time is left is owed.

    Args:
        step: The step.
        deadline: When all steps end, on the clock time.monotonic.
        library: What the first step builds. Later ones use it.
    """
    is_real, left = torch.cuda.is_available(), deadline - time.monotonic()
    command = step.command if is_real else step.small
    shown = " ".join(step.command)
    if command is None or left <= 0 or (is_real and step.needs and not shutil.which(step.needs)):
        return Outcome(step.title, shown, "owed")
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(library), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=min(60 * step.minutes, left), check=False,
        )  # fmt: skip
        state, output = "failed" if done.returncode else "passed", done.stdout
    except subprocess.TimeoutExpired as late:
        state, output = "timed out", (late.stdout or b"").decode(errors="replace")
    if not is_real and state == "passed":
        shown, state = " ".join(command), "owed, but passed in small"
    return Outcome(step.title, shown, state, time.monotonic() - started, output[-TAIL:])


def environment(library: Path) -> dict[str, str]:
    """Return the environment of a step."""
    extra = {"EBSYNTH_LIBRARY": str(library)} if library.exists() and torch.cuda.is_available() else {}
    return {**os.environ, **extra, "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}


def architecture() -> str:
    """Return the number of this GPU's architecture, such as 90, or "" for all."""
    return "{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else ""


def write(report: Path, outcomes: list[Outcome]) -> None:
    """Write the report of what has run so far."""
    machine = describe()
    content = {"machine": machine, "steps": [asdict(outcome) for outcome in outcomes]}
    (report / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    lines = ["# GPU report", "", *(f"- {name}: {value}" for name, value in machine.items()), ""]
    lines += ["| step | result | seconds |", "|---|---|---|"]
    lines += [f"| {outcome.title} | {outcome.state} | {outcome.seconds:.0f} |" for outcome in outcomes]
    for outcome in outcomes:
        if outcome.output:
            lines += [
                "",
                f"## {outcome.title}",
                "",
                f"    {outcome.command}",
                "",
                "```",
                outcome.output.rstrip(),
                "```",
            ]
    (report / "report.md").write_text("\n".join(lines) + "\n")


def describe() -> dict[str, str]:
    """Return the machine and the versions that were measured."""
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=False)
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "GPU": f"{card.name}, {card.total_memory / 1e9:.0f} GB, {card.multi_processor_count} multiprocessors"
        if card
        else "none: steps ran in small, on the CPU and on the emulated GPU, and their numbers mean nothing",
        "processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "PyTorch": f"{torch.__version__}, CUDA {torch.version.cuda}",
    }


if __name__ == "__main__":
    main()
