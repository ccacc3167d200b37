"""Python API for any videos and images: smooth, metrics and ebsynth, like the commands of the same names."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from diffsynth_cli.results import (
    FilePath,
    MetricsResult,
    Mode,
    SilentReporter,
    SmoothResult,
    as_argument,
    as_path,
    member,
)
from native import Backend
from stages.base.errors import UsageError
from stages.base.reporting import Reporter
from stages.base.scenes import Scenes, check_scenes

if TYPE_CHECKING:
    from stages.base.cache import FrameCache
    from stages.smooth.request import Smoothing
    from stages.smoothers.images.changes import Changes
    from stages.smoothers.images.synthesis import SynthesisOptions


def smooth(
    guide: FilePath | None,
    style: FilePath,
    output: FilePath,
    *,
    mode: Mode | str = Mode.BLEND,
    offset: float | None = None,
    scenes: Scenes = None,
    window: int = 15,
    strength: float = 1.0,
    detail: float = 0.5,
    patch_size: int = 5,
    guide_weight: float = 1.0,
    device: str = "auto",
    compile: bool = False,
    mask: FilePath | None = None,
    mask_grow: int = 0,
    mask_feather: int = 4,
    mask_invert: bool = False,
    report: FilePath | None = None,
    restart: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> SmoothResult:
    """Reduce the flicker of a stylised video, or paint the frames between keyframes, resuming an earlier call.

    Args:
        guide: The video that `style` was made from; None to smooth `style` by its own motion.
        style: The stylised video, or a folder of images; with Mode.INTERPOLATE a folder of keyframes.
        output: A video file or, with any other suffix, a folder of images.
        mode: Smooth all frames, or paint those between keyframes.
        offset: Frames by which the style is ahead of the guide; None to detect it.
        scenes: The first frame of each scene after the first, or "auto" to find them in the guide; None for one scene.
        window: Frames to each side that light is averaged over.
        strength: 0 leaves the frames as they are, 1 removes all flicker.
        detail: 0 keeps only what neighbouring frames agree on, 1 all detail of each frame.
        patch_size: Side of matched patches in pixels, odd.
        guide_weight: Weight of the guide in matching.
        device: auto, cpu, cuda or cuda:N.
        compile: Compile smoothing on a GPU, which takes minutes at the start.
        mask: Where `style` is shown, over the guide: a video, a folder of images or one image.
        mask_grow: Pixels by which the white part of `mask` grows.
        mask_feather: Width in pixels of the soft edge of `mask`.
        mask_invert: Swap black and white of `mask`.
        report: Where to write an .html page that compares the videos, or only a .png sheet of the places that changed
            most.
        restart: Redo everything, even if the output is complete.
        force: Overwrite existing files, but never an input.
        reporter: Receives progress and warnings.

    Raises:
        UsageError: The videos do not belong together, an option is wrong, or files are in the way.
    """
    from diffsynth_cli import change_report
    from stages.masks import Mask
    from stages.smooth import smooth as run_smooth
    from stages.smooth.request import Smoothing

    matching = {"patch_size": patch_size, "guide_weight": guide_weight}
    config = {"window": window, "strength": strength, "detail": detail, **matching}
    mode, page, reporter = member(Mode, mode, "mode"), as_path(report), reporter or SilentReporter()
    smoothing = Smoothing(
        guide=as_path(guide),
        style=Path(style),
        output=Path(output),
        config=config,
        interpolate=mode is Mode.INTERPOLATE,
        device=device,
        offset=offset,
        scenes=scenes,
        compiled=compile,
        mask=None if mask is None else Mask(str(Path(mask)), mask_grow, mask_feather, mask_invert),
    )
    _check_smoothing(smoothing)
    if page is not None:
        change_report.check_report(page, mode, [*smoothing.inputs, smoothing.output], force)
    with closing(reporter):
        arguments = _arguments(smoothing, mode, force)
        write = None if page is None else partial(_write_report, page, smoothing, reporter)
        changes = run_smooth(smoothing, arguments, reporter, restart, force, write)
    return SmoothResult(smoothing.output, changes)


def _write_report(path: Path, smoothing: Smoothing, reporter: Reporter, cache: FrameCache, changes: Changes) -> None:
    """Write what smoothing changed as a page or, by the suffix of `path`, as a sheet."""
    from diffsynth_cli.change_report import write_report
    from diffsynth_cli.exhibits import of_smoothing
    from diffsynth_cli.outputs import HTML
    from diffsynth_cli.page import write_page

    if path.suffix.lower() == HTML:
        write_page(path, of_smoothing(smoothing, cache), reporter)
    else:
        write_report(path, changes)


def _arguments(smoothing: Smoothing, mode: Mode, force: bool) -> str:
    """Return the arguments of `diffsynth smooth` that resume this call."""
    offset = "auto" if smoothing.offset is None else f"{smoothing.offset:g}"
    options = {"mode": mode, **smoothing.config, "device": smoothing.device, "offset": offset}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value != "auto"]
    if smoothing.scenes is not None:
        words.append(f"--scenes={'auto' if smoothing.scenes == 'auto' else ','.join(map(str, smoothing.scenes))}")
    if (mask := smoothing.mask) is not None:
        words += [f"--mask={mask.path}", f"--mask-grow={mask.grow}", f"--mask-feather={mask.feather}"]
        words += ["--mask-invert"] * mask.invert
    videos = [path for path in (smoothing.guide, smoothing.style) if path is not None]
    paths = [*map(as_argument, videos), "-o", as_argument(smoothing.output)]
    return shlex.join([*paths, *words, *["--compile"] * smoothing.compiled, *["--force"] * force])


def _check_smoothing(smoothing: Smoothing) -> None:
    """Raise UsageError for options that are out of range or do not fit each other."""
    from stages.base.mistakes import checked
    from stages.smoothers.patch_blend import PatchBlend

    try:
        checked(PatchBlend, smoothing.config)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        check_scenes(smoothing.scenes)
    except ValueError as error:
        raise UsageError(f"scenes: {error}") from None
    if not smoothing.interpolate:
        return
    if smoothing.guide is None:
        raise UsageError("Interpolation needs two paths: GUIDE, and STYLE as a folder of keyframes")
    if smoothing.offset is not None and smoothing.offset % 1:
        raise UsageError(f"offset {smoothing.offset:g}: keyframes can only be moved by whole frames")


def metrics(
    guide: FilePath,
    videos: FilePath | Sequence[FilePath],
    *,
    style: FilePath | None = None,
    reference: FilePath | None = None,
    plot: FilePath | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> MetricsResult:
    """Measure flicker, sharpness and damage of stylised videos, up to the end of the shortest.

    Args:
        guide: The original video.
        videos: One or several stylised videos.
        style: The video before smoothing: adds invented detail, structure kept and the warp error along its own motion.
        reference: Ground truth: adds PSNR and SSIM.
        plot: Where to write a .png of curves over time.
        force: Overwrite an existing plot, but never an input.
        reporter: Receives progress and warnings.

    Raises:
        UsageError: A video cannot be read or has another shape, or a file is in the way.
    """
    from diffsynth_cli.measuring import compare

    several = [videos] if isinstance(videos, str | os.PathLike) else videos
    paths = [Path(video) for video in several]
    with closing(reporter or SilentReporter()) as shown:
        return compare(Path(guide), paths, as_path(style), as_path(reference), as_path(plot), force, shown)


def ebsynth(
    style: FilePath,
    guides: Iterable[tuple[FilePath, FilePath] | tuple[FilePath, FilePath, float | None]],
    output: FilePath,
    *,
    style_weight: float = 1.0,
    backend: Backend | str = Backend.AUTO,
    device: str = "auto",
    nnf: FilePath | None = None,
    force: bool = False,
    progress: Callable[[float], None] = lambda share: None,
    **options: Unpack[SynthesisOptions],
) -> Path:
    """Paint an image in the style of another, guided by pairs of images.

    Args:
        style: The image whose style is used.
        guides: (source, target) or (source, target, weight): a guide for the style, and the same guide for the image to
            paint. Guides without a weight share a weight of 1.
        output: The image to write.
        style_weight: The weight of `style`.
        backend: auto, cpu, cuda or numba. All paint the same image.
        device: auto, cpu, cuda or cuda:N.
        nnf: Where to write the nearest-neighbour field, an .npy file: int32 [H, W, 2], row and column.
        force: Overwrite existing files, but never an input.
        progress: Called with the share that is done, 0 to 1.
        options: uniformity, patch_size and the other keys of `SynthesisOptions`.

    Returns:
        The path of the image.

    Raises:
        UsageError: The images do not fit each other, an option is wrong, or files are in the way.
    """
    from stages.base.outputs import check_output
    from stages.smoothers.images.synthesis import Guide, Painting, paint, pick_backend

    pairs = [Guide(Path(pair[0]), Path(pair[1]), *pair[2:]) for pair in guides]
    inputs = [Path(style), *(path for pair in pairs for path in (pair.source, pair.target))]
    for path in (output, nnf):
        if path is not None:
            check_output(Path(path), inputs, force=force)
    chosen, gpu = pick_backend(member(Backend, backend, "back end"), device)
    paint(Painting(Path(style), pairs, style_weight, options, chosen, gpu), Path(output), as_path(nnf), progress)
    return Path(output)
