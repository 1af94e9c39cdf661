"""The command that exchanges weights with others."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from model.tasks import Task

# What a command needs is imported in it: torch costs seconds that --help need not wait.


class BiasNames(StrEnum):
    """How transformers names the biases of queries and values."""

    NEW = "new"
    """query.bias."""
    OLD = "old"
    """q_bias."""


class Normalisation(StrEnum):
    """What was done to pixels from 0 to 1."""

    IMAGENET = "imagenet"
    """ImageNet's mean was subtracted, its deviation divided by."""
    UNIT = "unit"
    """Nothing."""


def import_weights(
    file: Annotated[Path, typer.Argument(help="Checkpoint: VideoMAE, Echo-Vision-FM or ours; a file or its folder.")],
    out: Annotated[Path, typer.Option("--out", help="safetensors file to make.")],
    to_hf: Annotated[bool, typer.Option("--to-hf", help="Name the weights as transformers does.")] = False,
    bias_names: Annotated[
        BiasNames, typer.Option("--bias-names", help="With --to-hf: of transformers 5 (new) or of those before (old).")
    ] = BiasNames.NEW,
    task: Annotated[Task | None, typer.Option("--task", help="What a fine-tuned Echo-Vision-FM answers.")] = None,
    heads: Annotated[int | None, typer.Option("--heads", min=1, help="Attention heads; default: by the width.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Frames of a clip; default: 16.")] = None,
    size: Annotated[int | None, typer.Option("--size", min=1, help="Pixels of a clip's side; default: 224.")] = None,
    normalisation: Annotated[
        Normalisation | None, typer.Option("--normalisation", help="Of the pixels; default: the family's.")
    ] = None,
) -> None:
    """Take over weights of others, or give ours to others."""
    from trainer.import_weights import Geometry, convert

    given = (heads, frames, size, normalisation)
    geometry = None if given == (None,) * 4 else Geometry(
        heads=heads, frames=frames, size=size, normalisation=normalisation.value if normalisation else None
    )  # fmt: skip
    convert(file, out, to_hf=to_hf, bias_names=bias_names.value, task=task, geometry=geometry)
    typer.echo(f"written: {out}")
