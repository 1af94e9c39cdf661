"""`trainer`: parse, call one function, print, return an exit code (0 done, 1 failed, 2 wrong call or configuration)."""

import json
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


class Fusion(StrEnum):
    """How the heads of a layer become one matrix."""

    MIN = "min"
    """The smallest."""
    MEAN = "mean"
    """Their mean."""
    MAX = "max"
    """The largest."""


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
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; default: one a core.")]
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
    jobs: Jobs = None,
) -> None:
    """Write synthetic echocardiograms with known truth in a data set's layout."""
    from trainer.phantom.case import Plan
    from trainer.phantom.write import write

    plan = Plan(seed=seed, fresh=fresh, mixed_depths=mixed_depths)
    with _progress("patients") as show:
        write(layout.value, out, cases=cases, plan=plan, jobs=jobs, progress=show)
    typer.echo(f"written: {out}")


@app.command()
def prepare(
    dataset: Annotated[DataSetName, typer.Argument(help="Which data set.")],
    source: Annotated[Path, typer.Argument(help="Its root folder.")],
    out: Out,
    preset: Annotated[
        str, typer.Option("--config", help="Clips of base (224 pixels), small (112), or a TOML file.")
    ] = "base",
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

    clip = resolve(FinetuneConfig, preset, (), {"tasks": [Task.LVEF.value]}).clip
    with _progress("shards") as show:
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


@app.command()
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
    for task, said in document["answers"].items():
        typer.echo(f"{task}: {json.dumps(said)}")
    typer.echo(f"drawn: {out / CONTACT}")


@app.command()
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
    added = put(runs, shelf, version, name=name, force=force, view_threshold=view_threshold, half=half)
    typer.echo(f"in use: {added}")


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


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
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


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that were given, paths as text."""
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }
