"""What all commands have in common: a usage line, pairs of values, and the order of options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from typer.core import TyperCommand, TyperOption

from diffsynth_cli.failures import Call

ORDER = "order"
"""Key of a context's `meta`: the names of the parameters in the order of the command line."""


class Pair(NamedTuple):
    """Two paths that one option takes, as in `--guide SOURCE TARGET`."""

    source: Path
    target: Path


class Command(TyperCommand):
    """A command that shows its arguments as they are to be written, and tells the `Call` what it parsed."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        for option in self.params:
            if isinstance(option, TyperOption) and option.type_descriptor.annotation == list[Pair]:  # unknown to Typer
                option.nargs = 2

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands after the command's name in its usage line."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(param.metavar) for param in arguments)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if isinstance(ctx.obj, Call):
            ctx.obj.command, ctx.obj.options = ctx.info_name, dict(ctx.params)
        return super().invoke(ctx)
