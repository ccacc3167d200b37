"""The site of docs/: built strictly, complete, and readable without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import diffsynth_cli as ds
from tests.typing import Keys
from tools.docs_site import OUTSIDE

ROOT = Path(__file__).parent.parent
LARGEST_PICTURE = 100_000  # bytes
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

READ_WITH_PAGE = (
    r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"([^\"]+)|<link\b[^>]*\bhref=\"([^\"]+)|url\(([^)]+)\)"
)


def make_site(folder: Path, settings: Keys | None = None) -> Path:
    """Build the site into a folder, as `make docs` does, with other settings. A warning is an error."""
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder), **settings or {})
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("site"))


def test_pages_read_nothing_from_the_network(site: Path) -> None:
    files = [file for kind in ("html", "css") for file in site.rglob(f"*.{kind}")]
    read = {name for file in files for found in re.findall(READ_WITH_PAGE, file.read_text()) for name in found if name}
    assert len(files) > 30 and len(read) > 20
    assert [name for name in read if re.match(r"['\"]?(https?:)?//", name)] == []


def test_search_finds_pages_without_a_server(site: Path) -> None:
    index = (site / "search/search_index.js").read_text()
    assert index.startswith("var __index") and "nearest-neighbour field" in index
    assert "scripts/iframe-worker.js" in (site / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_search_works_on_a_page_opened_from_the_disk(site: Path, tmp_path: Path) -> None:
    page = f"{(site / 'index.html').as_uri()}?q=landmark"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path}", page]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert re.search(r'search-result__meta">\s*\d+ matching documents', shown)


def test_pages_outside_docs_are_linked(site: Path) -> None:
    assert [name for name in OUTSIDE.values() if not (site / name.replace(".md", ".html")).exists()] == []
    assert 'href="native/ebsynth.h"' in (site / "patch-matching.html").read_text()
    assert 'href="contributing.html"' in (site / "contribute.html").read_text()


def test_the_python_reference_has_everything_that_is_public(site: Path) -> None:
    page = (site / "reference.html").read_text()
    assert [name for name in ds.__all__ if f'id="diffsynth_cli.{name}"' not in page] == []


@pytest.mark.parametrize("text", ["[a](b.md)", "[a](#b)", "[a](index.md#b)", "[a](/index.md)", "![a](b.png)"])
def test_a_broken_link_or_a_page_without_a_place_fails(text: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Index\n\n{text}\n")
    settings = {"docs_dir": str(docs), "plugins": [], "hooks": [], "nav": ["index.md"]}
    with pytest.raises(Abort):
        make_site(tmp_path / "site", settings)
    (docs / "index.md").write_text("# Index\n\n[a](#index)\n")
    make_site(tmp_path / "site", settings)
    (docs / "other.md").write_text("# Other\n")
    with pytest.raises(Abort):
        make_site(tmp_path / "site", settings)


def test_pictures_are_small() -> None:
    pictures = [*(ROOT / "docs/pictures").iterdir()]
    assert len(pictures) >= 6 and [file.name for file in pictures if file.stat().st_size > LARGEST_PICTURE] == []
