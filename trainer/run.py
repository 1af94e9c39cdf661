"""A run is a folder: its configuration, where it comes from, its figures, and weights that are always whole.

config.json          the resolved configuration
run.json             code, data, command, status
metrics.jsonl        a line each step and each epoch
checkpoint.pt        everything needed to go on, replaced in one rename
best.safetensors     the weights of the best validation; their metadata say what they are
calibration.json     temperature of the view head on the validation side, of runs that learn the view
plots/               pictures of it
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.bundle import Closed, Sha256, first_mistake, sha256_of
from model.errors import WeightsError
from model.net.echo_vision import EchoVision
from model.tasks import CATALOGUE, Task, View
from model.weights import load_strictly
from trainer.config import FinetuneConfig
from trainer.errors import RunError, UsageError
from trainer.files import replacing

CONFIG = "config.json"
PROVENANCE = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
BEST = "best.safetensors"
CALIBRATION = "calibration.json"
PLOTS = "plots"

_Model = TypeVar("_Model", bound=BaseModel)


class Provenance(Closed):
    """Where a run comes from."""

    status: Literal["running", "done"]
    """`done`: every step of its schedule was made."""
    code_version: str
    """Version of the package."""
    git_revision: str
    """Commit of the code, with `+` if files differed from it; empty outside a checkout."""
    seed: int
    """Of the configuration."""
    command: tuple[str, ...]
    """As it was called."""
    data: dict[str, str]
    """Data set -> digest of its store."""
    start_sha256: Sha256 | None
    """Digest of the weights that the run began with; None: random."""
    num_samples: int
    """Of the training split."""
    num_subjects: int
    """Of the training split."""
    views: dict[Task, tuple[View, ...]]
    """Views that each task was trained on."""
    is_phantom: bool
    """A store that it, or the weights it began with, was trained on is synthetic."""
    started_at: datetime
    """UTC."""


class Best(Closed):
    """What the best weights are; stands in their metadata."""

    step: int
    """Steps made."""
    epoch: int
    """Epochs made."""
    metric: float
    """The validation loss that chose them."""
    is_phantom: bool | None = None
    """As in `run.json`, so that it goes where the weights go; None: they are older than this field."""


class Calibration(Closed):
    """The content of `calibration.json`."""

    view_temperature: float = Field(ge=1)
    """Divides the logits of the view head."""
    n: int
    """Validation loops that it was fitted to."""
    ece_before: float
    """Expected calibration error of the views with temperature 1."""
    ece: float
    """With this temperature."""


class RunFolder:
    """A run that is being written, by one process."""

    def __init__(self, path: Path) -> None:
        """Take a folder; `create` and `reopen` are the ways in."""
        self.path = path

    @classmethod
    def create(cls, path: Path, config: BaseModel, provenance: Provenance) -> "RunFolder":
        """Return a new run.

        Raises:
            UsageError: the folder holds something already.
        """
        if path.exists() and any(path.iterdir()):
            raise UsageError(f"--out {path}: is not empty: choose another folder, or go on with --resume")
        try:
            (path / PLOTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {path}: {error.strerror}") from error
        run = cls(path)
        run._write(CONFIG, config)
        run._write(PROVENANCE, provenance)
        return run

    @classmethod
    def reopen(cls, path: Path, config: BaseModel, provenance: Provenance) -> "RunFolder":
        """Return a run to go on with.

        Raises:
            UsageError: there is none, or it was made with another configuration or other data.
        """
        saved = _read_json(path / CONFIG)
        difference = _first_difference(saved, config.model_dump(mode="json"))
        if difference is not None:
            raise UsageError(f"--resume: {difference} differs from {path / CONFIG}: give the options of the first call")
        before = read_provenance(path)
        if before.data != provenance.data:
            raise UsageError(f"--resume: --data is not what {path / PROVENANCE} was started with")
        if before.start_sha256 != provenance.start_sha256:
            raise UsageError(f"--resume: the weights to start from are not those that {path / PROVENANCE} names")
        run = cls(path)
        if provenance.is_phantom:  # an older version did not ask the weights that a run began with
            run._write(PROVENANCE, before.model_copy(update={"is_phantom": True}))
        return run

    @property
    def is_phantom(self) -> bool:
        """Return whether phantoms go into its weights."""
        return read_provenance(self.path).is_phantom

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """Return the last checkpoint, None before the first.

        Raises:
            RunError: it cannot be read.
        """
        file = self.path / CHECKPOINT
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
            raise RunError(f"{file}: cannot be read ({error}): start the run anew") from error
        return state

    def cut_metrics(self, state: Mapping[str, Any] | None) -> None:
        """Take away the figures that were written after a checkpoint; None: all of them."""
        metrics = self.path / METRICS
        if metrics.exists():
            os.truncate(metrics, 0 if state is None else state["metrics_bytes"])

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep everything needed to go on; the last checkpoint stays until the new one is whole.

        Raises:
            RunError: the disk does not take it.
        """
        metrics = self.path / METRICS
        content = {**state, "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0}
        _replace(self.path / CHECKPOINT, lambda file: torch.save(content, file))

    def save_best(self, weights: Mapping[str, Tensor], config: BaseModel, best: Best) -> None:
        """Keep the best weights so far.

        Raises:
            RunError: the disk does not take them.
        """
        metadata = {"config": config.model_dump_json(), "best": best.model_dump_json()}
        state = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        _replace(self.path / BEST, lambda file: save_file(state, file, metadata=metadata))

    def save_calibration(self, calibration: Calibration) -> None:
        """Keep the temperature of the view head.

        Raises:
            RunError: the disk does not take it.
        """
        self._write(CALIBRATION, calibration)

    def record(self, figures: Mapping[str, object]) -> None:
        """Add a line to the figures.

        Raises:
            RunError: the disk does not take it.
        """
        try:
            with (self.path / METRICS).open("a", encoding="ascii") as stream:
                stream.write(json.dumps(figures) + "\n")
        except OSError as error:
            raise _disk(self.path / METRICS, error) from error

    def finish(self) -> None:
        """Say that every step was made."""
        self._write(PROVENANCE, read_provenance(self.path).model_copy(update={"status": "done"}))

    def _write(self, name: str, document: BaseModel) -> None:
        text = json.dumps(document.model_dump(mode="json"), indent=1) + "\n"
        _replace(self.path / name, lambda file: file.write_text(text, encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """A fine-tuning run whose every step was made."""

    path: Path
    config: FinetuneConfig
    provenance: Provenance
    best: Best
    view_temperature: float
    """Divides the logits of the view head; 1 of a run that was not calibrated."""

    @property
    def views(self) -> dict[Task, tuple[View, ...]]:
        """Return the views that each task was trained on."""
        return self.provenance.views

    @property
    def data_digests(self) -> dict[str, str]:
        """Return each data set's digest."""
        return self.provenance.data

    @property
    def weights_sha256(self) -> str:
        """Return the digest of the best weights' file."""
        return sha256_of(self.path / BEST)

    def network(self) -> EchoVision:
        """Return the network with its best weights, in evaluation mode, on the CPU.

        Raises:
            RunError: the weights do not fit.
        """
        return best_network(self.path, self.config)


def best_network(path: Path, config: FinetuneConfig) -> EchoVision:
    """Return the network of a run with its best weights so far, in evaluation mode, on the CPU.

    Raises:
        RunError: the weights do not fit.
    """
    outputs = {task.value: CATALOGUE[task].num_outputs for task in config.tasks}
    network = EchoVision(config.net, outputs)
    weights, _ = read_weights(path / BEST)
    try:
        load_strictly(network, weights)
    except WeightsError as error:
        raise RunError(f"{path / BEST}: {error}: train it again") from error
    return network.eval().requires_grad_(False)


def open_finished(path: Path) -> FinishedRun:
    """Return a finished fine-tuning run.

    Raises:
        RunError: it is none, or not finished.
    """
    config = _read_json(path / CONFIG)
    if config.get("kind") != "finetune":
        raise RunError(f"{path}: is a {config.get('kind', 'folder without a')} run: give a run of trainer finetune")
    provenance = read_provenance(path)
    if provenance.status != "done":
        raise RunError(f"{path}: is not finished: go on with trainer finetune --resume")
    best = read_metadata(path / BEST).get("best", "{}")
    return FinishedRun(
        path=path,
        config=_read_closed(path / CONFIG, FinetuneConfig),
        provenance=provenance,
        best=Best.model_validate_json(best),
        view_temperature=_view_temperature(path / CALIBRATION),
    )


def _view_temperature(file: Path) -> float:
    return _read_closed(file, Calibration).view_temperature if file.is_file() else 1.0


def read_provenance(path: Path) -> Provenance:
    """Return where a run comes from.

    Raises:
        RunError: the folder is no run.
    """
    return _read_closed(path / PROVENANCE, Provenance)


def weights_file(source: Path) -> Path:
    """Return the file of weights that a path names: a run's best, or the file itself."""
    return source / BEST if source.is_dir() else source


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and its metadata.

    Raises:
        RunError: it is none.
    """
    with _opened(file) as stream:
        return {key: stream.get_tensor(key) for key in stream.keys()}, dict(stream.metadata() or {})  # noqa: SIM118


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        RunError: it is none.
    """
    with _opened(file) as stream:
        return dict(stream.metadata() or {})


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of a run, line by line."""
    for line in (path / METRICS).read_text(encoding="ascii").splitlines():
        yield json.loads(line)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as stream:
            yield stream
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file}: no weights can be read from it ({error})") from error


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Put a whole new file in the place of the old one, or leave the old one.

    Raises:
        RunError: the disk does not take it.
    """
    try:
        with replacing(file) as temporary:
            write(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors say a full disk their own way
        raise _disk(file, error) from error


def _disk(file: Path, error: Exception) -> RunError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return RunError(f"{file}: cannot be written ({reason}): make room and go on with --resume; what was kept is whole")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read: {file.parent} is no run") from error
    return content


def _read_closed(file: Path, model: type[_Model]) -> _Model:
    try:
        return model.model_validate(_read_json(file))
    except ValidationError as error:
        raise RunError(f"{file}: {first_mistake(error)}: it was written by another version") from error


def _first_difference(saved: object, given: object, where: str = "") -> str | None:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            found = _first_difference(saved.get(key), given.get(key), f"{where}.{key}" if where else key)
            if found is not None:
                return found
        return None
    return None if saved == given else where
