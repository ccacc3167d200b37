"""What all commands have in common: a usage line, pairs of values, and the order of options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperOption

from diffsynth_cli.failures import Call

if TYPE_CHECKING:  # private, but parameters of public methods
    from typer._click import Context

ORDER = "order"
"""Key of a context's `meta`: the names of the parameters in the order of the command line."""


class Pair(NamedTuple):
    """The two values of an option such as `--guide SOURCE TARGET`."""

    source: Path
    target: Path


class Command(TyperCommand):
    """A command whose usage line shows its arguments, and which records in the `Call` what was parsed."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for option in self.params:
            if isinstance(option, TyperOption) and option.type_descriptor.annotation == list[Pair]:  # unknown to Typer
                option.nargs = 2

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return the parts of the usage line that follow the command's name."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(param.metavar) for param in arguments)]

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the command line. With --json, a mistake is an event, too."""
        given = self._read_ahead(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if given.get("events"):
                from diffsynth_cli.console import now, show_event

                show_event({"event": "error", "time": now(), "message": error.format_message(), "hint": ""})
            raise

    def _read_ahead(self, ctx: Context, args: list[str]) -> dict[str, object]:
        """Return the options that are given, unchecked, up to the first mistake. Note their order."""
        strict, ctx.resilient_parsing = ctx.resilient_parsing, True
        given, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.resilient_parsing = strict
        ctx.meta[ORDER] = [parameter.name for parameter in order]
        return given

    def invoke(self, ctx: Context) -> object:
        """Run the command."""
        if isinstance(ctx.obj, Call):
            ctx.obj.command, ctx.obj.options = ctx.info_name or "", dict(ctx.params)
        return super().invoke(ctx)
