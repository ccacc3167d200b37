"""Choose keyframes, and paint the frames between them from the two nearest keyframes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from array_api_compat import array_namespace

from stages.base.arrays import Frames, Image
from stages.smoothers.images.light import fit_light
from stages.smoothers.images.matching import PATCH, agreement, library_errors
from stages.smoothers.images.pixels import Array, fetch, floats, flow, gauss, positions, synthesize, warp
from stages.smoothers.patch_blend import registration

SEAM = 2.0  # px over which keyframes are blended
MIN_AGREEMENT = 0.3  # below this, a place is not visible in a keyframe
MAX_FLOW_ERROR = 1.0  # px of forward-backward error at which optical flow is trusted
FLOW_BORDER = 3.0  # px over which flow and guided synthesis are blended
GUIDE_WEIGHT, EDGE_WEIGHT = 4.0, 2.0  # of the guide's colours and edges in guided synthesis; the style's weight is 1
EDGE = 4.0  # px, scale of edges
ROUNDS, SWEEPS = 3, 2  # of guided synthesis; more takes longer without improving the result
LONGEST = 12  # frames between two chosen keyframes
MAX_UNSEEN = 0.1  # share of a frame that no keyframe shows; above this, it should be a keyframe
MAX_LISTED = 20  # such frames in a message


def choose(guides: Frames, progress: Callable[[int], None] = lambda frames: None) -> list[int]:
    """Choose as keyframes all frames with new content, such as cuts, and at least every LONGEST-th frame."""
    keys = [0]
    for index in range(1, len(guides)):
        progress(1)
        guide, key_guide = guides[index], guides[keys[-1]]
        unseen = _share(agreement(guide, key_guide, flow(guide, key_guide)) < MIN_AGREEMENT)
        if unseen > MAX_UNSEEN or index - keys[-1] >= LONGEST:
            keys.append(index)
    return keys


def unseen_warning(unseen: Sequence[float]) -> str:
    """Describe which frames show much that no keyframe shows; empty if none does.

    Args:
        unseen: For each frame the share, 0..1, that no keyframe shows.
    """
    worst = [f"{index} ({share:.0%})" for index, share in enumerate(unseen) if share > MAX_UNSEEN]
    more = ", …" if len(worst) > MAX_LISTED else ""
    if not worst:
        return ""
    what = f"{len(worst)} of {len(unseen)} frames contain areas that no keyframe shows and that had to be guessed"
    return f"{what}: {', '.join(worst[:MAX_LISTED])}{more}"


class Interpolator:
    """Paints frames from the keyframes before and after them.

    Each keyframe is warped along the guide's motion where optical flow is reliable, and repainted by guided synthesis
    elsewhere. The two results are registered to each other, matched in light, and blended by distance in time and by
    how well they fit the guide.

    Args:
        guides: Frames of the original video.
        keyframes: The stylised keyframes.
        keys: Frame index of each keyframe, ascending.
        patch_size: Side of the patches in guided synthesis, in pixels, odd.
    """

    def __init__(self, guides: Frames, keyframes: Frames, keys: Sequence[int], patch_size: int = PATCH):
        self.guides, self.keyframes, self.keys, self.patch_size = guides, keyframes, keys, patch_size

    def paint(self, index: int) -> tuple[Image, float]:
        """Paint a frame.

        Returns:
            The frame uint8 [H, W, 3], and the share of it, 0..1, that neither keyframe shows.
        """
        after = bisect_right(self.keys, index)
        if after > 0 and self.keys[after - 1] == index:
            return fetch(self.keyframes[after - 1]), 0.0
        around = [place for place in (after - 1, after) if 0 <= place < len(self.keys)]
        copies, fits = zip(*(self._copy(index, place) for place in around), strict=True)
        if len(around) == 1:  # before the first or after the last keyframe
            return fetch(copies[0]), _share(fits[0] < MIN_AGREEMENT)
        first, last = (self.keys[place] for place in around)
        painted = _mix(copies, fits, (index - first) / (last - first))
        return fetch(painted), _share(array_namespace(painted).maximum(*fits) < MIN_AGREEMENT)

    def _copy(self, index: int, place: int) -> tuple[Array, Array]:
        """Return frame `index` made from one keyframe, float32 [H, W, 3], and how well it fits the guide, [H, W, 1]."""
        guide, there, style = self.guides[index], self.guides[self.keys[place]], self.keyframes[place]
        moved = flow(guide, there)
        fit = agreement(guide, there, moved)
        reliable = _reliable(fit, moved, flow(there, guide))
        copy = warp(style, moved, cubic=True)
        if _share(reliable) == 1:
            return copy, fit
        painted, jumps = _painted(style, there, guide, self.patch_size)
        return _between(reliable, copy, painted), _between(reliable, fit, agreement(guide, there, jumps))


def _reliable(fit: Array, moved: Array, back: Array) -> Array:
    """Return where optical flow is reliable, 0..1, [H, W, 1]: where it fits and forward and backward flow agree.

    Args:
        fit: How well the other frame fits when warped along `moved`.
        moved, back: Flow to the other frame and back.
    """
    xp = array_namespace(fit)
    flow_error = xp.linalg.vector_norm(moved + warp(back, moved), axis=-1, keepdims=True)
    return xp.clip(2 * gauss(floats((fit > MIN_AGREEMENT) & (flow_error < MAX_FLOW_ERROR)), FLOW_BORDER) - 1, 0, 1)


def _painted(style: Array, guide: Array, target: Array, patch_size: int) -> tuple[Array, Array]:
    """Paint `target` as `style` paints `guide`, by guided synthesis.

    Returns:
        The image float32 [H, W, 3], and the displacement of each patch, float32 [H, W, 2], x then y.
    """
    weights = [GUIDE_WEIGHT / 3] * 3 + [EDGE_WEIGHT]
    guides = _outlined(guide), _outlined(target)
    with library_errors():
        image, field = synthesize(
            style,
            *guides,
            guide_weights=weights,
            patch_size=patch_size,
            search_vote_iterations=ROUNDS,
            patch_match_iterations=SWEEPS,
        )
    return floats(image), floats(array_namespace(field).flip(field, axis=-1)) - positions(field)


def _outlined(guide: Array) -> Array:
    """Add edges as a fourth channel, so that outlines count where colours hardly differ."""
    xp, image = array_namespace(guide), floats(guide)
    edges = xp.mean(image - gauss(image, EDGE), axis=-1, keepdims=True)
    return xp.concat([guide, xp.astype(xp.clip(2 * edges + 128, 0, 255), xp.uint8)], axis=-1)


def _share(pixels: Array) -> float:
    return float(array_namespace(pixels).mean(floats(pixels)))


def _mix(copies: Sequence[Array], fits: Sequence[Array], time: float) -> Array:
    """Blend the two copies. `time` is 0 at the first one's keyframe and 1 at the other's."""
    # Two stylised frames never match exactly; without registration, every line would appear twice.
    off = registration(*copies) * array_namespace(copies[0]).minimum(*fits)
    registered = [warp(copy, step * off, cubic=True) for copy, step in zip(copies, (-time, 1 - time), strict=True)]
    weights = [near * fit for near, fit in zip((1 - time, time), fits, strict=True)]
    # Light changes linearly. Detail stays closer to the nearer keyframe, since averaging blurs.
    lit = [fit_light(copy, _fade(registered, weights)) for copy in registered]
    return _fade(lit, [weight**2 for weight in weights])


def _fade(copies: Sequence[Array], weights: Sequence[Array]) -> Array:
    first, second = (gauss(weight, SEAM) for weight in weights)
    return _between(first / (first + second), *copies)


def _between(share: Array, one: Array, other: Array) -> Array:
    return share * one + (1 - share) * other
