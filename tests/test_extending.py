"""The example package of docs/extending.md, installed and used as users do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.base.cache import FrameCache
from tests.processes import Program

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs/examples/diffsynth-extras"
USING = {"controlnet_processor": [{"name": "brightness", "gamma": 2.0}], "post_smoother": "MedianSmoother"}

Run = Callable[..., tuple[int, str]]
MakeJob = Callable[..., Path]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, built and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("extras")
    source = shutil.copytree(EXAMPLE, folder / "source")  # the build leaves files in it
    options = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return folder / "site"


@pytest.fixture
def site(installed: Path, tmp_path: Path) -> Path:
    """A copy of the installed package, which a test may change."""
    return Path(shutil.copytree(installed, tmp_path / "site"))


@pytest.fixture
def diffsynth(site: Path) -> Run:
    """Run the program with the package installed; return its exit code and output."""

    def run(*arguments: object) -> tuple[int, str]:
        code, out, err = Program(*arguments, path=[str(site)]).finish()
        return code, out + err

    return run


def test_a_job_uses_another_packages_smoother_and_annotator(
    make_job: MakeJob, tmp_path: Path, site: Path, diffsynth: Run
) -> None:
    job = make_job(**USING, num_inference_steps=1)
    assert diffsynth("run", job, "--quiet") == (0, "")
    cache = FrameCache(tmp_path / "out/cache.zarr")
    frames, rendered = (cache[name][:].astype(float) for name in ("frames", "rendered"))
    (maps,) = cache.arrays("control/*")
    luma = frames @ [0.299, 0.587, 0.114]
    assert np.abs(cache[maps][:][..., 0] - luma**2 / 255).max() <= 0.5 + 1e-6
    for index, smoothed in enumerate(cache["deflickered"][:]):
        median = np.median(rendered[max(index - 2, 0) : index + 3], axis=0)
        np.testing.assert_array_equal(smoothed, np.rint(median))
    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    code, output = diffsynth("run", job, "--quiet")
    assert code != 0 and "diffsynth-extras 1.0" in output and "diffsynth-extras 1.1" in output


def test_its_options_are_checked_and_in_the_schema(make_job: MakeJob, diffsynth: Run) -> None:
    job = make_job(**USING, post_smoother_config={"raduis": 3})
    code, output = diffsynth("run", job)
    assert code == 2 and "post_smoother_config: unknown key 'raduis'; did you mean 'radius'?" in output
    code, output = diffsynth("run", make_job(**USING | {"controlnet_processor": ["brightnes"]}))
    assert code == 2 and "unknown annotator 'brightnes'; did you mean 'brightness'?" in output
    schema = json.loads(diffsynth("schema")[1])
    assert "MedianSmoother" in json.dumps(schema["properties"]["smoother"])
    options = {part.get("title"): part for part in schema["properties"]["post_smoother_config"]["anyOf"]}
    assert {"radius", "postprocessing"} == set(options["Median"]["properties"])
    options = {part.get("title"): part for part in schema["properties"]["controlnet_processor"]["items"]["anyOf"]}
    assert options["Brightness"]["properties"]["name"]["const"] == "brightness"


def test_a_broken_package_is_named_and_stops_no_job_without_it(make_job: MakeJob, site: Path, diffsynth: Run) -> None:
    (site / "diffsynth_extras.py").write_text("1 / 0")
    code, output = diffsynth("extract", make_job(**USING))
    assert code == 2 and "Traceback" not in output
    for thing in ("the smoother 'MedianSmoother'", "the annotator 'brightness'"):
        assert f"{thing} of the package diffsynth-extras 1.0 cannot be loaded: ZeroDivisionError" in " ".join(
            output.split()
        )
    assert "pip uninstall diffsynth-extras" in " ".join(output.split())
    assert diffsynth("extract", make_job(), "--quiet") == (0, "")
    code, output = diffsynth("schema")
    assert code == 0 and output.count("cannot be loaded: ZeroDivisionError") == 2
    assert '"Ebsynth"' in output and '"Median"' not in output
