"""The CUDA back end on an emulated GPU: failures, other machines, several devices, ties between matches."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from native import arguments, binding
from native.library import _CONTEXTS
from stages.smoothers import build
from stages.smoothers.images import keyframes, library, pixels
from stages.smoothers.images.library import library_options
from tests.native.conftest import backends, forget_contexts
from tests.native.emulator import Emulator
from tests.native.test_binding import images
from tests.typing import Keys

TOO_OLD, NONE = 12000, 0  # versions of the driver


def match(backend: str = "cuda", device: int = 0) -> binding.Fields:
    """Match a small pair of images."""
    source, target = images(1, 12, 14, 3), images(1, 13, 11, 3, seed=1)
    return binding.match(source, target, patch_sizes=[3], backend=backend, device=device)


def paint(backend: str = "cuda") -> binding.Synthesis:
    """Paint a small image, with everything on that needs memory."""
    style, source, target = images(1, 15, 16, 3), images(1, 15, 16, 2, seed=1), images(1, 14, 17, 2, seed=2)
    return binding.synthesize(
        style, source, target, weighted_vote=True, backend=backend, search_vote_iterations=2, patch_match_iterations=1,
        patch_size=3,
    )  # fmt: skip


def test_the_emulated_library_counts_its_work(gpu: Emulator) -> None:
    before = gpu.counts.launches, gpu.counts.blocks, gpu.counts.exchanges
    match()
    assert gpu.counts.launches - before[0] >= 5
    assert gpu.counts.blocks > before[1] and gpu.counts.exchanges > before[2]


@backends("emulated")
@pytest.mark.parametrize("seed", range(4))
def test_of_equal_matches_all_back_ends_take_the_same(backend: str, seed: int) -> None:
    """Images of four values are full of ties."""
    source, target = images(1, 26, 30, 3, seed=seed) // 64 * 64, images(1, 24, 28, 3, seed=seed + 9) // 64 * 64
    fields = [
        binding.match(source, target, patch_sizes=[5, 3], search_radius=16, seed=seed, backend=name)
        for name in ("cpu", backend)
    ]
    np.testing.assert_array_equal(fields[0].nnf, fields[1].nnf)
    painted = [
        binding.synthesize(source, source, target, patch_size=3, search_vote_iterations=2, seed=seed, backend=name)
        for name in ("cpu", backend)
    ]
    np.testing.assert_array_equal(painted[0].nnf, painted[1].nnf)
    np.testing.assert_array_equal(painted[0].image, painted[1].image)


@backends("emulated")
@pytest.mark.parametrize("channels", [1, 5, 9, 17, 24])
@pytest.mark.parametrize("patch_size", [3, 21, 31])
def test_patches_of_any_size_and_depth_agree(backend: str, channels: int, patch_size: int) -> None:
    source, target = images(1, 11, 13, channels), images(1, 9, 10, channels, seed=1)
    fields = [
        binding.match(source, target, patch_sizes=[patch_size], patch_match_iterations=2, backend=name)
        for name in ("cpu", backend)
    ]
    np.testing.assert_array_equal(fields[0].nnf, fields[1].nnf)
    np.testing.assert_array_equal(fields[0].error, fields[1].error)


@backends("emulated")
def test_candidates_that_are_a_little_better_are_not_ruled_out(backend: str) -> None:
    """Patches of a ramp differ by a constant, so the lower bound of their error is the error itself."""
    ramp = np.arange(100, dtype=np.uint8)[None, None, :, None] + 2 * np.arange(24, dtype=np.uint8)[None, :, None, None]
    source, target = np.ascontiguousarray(ramp), np.ascontiguousarray(ramp[:, :, ::-1][:, :, 30:])[:, :, ::-1].copy()
    for iterations in (1, 2):
        fields = [
            binding.match(source, target, patch_sizes=[9], patch_match_iterations=iterations, backend=name)
            for name in ("cpu", backend)
        ]
        np.testing.assert_array_equal(fields[0].nnf, fields[1].nnf)


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "has_pools", "message", "least"),
    [
        ("allocations_left", True, "out of memory", 20),
        ("allocations_left", False, "out of memory", 20),
        ("calls_left", True, "unknown error", 100),
    ],
)
def test_whatever_fails_is_reported_and_all_memory_given_back(
    gpu: Emulator, left: str, has_pools: bool, message: str, least: int
) -> None:
    gpu.machine.has_pools = has_pools
    expected, errors = paint("cpu"), 0
    for count in range(5 * least):
        forget_contexts()
        setattr(gpu.machine, left, count)
        try:
            painted = paint()
        except binding.EbsynthError as error:
            assert message in str(error)
            assert gpu.counts.live == gpu.counts.pools == 0
            errors += 1
        else:
            np.testing.assert_array_equal(painted.image, expected.image)
            if getattr(gpu.machine, left) >= 0:
                break  # nothing was left to fail
    assert least < errors <= count < 4 * least


def test_the_library_can_be_used_after_a_failure(gpu: Emulator) -> None:
    first = match()
    gpu.machine.calls_left = 20
    with pytest.raises(binding.EbsynthError, match="device error: CUDA: unknown error"):
        match()
    gpu.reset()
    np.testing.assert_array_equal(match().nnf, first.nnf)


# -- other machines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"driver": NONE}, "no NVIDIA driver was found"),
        ({"driver": TOO_OLD}, "driver is too old: it supports CUDA 12.0, but this library needs CUDA 13.0"),
        ({"devices": 0}, "no CUDA device can be used"),
        ({"runs_code": 0}, "CUDA device 0 cannot be used: CUDA: no kernel image is available"),
    ],
)
def test_auto_falls_back_to_the_cpu_and_cuda_says_why_not(gpu: Emulator, machine: dict[str, int], reason: str) -> None:
    expected, launches = match("cpu"), gpu.counts.launches
    for name, value in machine.items():
        setattr(gpu.machine, name, value)
    assert not binding.runs_on_gpu(0)
    np.testing.assert_array_equal(match("auto").nnf, expected.nnf)
    assert gpu.counts.launches == launches
    with pytest.raises(binding.EbsynthError, match=reason):
        match("cuda")


def test_a_device_that_does_not_exist_is_named(gpu: Emulator) -> None:
    with pytest.raises(binding.EbsynthError, match="there is no CUDA device 7; the last one is 1"):
        match(device=7)
    assert binding.runs_on_gpu(1) and not binding.runs_on_gpu(2)


def test_auto_uses_a_gpu_that_works(gpu: Emulator) -> None:
    launches = gpu.counts.launches
    match("auto")
    assert gpu.counts.launches > launches


# -- devices and contexts ----------------------------------------------------------------------------------------------


def test_another_device_needs_nothing_of_the_first(gpu: Emulator) -> None:
    expected = match("cpu")
    used: list[int] = []

    def work() -> None:
        before, gpu.counts.contexts = gpu.counts.contexts, 0
        np.testing.assert_array_equal(match(device=1).nnf, expected.nnf)
        used.append(gpu.counts.contexts)
        gpu.counts.contexts |= before

    thread = threading.Thread(target=work)  # whose current device nobody has chosen
    thread.start()
    thread.join()
    assert used == [0b10]


def test_tensors_are_processed_on_their_device(gpu: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = images(1, 12, 14, 3), images(1, 13, 11, 3, seed=1)
    torch = SimpleNamespace(
        uint8="uint8", int32="int32", float32="float32", cuda=SimpleNamespace(current_stream=_default_stream),
        empty=lambda shape, dtype, device: gpu.tensor(shape, dtype, device.index),
    )  # fmt: skip
    monkeypatch.setattr(arguments, "sys", SimpleNamespace(modules={"torch": torch}))
    on_gpu = [gpu.tensor(image.shape, "uint8", 1).fill(image) for image in (source, target)]
    expected, found = binding.match(source, target, backend="cpu"), binding.match(*on_gpu)
    np.testing.assert_array_equal(found.nnf.numpy(), expected.nnf)
    np.testing.assert_array_equal(found.error.numpy(), expected.error)
    remapped = binding.remap(on_gpu[0], found.nnf, patch_size=3)
    np.testing.assert_array_equal(remapped.numpy(), binding.remap(source, expected.nnf, patch_size=3, backend="cpu"))
    error = binding.patch_error(*on_gpu, nnf=found.nnf)
    np.testing.assert_array_equal(error.numpy(), expected.error)
    painted = binding.synthesize(on_gpu[0], on_gpu[0], on_gpu[1], search_vote_iterations=1)
    np.testing.assert_array_equal(
        painted.image.numpy(),
        binding.synthesize(source, source, target, search_vote_iterations=1, backend="cpu").image,
    )


def _default_stream(_device: object) -> SimpleNamespace:
    return SimpleNamespace(cuda_stream=0)


def test_frames_on_the_cpu_are_never_sent_to_a_gpu(gpu: Emulator) -> None:
    launches = gpu.counts.launches
    source, target = images(12, 14, 3), images(12, 14, 3)
    pixels.match(source, target, np.zeros((12, 14, 2), np.int32), patch_sizes=(3,))
    pixels.synthesize(source[None], target[None], target[None], patch_size=3, search_vote_iterations=1)
    binding.match(source[None], target[None], **library_options("cpu"))
    assert gpu.counts.launches == launches
    binding.match(source[None], target[None], **library_options("auto"))
    assert gpu.counts.launches > launches


def test_contexts_are_kept_between_calls_of_a_thread(gpu: Emulator) -> None:
    for _ in range(3):
        match()
        assert gpu.counts.pools == 1
    for threads in range(1, 9):
        binding.match(images(1, 5, 5, 1), images(1, 5, 5, 1), backend="cuda", threads=threads)
    assert gpu.counts.pools == _CONTEXTS
    forget_contexts()
    assert gpu.counts.pools == gpu.counts.live == 0


def test_a_call_within_a_call_has_a_context_of_its_own(gpu: Emulator) -> None:
    expected, inner = paint("cpu"), []
    image = images(1, 15, 16, 3)
    binding.synthesize(image, image, image, backend="cuda", progress=lambda _: inner.append(paint().image))
    assert all((found == expected.image).all() for found in inner) and len(inner) > 2


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EbsynthSmoother", {"patch_size": 3, "smooth_index": [-2, -1]}),
        ("PySynthSmoother", {"ebsynth_config": {"patch_size": 3, "num_iter": 1}, "speed": "slowest"}),
        ("PySynthSmoother", {"ebsynth_config": {"patch_size": 3, "num_iter": 1}, "speed": "fastest"}),
    ],
)
def test_smoothers_give_a_gpu_several_pairs_at_once_and_get_the_same_frames(
    gpu: Emulator, name: str, config: Keys
) -> None:
    frames = np.concatenate([images(1, 10, 12, 3, seed=seed) for seed in range(7)])
    smoothed, launches = [], [gpu.counts.launches]
    for pairs in (1, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "PAIRS_ON_GPU", pairs)
            smoothed.append(build(name, config, frames, frames, device="auto").smooth(5, 7))
        launches.append(gpu.counts.launches)
    on_cpu = build(name, config, frames, frames, device="cpu").smooth(5, 7)
    np.testing.assert_array_equal(smoothed[0], on_cpu)
    np.testing.assert_array_equal(smoothed[1], on_cpu)
    assert launches[2] - launches[1] < launches[1] - launches[0]


def test_keyframes_give_a_gpu_several_pairs_at_once_and_get_the_same_frames(
    gpu: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    guides, styles = images(5, 24, 20, 3), images(2, 24, 20, 3, seed=1)
    painter, painted = keyframes.Interpolator(guides, styles, [0, 4], patch_size=3), []
    on_cpu = [*painter.paint(range(5))]
    monkeypatch.setattr(binding, "on_cpu", lambda: "cuda")  # arrays stand for tensors on a GPU
    launches = [gpu.counts.launches]
    for pairs in (1, 8):
        monkeypatch.setattr(keyframes, "pairs_at_once", lambda device, image, pairs=pairs: pairs)
        painted.append([*painter.paint(range(5))])
        launches.append(gpu.counts.launches)
    for frames in painted:
        for (frame, unseen), (expected, expected_unseen) in zip(frames, on_cpu, strict=True):
            np.testing.assert_array_equal(frame, expected)
            assert unseen == expected_unseen
    assert launches[2] - launches[1] == (launches[1] - launches[0]) // 6  # three frames from two keyframes each
