"""The command line: ``fedsens``, or ``python -m fedsens.cli``.

All commands, in the order of ``fedsens --help``.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer
from click import Context, UsageError
from typer.core import TyperGroup

from fedsens.cli._audit import audit
from fedsens.cli._bench import bench
from fedsens.cli._common import console
from fedsens.cli._map import map_command
from fedsens.cli._models_and_keys import identity, inspect, keygen, open_file, roster
from fedsens.cli._plan import plan
from fedsens.cli._run import report, simulate, submit

__all__ = ["app"]

PACKAGES = ("fedsens", "flwr", "torch", "tenseal")


def _version(wanted: bool) -> None:
    if wanted:
        console.print(", ".join(f"{package} {version(package)}" for package in PACKAGES))
        raise typer.Exit


class _Commands(TyperGroup):
    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        # An empty path would be the current folder. No argument here has a use for an empty one.
        for before, each in zip(["", *args], args, strict=False):
            if not each or (each.startswith("--") and each.endswith("=")):
                name = each.removesuffix("=") or (before if before.startswith("-") else "")
                raise UsageError(
                    f"expected a value for {name or 'every argument'}, got an empty one; is the "
                    "shell's variable empty?"
                )
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Commands,
    help="Selective homomorphic encryption for federated learning with Flower.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # locals could be keys
    add_completion=False,
)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show versions.")
    ] = False,
) -> None:
    """Options that belong to no command."""


app.command()(simulate)
app.command()(submit)
app.command()(plan)
app.command()(report)
app.add_typer(audit, name="audit")
app.command()(keygen)
app.command("open")(open_file)
app.command()(inspect)
app.command()(identity)
app.command()(roster)
app.add_typer(bench, name="bench")
app.command("map")(map_command)
