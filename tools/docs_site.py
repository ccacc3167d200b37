"""Hook of mkdocs.yml: pages and files outside docs/ are part of the site, and links to them work as on GitHub."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # in the repository: in the site, where case makes no difference to some file systems
    "CONTRIBUTING.md": "contribute.md",
    "SECURITY.md": "vulnerabilities.md",
    "CHANGELOG.md": "changelog.md",
    "Makefile": "Makefile",
    "native/include/ebsynth.h": "native/ebsynth.h",
}
INSIDE = {site: repository for repository, site in OUTSIDE.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/."""
    for repository, site in OUTSIDE.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / repository)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links between docs/ and files outside it, which are in one folder in the site."""
    here = INSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return re.sub(r"(?<=\]\()(?![a-z]+:)[^)#\s]+", lambda link: _in_site(here, link[0]), markdown)


def _in_site(page: str, link: str) -> str:
    """Return where a link of a page leads in the site. `page` is its path in the repository."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return OUTSIDE.get(target, target.removeprefix("docs/"))
