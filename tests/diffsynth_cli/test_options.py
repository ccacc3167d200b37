"""Options: the same on the command line and in the job file, with completion and examples."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffsynth_cli.__main__ import main
from diffsynth_cli.app import COMMANDS, STAGE_COMMANDS, load
from diffsynth_cli.failures import Call
from stages.base.cache import FrameCache
from stages.diffusion.settings import Batches
from stages.jobs.job_file import read_job
from stages.jobs.machine import MachineSettings
from stages.rendering.plan import RenderPlan
from tests.typing import Cli, MakeJob

# For each machine setting except `cache`, a value other than the default, as words of a command line and in the job.
GIVEN = {
    "device": (["--device", "cpu"], "cpu"),
    "dtype": (["--dtype", "bfloat16"], "bfloat16"),
    "batch_size": (["--batch-size", "3"], 3),
    "low_vram": (["--low-vram"], True),
    "compile": (["--compile"], True),
    "attention_backend": (["--attention-backend", "math"], "math"),
    "allow_pickle": (["--allow-pickle"], True),
}


def test_machine_settings_mean_the_same_on_the_command_line_and_in_the_job(
    tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    assert {*GIVEN, "cache"} == set(MachineSettings.model_fields)
    words = [word for given, _ in GIVEN.values() for word in given]
    values = {name: value for name, (_, value) in GIVEN.items()}
    assert cli("extract", make_job(1), "-q", *words) == (0, "")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert {name: written[name] for name in GIVEN} == values
    job, _ = read_job(make_job(1, **values))
    assert {name: getattr(job, name) for name in GIVEN} == values


def test_the_command_line_overrides_the_job(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(1, batch_size=5, low_vram=True)
    assert cli("extract", job, "-q", "--batch-size", 2) == (0, "")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["batch_size"] == 2 and written["low_vram"] is True


def test_only_dtype_makes_a_stage_stale(make_job: MakeJob, cli: Cli) -> None:
    assert cli("run", make_job(1), "-q") == (0, "")
    rest = [word for name, (given, _) in GIVEN.items() if name != "dtype" for word in given]
    assert json.loads(cli("status", make_job(1, batch_size=2, low_vram=True), "--json")[1])["next"] is None
    code, output = cli("deflicker", make_job(1), *rest)
    assert code == 0 and "nothing to do" in output
    assert "stale" in cli("status", make_job(1, dtype="bfloat16"))[1]


def test_machine_settings_of_the_job_reach_the_renderer(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RenderPlan] = []
    real = RenderPlan.batches

    def batches(plan: RenderPlan, cache: FrameCache) -> Batches:
        seen.append(plan)
        return real(plan, cache)

    monkeypatch.setattr(RenderPlan, "batches", batches)
    assert cli("run", make_job(2, batch_size=2, low_vram=True), "-q") == (0, "")
    assert {(plan.batch_size, plan.settings.low_vram) for plan in seen} == {(2, True)}


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse_and_help_shows_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for example in COMMANDS[name].examples:
        program, called, *words = shlex.split(example.partition(" > ")[0])
        assert (program, called) == ("diffsynth", name)
        load(name).make_context(name, words)
    assert main([name, "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Examples:" in output and COMMANDS[name].examples[0] in output


def test_stages_take_the_same_options() -> None:
    (options,) = {tuple(param.name for param in load(name).params) for name in STAGE_COMMANDS}
    assert set(GIVEN) <= set(options)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("export job.json --codec ", "h264 hevc vp9 av1 prores ffv1 png exr"),
        ("init text", "text_guided text_guided_lcm"),
        ("smooth a.mp4 --mode i", "interpolate"),
        ("run job.json --dtype f", "float32 float16"),
        ("smooth a.mp4 --device c", "cpu cuda cuda:1"),
        ("ebsynth --backend n", "numba"),
        ("sm", "smooth"),
        ("models --task fa", "fashion"),
        ("run job.json --set sch", "scheduler= scheduler=VALUE"),
        ("run job.json --set scheduler=dd", "scheduler=ddim"),
        ("run job.json --set keep_fr", "keep_frames= keep_frames=VALUE"),
        ("run job.json --set keep_frames=", "keep_frames=true keep_frames=false"),
        ("run job.json --set attention=s", "attention=shared"),
        ("run job.json --set post_smoother=Py", "post_smoother=PySynthSmoother"),
        ("preview job.json --grid seed", "seed_of_noise= seed_of_noise=VALUE"),
        ("preview job.json --grid nothing=", ""),
    ],
)
def test_choices_are_completed(
    words: str, completed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_DIFFSYNTH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"diffsynth {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) + words.endswith(" ")))
    assert main([]) == 0
    assert capsys.readouterr().out.split() == completed.split()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("run job.json --set sch", "scheduler= scheduler=VALUE"),  # two, so that no space follows
        ("run job.json --set scheduler =", "ddim dpm++2m euler lcm"),
        ("run job.json --set scheduler = dp", "dpm++2m"),
        ("run job.json --set = scheduler = dp", "dpm++2m"),
        ("run job.json --set = sch", "scheduler= scheduler=VALUE"),
        ("run job.json --set keep_frames = true --set scheduler = e", "euler"),
        ("export job.json --codec = h26", "h264"),
        ("run job.json --set cache = s3 : // a : b --set attention = s", "shared"),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_words_that_bash_has_split_are_completed(words: str, completed: str, tmp_path: Path) -> None:
    """Bash makes words of `=` and `:`, and replaces only what follows the last of them."""
    shell = """
        source <(diffsynth --show-completion bash)
        COMP_WORDS=(diffsynth $WORDS); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _diffsynth_completion diffsynth; echo ${COMPREPLY[@]}
    """
    program = tmp_path / "diffsynth"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m diffsynth_cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "WORDS": words, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", shell], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == completed.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export job.json --codec h266", "unknown codec 'h266'; did you mean 'h265'?"),
        ("init restyle clip.mp4", "unknown task 'restyle'"),
        ("smooth a.mp4 -o b --mode interpolat", "did you mean 'interpolate'?"),
        ("smooth a.mp4 -o b --device tpu", "unknown device 'tpu'; choose auto, cpu, cuda, cuda:N or mps"),
        ("smooth a.mp4 -o b --offset soon", "give auto, or a number such as 3 or -1.5"),
        ("smooth a.mp4 -o b --patch-size 6", "must be odd"),
        ("rum job.json", "Did you mean 'run'?"),
    ],
)
def test_wrong_values_end_with_2_and_the_nearest_spelling(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    output = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in output


def test_mistakes_in_machine_options_are_listed_with_those_of_the_job(make_job: MakeJob, cli: Cli) -> None:
    words = ["--dtype", "flot16", "--batch-size", "many", "--device", "tpu"]
    code, output = cli("run", make_job(steps=3), *words)
    assert code == 2 and output.count("error:") == 1
    for mistake in (
        "unknown key 'steps'",
        "dtype: unknown value 'flot16'; did you mean 'float16'?",
        'batch_size: must be a whole number, not "many"',
        "device: unknown device 'tpu'; choose auto, cpu, cuda, cuda:N or mps",
    ):
        assert mistake in output


@pytest.mark.parametrize("words", ["--codec foo --json", "--json --no-such-option", "--json --crf 99"])
def test_with_json_a_wrong_option_is_an_event(words: str, make_job: MakeJob, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(make_job()), *words.split()]) == 2
    (line,) = capfd.readouterr().out.splitlines()
    event = json.loads(line)
    assert event["event"] == "error" and event["message"]


@pytest.mark.parametrize(
    ("command", "restart", "expected"),
    [
        ("render", True, ["render", "--set", "a=1"]),
        ("run", True, ["run", "--set", "a=1", "--restart"]),
        ("render", False, ["render", "--set", "a=1", "--restart"]),  # the word was a value
    ],
)
def test_a_stage_is_resumed_without_restarting_it(command: str, restart: bool, expected: list[str]) -> None:
    call = Call([command, "--set", "a=1", "--restart"], command, {"restart": restart})
    assert call.resumption == expected


def test_help_of_a_command_imports_no_networks() -> None:
    program = """
import sys
from diffsynth_cli.__main__ import main
assert main(["run", "--help"]) == main(["smooth", "--help"]) == 0
sys.exit(" ".join({"torch", "av", "diffusers", "transformers"} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
