"""Look up known vulnerabilities of the packages in constraints.txt, if the service can be reached.

python -m tools.audit
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.error import URLError
from urllib.request import urlopen

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
SERVICE = "https://pypi.org/pypi"
REACHABLE, LONGEST = 2.0, 60.0  # s
AUDIT = [
    *(sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"),
    *("--format", "json", "--progress-spinner", "off", "--timeout", "5"),
]


class Vulnerability(TypedDict):
    """A known vulnerability, as pip-audit describes it."""

    id: str
    fix_versions: list[str]


class Package(TypedDict):
    """A package as pip-audit describes it. One that was not looked up has a reason instead of a version and `vulns`."""

    name: str
    version: NotRequired[str]
    vulns: NotRequired[list[Vulnerability]]
    skip_reason: NotRequired[str]


def main() -> int:
    """Print what is known, and return the exit code: 1 if a package has a known vulnerability."""
    name, _, version = CONSTRAINTS.read_text().splitlines()[1].partition("==")
    if not answers(f"{SERVICE}/{name}/{version}/json"):
        return skip(f"{SERVICE} cannot be reached, or does not know {name} {version}")
    try:
        found = subprocess.run(AUDIT, capture_output=True, text=True, timeout=LONGEST, check=False)
        packages = json.loads(found.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return skip(f"it took more than {LONGEST:.0f} s")
    except ValueError:
        return skip(found.stderr.strip().rpartition("\n")[2] or "pip-audit printed nothing")
    return show(packages)


def answers(address: str) -> bool:
    """Return whether an address can be read."""
    try:
        with urlopen(address, timeout=REACHABLE):
            return True
    except (URLError, OSError):
        return False


def skip(reason: str) -> int:
    print(f"audit: skipped, since {reason}")
    return 0


def show(packages: Sequence[Package]) -> int:
    """Print the known vulnerabilities, and return the exit code."""
    known = [(package, found) for package in packages for found in package.get("vulns", ())]
    for package, found in known:
        fixed = ", ".join(found["fix_versions"]) or "no version"
        print(f"audit: {package['name']} {package.get('version')}: {found['id']}, fixed in {fixed}")
    unknown = sum("skip_reason" in package for package in packages)
    print(f"audit: {len(packages) - unknown} packages, {len(known)} known vulnerabilities, {unknown} not looked up")
    return int(bool(known))


if __name__ == "__main__":
    sys.exit(main())
