"""The embedded model is there, loads by its name, and is small."""

from __future__ import annotations

from stages.diffusion.loading import ModelNames, load_networks
from stages.models import EMBEDDED, FOLDER, embedded


def test_embedded_models_are_found_by_name_alone():
    assert [embedded(name) for name in EMBEDDED] == [FOLDER / name for name in EMBEDDED]
    assert embedded("owner/mini") is None


def test_it_loads_and_weighs_little():
    networks = load_networks(ModelNames("mini", ("mini/canny",), "cpu", "float32", 1))
    assert networks.prediction == "v_prediction" and len(networks.controlnets) == 1
    assert sum(file.stat().st_size for file in (FOLDER / "mini").rglob("*") if file.is_file()) <= 25e6
