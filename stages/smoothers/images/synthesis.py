"""Guided synthesis of one image file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image, UnidentifiedImageError

from native import Backend, binding
from stages.base.arrays import Image as Pixels
from stages.base.errors import DiffSynthError, UsageError
from stages.models.weights import check_device
from stages.video.images import image_size

CHANNELS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Guide:
    source: Path
    target: Path
    weight: float | None = None  # of the whole image; by default, all guides together have weight 1


class SynthesisOptions(TypedDict, total=False):
    """Options of guided synthesis. Defaults are those of `native.binding.synthesize`."""

    uniformity: float
    """How evenly the parts of the style are used."""
    patch_size: int
    """Side of patches in pixels, odd."""
    pyramid_levels: int
    """0 for as many as the size allows."""
    search_vote_iterations: int
    """Search and vote steps per pyramid level."""
    patch_match_iterations: int
    """PatchMatch sweeps per search."""
    stop_threshold: int
    """Stop updating pixels that changed by less than this."""
    extra_pass_3x3: bool
    """Finish with 3×3 patches."""
    weighted_vote: bool
    """Weight votes by how well patches match."""
    seed: int
    """Random seed."""
    threads: int
    """CPU threads; 0 for all."""


@dataclass(frozen=True)
class Painting:
    """What to paint, and where: the back end, and the number of the GPU."""

    style: Path
    guides: Sequence[Guide]
    style_weight: float = 1.0
    options: SynthesisOptions = field(default_factory=SynthesisOptions)
    backend: Backend = Backend.AUTO
    gpu: int = 0


def pick_backend(backend: Backend, device: str) -> tuple[Backend, int]:
    """Return the back end and the number of the GPU to use.

    Args:
        backend: The requested back end.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UsageError: There is no such device, or the back end does not run on it.
    """
    check_device(device)
    kind, _, number = device.partition(":")
    if kind == "auto":
        return backend, 0
    on_cpu = (Backend.CPU, Backend.NUMBA) if binding.library_path().exists() else (Backend.NUMBA,)
    fitting = {"cpu": on_cpu, "cuda": (Backend.CUDA,)}.get(kind, ())
    if backend is Backend.AUTO and fitting:
        return fitting[0], int(number or 0)
    if backend not in fitting:
        raise UsageError(f"device: {device} cannot run the back end {backend}", "set only one of the two")
    return backend, int(number or 0)


def paint(painting: Painting, output: Path, nnf: Path | None, progress: Callable[[float], None]) -> None:
    """Paint the guides' targets in the given style and write the image.

    Args:
        painting: What to paint.
        output: Path of the image.
        nnf: Path of the field int32 [H, W, 2] as .npy, or None.
        progress: Called with the fraction done.

    Raises:
        UsageError: Images do not fit each other, or a path is not writable. Nothing has been computed yet.
    """
    check_writable(output, IMAGE_SUFFIXES)
    if nnf is not None:
        check_writable(nnf, (".npy",))
    style = load(painting.style)
    pairs = [(load(guide.source), load(guide.target)) for guide in painting.guides]
    _check_fit(painting, style, pairs)
    weights = [1 / len(pairs) if guide.weight is None else guide.weight for guide in painting.guides]
    try:
        result = binding.synthesize(
            style[None],
            np.concatenate([source for source, _ in pairs], axis=2)[None],
            np.concatenate([target for _, target in pairs], axis=2)[None],
            style_weights=_spread([painting.style_weight], [style]),
            guide_weights=_spread(weights, [source for source, _ in pairs]),
            progress=progress,
            backend=painting.backend,
            device=painting.gpu,
            **painting.options,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except binding.EbsynthError as error:
        raise DiffSynthError(str(error)) from error
    _replace(output, lambda path: _save(path, result.image[0]))
    if nnf is not None:
        _replace(nnf, lambda path: np.save(path, result.nnf[0]))


def load(path: Path) -> Pixels:
    """Load an image as uint8 [H, W, C] with the channels of the file: grey, grey and alpha, RGB or RGBA.

    Raises:
        UsageError: The file is not a readable image.
    """
    image_size(path)
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened
            if image.mode not in CHANNELS:
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            elif image.mode == "1":
                image = image.convert("L")
            pixels = np.array(image)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UsageError(f"{path} is not an image that can be read: {error}") from error
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1))


def _check_fit(painting: Painting, style: Pixels, pairs: Sequence[tuple[Pixels, Pixels]]) -> None:
    size = pairs[0][1].shape[:2]
    for guide, (source, target) in zip(painting.guides, pairs, strict=True):
        if source.shape[:2] != style.shape[:2]:
            raise UsageError(f"{guide.source} is {_size(source)}, but the style {painting.style} is {_size(style)}")
        if target.shape[:2] != size:
            raise UsageError(
                f"{guide.target} is {_size(target)}, but {painting.guides[0].target} is {_size(pairs[0][1])}"
            )
        if source.shape[2] != target.shape[2]:
            channels = f"{source.shape[2]} channels, but {guide.target} has {target.shape[2]}"
            raise UsageError(f"{guide.source} has {channels}", "save both in the same format: grey, RGB or RGBA")
    channels = sum(source.shape[2] for source, _ in pairs)
    if channels > 24:
        raise UsageError(
            f"the guides have {channels} channels in total, but at most 24 are supported",
            "save grey guides as grey images",
        )


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}×{image.shape[0]}"


def _spread(weights: Sequence[float], images: Sequence[Pixels]) -> list[float]:
    """Divide image weights among channels."""
    return [
        weight / image.shape[2] for weight, image in zip(weights, images, strict=True) for _ in range(image.shape[2])
    ]


def check_writable(path: Path, suffixes: Sequence[str]) -> None:
    """Raise UsageError if `path` has none of these suffixes or its folder does not exist."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: the name must end in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.absolute().parent} does not exist")


def _save(path: Path, image: Pixels) -> None:
    if path.suffix.lower() in (".jpg", ".jpeg") and image.shape[2] in (2, 4):
        image = image[..., :-1]  # JPEG has no alpha
    Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).save(path)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary file and rename it, so that a kill leaves either the old file or the new one."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise DiffSynthError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
