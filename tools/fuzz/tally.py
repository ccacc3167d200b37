"""Cases run one after the other, and counted."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tools.fuzz.cases import CASES, Case
from tools.fuzz.outcome import BAD, KINDS, Outcome, run
from tools.fuzz.workshop import Workshop


@dataclass
class Tally:
    """What became of all cases of all kinds."""

    outcomes: dict[str, list[tuple[Case, Outcome]]] = field(default_factory=dict)

    def count(self, kind: str, cases: str | None = None) -> int:
        """How many cases (of one sort) ended in this kind of outcome."""
        chosen = self.outcomes if cases is None else {cases: self.outcomes[cases]}
        return sum(outcome.kind == kind for items in chosen.values() for _, outcome in items)

    def bad(self) -> list[str]:
        """Cases that ended in anything but success or an explained refusal, with all that was said."""
        return [
            f"{outcome.kind}, code {outcome.code}, {outcome.seconds:.1f} s: {case.name}\n"
            f"  diffsynth {' '.join(case.arguments)}\n{_indented(outcome.said)}"
            for items in self.outcomes.values()
            for case, outcome in items
            if outcome.kind in BAD
        ]

    def report(self) -> str:
        """A table of all numbers, the refusals by code and message, and every bad case."""
        lines = ["cases    " + " ".join(f"{kind:>11}" for kind in ("all", *KINDS, "longest s"))]
        for name, items in self.outcomes.items():
            numbers = [len(items), *(self.count(kind, name) for kind in KINDS)]
            longest = max((outcome.seconds for _, outcome in items), default=0.0)
            lines.append(f"{name:8} " + " ".join(f"{number:11}" for number in numbers) + f" {longest:11.1f}")
        refusals = Counter(
            (outcome.code, _general(outcome.message))
            for items in self.outcomes.values()
            for _, outcome in items
            if outcome.kind == "refusal"
        )
        lines += ["", "refusals  code  message"]
        lines += [f"{number:8}  {code:4}  {message}" for (code, message), number in refusals.most_common()]
        return "\n".join([*lines, "", *self.bad()])


def try_all(folder: Path, counts: dict[str, int], seed: int = 0, log: TextIO | None = None) -> Tally:
    """Run `counts` cases of each sort in `folder`. Equal seeds make equal cases."""
    tally, shop = Tally(), Workshop.build(folder)
    for name, count in counts.items():
        items = tally.outcomes.setdefault(name, [])
        for case in CASES[name](shop, random.Random(f"{seed} {name}"), count):
            outcome = run(case.arguments, case.folder, case.apart)
            items.append((case, outcome))
            shutil.rmtree(case.folder, ignore_errors=True)
            if log is not None:
                line = f"{outcome.kind} {outcome.code} {outcome.seconds:.1f} s {case.name} -> {outcome.message}"
                print(line.encode(errors="backslashreplace").decode(), file=log, flush=True)
    return tally


def _general(message: str) -> str:
    """A message without names, numbers and values, so that equal ones are counted together."""
    message = re.sub(r"(/[^\s:/,']+)+/|, not .*|; (did you mean|known).*| → .*", "", message)
    message = re.sub(r"'[^']*'", "'…'", re.sub(r"\d+", "#", message))
    return re.sub(r"[\w.]+\.(mp#|mov|mkv|webm|png|json|safetensors)\b", "FILE", message)[:100]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-25:]).encode(errors="backslashreplace").decode()
