"""Every back end gives the bits that the plain implementation in reference.py gives."""

from __future__ import annotations

import numpy as np
import pytest

from native import binding
from tests.native import reference
from tests.native.conftest import every_backend
from tests.native.test_binding import OPTIONS, images
from tests.typing import Keys

SIZE = {"source": (13, 11), "target": (9, 14)}
DEFAULTS = {
    "uniformity": 3500.0,
    "patch_size": 3,
    "pyramid_levels": 0,
    "search_vote_iterations": 3,
    "patch_match_iterations": 2,
    "stop_threshold": 5,
    "weighted_vote": False,
    "extra_pass_3x3": False,
    "seed": 0,
}


@every_backend
@pytest.mark.parametrize("name", OPTIONS)
def test_synthesis_matches_the_reference(backend: str, name: str) -> None:
    options: Keys = {key: value for key, value in OPTIONS[name].items() if key != "search_vote_iterations"}
    style_weights = np.array(options.pop("style_weights", [1 / 3] * 3), np.float32)
    guide_weights = np.array(options.pop("guide_weights", [1 / 4] * 4), np.float32)
    modulation = images(1, *SIZE["target"], 4, seed=9) if options.pop("modulation", None) is not None else None
    given = images(1, *SIZE["source"], 3), images(1, *SIZE["source"], 4, seed=1), images(1, *SIZE["target"], 4, seed=2)
    options = {**DEFAULTS, **options}
    expected = reference.synthesize(*given, modulation, style_weights, guide_weights, progress=None, **options)
    weights: Keys = {"style_weights": style_weights, "guide_weights": guide_weights, "modulation": modulation}
    found = binding.synthesize(*given, backend=backend, **(options | weights))
    for one, other in zip(vars(found).values(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@every_backend
@pytest.mark.parametrize("painted", [False, True])
@pytest.mark.parametrize("border", binding.BORDERS)
def test_fields_match_the_reference(backend: str, painted: bool, border: str) -> None:
    guides = images(1, *SIZE["source"], 3), images(1, *SIZE["target"], 3, seed=1)
    styles = images(1, *SIZE["source"], 2, seed=2), None if painted else images(1, *SIZE["target"], 2, seed=3)
    options: Keys = {"style_weight": 0.5, "guide_weight": 4.0, "patch_sizes": [5, 3], "pyramid_levels": 2, "seed": 7}
    options |= {"patch_match_iterations": 2, "search_radius": 4, "start": "random", "nnf": None, "progress": None}
    options["border"] = border
    expected = reference.match(*guides, *styles, **options)
    found = binding.match(*guides, *styles, backend=backend, **options)
    np.testing.assert_array_equal(found.nnf, expected[0])
    np.testing.assert_array_equal(found.error, expected[1])


@every_backend
@pytest.mark.parametrize("border", binding.BORDERS)
def test_patch_errors_match_the_reference(backend: str, border: str) -> None:
    guides = images(1, *SIZE["source"], 1), images(1, *SIZE["target"], 1, seed=1)
    styles = images(1, *SIZE["source"], 2, seed=2), images(1, *SIZE["target"], 2, seed=3)
    nnf = np.random.default_rng(4).integers(-2, 15, (1, *SIZE["target"], 2)).astype(np.int32)
    options: Keys = {"style_weight": 0.5, "guide_weight": 4.0, "patch_size": 5, "border": border}
    expected = reference.patch_error(*guides, *styles, nnf, **options)
    found = binding.patch_error(*guides, *styles, nnf=nnf, backend=backend, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
