"""Run cases one after the other and count their outcomes."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import hypothesis
from hypothesis import HealthCheck, given, settings

from tools.fuzz.cases import CASES, Case
from tools.fuzz.outcome import BAD, KINDS, Outcome, checked, contents, run
from tools.fuzz.samples import Samples


@dataclass
class Tally:
    """The outcomes of all cases, by kind of case."""

    outcomes: dict[str, list[tuple[Case, Outcome]]] = field(default_factory=dict)

    def count(self, kind: str, cases: str | None = None) -> int:
        """Count the cases with this kind of outcome, all of them or one kind of case."""
        chosen = self.outcomes if cases is None else {cases: self.outcomes[cases]}
        return sum(outcome.kind == kind for items in chosen.values() for _, outcome in items)

    def report(self) -> str:
        """Return a table of counts, and the refusals by exit code and message."""
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
        return "\n".join(lines)


class BadOutcome(AssertionError):
    """A case that ended in a way that it must not, reduced to what it takes."""


def run_all(folder: Path, counts: dict[str, int], seed: int | None = None, log: TextIO | None = None) -> Tally:
    """Run about `counts` cases of each kind in `folder`.

    Args:
        seed: Random seed. By default, the cases are always the same.

    Raises:
        BadOutcome: A case ended badly. It is the smallest one that hypothesis could find.
    """
    tally, samples = Tally(), Samples.build(folder)
    for name, count in counts.items():
        tally.outcomes[name] = []
        _run_kind(name, count, samples, tally, seed, log)
    return tally


def _run_kind(name: str, count: int, samples: Samples, tally: Tally, seed: int | None, log: TextIO | None) -> None:
    @settings(max_examples=count, derandomize=seed is None, database=None, deadline=None, print_blob=False,
              report_multiple_bugs=False, suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(CASES[name](samples))
    def check(case: Case) -> None:
        outcome = _run_case(case, samples)
        tally.outcomes[name].append((case, outcome))
        if log is not None:
            line = f"{outcome.kind} {outcome.code} {outcome.seconds:.1f} s {case.name} -> {outcome.message}"
            print(line.encode(errors="backslashreplace").decode(), file=log, flush=True)
        if outcome.kind in BAD:
            raise BadOutcome(_described(case, outcome))

    (check if seed is None else hypothesis.seed(seed)(check))()


def _run_case(case: Case, samples: Samples) -> Outcome:
    folder = samples.folder / "case"
    try:
        case.build(samples, folder)
        before = contents(folder)
        return checked(run(case.arguments, folder, case.new_process), folder, before, case.writes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _described(case: Case, outcome: Outcome) -> str:
    return (
        f"{outcome.kind}, code {outcome.code}, {outcome.seconds:.1f} s: {case.name}\n"
        f"  diffsynth {' '.join(case.arguments)}\n{_indented(outcome.output)}"
    )


def _general(message: str) -> str:
    """Remove names, numbers and values from a message, so that similar ones are counted together."""
    message = re.sub(r"(/[^\s:/,']+)+/|, not .*|; (did you mean|known).*| → .*", "", message)
    message = re.sub(r"'[^']*'", "'…'", re.sub(r"\d+", "#", message))
    return re.sub(r"[\w.]+\.(mp#|mov|mkv|webm|png|json|safetensors)\b", "FILE", message)[:100]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-25:]).encode(errors="backslashreplace").decode()
