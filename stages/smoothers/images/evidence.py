"""How much to trust a warped neighbour, judged by the frame's own pixels.

Each warped neighbour is compared with the frame itself. Flicker alone makes them differ by a similar amount throughout
a clip, more where contrast is higher. That amount is measured, not assumed. A neighbour that differs by much more shows
something else: a wrong match, a shape that the guide lacks, or something that has just appeared.

Arrays are those of stages.smoothers.images.pixels. Misfits and levels are in levels², float32 [H, W, 1].
"""

from __future__ import annotations

from array_api_compat import array_namespace

from stages.smoothers.images.pixels import Array, gauss, mean_square, percentile

REACH = 3.0  # px, standard deviation of the area over which images are compared
FLOOR = 4.0  # levels², a negligible difference
FINE = 2.0  # px; contrast is measured on detail finer than this
THIRD = 100 / 3  # per cent of the pixels; the lowest and the highest third stand for low and high contrast
FAR = 1e9  # marks excluded pixels
STEEPNESS = 3  # of the fall of support
STRUCTURE = 5.0  # px, scale of structure
LOSS = 0.04  # share of its structure that any place may lose
NOISE_LOSS = 0.6  # additional share where all of the structure is flicker
NOISE_STEEPNESS = 6
STEADYING = 20.0  # levels², stabilises ratios of small powers


def misfit(own: Array, copy: Array, reach: float = REACH) -> Array:
    """Return the mean squared difference of two images around each pixel, levels² [H, W, 1]."""
    return gauss(mean_square(own - copy), reach)


def flicker_line(own: Array, differences: Array, reach: float = REACH) -> Array:
    """Fit a line to the logarithms of misfit and contrast, which shows how flicker grows with contrast.

    Medians make it robust against misfits that cover less than about half of the frame.

    Args:
        own: The image, float32 [H, W, 3].
        differences: `misfit` of the image and a warped neighbour, [H, W, 1].
        reach: That of the misfit, in pixels.

    Returns:
        Slope and intercept, float32 [1, 1, 2].
    """
    xp = array_namespace(own)
    contrast, level = _log_contrast(own, reach), xp.log(differences + FLOOR)
    low = contrast <= percentile(contrast, THIRD)
    high = contrast >= percentile(contrast, 100 - THIRD)
    # The median of a third is the first sixth of all values once the other two thirds are set to FAR.
    (x0, y0), (x1, y1) = (
        [percentile(xp.where(part, values, FAR), THIRD / 2) for values in (contrast, level)] for part in (low, high)
    )
    slope = xp.clip((y1 - y0) / (x1 - x0 + 1e-3), 0, 1)
    return xp.concat([slope, percentile(level - slope * contrast, 50)], axis=-1)


def flicker_level(own: Array, line: Array, reach: float = REACH) -> Array:
    """Return the misfit to expect from flicker at each pixel, levels² [H, W, 1], by a `flicker_line`."""
    return array_namespace(own).exp(line[..., 1:] + line[..., :1] * _log_contrast(own, reach))


def support(differences: Array, level: Array, tolerance: float) -> Array:
    """Weigh a warped neighbour by its misfit: 0..1, ½ at `tolerance` times the level of flicker; [H, W, 1]."""
    return 1 / (1 + (differences / (tolerance * level)) ** STEEPNESS)


def keep_structure(own: Array, smooth: Array, level: Array) -> Array:
    """Blend `smooth` back towards `own` where it lost structure, float32 [H, W, 3].

    Structure means detail finer than STRUCTURE; light stays that of `smooth`. The loss is the power of the change as a
    share of the power of both images: one minus the structure term of SSIM (Wang et al. 2004). The larger the share of
    flicker in it, by `level`, the more may be lost.
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
