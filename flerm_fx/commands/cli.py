"""The command line is ``flerm-fx``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flerm_fx import __version__
from flerm_fx.errors import FlermError

if TYPE_CHECKING:
    import typer

# The extra that brings each package, by the name it is imported under.
EXTRAS = {"typer": "cli", "rich": "cli", "matplotlib": "viz"}
_INTERRUPTED = 130  # the shell's code for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every expected failure is one line on standard error.

    Exit codes: 0 for success, 1 for a :class:`FlermError` or a missing extra, 2 for wrong options,
    3 for two profiles that ``diff`` finds different, 130 after Ctrl-C.

    >>> main(["demo", "--rates", "-2:-10"])
    Traceback (most recent call last):
    SystemExit: 1
    """
    try:
        build_app()(None if arguments is None else list(arguments))
    except FlermError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        _fail(
            f"{package} is not installed; install it with: "
            f"pip install 'flerm_fx[{EXTRAS[package]}]'",
            1,
        )
    except KeyboardInterrupt:
        _fail("interrupted before it began", _INTERRUPTED)


def build_app() -> "typer.Typer":
    """Return the commands, imported only now: the library itself needs none of their packages."""
    import typer
    from typer.core import TyperGroup

    from flerm_fx.commands.compile import compile
    from flerm_fx.commands.demo.command import demo
    from flerm_fx.commands.diff import diff
    from flerm_fx.commands.explore import explore
    from flerm_fx.commands.inspect import inspect
    from flerm_fx.commands.law import law
    from flerm_fx.commands.match import match
    from flerm_fx.commands.plot import plot
    from flerm_fx.commands.report import report

    class Commands(TyperGroup):
        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:  # of which typer itself would not say a word
                print("flerm-fx: interrupted", file=sys.stderr)
                raise typer.Exit(_INTERRUPTED) from None

    app = typer.Typer(
        name="flerm-fx",
        cls=Commands,
        help="Function-space learning rates as a torch.fx compiler pass.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("demo")(demo)
    app.command("inspect")(inspect)
    app.command("match")(match)
    app.command("compile")(compile)
    app.add_typer(law)
    app.command("diff")(diff)
    app.command("plot")(plot)
    app.command("report")(report)
    app.command("explore")(explore)

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"flerm-fx {__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        _: bool = typer.Option(
            False,
            "--version",
            help="Print the version.",
            callback=show_version,
            is_eager=True,
        ),
    ) -> None: ...

    return app


def _fail(message: str, code: int) -> None:
    print(f"flerm-fx: {message}", file=sys.stderr)
    raise SystemExit(code)
