"""Commands that train."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from model.tasks import Task
from trainer.commands.options import Config, Data, Epochs, Fraction, Out, Resume, Seed, Settings, given

# What a command needs is imported in it: torch costs seconds that --help need not wait.


def pretrain(
    data: Data,
    out: Out,
    config: Config = "base",
    settings: Settings = [],  # noqa: B006
    epochs: Epochs = None,
    seed: Seed = None,
    data_fraction: Fraction = None,
    init: Annotated[Path | None, typer.Option("--init", help="Weights to start from; default: random.")] = None,
    resume: Resume = False,
) -> None:
    """Train an encoder to rebuild hidden parts of loops."""
    from trainer.config import PretrainConfig, resolve
    from trainer.heap import keep_freed_memory
    from trainer.pretrain import pretrain as run

    keep_freed_memory()
    options = given(epochs=epochs, seed=seed, data_fraction=data_fraction, init=init)
    run(data, out, resolve(PretrainConfig, config, settings, options), resume=resume, command=tuple(sys.argv))
    typer.echo(f"pre-trained: {out}")


def finetune(
    task: Annotated[list[Task], typer.Option("--task", help="What to learn; several share one encoder.")],
    data: Data,
    out: Out,
    config: Config = "base",
    settings: Settings = [],  # noqa: B006
    epochs: Epochs = None,
    seed: Seed = None,
    encoder: Annotated[
        Path | None, typer.Option("--encoder", help="A pre-training run, or imported weights; default: random.")
    ] = None,
    no_stf: Annotated[bool, typer.Option("--no-stf", help="Largest token instead of STF-Net.")] = False,
    linear_probe: Annotated[bool, typer.Option("--linear-probe", help="The encoder stays as it is.")] = False,
    data_fraction: Fraction = None,
    resume: Resume = False,
) -> None:
    """Train one task, or several on one encoder."""
    from trainer.config import FinetuneConfig, resolve
    from trainer.finetune import finetune as run
    from trainer.heap import keep_freed_memory

    keep_freed_memory()
    options = given(
        tasks=[one.value for one in task],
        epochs=epochs,
        seed=seed,
        data_fraction=data_fraction,
        encoder=encoder,
        net={"pool": "max"} if no_stf else None,
        linear_probe=True if linear_probe else None,
    )
    run(data, out, resolve(FinetuneConfig, config, settings, options), resume=resume, command=tuple(sys.argv))
    typer.echo(f"fine-tuned: {out}")
