"""`trainer`: parse, call one function, print, return an exit code (0 done, 1 failed, 2 wrong call or configuration)."""

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from model.errors import ModelError
from model.tasks import Task
from trainer.errors import TrainerError, UsageError

# What only one command needs is imported there: torch costs seconds that --help need not wait.
app = typer.Typer(
    help="Train, evaluate and publish Echo-Vision-FM ensembles.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


class Split(StrEnum):
    """A side of the split by patient."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


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


Data = Annotated[list[Path], typer.Option("--data", help="Store of `trainer prepare`; may be repeated.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to make.")]
Config = Annotated[str, typer.Option("--config", help="base (the paper's), small (for a CPU), or a TOML file.")]
Settings = Annotated[
    list[str], typer.Option("--set", help="key=value, as optimiser.peak_lr=1e-3; may be repeated.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run was stopped.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the data; default: the configuration's.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed; default: the configuration's.")]
Fraction = Annotated[
    float | None, typer.Option("--data-fraction", help="Share of the training subjects; default: all.")
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take what goes before the command; `main` looks for --debug itself."""


@app.command()
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
    from trainer.pretrain import pretrain as run

    options = _given(epochs=epochs, seed=seed, data_fraction=data_fraction, init=init)
    run(data, out, resolve(PretrainConfig, config, settings, options), resume=resume, command=tuple(sys.argv))
    typer.echo(f"pre-trained: {out}")


@app.command()
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

    options = _given(
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


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Finished run of `trainer finetune`.")],
    data: Data,
    out: Out,
    split: Annotated[Split, typer.Option("--split", help="Side of the split.")] = Split.TEST,
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="Of the 95 % intervals; 0: none.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Measure a run on the whole of a split, with intervals over patients, tables and plots."""
    from trainer.evaluate import TABLES
    from trainer.evaluate import evaluate as measure

    figures = measure(run, data, split.value, out, resamples=resamples)
    typer.echo(json.dumps(figures, indent=1) if as_json else (out / TABLES).read_text(encoding="utf-8"))


@app.command(name="import-weights")
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


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that were given, paths as text."""
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }
