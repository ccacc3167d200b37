"""Choose keyframes, and paint the frames between them from the two nearest keyframes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from array_api_compat import array_namespace, device

from stages.base.arrays import Frames, Image
from stages.smoothers.images.library import batched, library_errors, pairs_at_once
from stages.smoothers.images.light import fit_light
from stages.smoothers.images.matching import PATCH, agreement
from stages.smoothers.images.pixels import Array, fetch, floats, flow, gauss, positions, stacked, synthesize, warp
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


class Copy(NamedTuple):
    """A frame made from one keyframe."""

    image: Array
    """float32 [H, W, 3]."""
    fit: Array
    """How well it fits the guide, [H, W, 1]."""


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

    def paint(self, indexes: Iterable[int]) -> Iterator[tuple[Image, float]]:
        """Paint frames. A GPU works on several of them at once.

        Yields:
            Each frame uint8 [H, W, 3], and the share of it, 0..1, that neither keyframe shows.
        """
        around = {index: self._around(index) for index in indexes}
        copies = self._copies([(index, place) for index, places in around.items() for place in places])
        for index, places in around.items():
            yield self._blended(index, places, [*islice(copies, len(places))]) if places else self._keyframe(index)

    def _around(self, index: int) -> list[int]:
        """Return the places in `keys` of the keyframes before and after a frame. None if it is one itself."""
        after = bisect_left(self.keys, index)
        if index in self.keys[after : after + 1]:
            return []
        return [place for place in (after - 1, after) if 0 <= place < len(self.keys)]

    def _keyframe(self, index: int) -> tuple[Image, float]:
        return fetch(self.keyframes[bisect_left(self.keys, index)]), 0.0

    def _blended(self, index: int, places: Sequence[int], copies: Sequence[Copy]) -> tuple[Image, float]:
        images, fits = zip(*copies, strict=True)
        if len(copies) == 1:  # before the first or after the last keyframe
            return fetch(images[0]), _share(fits[0] < MIN_AGREEMENT)
        first, last = (self.keys[place] for place in places)
        painted = _mix(images, fits, (index - first) / (last - first))
        return fetch(painted), _share(array_namespace(painted).maximum(*fits) < MIN_AGREEMENT)

    def _copies(self, pairs: Iterable[tuple[int, int]]) -> Iterator[Copy]:
        """Yield a copy for each pair of a frame and a keyframe, which is given by its place in `keys`."""
        guide = self.guides[0]
        for group in batched(pairs, pairs_at_once(str(device(guide)), guide)):
            warped = [self._warped(*pair) for pair in group]
            torn = [pair for pair, (_, reliable) in zip(group, warped, strict=True) if _share(reliable) != 1]
            painted = dict(zip(torn, self._painted(torn), strict=True))
            for pair, (copy, reliable) in zip(group, warped, strict=True):
                yield _patched(copy, reliable, painted[pair]) if pair in painted else copy

    def _warped(self, index: int, place: int) -> tuple[Copy, Array]:
        """Return a copy by optical flow, and where that is reliable, 0..1, [H, W, 1]."""
        guide, there, style = self.guides[index], self.guides[self.keys[place]], self.keyframes[place]
        moved = flow(guide, there)
        fit = agreement(guide, there, moved)
        return Copy(warp(style, moved, cubic=True), fit), _reliable(fit, moved, flow(there, guide))

    def _painted(self, pairs: Sequence[tuple[int, int]]) -> list[Copy]:
        """Return copies by guided synthesis, all painted in one call."""
        if not pairs:
            return []
        guides = [(self.guides[index], self.guides[self.keys[place]]) for index, place in pairs]
        targets, sources = (stacked([_outlined(guide) for guide in side]) for side in zip(*guides, strict=True))
        with library_errors():
            images, fields = synthesize(
                stacked([self.keyframes[place] for _, place in pairs]), sources, targets,
                guide_weights=[GUIDE_WEIGHT / 3] * 3 + [EDGE_WEIGHT], patch_size=self.patch_size,
                search_vote_iterations=ROUNDS, patch_match_iterations=SWEEPS,
            )  # fmt: skip
        jumps = (floats(array_namespace(field).flip(field, axis=-1)) - positions(field) for field in fields)
        return [
            Copy(floats(image), agreement(*pair, moved))
            for image, pair, moved in zip(images, guides, jumps, strict=True)
        ]


def _patched(copy: Copy, reliable: Array, painted: Copy) -> Copy:
    """Replace what is not reliable."""
    return Copy(_between(reliable, copy.image, painted.image), _between(reliable, copy.fit, painted.fit))


def _reliable(fit: Array, moved: Array, back: Array) -> Array:
    """Return where optical flow is reliable, 0..1, [H, W, 1]: where it fits and forward and backward flow agree.

    Args:
        fit: How well the other frame fits when warped along `moved`.
        moved, back: Flow to the other frame and back.
    """
    xp = array_namespace(fit)
    flow_error = xp.linalg.vector_norm(moved + warp(back, moved), axis=-1, keepdims=True)
    return xp.clip(2 * gauss(floats((fit > MIN_AGREEMENT) & (flow_error < MAX_FLOW_ERROR)), FLOW_BORDER) - 1, 0, 1)


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
