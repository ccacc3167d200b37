"""Smoothing with torch gives the CPU's results, and its tensors stay on the GPU."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch._inductor import config
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.kernels import count_kernels, simulated_gpu
from native import binding
from stages.models import compiler
from stages.smoothers import SMOOTHERS, build, frames_on_device
from stages.smoothers.images import gpu, keyframes, pixels
from stages.smoothers.images.keyframes import Interpolator
from tests.stages.smoothers.scenes import HEIGHT, SPEED, WIDTH, Scene, scene, squared_error
from tests.typing import Floats, Image, Images

CPU = torch.device("cpu")
KERNELS_PER_FRAME = 210  # of 32×32 pixels, in a window of 3 frames to each side
ON_GPU = [name for name, options in SMOOTHERS.built_in.items() if options.on_gpu]
OPERATIONS: dict[str, Callable[[pixels.Array], pixels.Array]] = {  # of arrays or tensors
    "box": lambda image: pixels.box(image, 5),
    "gauss": lambda image: pixels.gauss(image, 1.5),
    "gauss, wider than the image": lambda image: pixels.gauss(image, 30.0),
    "shrink": lambda image: pixels.shrink(image, 24, 32),
    "shrink, unevenly": lambda image: pixels.shrink(image, 29, 41),
    "enlarge": lambda image: pixels.enlarge(image, 150, 203),
    "percentile": lambda image: pixels.percentile(image[..., :1], 20),
    "halves": pixels.halves,
}


ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_A_GPU)])
def on_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Run GPU code on a GPU, or with torch on the CPU where there is none."""
    device = torch.device(request.param)
    monkeypatch.setattr("stages.models.weights.pick_gpu", lambda name: device if name == "cuda" else None)
    return device


@pytest.fixture(scope="module")
def image() -> Floats:
    return np.random.default_rng(0).uniform(0, 255, (96, 128, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def swimming() -> Scene:
    return scene("swimming")


def smooth_long(start: int, stop: int) -> Images:
    """Smooth frames of a video of three blocks, the last one incomplete."""
    video = scene("swimming", 20)
    guides, styles = (frames[:, :48, :64] for frames in (video.guides, video.styles))
    return build("PatchBlendSmoother", {"window": 2}, guides, styles, device="cuda").smooth(start, stop)


@cache
def smooth_whole(device: torch.device) -> Images:
    return smooth_long(0, 20)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_the_same_on_both(name: str, image: Floats) -> None:
    expected = OPERATIONS[name](image)
    found = OPERATIONS[name](torch.from_numpy(image))
    assert found.dtype == (torch.float16 if name == "halves" else torch.float32)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_stack_is_its_images(name: str, image: Floats) -> None:
    stack = torch.from_numpy(np.stack([image, 255 - image, image[::-1].copy()]))
    found = OPERATIONS[name](stack)
    for one, alone in zip(found, stack, strict=True):
        torch.testing.assert_close(one, OPERATIONS[name](alone), atol=1e-3, rtol=1e-5)


def test_stacks_are_broadcast() -> None:
    rng = np.random.default_rng(0)
    images, others = (rng.uniform(0, 255, (2, count, 24, 32, 3)).astype(np.float32) for count in (1, 3))
    found = pixels.each(images, lambda image, other: pixels.gauss(image - other, 1.0), others)
    assert found.shape == others.shape
    np.testing.assert_array_equal(found[1, 2], pixels.gauss(images[1, 0] - others[1, 2], 1.0))


@pytest.mark.parametrize("cubic", [False, True])
def test_warps_between_pixels_and_outside(cubic: bool, image: Floats) -> None:
    smooth = pixels.gauss(image, 3.0)  # OpenCV's places are multiples of 1/32 px
    motion = np.random.default_rng(1).uniform(-30, 30, (*image.shape[:2], 2)).astype(np.float32)
    expected = pixels.warp(smooth, motion, cubic)
    found = pixels.warp(torch.from_numpy(smooth), torch.from_numpy(motion), cubic)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.6)
    assert np.abs(found.numpy() - expected).mean() < 0.1


@pytest.mark.parametrize("count", [1, 4, 5])
def test_medians_and_means_of_stacks(count: int, image: Floats) -> None:
    stacks = np.stack([image * share for share in np.linspace(1, 0.3, 2 * count, dtype=np.float32)])
    stacks = stacks.reshape(2, count, *image.shape)
    on_torch = torch.from_numpy(stacks)
    expected = np.median(stacks, axis=1, keepdims=True)
    for found in (pixels.median(stacks), pixels.median(on_torch).numpy()):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    expected = np.stack([np.average(stack, axis=0, weights=stack)[None] for stack in stacks])
    for found in (pixels.mean(stacks, stacks), pixels.mean(on_torch, on_torch).numpy()):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_bytes_are_rounded_and_clipped_as_on_the_processor() -> None:
    values = np.array([[[-3.0, 0.5, 1.5], [254.49, 254.5, 300.0]]], np.float32)
    np.testing.assert_array_equal(pixels.fetch(torch.from_numpy(values)), pixels.fetch(values))


@pytest.mark.parametrize("load", [np.asarray, partial(gpu.load, device=CPU)], ids=["processor", "torch"])
@pytest.mark.parametrize("frames", [1, 2, 6])
def test_flow_finds_what_moved(load: Callable[[Image], pixels.Array], frames: int, swimming: Scene) -> None:
    found = np.asarray(pixels.flow(load(swimming.guides[0]), load(swimming.guides[frames])))
    inner = found[12:-12, (2 + frames) * SPEED : -12] - (-frames * SPEED, 0)
    assert np.median(np.abs(inner)) < 0.1
    assert np.linalg.norm(inner, axis=2).mean() < (0.3 if frames < 6 else 1.5)


def test_stiff_flow_finds_small_shifts(swimming: Scene) -> None:
    a, b = (gpu.load(swimming.guides[0][:, first : first + 100], CPU) for first in (0, 1))
    found = pixels.flow(a, b, stiff=True)[12:-12, 12:-12]
    torch.testing.assert_close(found.mean((0, 1)), torch.tensor([-1.0, 0.0]), atol=0.2, rtol=0)


def test_stiff_flow_is_not_led_by_noise(swimming: Scene) -> None:
    rng = np.random.default_rng(0)
    still = [swimming.guides[0] / 8 + 100 + rng.normal(0, 6, swimming.guides[0].shape) for _ in range(2)]
    a, b = (gpu.load(np.clip(image, 0, 255).astype(np.uint8), CPU) for image in still)
    loose, stiff = (float(pixels.flow(a, b, stiff).norm(dim=-1).mean()) for stiff in (False, True))
    assert stiff < 0.5 * loose


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_GPU)
def test_smoothers_do_what_they_do_on_the_processor(name: str, swimming: Scene, on_torch: torch.device) -> None:
    errors = []
    for device in ("cpu", "cuda"):
        smoothed = build(name, {}, swimming.guides, swimming.styles, device=device).smooth(0, 12)
        assert smoothed.dtype == np.uint8
        errors.append(squared_error(smoothed, swimming.truth))
    assert errors[1] < 1.15 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "pixels_at_once"), [("PIXELS_AT_ONCE", 4 * 48 * 64), ("PIXELS_TRACKED_AT_ONCE", 7 * 48 * 64)]
)
def test_memory_may_be_bounded_otherwise(
    setting: str, pixels_at_once: int, on_torch: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, setting, pixels_at_once)
    off = np.abs(smooth_long(0, 8).astype(int) - smooth_whole(on_torch)[:8])
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # rounding


@pytest.mark.slow
def test_smoothing_is_compiled_if_asked(
    swimming: Scene, on_torch: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_torch.type == "cpu":
        monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)  # captured only: the rest takes minutes
    real, made = compiler.compiled, []

    def compiled(
        function: Callable[..., torch.Tensor], arguments: Sequence[torch.Tensor | float]
    ) -> Callable[..., torch.Tensor]:
        made.append(function.__name__)
        return real(function, arguments)

    monkeypatch.setattr(gpu, "compiled", compiled)
    guides, styles = (frames[:11, :16, :24] for frames in (swimming.guides, swimming.styles))
    eager, fused = (
        build("PatchBlendSmoother", {"window": 2}, guides, styles, device="cuda", compiled=asked)
        for asked in (False, True)
    )
    expected = eager.smooth(0, 11).astype(int)
    assert not made
    with config.patch({"triton.cudagraphs": on_torch.type == "cuda"}):
        off = np.abs(fused.smooth(0, 11) - expected)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3
    shapes = Counter(made)  # of a block of eight frames and one of three
    assert shapes.pop("_links") == 1 and set(shapes.values()) == {2} and len(shapes) == 8


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
def test_compiled_flow_is_the_same_but_for_rounding(swimming: Scene) -> None:
    here, there = (torch.from_numpy(swimming.guides[index][:12, :12].copy())[None] for index in (0, 1))
    found = pixels.fuse(here, lambda a, b: pixels.flow(a, b))(here, there)
    torch.testing.assert_close(found, pixels.flow(here, there), atol=1e-3, rtol=0)


@pytest.mark.parametrize("first", [3, 11, 17])
def test_chunks_do_not_change_the_result(first: int, on_torch: torch.device) -> None:
    np.testing.assert_array_equal(smooth_long(first, first + 2), smooth_whole(on_torch)[first : first + 2])


def test_frames_between_keyframes_are_painted_as_on_the_processor(swimming: Scene, on_torch: torch.device) -> None:
    keys, errors = [0, 6, 11], []
    for device in ("cpu", "cuda"):
        guides, keyframes = (frames_on_device(frames, device) for frames in (swimming.guides, swimming.truth[keys]))
        frames, _ = zip(*Interpolator(guides, keyframes, keys).paint(range(12)), strict=True)
        errors.append(squared_error(np.stack(frames), swimming.truth))
    assert max(errors) < 4  # frames that stood still would have hundreds


@pytest.fixture
def no_gpu_needed() -> Iterator[None]:
    with simulated_gpu():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_GPU)
def test_nothing_leaves_the_gpu_but_finished_frames(
    name: str, no_gpu_needed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, fetched, matched = torch.device("cuda:0"), [], []

    def fetch(image: FakeTensor) -> np.ndarray:
        assert image.device == cuda
        fetched.append(tuple(image.shape))
        return np.zeros(image.shape, np.uint8)

    def match(source: torch.Tensor, target: torch.Tensor, *, nnf: torch.Tensor, **options: object) -> binding.Fields:
        assert {array.device for array in (source, target, nnf)} == {cuda} and "backend" not in options
        matched.append(tuple(nnf.shape))
        return binding.Fields(torch.empty_like(nnf), None)

    monkeypatch.setattr(binding, "match", match)
    pixels.fetch.register(FakeTensor, fetch)
    frames = np.zeros((9, HEIGHT, WIDTH, 3), np.uint8)
    smoothed = build(name, {}, frames, frames, device="cuda").smooth(0, 9)
    assert smoothed.shape == frames.shape
    assert fetched == [(8, HEIGHT, WIDTH, 3), (1, HEIGHT, WIDTH, 3)]
    assert matched == [(8 * 6, HEIGHT, WIDTH, 2), (6, HEIGHT, WIDTH, 2)]


@pytest.mark.slow
def test_keyframes_are_repainted_several_at_once_on_the_gpu(
    no_gpu_needed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, painted = torch.device("cuda:0"), []

    def synthesize(style: torch.Tensor, *guides: torch.Tensor, **options: object) -> binding.Synthesis:
        assert {array.device for array in (style, *guides)} == {cuda} and "backend" not in options
        painted.append(tuple(style.shape))
        return binding.Synthesis(
            torch.empty_like(style), style.new_empty((*style.shape[:3], 2), dtype=torch.int32), None
        )

    monkeypatch.setattr(binding, "synthesize", synthesize)
    monkeypatch.setattr(keyframes, "_share", lambda pixels: 0.5)  # simulated pixels have no values
    guides, styles = (frames_on_device(np.zeros((7, 16, 16, 3), np.uint8), "cuda") for _ in range(2))
    frames = [*Interpolator(guides, styles, [0, 5]).paint(range(7))]
    assert len(frames) == 7 and painted == [(8, 16, 16, 3), (1, 16, 16, 3)]


@pytest.mark.slow
def test_a_frame_is_few_kernels_and_a_block_waits_once() -> None:
    counted = count_kernels(32, 32, window=3, frames=8)
    assert counted.kernels.total() / 8 < KERNELS_PER_FRAME, counted.kernels.most_common()
    assert counted.waits.total() == 1, counted.waits  # the finished block is copied back
