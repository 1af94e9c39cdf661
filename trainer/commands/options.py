"""Options that several commands share, and how they tell of progress."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress


class Split(StrEnum):
    """A side of the split by patient."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


Data = Annotated[list[Path], typer.Option("--data", help="Store of `trainer prepare`; may be repeated.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to make.")]
Config = Annotated[str, typer.Option("--config", help="base (the paper's), small (for a CPU), or a TOML file.")]
Settings = Annotated[
    list[str], typer.Option("--set", help="key=value, as optimiser.peak_lr=1e-3; may be repeated.", show_default=False)
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; default: one a core.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run was stopped.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the data; default: the configuration's.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed; default: the configuration's.")]
Fraction = Annotated[
    float | None, typer.Option("--data-fraction", help="Share of the training subjects; default: all.")
]


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told of progress: a bar on a terminal, a plain line every twentieth otherwise."""
    if sys.stderr.isatty():
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    said = -1

    def say(done: int, total: int) -> None:
        nonlocal said
        if (part := 20 * done // max(total, 1)) > said:
            said = part
            logging.getLogger("trainer").info("%d of %d %s", done, total, what)

    yield say


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given, paths as text."""
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }
