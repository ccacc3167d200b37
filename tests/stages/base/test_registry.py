"""Registries: built-in entries, those of other packages, and broken ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from stages.base.errors import UsageError
from stages.base.registry import NameIn, Registry


class Fruit(BaseModel):
    name: ClassVar[str]


@pytest.fixture
def fruits() -> Registry[Fruit]:
    registry: Registry[Fruit] = Registry("fruit", Fruit, lambda fruit: fruit.name, group="orchard.fruits")

    @registry.register
    class Pear(Fruit):
        name = "pear"

    @registry.register
    class Apple(Fruit):
        name = "apple"

    return registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers a cherry, an apple of its own, and broken ones."""
    (tmp_path / "orchard_more-2.1.dist-info").mkdir()
    (tmp_path / "orchard_more-2.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: orchard-more\nVersion: 2.1\n"
    )
    (tmp_path / "orchard_more-2.1.dist-info/entry_points.txt").write_text(
        "[orchard.fruits]\ncherry = orchard_more:Cherry\napple = orchard_more:Apple\n"
        "stone = orchard_more:Stone\nplum = orchard_more:Cherry\nseed = orchard_more:Seed\n"
        "ghost = orchard_ghost:Ghost\n"
    )
    (tmp_path / "orchard_more.py").write_text(
        "from abc import abstractmethod\nfrom tests.stages.base.test_registry import Fruit\n"
        "class Cherry(Fruit): name = 'cherry'\nclass Apple(Fruit): name = 'apple'\nclass Stone: name = 'stone'\n"
        "class Seed(Fruit):\n    name = 'seed'\n    @abstractmethod\n    def grow(self): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "orchard_more", raising=False)
    return tmp_path


def test_names_come_in_order_and_give_their_classes(fruits: Registry[Fruit]) -> None:
    assert list(fruits) == ["apple", "pear"] and len(fruits) == 2
    assert fruits["pear"].name == "pear" and "plum" not in fruits
    assert fruits.get("plum") is None and fruits.version("apple") is None


def test_an_unknown_name_is_answered_with_the_nearest(fruits: Registry[Fruit]) -> None:
    with pytest.raises(UsageError, match="unknown fruit 'aple'; did you mean 'apple'"):
        fruits["aple"]


def test_other_packages_add_theirs_but_replace_none(package: Path, fruits: Registry[Fruit]) -> None:
    assert list(fruits) == ["apple", "pear", "cherry", "stone", "plum", "seed", "ghost"]
    assert "orchard_more" not in sys.modules  # until one of its own is looked up
    assert fruits["cherry"].__module__ == "orchard_more" and fruits["apple"].__module__ == __name__
    assert fruits.version("cherry") == "orchard-more 2.1"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stone", "is broken: orchard_more:Stone does not extend Fruit"),
        ("plum", "is broken: its class is named 'cherry'"),
        ("seed", "is broken: orchard_more:Seed does not implement grow"),
        ("ghost", "cannot be loaded: ModuleNotFoundError: No module named 'orchard_ghost'"),
    ],
)
def test_a_broken_entry_is_reported_with_its_package(
    name: str, reason: str, package: Path, fruits: Registry[Fruit]
) -> None:
    with pytest.raises(UsageError) as error:
        fruits[name]
    assert error.value.message == f"the fruit {name!r} of the package orchard-more 2.1 {reason}"
    assert error.value.hint == "update the package, or remove it with pip uninstall orchard-more"
    usable, problems = fruits.usable()
    assert list(usable) == ["apple", "pear", "cherry"] and len(problems) == 4


def test_a_field_accepts_only_available_names(package: Path, fruits: Registry[Fruit]) -> None:
    field = TypeAdapter(Annotated[str, NameIn(fruits)])
    assert field.validate_python("cherry") == "cherry"
    assert field.json_schema() == {"type": "string", "enum": list(fruits)}
    for name, message in (("cherri", "did you mean 'cherry'"), ("ghost", "pip uninstall orchard-more")):
        with pytest.raises(ValidationError, match=message):
            field.validate_python(name)


def test_options_of_everything_are_read_without_torch() -> None:
    code = "import sys; from stages.jobs.job import json_schema; json_schema(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "cv2", "scipy", "controlnet_aux", "diffusers"}.isdisjoint(loaded)
