"""Back ends compared with the definitions, with brute force and with each other."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from native import binding, library
from stages.video import fit
from stages.video.video_file import VideoFile
from tests.conftest import scene
from tests.native.conftest import HAS_CUDA, HAS_LIBRARY, backends, backends_but_cpu, every_backend
from tests.typing import Image, Keys

CLIP = Path(__file__).parents[3] / "shared" / "clips" / "cottonbro.mp4"  # real footage, where the makers have it
needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="no library was built")


def images(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth random images, uint8 [B, H, W, C]: noise alone has no structure to match."""
    noise = np.random.default_rng(seed).uniform(0, 255, shape)
    for axis in (1, 2):
        noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)) / 3
    return noise.astype(np.uint8)


def frames(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Two frames of a video, three apart, uint8 [1, 64, 120, 3] each."""
    if source == "scene":
        return tuple(scene(index, 64, 120)[None] + images(1, 64, 120, 3) // 8 for index in (0, 3))
    if not CLIP.exists():
        pytest.skip("the footage is not here")
    found = [fit(shot.image(), 64, 120) for shot in islice(VideoFile(CLIP).shots(), 4)]
    return found[0][None], found[3][None]


def patches(image: Image, size: int) -> NDArray[np.float64]:
    """The patch of every pixel with repeated borders, float64 [H * W, size * size * C]."""
    radius = size // 2
    padded = np.pad(image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
    rows: NDArray[np.float64] = windows.reshape(image.shape[0] * image.shape[1], -1)
    return rows


def defined_error(source: np.ndarray, target: np.ndarray, nnf: np.ndarray, size: int) -> np.ndarray:
    """Σ over the patch and channels of (target - source)² / channels, by definition, [H, W]."""
    place = nnf[..., 0].ravel() * source.shape[1] + nnf[..., 1].ravel()
    difference = patches(target, size) - patches(source, size)[place]
    return np.asarray((difference**2).sum(1).reshape(target.shape[:2]) / source.shape[2])


# -- against definitions -----------------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("size", [3, 7, 31])
def test_patch_error_is_what_its_definition_says(backend: str, size: int) -> None:
    source, target = images(2, 12, 17, 3), images(2, 20, 9, 3, seed=1)
    nnf = np.random.default_rng(2).integers(0, (12, 17), (2, 20, 9, 2)).astype(np.int32)
    error = binding.patch_error(source, target, nnf=nnf, patch_size=size, backend=backend)
    for item in range(2):
        expected = defined_error(source[item], target[item], nnf[item], size)
        np.testing.assert_allclose(error[item], expected, rtol=1e-5)


@every_backend
@pytest.mark.parametrize(("size", "channels"), [(3, 24), (21, 3), (31, 1)])
def test_patch_error_of_matches_that_lie_side_by_side(backend: str, size: int, channels: int) -> None:
    source, target = images(1, 9, 160, channels), images(1, 8, 150, channels, seed=1)
    y, x = np.mgrid[:8, :150]
    shift = np.where(x < 140, y, 2 * x)  # a long run in each row, and short ones
    nnf = np.stack([y, np.minimum(x + shift, 159)], axis=2)[None].astype(np.int32)
    error = binding.patch_error(source, target, nnf=nnf, patch_size=size, backend=backend)
    np.testing.assert_allclose(error[0], defined_error(source[0], target[0], nnf[0], size), rtol=1e-5)


@every_backend
def test_patch_error_weighs_style_and_guide(backend: str) -> None:
    guides = images(1, 9, 9, 2), images(1, 9, 9, 2, seed=1)
    styles = images(1, 9, 9, 4, seed=2), images(1, 9, 9, 4, seed=3)
    nnf = np.random.default_rng(4).integers(0, 9, (1, 9, 9, 2)).astype(np.int32)
    error = binding.patch_error(*guides, *styles, nnf=nnf, guide_weight=10, style_weight=0.5, backend=backend)
    expected = 10 * defined_error(guides[0][0], guides[1][0], nnf[0], 5)
    expected += 0.5 * defined_error(styles[0][0], styles[1][0], nnf[0], 5)
    np.testing.assert_allclose(error[0], expected, rtol=1e-5)


@every_backend
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("border", binding.BORDERS)
def test_remap_is_the_rounded_mean_of_the_patches_that_cover_a_pixel(backend: str, size: int, border: str) -> None:
    source = images(1, 10, 12, 3)
    nnf = np.random.default_rng(5).integers(0, (10, 12), (1, 8, 9, 2)).astype(np.int32)
    image = binding.remap(source, nnf, patch_size=size, border=border, backend=backend)
    radius = size // 2
    for y, x in np.ndindex(8, 9):
        votes = []
        for ty, tx in np.ndindex(8, 9):
            if abs(ty - y) <= radius and abs(tx - x) <= radius:
                at = nnf[0, ty, tx] + (y - ty, x - tx)
                inner = np.clip(at, 0, (9, 11))
                is_zero = border == "zero" and (inner != at).any()
                votes.append(np.zeros(3) if is_zero else source[0, inner[0], inner[1]])
        assert (image[0, y, x] == np.floor(np.mean(votes, axis=0) + 0.5)).all()


@every_backend
def test_entries_outside_the_source_are_clamped(backend: str) -> None:
    source = images(1, 6, 7, 3)
    wild = np.array([[-5, -9], [100, 3], [2, 2**30]], np.int32).reshape(1, 1, 3, 2)
    image = binding.remap(source, wild, backend=backend)
    assert (image[0, 0] == source[0, [0, 5, 2], [0, 3, 6]]).all()


# -- how good ----------------------------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize(("footage", "most"), [("scene", 1.1), ("clip", 1.05)])  # the scene is flat, with noise: hard
def test_fields_come_near_the_exact_optimum(backend: str, footage: str, most: float) -> None:
    source, target = frames(footage)
    found = binding.match(source, target, patch_match_iterations=8, backend=backend)
    keys, queries = patches(source[0], 5), patches(target[0], 5)
    norms = (keys**2).sum(1)
    best = np.concatenate([(norms - 2 * part @ keys.T).min(1) for part in np.array_split(queries, 16)])
    optimum = ((queries**2).sum(1) + best).mean() / 3
    assert found.error.mean() <= most * optimum
    np.testing.assert_allclose(found.error[0], defined_error(source[0], target[0], found.nnf[0], 5), rtol=1e-5)


@every_backend
def test_a_shifted_image_is_found_again(backend: str) -> None:
    whole = images(1, 48, 60, 3)
    source, target = np.ascontiguousarray(whole[:, 4:44, :50]), np.ascontiguousarray(whole[:, :40, 10:])
    nnf = binding.match(source, target, start="identity", patch_sizes=[9, 5], backend=backend).nnf[0]
    y, x = np.mgrid[8:32, 4:36]
    assert (nnf[8:32, 4:36] == np.stack([y - 4, x + 10], 2)).mean() > 0.95


@every_backend
def test_synthesis_paints_a_style_onto_its_own_guides(backend: str) -> None:
    style, guide = images(1, 40, 44, 3), images(1, 40, 44, 1, seed=1)
    painted = binding.synthesize(style, guide, guide, guide_weights=[100.0], backend=backend)
    assert np.abs(painted.image.astype(int) - style).mean() < 2
    expected = defined_error(style[0], painted.image[0], painted.nnf[0], 5)
    expected += 100 * defined_error(guide[0], guide[0], painted.nnf[0], 5)
    np.testing.assert_allclose(painted.error[0], expected, rtol=1e-4, atol=0.01)


@every_backend
def test_uniformity_uses_more_of_the_source(backend: str) -> None:
    style, source, target = images(1, 40, 40, 3), images(1, 40, 40, 1, seed=1), images(1, 40, 40, 1, seed=2)

    def used(uniformity: float) -> int:
        nnf = binding.synthesize(style, source, target, uniformity=uniformity, backend=backend).nnf
        return len(np.unique(nnf.reshape(-1, 2), axis=0))

    assert used(20000) > 1.2 * used(0)


# -- the same answer everywhere ----------------------------------------------------------------------------------------

OPTIONS: dict[str, Keys] = {
    "defaults": {},
    "patch 7": {"patch_size": 7},
    "not uniform": {"uniformity": 0.0},
    "search all": {"stop_threshold": 0},
    "weighted vote": {"weighted_vote": True},
    "extra pass": {"extra_pass_3x3": True},
    "one level": {"pyramid_levels": 1},
    "no search": {"search_vote_iterations": 0},
    "no sweeps": {"patch_match_iterations": 0},
    "seed": {"seed": 2**64 - 1},
    "weights": {"style_weights": [0.2, 0.5, 0.2], "guide_weights": [0.0, 3.0, 0.1, 3.0]},
    "modulation": {"modulation": images(1, 26, 31, 4, seed=9)},
    "all": {"weighted_vote": True, "extra_pass_3x3": True, "modulation": images(1, 26, 31, 4, seed=9), "patch_size": 3},
}


@needs_library
@backends_but_cpu
@pytest.mark.parametrize("name", OPTIONS)
def test_back_ends_agree_on_syntheses(backend: str, name: str) -> None:
    style, source, target = images(1, 29, 24, 3), images(1, 29, 24, 4, seed=1), images(1, 26, 31, 4, seed=2)
    ours = binding.synthesize(style, source, target, backend="cpu", **OPTIONS[name])
    theirs = binding.synthesize(style, source, target, backend=backend, **OPTIONS[name])
    for one, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
@backends_but_cpu
@pytest.mark.parametrize("source", [(1, 1), (20, 2), (3, 30)])
def test_back_ends_agree_on_sources_narrower_than_a_patch(backend: str, source: tuple[int, int]) -> None:
    style, from_, to = images(1, *source, 3), images(1, *source, 1, seed=1), images(1, 20, 22, 1, seed=2)
    ours = binding.synthesize(style, from_, to, patch_size=9, backend="cpu")
    theirs = binding.synthesize(style, from_, to, patch_size=9, backend=backend)
    for one, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
@backends_but_cpu
@pytest.mark.parametrize("styles", ["none", "given", "painted"])
@pytest.mark.parametrize("start", binding.STARTS)
@pytest.mark.parametrize("border", binding.BORDERS)
def test_back_ends_agree_on_fields(backend: str, styles: str, start: str, border: str) -> None:
    guides = images(2, 20, 23, 3), images(2, 19, 25, 3, seed=1)
    style = {"none": (None, None), "given": (images(2, 20, 23, 2, seed=2), images(2, 19, 25, 2, seed=3))}.get(
        styles, (images(2, 20, 23, 2, seed=2), None)
    )
    nnf = np.random.default_rng(3).integers(0, 19, (2, 19, 25, 2)).astype(np.int32) if start == "given" else None
    options: Keys = {
        "start": start,
        "nnf": nnf,
        "patch_sizes": [9, 5, 3],
        "search_radius": 6,
        "guide_weight": 10.0,
        "border": border,
    }
    ours = binding.match(*guides, *style, backend="cpu", **options)
    theirs = binding.match(*guides, *style, backend=backend, **options)
    np.testing.assert_array_equal(ours.nnf, theirs.nnf)
    np.testing.assert_array_equal(ours.error, theirs.error)


@backends("cpu", "numba")
def test_threads_and_repetition_change_nothing(backend: str) -> None:
    style, source, target = images(1, 120, 100, 3), images(1, 120, 100, 3, seed=1), images(1, 110, 130, 3, seed=2)
    first = binding.synthesize(style, source, target, backend=backend, threads=1)
    for threads in (1, 2, 4):
        again = binding.synthesize(style, source, target, backend=backend, threads=threads)
        for one, other in zip(vars(first).values(), vars(again).values(), strict=True):
            np.testing.assert_array_equal(one, other)


@every_backend
def test_a_pair_does_not_depend_on_its_batch(backend: str) -> None:
    sources, targets = images(3, 30, 30, 3), images(3, 30, 30, 3, seed=1)
    together = binding.match(sources, targets, backend=backend)
    assert np.abs(together.error - binding.patch_error(sources, targets, nnf=together.nnf)).max() == 0
    alone = binding.match(sources[2:], targets[2:], backend=backend)
    np.testing.assert_array_equal(together.nnf[2:], alone.nnf)
    painted = binding.synthesize(sources, sources, targets, search_vote_iterations=2, backend=backend)
    alone_painted = binding.synthesize(
        sources[1:2], sources[1:2], targets[1:2], search_vote_iterations=2, backend=backend
    )
    np.testing.assert_array_equal(painted.image[1:2], alone_painted.image)


# -- odd shapes and wrong arguments ------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("source", [(1, 1), (2, 3), (1, 40), (25, 7)])
@pytest.mark.parametrize("target", [(1, 1), (4, 2), (33, 1)])
def test_images_of_few_pixels_are_synthesized(backend: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    style, from_, to = images(1, *source, 1), images(1, *source, 4, seed=1), images(1, *target, 4, seed=2)
    painted = binding.synthesize(style, from_, to, patch_size=5, backend=backend)
    assert painted.image.shape == (1, *target, 1)
    assert (painted.nnf >= 0).all() and (painted.nnf < source).all()


@every_backend
def test_an_empty_batch_is_no_work(backend: str) -> None:
    nothing = images(0, 8, 8, 3)
    assert binding.match(nothing, nothing, backend=backend).nnf.shape == (0, 8, 8, 2)
    assert binding.synthesize(nothing, nothing, nothing, backend=backend).image.shape == (0, 8, 8, 3)


@every_backend
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": 4}, "odd"),
        ({"patch_size": 33}, "3 to 31"),
        ({"uniformity": float("nan")}, "uniformity"),
        ({"guide_weights": [1.0]}, "guide_weights"),
        ({"guide_weights": [float("nan")] * 3}, "guide_weights"),
        ({"search_vote_iterations": -1}, "search_vote_iterations"),
        ({"modulation": images(1, 8, 9, 3)}, "modulation"),
    ],
)
def test_wrong_options_are_named(backend: str, wrong: Keys, message: str) -> None:
    image = images(1, 8, 8, 3)
    with pytest.raises(ValueError, match=message):
        binding.synthesize(image, image, image, backend=backend, **wrong)


@pytest.mark.parametrize(
    "wrong", [images(1, 8, 8, 3).astype(np.float32), images(8, 8, 3)[..., 0], images(1, 8, 16, 3)[:, :, ::2]]
)
def test_wrong_arrays_are_named(wrong: np.ndarray) -> None:
    image = images(1, 8, 8, 3)
    with pytest.raises(ValueError, match="target_guides must be C-contiguous uint8"):
        binding.synthesize(image, image, wrong)


@every_backend
def test_unknown_borders_are_refused(backend: str) -> None:
    image = images(1, 8, 8, 3)
    with pytest.raises(ValueError, match="unknown border 'wrap'"):
        binding.match(image, image, border="wrap", backend=backend)


@every_backend
def test_all_weights_zero_are_refused(backend: str) -> None:
    image = images(1, 8, 8, 3)
    with pytest.raises(ValueError, match="weights"):
        binding.match(image, image, guide_weight=0.0, backend=backend)


@every_backend
def test_progress_is_reported_and_can_cancel(backend: str) -> None:
    image = images(1, 30, 30, 3)
    shares: list[float] = []
    binding.synthesize(image, image, image, backend=backend, progress=shares.append)
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(shares) > 5

    def stop(share: float) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        binding.synthesize(image, image, image, backend=backend, progress=stop)


# -- the library file --------------------------------------------------------------------------------------------------


def test_a_missing_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EBSYNTH_LIBRARY", str(tmp_path / "none.so"))
    image = images(1, 8, 8, 3)
    with pytest.raises(binding.EbsynthError, match="make native"):
        binding.match(image, image, backend="cpu")
    assert binding.match(image, image).nnf.shape == (1, 8, 8, 2)  # auto goes on with numba


def test_a_file_that_is_no_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    monkeypatch.setenv("EBSYNTH_LIBRARY", str(tmp_path / "text.so"))
    with pytest.raises(binding.EbsynthError, match="make native"):
        binding.info()


@needs_library
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "VERSION", 2 << 16)
    library._load.cache_clear()
    with pytest.raises(binding.EbsynthError, match="version"):
        binding.info()
    library._load.cache_clear()


@pytest.mark.skipif(HAS_CUDA or not HAS_LIBRARY, reason="needs a library and no CUDA device")
def test_cuda_without_a_device_says_so() -> None:
    image = images(1, 8, 8, 3)
    with pytest.raises(binding.EbsynthError, match="cuda"):
        binding.match(image, image, backend="cuda")
