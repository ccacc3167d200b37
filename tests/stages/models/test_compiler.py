"""Compiled functions do what they did, and say so where they cannot."""

from __future__ import annotations

from functools import cache
from typing import Never

import numpy as np
import pytest
import torch
from torch._inductor import config

from stages.base.errors import DiffSynthError
from stages.models import compiler

CPU = torch.device("cpu")


@pytest.fixture
def captured_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture and guard functions, but do not build kernels, which takes long."""
    monkeypatch.setattr(compiler, "BACKEND", "eager")


def test_what_a_function_does_to_tensors_is_kept(captured_only: None) -> None:
    runs = []

    @cache
    def constants() -> torch.Tensor:
        return torch.as_tensor(np.cumsum([1.0, 2.0]), dtype=torch.float32)  # NumPy's part cannot be captured

    def function(numbers: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        runs.append(factor)
        return numbers * factor, numbers + constants()

    numbers = torch.tensor([3.0, 4.0])
    compiled = compiler.compiled(function, (numbers, 2.0))
    for argument in (numbers, -numbers):
        times, plus = compiled(argument, 2.0)
        torch.testing.assert_close(times, 2 * argument)
        torch.testing.assert_close(plus, argument + torch.tensor([1.0, 3.0]))
    assert runs == [2.0, 2.0]  # before anything was compiled


@pytest.mark.parametrize("graphs", [False, True])
def test_results_of_cuda_graphs_are_copied(captured_only: None, graphs: bool) -> None:
    numbers = torch.zeros(3)
    for function in (lambda numbers: numbers, lambda numbers: (numbers,)):
        with config.patch({"triton.cudagraphs": graphs}):
            result = compiler.compiled(function, (numbers,))(numbers)
        (tensor,) = result if isinstance(result, tuple) else (result,)
        assert (tensor.data_ptr() != numbers.data_ptr()) == graphs


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Never:
        raise RuntimeError("no C compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(DiffSynthError, match=r"--compile: PyTorch cannot compile for cpu here: no C compiler$"):
        compiler.check_compiler(CPU)


def test_memory_that_is_used_up_is_not_the_compilers_fault() -> None:
    with pytest.raises(torch.OutOfMemoryError), compiler.compiler_errors(CPU):
        raise torch.OutOfMemoryError
