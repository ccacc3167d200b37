"""Measure how much stylised videos flicker and what smoothing has cost them, frame by frame in bounded memory.

Frames are uint8 RGB [H, W, 3]. The guide is the original video, which does not flicker and whose motion tells which
pixels correspond. The style is the input of the smoother.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from stages.base.arrays import Floats, Flow, Image, Mask
from stages.smoothers.images.comparison import STRUCTURE_LOST, brightness, detail, invented, similarity, structure
from stages.smoothers.images.matching import carry
from stages.smoothers.images.pixels import flow

GAPS = (1, 5)  # distances of compared frames
ROUND_TRIP_LIMIT = 1.0  # px of forward-backward error of the guide's flow
LIKENESS_LIMIT = 0.1  # mean colour difference (0..1) at which the guide's flow is still trusted
OWN_ROUND_TRIP_LIMIT = 1.5  # the same for the style's flow, |x| + |y|
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue in brightness
BEST_PSNR = 100.0  # dB, for identical images


@dataclass
class Curves:
    """One number per frame, or per pair of frames.

    Attributes:
        warp: by gap, mean squared error ×1000 (colours 0..1) between frame t and frame t + gap warped back along the
            guide's flow, over pixels that can be compared. NaN where there are none.
        flicker: how much the mean brightness of these pixels changes between neighbouring frames, in levels. Motion
            alone does not change it.
        own_warp: the same between neighbouring frames along the style's flow, which a wrong guide cannot change.
        luminance: mean luminance, 0..255.
        sharpness: variance of the Laplacian.
        detail: mean strength of fine detail, in levels.
        invented: detail that the style's frame does not have within 3 px, in levels.
        structure: structure kept in the worst places of the style's frame, at most 1.
        error, ssim: mean squared error and similarity to the reference.

    `own_warp`, `detail`, `invented` and `structure` are empty without a style; the style itself has no `invented` or
    `structure`. `error` and `ssim` are empty without a reference.
    """

    warp: dict[int, list[float]] = field(default_factory=lambda: {gap: [] for gap in GAPS})
    flicker: list[float] = field(default_factory=list)
    own_warp: list[float] = field(default_factory=list)
    luminance: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    detail: list[float] = field(default_factory=list)
    invented: list[float] = field(default_factory=list)
    structure: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def summary(self, style: Curves | None = None, reference: Curves | None = None) -> dict[str, float]:
        """Return one number per metric, without metrics that cannot be computed.

        Returns:
            warp1, warp5: mean warp errors along the guide's motion, ×1000.
            flicker: standard deviation of the changes of luminance, in levels.
            sharpness: mean variance of the Laplacian.
            sharp, sharp_reference: sharpness as a share of the style's and of the reference's.
            invented: mean over frames, in levels.
            structure, structure_min, worst_frame, lost_frames: mean over frames, the worst frame's, its number, and how
                many frames lost structure.
            own_warp, own_warp_style: mean warp error along the style's motion, of this video and of the style.
            psnr: in dB, of the error pooled over frames.
            ssim: mean over frames.
        """
        found = {f"warp{gap}": _mean(errors) for gap, errors in self.warp.items()}
        if len(self.luminance) > 1:
            found["flicker"] = flicker(self.luminance)
        if self.sharpness:
            found["sharpness"] = float(np.mean(self.sharpness))
        for name, other in (("sharp", style), ("sharp_reference", reference)):
            if other is not None and np.mean(other.sharpness) > 0:
                found[name] = float(np.mean(self.sharpness) / np.mean(other.sharpness))
        if self.structure:
            found["invented"] = float(np.mean(self.invented))
            found["structure"] = float(np.mean(self.structure))
            found["structure_min"] = min(self.structure)
            found["worst_frame"] = int(np.argmin(self.structure))
            found["lost_frames"] = sum(value < STRUCTURE_LOST for value in self.structure)
        found["own_warp"] = _mean(self.own_warp)
        if style is not None:
            found["own_warp_style"] = _mean(style.own_warp)
        if self.error:
            found["psnr"] = psnr(float(np.mean(self.error)))
            found["ssim"] = float(np.mean(self.ssim))
        return {name: value for name, value in found.items() if not np.isnan(value)}


def flicker(luminance: Sequence[float]) -> float:
    """Return the standard deviation of the changes of luminance from frame to frame, in levels."""
    return float(np.diff(luminance).std())


def psnr(error: float) -> float:
    """Return the PSNR in dB for a mean squared error of bytes."""
    return min(BEST_PSNR, 10 * float(np.log10(255**2 / error))) if error > 0 else BEST_PSNR


def measure(
    guide: Iterable[Image],
    videos: Sequence[Iterable[Image]],
    reference: Iterable[Image] | None = None,
    progress: Callable[[int], None] = lambda frames: None,
    *,
    style: Iterable[Image] | None = None,
) -> list[Curves]:
    """Measure `videos` in one pass, up to the end of the shortest of all.

    Frame t of one video belongs to frame t of all others. Holds max(GAPS) + 1 frames of each.

    Args:
        guide: the original video.
        videos: stylised videos.
        reference: the truth, if it is known.
        progress: called with the number of frames that were measured since the last call.
        style: what `videos` were made from by smoothing.

    Returns:
        The curves of each video, then those of the style and of the reference, if given.
    """
    shown = [*videos, *(other for other in (style, reference) if other is not None)]
    curves = [Curves() for _ in shown]
    recent: deque[tuple[Image, ...]] = deque(maxlen=max(GAPS) + 1)
    for frames in zip(guide, *shown, strict=False):
        recent.append(frames)
        for gap in GAPS:
            if len(recent) > gap:
                for curve, (error, change) in zip(curves, _changes(recent[-1 - gap], recent[-1]), strict=True):
                    curve.warp[gap].append(error)
                    curve.flicker += [change] if gap == 1 else []
        for index, (curve, frame) in enumerate(zip(curves, frames[1:], strict=True)):
            _measure_frame(curve, frame, frames[-1] if reference is not None and index < len(videos) else None)
        if style is not None:
            last = len(videos) + 1  # the style's place among `frames`
            _compare(curves[:last], frames[1 : last + 1])
            if len(recent) > 1:
                _follow(curves[:last], recent[-2][1 : last + 1], frames[1 : last + 1])
        progress(1)
    return curves


def _changes(then: Sequence[Image], now: Sequence[Image]) -> Iterator[tuple[float, float]]:
    """Compare each video's frame `then` with its frame `now` warped back along the guide's motion.

    The guide's frames come first in both and are not compared.

    Yields:
        Mean squared error ×1000, and by how many levels the mean brightness changes.
    """
    motion, seen = correspondence(then[0], now[0])
    for before, after in zip(then[1:], now[1:], strict=True):
        if not seen.any():
            yield float("nan"), float("nan")
            continue
        carried, _ = carry(after.astype(np.float32), motion)
        difference = (carried - before)[seen]
        yield 1e3 * float(((difference / 255) ** 2).mean()), abs(float((difference @ LUMA).mean()))


def correspondence(a: Image, b: Image) -> tuple[Flow, Mask]:
    """Return the flow from guide frame a to b, float32 [H, W, 2], and where to trust it, bool [H, W].

    It is trusted inside the image where forward and backward flow agree and colours are similar.
    """
    there, back = flow(a, b), flow(b, a)
    returned, inside = carry(back, there)
    consistent = np.linalg.norm(there + returned, axis=2) <= ROUND_TRIP_LIMIT
    carried, _ = carry(b.astype(np.float32), there)
    return there, inside[..., 0] & consistent & (np.abs(carried - a).mean(axis=2) / 255 <= LIKENESS_LIMIT)


def _compare(curves: Sequence[Curves], frames: Sequence[Image]) -> None:
    """Compare each of `frames` with the style's, which is the last."""
    levels = [brightness(frame) for frame in frames]
    details = [detail(level) for level in levels]
    for curve, strength in zip(curves, details, strict=True):
        curve.detail.append(float(strength.mean()))
    for curve, level, strength in zip(curves[:-1], levels, details):
        curve.invented.append(invented(strength, details[-1]))
        curve.structure.append(structure(similarity(level, levels[-1])))


def _follow(curves: Sequence[Curves], then: Sequence[Image], now: Sequence[Image]) -> None:
    """Measure warp errors from frames `then` to frames `now` along the motion of the style, which is the last."""
    there, back = flow(then[-1], now[-1]), flow(now[-1], then[-1])
    trusted = np.abs(there + _warped(back, there)).sum(axis=2) < OWN_ROUND_TRIP_LIMIT
    for curve, before, after in zip(curves, then, now, strict=True):
        difference = (_warped(after.astype(np.float32), there) - before) / 255
        curve.own_warp.append(1e3 * float((difference**2)[trusted].mean()) if trusted.any() else float("nan"))


def _warped(image: Floats, motion: Flow) -> Floats:
    """Sample `image` at p + motion(p). Outside the image is black."""
    height, width = motion.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.asarray(cv2.remap(image, x + motion[..., 0], y + motion[..., 1], cv2.INTER_LINEAR), np.float32)


def _mean(values: Sequence[float]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _measure_frame(curve: Curves, frame: Image, reference: Image | None) -> None:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    curve.luminance.append(float(grey.mean()))
    curve.sharpness.append(float(cv2.Laplacian(grey, cv2.CV_64F).var()))
    if reference is not None:
        curve.error.append(float(((frame.astype(np.float64) - reference) ** 2).mean()))
        curve.ssim.append(float(structural_similarity(frame, reference, channel_axis=2, win_size=_window(frame))))


def _window(frame: Image) -> int:
    """Return SSIM's usual 7 pixels, or the largest odd number that fits a smaller image."""
    return int(min(7, (min(frame.shape[:2]) - 1) // 2 * 2 + 1))
