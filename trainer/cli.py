"""`trainer`: parse, call one function, print, return an exit code (0 done, 1 failed, 2 wrong call or configuration)."""

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from model.errors import ModelError
from trainer.commands import data, results, training, weights
from trainer.errors import TrainerError, UsageError

app = typer.Typer(
    help="Train, evaluate and publish Echo-Vision-FM ensembles.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for command in (
    data.phantom,
    data.prepare,
    training.pretrain,
    training.finetune,
    results.evaluate,
    results.explain,
    results.publish,
    weights.import_weights,
):
    app.command()(command)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(version("echo-ai-node"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take what goes before the command; `main` looks for --debug itself."""


def main() -> None:
    """Run a command; an error is one line on standard error, and never a traceback without --debug."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(_complain(error))


def _complain(error: Exception) -> int:
    """Print an error as people need it and return the exit code."""
    if hasattr(error, "format_message"):  # click's own: the call is wrong
        print(f"trainer: {error.format_message()}; see trainer --help", file=sys.stderr)  # noqa: T201
        return 2
    if isinstance(error, TrainerError | ModelError):
        print(f"trainer: {error}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UsageError) else 1
    print(f"trainer: {type(error).__name__}: {error}; --debug shows where", file=sys.stderr)  # noqa: T201
    return 1
