"""How every command is declared: its usage line and its examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand

from diffsynth_cli.failures import Call

P = ParamSpec("P")
R = TypeVar("R")


class Command(TyperCommand):
    """A command that shows its arguments as they are to be written, and tells the `Call` what it parsed."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands after the command's name in its line of usage."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(param.metavar or param.name.upper()) for param in arguments)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if isinstance(ctx.obj, Call):
            ctx.obj.command, ctx.obj.options = ctx.info_name, dict(ctx.params)
        return super().invoke(ctx)


def add_command(
    app: typer.Typer,
    name: str,
    *examples: str,
    panel: str,
    about: str | None = None,
    cls: type[Command] = Command,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that adds a function to `app` as the command `name`.

    Args:
        app: The program.
        name: The command's name.
        examples: Command lines shown at the end of the command's help.
        panel: The panel of the program's help that lists the command.
        about: The command's help; by default the function's docstring.
        cls: The command's class.
    """
    epilog = "\n".join(["Examples:", *(f"$ {example}" for example in examples)]).replace("[", r"\[")
    return app.command(name, help=about, epilog=epilog, cls=cls, rich_help_panel=panel)
