"""The embedded model is there, loads by its name, and is small."""

from __future__ import annotations

from stages.diffusion.loading import load_networks
from stages.diffusion.settings import ModelNames
from stages.models import EMBEDDED, FOLDER, embedded


def test_embedded_models_are_found_by_name_alone() -> None:
    assert [embedded(name) for name in EMBEDDED] == [FOLDER / name for name in EMBEDDED]
    assert embedded("owner/mini") is None


def test_it_loads_and_weighs_little() -> None:
    networks = load_networks(ModelNames(model_id="mini", controlnets=("mini/canny",), device="cpu"))
    assert networks.prediction == "v_prediction" and len(networks.controlnets) == 1
    assert sum(file.stat().st_size for file in (FOLDER / "mini").rglob("*") if file.is_file()) <= 25e6
