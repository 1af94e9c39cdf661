"""Commands that make data: phantoms, and stores of data sets."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from model.tasks import Task
from trainer.commands.options import Jobs, Out, Settings, Split, progress_of

# What a command needs is imported in it: torch costs seconds that --help need not wait.


class Layout(StrEnum):
    """A data set's layout on disk."""

    MIMIC = "mimic"
    """MIMIC-IV-ECHO, version 1.0: with structured measurements."""
    MIMIC_0_1 = "mimic-0.1"
    """MIMIC-IV-ECHO, version 0.1."""
    ECHONET = "echonet"
    """EchoNet-Dynamic."""
    CAMUS = "camus"
    """CAMUS as NIfTI, with official subgroups."""
    CAMUS_CHALLENGE = "camus-challenge"
    """CAMUS as MetaImage, as the challenge had it."""
    TMED = "tmed"
    """TMED-2."""


class DataSetName(StrEnum):
    """A data set that is read; both versions of one are told apart by what is there."""

    MIMIC = "mimic"
    """MIMIC-IV-ECHO."""
    ECHONET = "echonet"
    """EchoNet-Dynamic."""
    CAMUS = "camus"
    """CAMUS."""
    TMED = "tmed"
    """TMED-2."""


class Format(StrEnum):
    """How the frames of a store are kept."""

    RAW = "raw"
    """Bit for bit what the node computes."""
    JPEG = "jpeg"
    """A fraction of the bytes."""
    AVI = "avi"
    """Whole loops as video, as the paper trained."""


def phantom(
    layout: Annotated[Layout, typer.Option("--layout", help="Which data set's layout.")],
    out: Out,
    cases: Annotated[int, typer.Option("--cases", min=1, help="Patients.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed, the same bytes.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Hearts and screens beyond those of training, to evaluate on.")
    ] = False,
    mixed_depths: Annotated[
        bool, typer.Option("--mixed-depths", help="Every patient at an imaging depth of his own.")
    ] = False,
    mixed_times: Annotated[
        bool, typer.Option("--mixed-times", help="Every loop with a frame rate and a length of its own.")
    ] = False,
    jobs: Jobs = None,
) -> None:
    """Write synthetic echocardiograms with known truth in a data set's layout."""
    from trainer.phantom.case import Plan
    from trainer.phantom.write import write

    plan = Plan(seed=seed, fresh=fresh, mixed_depths=mixed_depths, mixed_times=mixed_times)
    with progress_of("patients") as show:
        write(layout.value, out, cases=cases, plan=plan, jobs=jobs, progress=show)
    typer.echo(f"written: {out}")


def prepare(
    dataset: Annotated[DataSetName, typer.Argument(help="Which data set.")],
    source: Annotated[Path, typer.Argument(help="Its root folder.")],
    out: Out,
    preset: Annotated[
        str, typer.Option("--config", help="Clips of base (224 pixels), small (112), or a TOML file.")
    ] = "base",
    settings: Settings = [],  # noqa: B006
    form: Annotated[Format, typer.Option("--format", help="How frames are kept.")] = Format.JPEG,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split by patient, if the data set has none.")] = 0,
    only: Annotated[
        Split | None, typer.Option("--all-to", help="Every patient to this side: a test set from elsewhere.")
    ] = None,
    max_unreadable: Annotated[
        float, typer.Option("--max-unreadable", min=0, max=1, help="Share of files that may be damaged.")
    ] = 0.05,
    jobs: Jobs = None,
) -> None:
    """Make a clip store of a data set; after an interruption, what is missing of it."""
    from trainer.config import FinetuneConfig, resolve
    from trainer.data.prepare import SKIPPED
    from trainer.data.prepare import prepare as make

    clip = resolve(FinetuneConfig, preset, settings, {"tasks": [Task.LVEF.value]}).clip
    with progress_of("shards") as show:
        info = make(
            dataset.value,
            source,
            out,
            clip=clip,
            pixels=form.value,
            seed=seed,
            only=only.value if only else None,
            max_unreadable=max_unreadable,
            jobs=jobs,
            progress=show,
        )
    for what, number in (info.counts | info.notes).items():
        typer.echo(f"{number:>10} {what}")
    typer.echo(f"prepared: {out}; what was left out stands in {out / SKIPPED}")
