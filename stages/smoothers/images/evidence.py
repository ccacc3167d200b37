"""How far a frame's own pixels support what its neighbours say about it.

Every copy of a neighbour is compared with the frame itself. Flicker makes them differ by about as much everywhere in a
clip, more where there is more contrast; that level is measured, not assumed. A copy that differs by much more shows
something else: a wrong match, a shape that the guide does not have, or a thing that has just appeared.

Arrays as in stages.smoothers.images.pixels. Misfits and levels are in levels², float32 [H, W, 1].
"""

from __future__ import annotations

from array_api_compat import array_namespace

from stages.smoothers.images.matching import mean_square
from stages.smoothers.images.pixels import Array, gauss, percentile

REACH = 3.0  # px, standard deviation of the area over which images are compared
FLOOR = 4.0  # levels², a difference that means nothing
FINE = 2.0  # px; contrast is measured on detail finer than this
THIRD = 100 / 3  # per cent of the pixels that stand for low contrast, and for high
FAR = 1e9  # stands for pixels that are left out
STEEPNESS = 3  # how sharply support falls
STRUCTURE = 5.0  # px; structure is what is finer than this
LOSS = 0.04  # share of its structure that any place may lose
NOISE_LOSS = 0.6  # additional share where all of the structure is flicker
NOISE_STEEPNESS = 4
STEADYING = 20.0  # levels², keeps ratios of small powers steady


def misfit(own: Array, copy: Array, reach: float = REACH) -> Array:
    """Mean squared difference of two images around each pixel, levels² [H, W, 1]."""
    return gauss(mean_square(own - copy), reach)


def flicker_line(own: Array, differences: Array, reach: float = REACH) -> Array:
    """How the misfit of a clip with itself grows with contrast: slope and intercept of a line through their logarithms.

    Medians make the line blind to misfits that cover less than about half of the frame.

    Args:
        own: the image, float32 [H, W, 3].
        differences: `misfit` of the image and a copy of a neighbour, [H, W, 1].
        reach: px, as of the misfit.

    Returns:
        float32 [H=1, W=1, 2].
    """
    xp = array_namespace(own)
    contrast, level = _log_contrast(own, reach), xp.log(differences + FLOOR)
    low = contrast <= percentile(contrast, THIRD)
    high = contrast >= percentile(contrast, 100 - THIRD)
    # The median of a third is the sixth of the whole when the other two thirds are far above.
    (x0, y0), (x1, y1) = (
        [percentile(xp.where(part, values, FAR), THIRD / 2) for values in (contrast, level)] for part in (low, high)
    )
    slope = xp.clip((y1 - y0) / (x1 - x0 + 1e-3), 0, 1)
    return xp.concat([slope, percentile(level - slope * contrast, 50)], axis=-1)


def flicker_level(own: Array, line: Array, reach: float = REACH) -> Array:
    """The misfit that flicker explains at each pixel, levels² [H, W, 1], by a `flicker_line`."""
    return array_namespace(own).exp(line[..., 1:] + line[..., :1] * _log_contrast(own, reach))


def support(differences: Array, level: Array, tolerance: float) -> Array:
    """The weight 0..1 of a copy by its misfit, ½ at `tolerance` times the level of flicker; [H, W, 1]."""
    return 1 / (1 + (differences / (tolerance * level)) ** STEEPNESS)


def keep_structure(own: Array, smooth: Array, level: Array) -> Array:
    """`smooth`, brought back towards `own` where it has lost structure, float32 [H, W, 3].

    Structure is what is finer than STRUCTURE; light is left as it is in `smooth`. The loss is the power of the change
    as a share of the power of both images: one minus the structure term of SSIM (Wang et al. 2004). More of it may go
    the more of it is flicker, by `level`.
    """
    xp = array_namespace(own)
    change = smooth - own
    light = gauss(change, STRUCTURE)
    power = _structure_power(own) + _structure_power(smooth) + STEADYING
    noise = xp.clip(level / power, 0, 1)
    allowed = LOSS + NOISE_LOSS * noise**NOISE_STEEPNESS
    loss = _structure_power(change) / power
    share = gauss(xp.sqrt(xp.clip(allowed / (loss + 1e-6), 0, 1)), REACH)
    return own + light + share * (change - light)


def _structure_power(image: Array) -> Array:
    return gauss(mean_square(image - gauss(image, STRUCTURE)), STRUCTURE)


def _log_contrast(own: Array, reach: float) -> Array:
    return array_namespace(own).log(gauss(mean_square(own - gauss(own, FINE)), reach) + FLOOR)
