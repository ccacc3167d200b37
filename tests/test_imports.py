"""The import rules of docs/design.md, checked with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("diffsynth_cli", "stages", "native", "templates")
STAGES = ("stages.extract", "stages.control", "stages.render", "stages.deflicker", "stages.smooth")
HELPERS = (
    "stages.video",
    "stages.pairing",
    "stages.models.weights",
    "stages.annotators",
    "stages.diffusion",
    "stages.smoothers",
)
# The names and folders of embedded models: all that base may know of other packages. It imports nothing itself.
FLOOR = ("stages.models", "stages.models.EMBEDDED", "stages.models.SINGLE_FILES", "stages.models.TOKENIZER",
         "stages.models.embedded")  # fmt: skip
DOORS = {  # only these modules may import these libraries
    "av": ["stages.video"],
    "controlnet_aux": ["stages.annotators"],
    "onnxruntime": ["stages.annotators.dwpose"],
    "scenedetect": ["stages.video.cuts"],
    "diffusers": ["stages.diffusion"],
    "transformers": [
        "stages.diffusion",
        "stages.annotators.pretrained",
        "stages.annotators.people",
        "stages.annotators.tracking",
    ],
    "huggingface_hub": ["stages.models.hub", "stages.models.weights"],
    "zarr": ["stages.base"],
    "obstore": ["stages.base.object_store"],
    "stages.base.object_store": ["stages.base.store"],
    "typer": ["diffsynth_cli"],
    "rich": ["diffsynth_cli"],
}
HEAVY = {"torch", "diffusers", "transformers", "controlnet_aux", "onnxruntime", "obstore"}
KNOWN = (
    "stages.base.arrays",
    "stages.base.errors",
    "stages.base.json_types",
    "stages.base.mistakes",
    "stages.base.numbers",
    "stages.base.paths",
    "stages.base.registry",
)
LIGHT = (  # jobs are checked against what is registered here
    "stages.diffusion.sampler",
    "stages.diffusion.attention_backends",
)
NEEDED = (
    "stages.diffusion",
    "stages.models.compiler",
    "stages.smoothers.images.gpu",
    "stages.base.object_store",
)  # imported only when they are used


def modules() -> dict[str, ast.Module]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    return {name: ast.parse(file.read_text()) for name, file in names.items()}


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Every module that these nodes import, as a dotted name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def everywhere(tree: ast.Module) -> set[str]:
    return imported(ast.walk(tree))


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_import_rules(name: str) -> None:
    wanted = everywhere(MODULES[name])
    ours = {other for other in wanted if other.split(".")[0] in PACKAGES}
    if not inside(name, "diffsynth_cli"):
        assert not {other for other in ours if inside(other, "diffsynth_cli")}, "nothing imports the command line"
    if inside(name, "native"):
        assert not {other for other in ours if inside(other, "stages")}
    for stage in STAGES:
        if inside(name, stage):
            others = set(STAGES) - {stage}
            assert not {other for other in ours if any(inside(other, part) for part in others)}, (
                "stages share data through the cache only"
            )
    if inside(name, "stages.base"):
        assert all(inside(other, "stages.base") or other in FLOOR for other in ours), "base imports nothing above it"
    if name != "stages.all_stages" and not inside(name, "diffsynth_cli"):
        assert "stages.all_stages" not in ours, "only the command line knows all stages"
    for helper in HELPERS:
        if inside(name, helper):
            base = {other for other in ours if inside(other, "stages.base") and other != "stages.base"}
            assert all(any(inside(other, part) for part in KNOWN) for other in base), (
                "of base, helpers know only errors, named types and what options are declared with"
            )
            assert not ours & set(STAGES)
    for library, doors in DOORS.items():
        if not any(inside(name, door) for door in doors):
            assert not {other for other in wanted if inside(other, library)}, f"only {doors} may import {library}"


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name in LIGHT or not any(inside(name, part) for part in NEEDED)]
)
def test_importing_a_module_loads_no_heavy_library(name: str) -> None:
    at_import = [node for node in MODULES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {other.split(".")[0] for other in imported(at_import)} & HEAVY


@pytest.mark.parametrize("name", MODULES)
def test_object_stores_are_imported_only_for_a_url(name: str) -> None:
    at_import = [node for node in MODULES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "stages.base.object_store" not in imported(at_import)
