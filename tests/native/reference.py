"""A plain implementation of native/include/ebsynth.h, against which the patch-matching library is tested.

It uses Python integers and loops over pixels, for images of about 14 x 12, and takes the arguments of the numba port.
Back ends must match `synthesize`, `match` and `remap` bit for bit, so these also implement the fixed-point weights, the
random numbers and the order in which pixels are updated. `patch_error` is the definition alone, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Place = tuple[int, int]  # row, column
Images = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # styles and guides, source before target

BITS32 = 0xFFFFFFFF


def patch_error(
    source_guide: np.ndarray, target_guide: np.ndarray, source_style: np.ndarray | None,
    target_style: np.ndarray | None, nnf: np.ndarray, *, style_weight: float, guide_weight: float, patch_size: int,
    border: str = "repeat",
) -> np.ndarray:  # fmt: skip
    """Over the patch and over channels, the sum of weight * (target - source)^2: float64 [B, H, W]."""
    kinds = [(source_guide, target_guide, guide_weight)]
    if source_style is not None and target_style is not None:
        kinds.append((source_style, target_style, style_weight))
    radius, error = patch_size // 2, np.zeros(nnf.shape[:3])
    for item, y, x in np.ndindex(error.shape):
        row, column = inside(nnf[item, y, x], source_guide.shape[1:3])
        for source, target, weight in kinds:
            for dy, dx in around(radius):
                a = pixel(target[item], y + dy, x + dx, border)
                b = pixel(source[item], row + dy, column + dx, border)
                for c in range(len(a)):
                    error[item, y, x] += weight / len(a) * (int(a[c]) - int(b[c])) ** 2
    return error


def remap(source: np.ndarray, nnf: np.ndarray, *, patch_size: int, border: str = "repeat") -> np.ndarray:
    """Each target pixel is the mean of the patches that cover it, rounded to the nearest, ties up."""
    image = np.zeros((*nnf.shape[:3], source.shape[3]), np.uint8)
    for item in range(len(nnf)):
        height, width = nnf.shape[1:3]
        field = {(y, x): inside(nnf[item, y, x], source.shape[1:3]) for y in range(height) for x in range(width)}
        image[item] = vote(source[item], field, image.shape[1:3], patch_size, dict.fromkeys(field, 1), border)
    return image


def usage(field: dict[Place, Place], source_shape: tuple[int, int], patch: int) -> np.ndarray:
    """Over the patch around each source pixel, the sum of how many patches of the field cover a pixel: int64 [H, W]."""
    radius, covered, used = patch // 2, np.zeros(source_shape, np.int64), np.zeros(source_shape, np.int64)
    for row, column in field.values():
        covered[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1] += 1
    wide = bordered(covered, radius)
    for y, x in np.ndindex(source_shape):
        used[y, x] = wide[y : y + patch, x : x + patch].sum()
    return used


def halve(image: np.ndarray) -> np.ndarray:
    """[H, W, C] half as large: the mean of 2 x 2 pixels, rounded, ties up; an odd last row or column is left out."""
    height, width, channels = image.shape
    half = np.zeros((max(1, height // 2), max(1, width // 2), channels), np.uint8)
    for y, x, c in np.ndindex(half.shape):
        half[y, x, c] = (sum(int(pixel(image, 2 * y + dy, 2 * x + dx)[c]) for dy in (0, 1) for dx in (0, 1)) + 2) // 4
    return half


def halved(images: Images, modulation: np.ndarray | None, levels: int) -> list[tuple[Images, np.ndarray | None]]:
    """The images and the modulation at each level."""
    pyramid = [(images, modulation)]
    while len(pyramid) < levels:
        (a, b, c, d), factors = pyramid[-1]
        pyramid.append(((halve(a), halve(b), halve(c), halve(d)), None if factors is None else halve(factors)))
    return pyramid


def synthesize(
    source_style: np.ndarray, source_guides: np.ndarray, target_guides: np.ndarray, modulation: np.ndarray | None,
    style_weights: np.ndarray, guide_weights: np.ndarray, *, uniformity: float, patch_size: int, pyramid_levels: int,
    search_vote_iterations: int, patch_match_iterations: int, stop_threshold: int, weighted_vote: bool,
    extra_pass_3x3: bool, seed: int, progress: object = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Guided synthesis: image, field and error. Does not call progress."""
    problem = Problem(
        weights=[float(weight) for weight in [*style_weights, *guide_weights]],
        levels=levels(source_guides, target_guides, patch_size, pyramid_levels),
        patches=[patch_size] * search_vote_iterations,
        patch=patch_size,
        sweeps=patch_match_iterations,
        start="random",
        seed=seed,
        uniformity=float(np.float32(uniformity)),
        threshold=stop_threshold,
        weighted_vote=weighted_vote,
        extra_pass=extra_pass_3x3,
    )
    batch, height, width = target_guides.shape[:3]
    image = np.zeros((batch, height, width, source_style.shape[3]), np.uint8)
    nnf, error = np.zeros((batch, height, width, 2), np.int32), np.zeros((batch, height, width), np.float32)
    for item in range(batch):
        modulated = None if modulation is None or not modulation.shape[3] else modulation[item]
        guides = source_guides[item], target_guides[item], modulated
        image[item], nnf[item], error[item] = solve(problem, source_style[item], None, *guides, None)
    return image, nnf, error


def match(
    source_guide: np.ndarray, target_guide: np.ndarray, source_style: np.ndarray | None,
    target_style: np.ndarray | None, *, style_weight: float, guide_weight: float, patch_sizes: Sequence[int],
    pyramid_levels: int, patch_match_iterations: int, search_radius: int, start: str, nnf: np.ndarray | None,
    seed: int, border: str = "repeat", progress: object = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Nearest-neighbour fields and their error. Does not call progress."""
    if source_style is None:
        source_style, target_style = source_guide[..., :0], target_guide[..., :0]
    weights: list[float] = []
    for weight, channels in ((style_weight, source_style.shape[3]), (guide_weight, source_guide.shape[3])):
        weights += [float(np.float32(weight)) / channels] * channels if channels else []
    problem = Problem(
        weights=weights,
        levels=levels(source_guide, target_guide, max(patch_sizes), pyramid_levels),
        patches=list(patch_sizes),
        patch=patch_sizes[0],
        sweeps=patch_match_iterations,
        start=start,
        seed=seed,
        radius=search_radius,
        border=border,
    )
    batch, height, width = target_guide.shape[:3]
    out, error = np.zeros((batch, height, width, 2), np.int32), np.zeros((batch, height, width), np.float32)
    for item in range(batch):
        styles = source_style[item], None if target_style is None else target_style[item]
        guides = source_guide[item], target_guide[item]
        given = None if nnf is None else nnf[item]
        _, out[item], error[item] = solve(problem, *styles, *guides, modulation=None, nnf=given)
    return out, error


@dataclass
class Problem:
    """The parameters of a call, without its images."""

    weights: list[float]
    levels: int
    patches: list[int]  # of each round, at every level
    patch: int  # of the first vote, and of the errors where there are no rounds
    sweeps: int
    start: str
    seed: int
    radius: int = 0
    uniformity: float = 0.0
    threshold: int = 0
    weighted_vote: bool = False
    extra_pass: bool = False
    border: str = "repeat"


def levels(source: np.ndarray, target: np.ndarray, patch: int, wanted: int) -> int:
    """The most levels, at least one, whose sides are 2 * patch + 1 or longer; at most `wanted` unless that is 0."""
    side, most = min(source.shape[1:3] + target.shape[1:3]), 1
    while side >> most >= 2 * patch + 1:
        most += 1
    return min(most, wanted or most)


def solve(
    problem: Problem, source_style: np.ndarray, target_style: np.ndarray | None, source_guides: np.ndarray,
    target_guides: np.ndarray, modulation: np.ndarray | None, nnf: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """One item of a batch: style [H, W, S], field [H, W, 2], float32 error [H, W]. Images are [H, W, C]."""
    total = 0.0
    for weight in problem.weights:
        total += weight
    scale = 2.0**28 / total
    divisor = 1 if modulation is None else 255
    weights = [int(weight * scale / divisor + 0.5) for weight in problem.weights]
    painted = target_style is None
    if target_style is None:
        target_style = np.zeros((*target_guides.shape[:2], source_style.shape[2]), np.uint8)
    if modulation is not None:  # styles are not modulated
        modulation = np.concatenate([np.full((*modulation.shape[:2], source_style.shape[2]), 255), modulation], axis=2)
    pyramid = halved((source_style, target_style, source_guides, target_guides), modulation, problem.levels)
    field: dict[Place, Place] = {}
    last_patch = problem.patch
    for level in reversed(range(problem.levels)):
        (source_style, style, source_guides, target_guides), modulation = pyramid[level]
        source_size, target_size = source_guides.shape[:2], target_guides.shape[:2]
        key = mix2(mix2(problem.seed & BITS32, problem.seed >> 32), level)
        if level == problem.levels - 1:
            field = start_field(problem.start, source_size, target_size, key, nnf, level)
        else:
            field = doubled(field, source_size, target_size)
        if painted:
            style = vote(source_style, field, target_size, problem.patch, dict.fromkeys(field, 1), problem.border)
        source, active, sweep = np.concatenate([source_style, source_guides], axis=2), set(field), 0
        extra, shrink = problem.extra_pass and level == 0, 4 if level == 0 else 2
        for number, patch in enumerate(problem.patches + [3] * extra):
            uniform = problem.uniformity > 0 and number < len(problem.patches)
            if number == len(problem.patches):
                active = set(field)
            target = np.concatenate([style, target_guides], axis=2)
            measure = Measure(source, target, modulation, weights, patch, problem.border)
            cost = usage_cost(problem.uniformity, scale, patch, source_size, target_size) if uniform else 0
            for _ in range(problem.sweeps):
                search(field, measure, active, problem.radius, shrink, uniform, cost, sweep, mix2(key, sweep))
                sweep += 1
            if painted:
                error = {t: measure(t, s) for t, s in field.items()}
                vote_weights = {
                    t: vote_weight(e, scale * patch * patch * len(weights)) if problem.weighted_vote else 1
                    for t, e in error.items()
                }
                before, style = style, vote(source_style, field, target_size, patch, vote_weights, problem.border)
                if problem.threshold > 0:
                    active = near_changes(before, style, problem.threshold, patch)
            last_patch = patch

    out, error_out = np.zeros((*target_size, 2), np.int32), np.zeros(target_size, np.float32)
    target = np.concatenate([style, target_guides], axis=2)
    measure = Measure(source, target, modulation, weights, last_patch, problem.border)
    for place, entry in field.items():
        out[place], error_out[place] = entry, np.float32(float(measure(place, entry)) * (1.0 / scale))
    return style, out, error_out


def start_field(
    start: str, source: Place, target: Place, key: int, nnf: np.ndarray | None, level: int
) -> dict[Place, Place]:
    """The field of the coarsest level."""
    field = {}
    for y, x in np.ndindex(target):
        if start == "random":
            bits = mix2(key, y * target[1] + x)
            field[y, x] = pick(bits >> 16, 0, source[0] - 1), pick(bits & 0xFFFF, 0, source[1] - 1)
        elif start == "given":
            assert nnf is not None
            row, column = nnf[min(y << level, nnf.shape[0] - 1), min(x << level, nnf.shape[1] - 1)]
            field[y, x] = inside((int(row) >> level, int(column) >> level), source)
        else:
            field[y, x] = y * source[0] // target[0], x * source[1] // target[1]
    return field


def doubled(coarse: dict[Place, Place], source: Place, target: Place) -> dict[Place, Place]:
    """The field of a level from the next coarser one."""
    last_y, last_x = max(coarse)
    field = {}
    for y, x in np.ndindex(target):
        row, column = coarse[min(y // 2, last_y), min(x // 2, last_x)]
        field[y, x] = inside((2 * row + y % 2, 2 * column + x % 2), source)
    return field


class Measure:
    """The exact patch error between a target and a source pixel, in fixed-point numbers. Images are [H, W, C]."""

    def __init__(
        self, source: np.ndarray, target: np.ndarray, modulation: np.ndarray | None, weights: list[int], patch: int,
        border: str,
    ) -> None:  # fmt: skip
        self.patch, self.size = patch, source.shape[:2]
        self.source, self.target = (bordered(image, patch // 2, border) for image in (source, target))
        self.weights = np.array(weights, np.int64)  # of each pixel of the target, where they are modulated
        if modulation is not None:
            self.weights = self.weights * bordered(modulation, patch // 2)

    def __call__(self, t: Place, s: Place) -> int:
        patch = self.patch
        at = slice(t[0], t[0] + patch), slice(t[1], t[1] + patch)
        difference = self.target[at] - self.source[s[0] : s[0] + patch, s[1] : s[1] + patch]
        weights = self.weights[at] if self.weights.ndim == 3 else self.weights
        return int((weights * difference * difference).sum())


def search(
    field: dict[Place, Place], measure: Measure, active: set[Place], radius: int, shrink: int, uniform: bool,
    usage_unit: int, sweep: int, key: int,
) -> None:  # fmt: skip
    """One sweep of PatchMatch: update the pixels of every fourth tile, then those of the next fourth, and so on."""
    (height, width), (last_y, last_x) = measure.size, max(field)
    reach_at_first = min(radius, max(height, width)) if radius else max(height, width)
    step = 1 if sweep % 2 == 0 else -1
    for colour in range(4):
        used = usage(field, measure.size, measure.patch) if uniform else np.zeros(measure.size, np.int64)

        def cost(t: Place, s: Place, used: np.ndarray = used) -> int:
            return measure(t, s) + usage_unit * min(int(used[s]), BITS32)

        for tile in tiles(last_y + 1, last_x + 1, 4 if sweep % 4 >= 2 else 0, colour):
            chosen = [place for place in tile[::step] if place in active]
            for y, x in chosen:
                best, best_cost = field[y, x], cost((y, x), field[y, x])
                candidates = []
                if (y, x - step) in tile:
                    row, column = field[y, x - step]
                    candidates.append((row, column + step))
                if (y - step, x) in tile:
                    row, column = field[y - step, x]
                    candidates.append((row + step, column))
                best, best_cost = cheapest(best, best_cost, candidates, cost, (y, x), (height, width))
                candidates, reach, (row, column) = [], reach_at_first, best
                bits = mix2(key, y * (last_x + 1) + x)
                while reach >= 1:
                    bits = mix(bits)
                    some_row = pick(bits >> 16, max(row - reach, 0), min(row + reach, height - 1))
                    some_column = pick(bits & 0xFFFF, max(column - reach, 0), min(column + reach, width - 1))
                    candidates.append((some_row, some_column))
                    reach //= shrink
                field[y, x], _ = cheapest(best, best_cost, candidates, cost, (y, x), (height, width))


def cheapest(
    best: Place, best_cost: int, candidates: list[Place], cost: Callable[[Place, Place], int], t: Place, size: Place
) -> tuple[Place, int]:
    """The first of the cheapest entries, and its cost; candidates outside the source do not count."""
    for candidate in candidates:
        if candidate == inside(candidate, size) and (found := cost(t, candidate)) < best_cost:
            best, best_cost = candidate, found
    return best, best_cost


def tiles(height: int, width: int, shift: int, colour: int) -> Iterator[list[Place]]:
    """The pixels, row by row, of each tile of a colour: 8 x 8, the first of them `shift` less."""
    for tile_y in range((height + shift + 7) // 8):
        for tile_x in range((width + shift + 7) // 8):
            if tile_y % 2 * 2 + (tile_x + tile_y) % 2 == colour:
                rows, columns = range(8 * tile_y - shift, 8 * tile_y - shift + 8), range(8)
                places = [(y, 8 * tile_x - shift + k) for y in rows for k in columns]
                yield [(y, x) for y, x in places if 0 <= y < height and 0 <= x < width]


def usage_cost(uniformity: float, scale: float, patch: int, source: Place, target: Place) -> int:
    """What a unit of usage costs, as a fixed-point number: uniformity / (patch^2 * w)."""
    area = float(patch * patch)
    even = float(target[0] * target[1]) / float(source[0] * source[1]) * area
    return int(min(uniformity * scale / (area * even) + 0.5, 2.0**30))


def vote_weight(error: int, unit: float) -> int:
    """2^20 / (1 + error per value), at least 1; `unit` is an error per value of 1."""
    while unit > 2.0**40:
        unit, error = unit / 2, error >> 1
    whole = max(1, int(unit))
    return max(1, (whole << 20) // (whole + error))


def vote(
    source: np.ndarray, field: dict[Place, Place], size: Place, patch: int, weights: dict[Place, int], border: str
) -> np.ndarray:
    """Each pixel is the weighted mean of the patches that cover it, rounded to the nearest, ties up. [H, W, C]."""
    image = np.zeros((*size, source.shape[2]), np.uint8)
    for y, x in np.ndindex(size):
        covering = [(y + dy, x + dx) for dy, dx in around(patch // 2) if (y + dy, x + dx) in field]
        count = sum(weights[t] for t in covering)
        places = [(field[t][0] + y - t[0], field[t][1] + x - t[1]) for t in covering]
        values = [(weights[t], pixel(source, *place, border)) for t, place in zip(covering, places, strict=True)]
        for c in range(source.shape[2]):
            image[y, x, c] = (2 * sum(weight * int(value[c]) for weight, value in values) + count) // (2 * count)
    return image


def near_changes(before: np.ndarray, after: np.ndarray, threshold: int, patch: int) -> set[Place]:
    """Pixels in whose patch any channel changed by at least the threshold."""
    near = set()
    for y, x, c in np.ndindex(after.shape):
        if abs(int(after[y, x, c]) - int(before[y, x, c])) >= threshold:
            near |= {(y + dy, x + dx) for dy, dx in around(patch // 2)}
    return {place for place in np.ndindex(after.shape[:2]) if place in near}


def mix(h: int) -> int:
    """32 random bits from 32 others."""
    h ^= h >> 16
    h = h * 0x7FEB352D & BITS32
    h ^= h >> 15
    h = h * 0x846CA68B & BITS32
    return h ^ h >> 16


def mix2(a: int, b: int) -> int:
    """32 random bits from two 32-bit numbers."""
    return mix(a + 0x9E3779B9 * (b + 1) & BITS32)


def pick(bits16: int, low: int, high: int) -> int:
    """One of low..high, from 16 random bits."""
    return low + (bits16 * (high - low + 1) >> 16)


def around(radius: int) -> list[Place]:
    """Offsets of a patch's pixels."""
    return [(dy, dx) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1)]


def inside(place: Sequence[int] | np.ndarray, size: Sequence[int]) -> Place:
    """The nearest pixel of an image."""
    return min(max(int(place[0]), 0), size[0] - 1), min(max(int(place[1]), 0), size[1] - 1)


def pixel(image: np.ndarray, y: int, x: int, border: str = "repeat") -> np.ndarray:
    """Of an image [H, W, ...] whose border repeats or is zero."""
    place = inside((y, x), image.shape)
    return image[place] if border == "repeat" or place == (y, x) else np.zeros_like(image[place])


def bordered(image: np.ndarray, width: int, border: str = "repeat") -> np.ndarray:
    """The image with a border of that width, repeated or zero, in int64."""
    rows, columns = (range(-width, n + width) for n in image.shape[:2])
    return np.array([[pixel(image, y, x, border) for x in columns] for y in rows]).astype(np.int64)
