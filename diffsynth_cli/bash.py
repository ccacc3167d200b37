"""Completion of KEY=VALUE in bash, for which a word ends at `=` and `:`."""

from __future__ import annotations

import os
from collections.abc import Iterable

from typer._click.shell_completion import CompletionItem, add_completion_class, split_arg_string
from typer._completion_classes import BashComplete

BREAKS = set("=:")


class WholeWords(BashComplete):
    """Puts words together that bash has split, and completes only the part that bash replaces."""

    kept = ""
    """What stands before that part, in the same word."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and the word at the cursor."""
        current = int(os.environ["COMP_CWORD"])
        words = [*split_arg_string(os.environ["COMP_WORDS"]), ""][: current + 1]
        part = "" if set(words[-1]) <= BREAKS else words[-1]
        *before, incomplete = joined(words)
        self.kept = incomplete.removesuffix(part)
        return before[1:], incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return what can follow. If that is only KEY=, add another one, so that bash adds no space."""
        found = super().get_completions(args, incomplete)
        if len(found) == 1 and found[0].value.endswith("="):
            found.append(CompletionItem(f"{found[0].value}VALUE"))
        return found

    def format_completion(self, item: CompletionItem) -> str:
        """Return what replaces the part at the cursor."""
        kept = self.kept
        while kept and not item.value.startswith(kept):
            kept = kept.partition("=")[2]  # of --set=KEY=, Typer has removed --set=
        return str(item.value).removeprefix(kept)


def joined(words: Iterable[str]) -> list[str]:
    """Put together what bash has split at BREAKS, which are words of their own."""
    found: list[str] = []
    for word in words:
        if found and ((word and set(word) <= BREAKS) or found[-1][-1:] in BREAKS):
            found[-1] += word
        else:
            found.append(word)
    return found


def register() -> None:
    """Replace Typer's completion for bash."""
    add_completion_class(WholeWords, "bash")
