"""The checks of `diffsynth doctor`, in the order in which they are shown. health.py says how they are run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from contextlib import nullcontext
from fractions import Fraction
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from diffsynth_cli.health import Outcome, Subject, check, failed, good, warning
from native import Backend
from stages.base.errors import UsageError
from stages.base.words import counted, size

if TYPE_CHECKING:
    from native.binding import Fields

PACKAGE = "diffsynth-cli"
ENOUGH_MEMORY, ENOUGH_DISK = 8e9, 10e9  # bytes: one Stable Diffusion model in float32, and the frames of a short video
SIDES, SHIFT = (48, 64), (3, 5)  # px, of the self-test's images, and by how much one is the other moved
RIGHT = 0.8  # share of pixels that the self-test must match to the right place; with 5 px patches, 0.83 can be


# --- software -------------------------------------------------------------------------------------------


@check("Python")
def python(subject: Subject) -> Outcome:
    return good(f"{platform.python_version()}, {platform.system()} {platform.machine()}")


@check("packages")
def packages(subject: Subject) -> Outcome:
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    installed = {each: _version(each.name) for each in needed}
    wrong = [
        f"{each.name}{each.specifier} ({version or 'not installed'})"
        for each, version in installed.items()
        if not version or not each.specifier.contains(version, prereleases=True)
    ]
    if wrong:
        return failed(f"needs {', '.join(wrong)}", f"pip install --upgrade {PACKAGE}")
    return good(f"{PACKAGE} {_version(PACKAGE)}, and all that it requires")


def _version(package: str) -> str:
    """Return the version of an installed package. Empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@check("PyTorch")
def pytorch(subject: Subject) -> Outcome:
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return good(f"{torch.__version__}, {built}, {counted(torch.get_num_threads(), 'CPU thread')}")


@check("GPU")
def gpu(subject: Subject) -> Outcome:
    import torch

    from stages.models.weights import driver_cuda

    driver, built = driver_cuda(), torch.version.cuda
    if driver is None and torch.backends.mps.is_available():
        return good("Apple GPU (mps), for networks")
    if driver is None:
        return warning("no NVIDIA driver", "without a GPU, use small frames: one frame takes minutes of a CPU core")
    supported = f"driver for CUDA {driver[0]}.{driver[1]}"
    if built is None:
        return warning(f"{supported}, but PyTorch is built without CUDA", "install PyTorch for CUDA from pytorch.org")
    if not torch.cuda.is_available():
        return warning(
            f"{supported}, PyTorch for CUDA {built}, but no usable GPU",
            "update the driver, install PyTorch for an earlier CUDA, or unset CUDA_VISIBLE_DEVICES",
        )
    return good("; ".join([supported, *map(_gpu, range(torch.cuda.device_count()))]))


def _gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    return f"cuda:{index} {name}, sm_{major}{minor}, {size(free)} of {size(total)} free"


# --- patch matching -------------------------------------------------------------------------------------


@check("libebsynth")
def library(subject: Subject) -> Outcome:
    from native.binding import info
    from native.library import library_path
    from stages.models.weights import driver_cuda

    if not library_path().exists():
        return warning("not built, so numba matches patches", "install a C++ compiler, then: make native")
    about, driver = info(), driver_cuda()
    version = int(about["version"])
    found = f"{version >> 16}.{version & 0xFFFF}, {about['compiler']}, {about['cpu_kernels']}"
    if not about["cuda_built"]:
        found += ", without CUDA"
        advice = "install the CUDA toolkit, then: make native"
        return warning(f"{found}, though there is a GPU", advice) if driver else good(found)
    toolkit = str(about["cuda_toolkit"])
    found += f", CUDA {toolkit} for sm_{str(about['cuda_architectures']).replace(' ', ', ')}"
    if driver is not None and driver[0] < int(toolkit.partition(".")[0]):
        advice = "update the driver, or build with its version of CUDA: make native"
        return warning(f"{found}, but the driver supports CUDA {driver[0]}.{driver[1]}", advice)
    return good(found)


@check("patch matching")
def patch_matching(subject: Subject) -> Outcome:
    """Match the same patches on all back ends, which must find the same."""
    from native.library import EbsynthError, library_path
    from stages.models.weights import driver_cuda

    results, missing = {}, {}
    for backend in (Backend.CPU, Backend.CUDA, Backend.NUMBA):
        try:
            results[backend] = _matched(backend)
        except EbsynthError as error:
            missing[backend] = str(error)
    found = ", ".join(f"{backend} {seconds:.2g} s" for backend, (_, seconds) in results.items())
    if wrong := [str(backend) for backend, (fields, _) in results.items() if not _is_right(fields)]:
        return failed(f"{found}; {', '.join(wrong)} found wrong patches", "build the library again: make native")
    if len({(fields.nnf.tobytes(), fields.error.tobytes()) for fields, _ in results.values()}) > 1:
        return failed(f"{found}, with different results", "build the library again: make native")
    if library_path().exists() and (reason := missing.get(Backend.CPU)):
        return failed(f"{found}; {reason}", "delete the library to use numba, or build it again: make native")
    if driver_cuda() is not None and (reason := missing.get(Backend.CUDA)):
        return warning(f"{found}; {reason}", "see GPU and libebsynth; until then, patches are matched on the CPU")
    return good(f"{found}{', with equal results' if len(results) > 1 else ''}")


def _matched(backend: Backend) -> tuple[Fields, float]:
    """Match an image of noise with a moved copy of it. Return the result and the seconds it took."""
    import numpy as np

    from native.binding import match

    image = np.random.default_rng(0).integers(0, 256, (1, *SIDES, 3), dtype=np.uint8)
    began = time.perf_counter()
    fields = match(image, np.roll(image, SHIFT, (1, 2)), patch_match_iterations=6, backend=backend)
    return fields, time.perf_counter() - began


def _is_right(fields: Fields) -> bool:
    import numpy as np

    expected = np.moveaxis(np.indices(SIDES), 0, 2) - SHIFT
    return float((fields.nnf[0] == expected).all(axis=2).mean()) >= RIGHT


@check("nvcc")
def nvcc(subject: Subject) -> Outcome:
    from stages.models.weights import driver_cuda

    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None and driver_cuda() is None:
        return good("not installed, and not needed without a GPU")
    if path is None:
        return warning("not installed; only needed to build libebsynth for the GPU", "install the CUDA toolkit")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    release = next((line for line in done.stdout.splitlines() if "release" in line), done.stdout)
    return good(f"{path}: {release.partition('release')[2].partition(',')[0].strip()}")


# --- what some jobs use ---------------------------------------------------------------------------------


@check("codecs")
def codecs(subject: Subject) -> Outcome:
    """Open every encoder that `export` offers."""
    from stages.video import ENCODERS, check_encoder

    missing = {}
    for name, encoder in ENCODERS.items():
        try:
            check_encoder(Path(f"video{encoder.suffix}"), name, *SIDES, Fraction(25))
        except UsageError:
            missing[name] = encoder.ffmpeg
    found = f"PyAV {_version('av')}: {', '.join(name for name in ENCODERS if name not in missing) or 'no encoder'}"
    if not missing:
        return good(found)
    lost = f"{found}; without {', '.join(f'{name} ({encoder})' for name, encoder in missing.items())}"
    advice = "install PyAV's own wheel: pip install --force-reinstall av"
    return failed(lost, advice) if "h264" in missing else warning(lost, advice)


@check("attention")
def attention(subject: Subject) -> Outcome:
    from stages.diffusion.attention_backends import BACKENDS, check_backend

    usable = []
    for name in (name for name, backend in BACKENDS.items() if backend.competes):
        try:
            check_backend(name, "auto")
        except UsageError:
            continue
        usable.append(name)
    return good(f"{', '.join(usable)}; xformers {_version('xformers') or 'is not installed, which is optional'}")


@check("annotators")
def annotators(subject: Subject) -> Outcome:
    from stages.annotators import ANNOTATORS
    from stages.smoothers import SMOOTHERS

    known, broken = ANNOTATORS.usable()
    lines = [*(line for options in known.values() if (line := options.missing_package())), *broken]
    lines += SMOOTHERS.usable()[1]
    usable = counted(sum(not options.missing_package() for options in known.values()), "annotator")
    if not lines:
        return good(f"{usable} and {counted(len(SMOOTHERS), 'smoother')}")
    return warning(f"{usable} can be used", "; ".join(lines))


@check("Ray")
def ray(subject: Subject) -> Outcome:
    if find_spec("ray") is None:
        return warning("not installed; only --engine ray needs it", f"pip install '{PACKAGE}[ray]'")
    cluster = os.environ.get("RAY_ADDRESS")
    return good(f"{_version('ray')}{f', RAY_ADDRESS is {cluster}' if cluster else ''}")


@check("object stores")
def object_stores(subject: Subject) -> Outcome:
    if find_spec("obstore") is None:
        return warning("obstore is not installed; only --cache URL needs it", f"pip install '{PACKAGE}[cloud]'")
    return good(f"obstore {_version('obstore')}")


# --- models ---------------------------------------------------------------------------------------------


@check("model cache")
def model_cache(subject: Subject) -> Outcome:
    from stages.models.hub import hub_settings, scan_cache

    folder, found = hub_settings().cache, scan_cache()
    if found is None:
        return good(f"{folder} is made by the first download")
    held = f"{folder}: {counted(len(found.repos), 'model')}, {size(found.size_on_disk)}"
    if found.warnings:
        return warning(f"{held}; {found.warnings[0]}", "delete that folder; it is downloaded again when it is needed")
    return good(held)


@check("hub")
def hub(subject: Subject) -> Outcome:
    from stages.models.hub import hub_settings

    settings = hub_settings()
    token = "with an access token" if settings.token else "without an access token, which only some models need"
    if settings.offline:
        return good(f"downloads are disabled by HF_HUB_OFFLINE; {token}")
    if subject.hub_problem:
        return warning(
            f"{settings.endpoint} cannot be reached: {subject.hub_problem}",
            "models must be in the model cache or local folders; set HF_HUB_OFFLINE=1 to try no downloads",
        )
    return good(f"{settings.endpoint} answers; {token}")


# --- room -----------------------------------------------------------------------------------------------


@check("memory")
def memory(subject: Subject) -> Outcome:
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    found = f"{size(free)} of {size(total)} available"
    if free >= ENOUGH_MEMORY:
        return good(found)
    return warning(found, f"networks of Stable Diffusion's size need about {size(ENOUGH_MEMORY)}; end other programs")


@check("disk")
def disk(subject: Subject) -> Outcome:
    from stages.models.hub import hub_settings

    models = hub_settings().cache
    models = next(path for path in (models, *models.parents) if path.is_dir())
    free = {place: shutil.disk_usage(place).free for place in (subject.folder, models)}
    found = ", ".join(f"{size(room)} free in {place}" for place, room in free.items())
    if min(free.values()) >= ENOUGH_DISK:
        return good(found)
    return warning(found, "free some space; `diffsynth plan JOB.json` shows how much a job needs")


# --- the job --------------------------------------------------------------------------------------------


@check("job")
def job(subject: Subject) -> Outcome | None:
    """Do what `run` does before the first stage starts."""
    from stages.models.hub import hub_settings, without_network

    if subject.opened is None:
        return None
    unreachable = not hub_settings().offline and subject.hub_problem
    with without_network() if unreachable else nullcontext():
        detail = _checked(subject)
    if subject.warnings.messages:
        return warning(detail, "; ".join(subject.warnings.messages))
    return good(detail)


def _checked(subject: Subject) -> str:
    from diffsynth_cli.jobs import options_of
    from diffsynth_cli.outputs import check_job_outputs
    from diffsynth_cli.planning import outline
    from stages.all_stages import stages_of
    from stages.base.engine import Run
    from stages.base.preflight import check_ahead
    from stages.models.weights import pick_device

    assert subject.opened is not None
    job, cache, file = subject.opened.job, subject.opened.cache, subject.opened.file
    stages = stages_of(job)
    check_job_outputs(job, cache, file, [*stages.values()], preview=False, force=False)
    pick_device(job.device)
    run = Run(job, cache, subject.warnings, options_of(job), stages=stages)
    ahead, footage = check_ahead([*stages.values()], run, Path(job.output_path))
    if footage is None or not ahead:
        return "it is complete"
    return f"can run: {outline(job, ahead, footage, 1)}"
