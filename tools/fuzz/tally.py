"""Run cases one after the other and count their outcomes."""

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
from tools.fuzz.samples import Samples


@dataclass
class Tally:
    """The outcomes of all cases, by kind of case."""

    outcomes: dict[str, list[tuple[Case, Outcome]]] = field(default_factory=dict)

    def count(self, kind: str, cases: str | None = None) -> int:
        """Count the cases with this kind of outcome, all of them or one kind of case."""
        chosen = self.outcomes if cases is None else {cases: self.outcomes[cases]}
        return sum(outcome.kind == kind for items in chosen.values() for _, outcome in items)

    def bad(self) -> list[str]:
        """Return the cases that neither succeeded nor were refused with an explanation, with their output."""
        return [
            f"{outcome.kind}, code {outcome.code}, {outcome.seconds:.1f} s: {case.name}\n"
            f"  diffsynth {' '.join(case.arguments)}\n{_indented(outcome.output)}"
            for items in self.outcomes.values()
            for case, outcome in items
            if outcome.kind in BAD
        ]

    def report(self) -> str:
        """Return a table of counts, the refusals by exit code and message, and every bad case."""
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


def run_all(folder: Path, counts: dict[str, int], seed: int = 0, log: TextIO | None = None) -> Tally:
    """Run `counts` cases of each kind in `folder`. Equal seeds give equal cases."""
    tally, samples = Tally(), Samples.build(folder)
    for name, count in counts.items():
        items = tally.outcomes.setdefault(name, [])
        for case in CASES[name](samples, random.Random(f"{seed} {name}"), count):
            outcome = run(case.arguments, case.folder, case.new_process)
            items.append((case, outcome))
            shutil.rmtree(case.folder, ignore_errors=True)
            if log is not None:
                line = f"{outcome.kind} {outcome.code} {outcome.seconds:.1f} s {case.name} -> {outcome.message}"
                print(line.encode(errors="backslashreplace").decode(), file=log, flush=True)
    return tally


def _general(message: str) -> str:
    """Remove names, numbers and values from a message, so that similar ones are counted together."""
    message = re.sub(r"(/[^\s:/,']+)+/|, not .*|; (did you mean|known).*| → .*", "", message)
    message = re.sub(r"'[^']*'", "'…'", re.sub(r"\d+", "#", message))
    return re.sub(r"[\w.]+\.(mp#|mov|mkv|webm|png|json|safetensors)\b", "FILE", message)[:100]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-25:]).encode(errors="backslashreplace").decode()
