"""Commands that use what was trained."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.options import Data, Out, Split
from trainer.errors import UsageError

# What a command needs is imported in it: torch costs seconds that --help need not wait.


class Fusion(StrEnum):
    """How the heads of a layer become one matrix."""

    MIN = "min"
    """The smallest."""
    MEAN = "mean"
    """Their mean."""
    MAX = "max"
    """The largest."""


def evaluate(
    run: Annotated[Path, typer.Argument(help="Finished run of `trainer finetune`, or an ensemble's folder.")],
    data: Data,
    out: Out,
    split: Annotated[Split, typer.Option("--split", help="Side of the split.")] = Split.TEST,
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="Of the 95 % intervals; 0: none.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Measure a run, or a published ensemble, on the whole of a split: intervals over patients, tables and plots."""
    from model.ensemble import MANIFEST, locate
    from trainer.evaluate import TABLES
    from trainer.evaluate import evaluate as measure
    from trainer.evaluate_ensemble import evaluate_ensemble

    is_ensemble = (locate(run) / MANIFEST).is_file()
    figures = (evaluate_ensemble if is_ensemble else measure)(run, data, split.value, out, resamples=resamples)
    typer.echo(json.dumps(figures, indent=1) if as_json else (out / TABLES).read_text(encoding="utf-8"))


def explain(
    run: Annotated[Path, typer.Argument(help="Finished run of `trainer finetune`.")],
    loop: Annotated[Path, typer.Argument(help="DICOM or video file.")],
    out: Out,
    head_fusion: Annotated[
        Fusion, typer.Option("--head-fusion", help="How the heads of a layer become one.")
    ] = Fusion.MIN,
    row: Annotated[
        int | None, typer.Option("--row", min=0, help="Token whose attention is followed; default: the paper's, 125.")
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all-rows", help="Follow all tokens and show their mean.")] = False,
) -> None:
    """Draw where a run's encoder looked, over the frames of a loop."""
    from trainer.explain import CONTACT
    from trainer.explain import explain as draw

    document = draw(run, loop, out, head_fusion=head_fusion.value, row=row, all_rows=all_rows)
    for task, said in document["tasks"].items():
        typer.echo(f"{task}: {json.dumps(said)}")
    typer.echo(f"drawn: {out / CONTACT}")


def publish(
    shelf: Annotated[Path, typer.Option("--ensemble", help="Folder of the ensemble's versions.")],
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Finished, evaluated runs; of one task with several seeds, or several.")
    ] = None,
    version: Annotated[str | None, typer.Option("--version", help="Name of the new version.")] = None,
    name: Annotated[str, typer.Option("--name", help="Of the ensemble, as reports give it.")] = "echo-vision-fm",
    force: Annotated[
        str | None, typer.Option("--force", help="Why it is to be published although something speaks against it.")
    ] = None,
    view_threshold: Annotated[
        float, typer.Option("--view-threshold", min=0.2, max=1, help="Probability at which a view is recognised.")
    ] = 0.6,
    view_floor: Annotated[
        float | None,
        typer.Option(
            "--view-floor", min=0.2, max=1, help="From here a view is uncertain; default: 0.4, or the threshold."
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights in half the bytes.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Put the version before into use again.")] = False,
) -> None:
    """Put runs into use as a new version of an ensemble; running workers take it up."""
    from trainer.publish import publish as put
    from trainer.publish import roll_back

    if rollback:
        if runs or version:
            raise UsageError("--rollback: takes --ensemble alone")
        typer.echo(f"in use again: {roll_back(shelf)}")
        return
    if not runs or not version:
        raise UsageError("give at least one run and --version, or --rollback")
    added = put(runs, shelf, version, name=name, force=force, view_threshold=view_threshold, view_floor=view_floor,
                half=half)  # fmt: skip
    typer.echo(f"in use: {added}")
