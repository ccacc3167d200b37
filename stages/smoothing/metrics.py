"""How much a stylised video flickers, and what its smoothness has cost, frame by frame in bounded memory.

Frames are uint8 RGB [H, W, 3]. The guide is the original video, which does not flicker and says what moved where.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from stages.smoothing.matching import carry
from stages.smoothing.pixels import flow

GAPS = (1, 5)  # frames between the two that are compared
ROUND_TRIP_LIMIT = 1.0  # px that flow there and back may miss the start by
LIKENESS_LIMIT = 0.1  # mean difference of the guide's colours (0..1) where flow is believed
BEST_PSNR = 100.0  # dB; of equal pictures


@dataclass
class Curves:
    """One number a frame. `warp[gap][t]`: mean squared error ×1000 (colours 0..1) between frame t and frame t + gap
    carried back along the guide's flow, over pixels that can be compared; NaN where there are none. `luminance`: mean,
    0..255. `sharpness`: variance of the Laplacian. `error`, `ssim`: mean squared error and likeness
    to the reference.
    """

    warp: dict[int, list[float]] = field(default_factory=lambda: {gap: [] for gap in GAPS})
    luminance: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def summary(self, style: Curves | None = None, reference: Curves | None = None) -> dict[str, float]:
        """`warp1`, `warp5`; `flicker`: the deviation of luminance's changes, in levels; `sharp`, `sharp_reference`:
        sharpness as a share of the style's and the reference's; `psnr` in dB (of the error pooled over frames), `ssim`.
        What cannot be said is left out."""
        found = {
            f"warp{gap}": float(np.nanmean(errors)) for gap, errors in self.warp.items() if np.isfinite(errors).any()
        }
        if len(self.luminance) > 1:
            found["flicker"] = float(np.diff(self.luminance).std())
        for name, other in (("sharp", style), ("sharp_reference", reference)):
            if other is not None and np.mean(other.sharpness) > 0:
                found[name] = float(np.mean(self.sharpness) / np.mean(other.sharpness))
        if self.error:
            found["psnr"] = psnr(float(np.mean(self.error)))
            found["ssim"] = float(np.mean(self.ssim))
        return found


def psnr(error: float) -> float:
    """dB, of a mean squared error of bytes."""
    return min(BEST_PSNR, 10 * float(np.log10(255**2 / error))) if error > 0 else BEST_PSNR


def measure(
    guide: Iterable[np.ndarray],
    videos: Sequence[Iterable[np.ndarray]],
    reference: Iterable[np.ndarray] | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> list[Curves]:
    """The curves of each of `videos`, as long as the shortest of all; frame t of one belongs to frame t of all others.

    With a `reference` its own curves come last. Holds max(GAPS) + 1 frames of each.
    """
    shown = [*videos, *([] if reference is None else [reference])]
    curves = [Curves() for _ in shown]
    recent: deque[tuple[np.ndarray, ...]] = deque(maxlen=max(GAPS) + 1)
    for frames in zip(guide, *shown, strict=False):
        recent.append(frames)
        for gap in GAPS:
            if len(recent) > gap:
                then, now = recent[-1 - gap], recent[-1]
                for curve, error in zip(curves, warp_errors(then, now), strict=True):
                    curve.warp[gap].append(error)
        for index, (curve, frame) in enumerate(zip(curves, frames[1:], strict=True)):
            _look_at(curve, frame, frames[-1] if reference is not None and index < len(videos) else None)
        progress(1)
    return curves


def warp_errors(then: Sequence[np.ndarray], now: Sequence[np.ndarray]) -> Iterator[float]:
    """Mean squared error ×1000 of every video's frame `then` and frame `now` carried back; the guide is first."""
    motion, seen = correspondence(then[0], now[0])
    for before, after in zip(then[1:], now[1:], strict=True):
        if not seen.any():
            yield float("nan")
            continue
        carried, _ = carry(after.astype(np.float32) / 255, motion)
        yield 1e3 * float(((carried - before.astype(np.float32) / 255) ** 2)[seen].mean())


def correspondence(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow from guide frame a to b, float32 [H, W, 2], and where it can be believed, bool [H, W]: seen in both, and
    alike."""
    there, back = flow(a, b), flow(b, a)
    returned, inside = carry(back, there)
    consistent = np.linalg.norm(there + returned, axis=2) <= ROUND_TRIP_LIMIT
    carried, _ = carry(b.astype(np.float32), there)
    return there, inside[..., 0] & consistent & (np.abs(carried - a).mean(axis=2) / 255 <= LIKENESS_LIMIT)


def _look_at(curve: Curves, frame: np.ndarray, reference: np.ndarray | None) -> None:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    curve.luminance.append(float(grey.mean()))
    curve.sharpness.append(float(cv2.Laplacian(grey, cv2.CV_64F).var()))
    if reference is not None:
        curve.error.append(float(((frame.astype(np.float64) - reference) ** 2).mean()))
        curve.ssim.append(float(structural_similarity(frame, reference, channel_axis=2, win_size=_window(frame))))


def _window(frame: np.ndarray) -> int:
    """SSIM's usual 7 pixels, or what fits a smaller picture; odd."""
    return min(7, (min(frame.shape[:2]) - 1) // 2 * 2 + 1)
