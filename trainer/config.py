"""Configurations of training: closed, every hyper-parameter in them, saved with the run.

`base` is the paper's recipe where the paper states one; `small` is the same in small, for a CPU.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from model.bundle import Closed, first_mistake
from model.clip.spec import ClipSpec
from model.net.echo_vision import NetConfig
from model.net.mae import DecoderConfig
from model.precision import WantedPrecision
from model.tasks import Task
from trainer.data.jitter import JitterConfig
from trainer.errors import UsageError


class OptimiserConfig(Closed):
    """AdamW, and its learning rate: a linear warm-up, then a cosine."""

    peak_lr: float = Field(default=1e-4, gt=0)
    """Learning rate at the end of the warm-up."""
    start_lr: float = Field(default=1e-5, ge=0)
    """Learning rate of the first step."""
    min_lr: float = Field(default=1e-8, ge=0)
    """Learning rate at the end."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps until the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of AdamW, on matrices only: biases, norms and the mask token are free."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; none: not clipped."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each block of the encoder learns by this factor slower than the one behind it; 1: all alike."""
    encoder_lr_factor: float = Field(default=1.0, gt=0)
    """The encoder's learning rate over the heads'."""


class MaskConfig(Closed):
    """Which tubelets are hidden."""

    ratio: float = Field(default=0.85, gt=0, lt=1)
    """Share that is hidden; the same count in every clip (paper 3.1)."""
    kind: Literal["random", "tube"] = "random"
    """`tube`: the same places in every time step, as VideoMAE does."""


class Recipe(Closed):
    """What pre-training and fine-tuning have in common."""

    net: NetConfig
    """The architecture."""
    clip: ClipSpec
    """Recipe of the clips; the stores must have been prepared in its frames and size."""
    optimiser: OptimiserConfig
    """How the weights move."""
    epochs: int = Field(ge=1)
    """Passes over the training data."""
    batch: int = Field(ge=1)
    """Clips a device sees at once."""
    accumulation: int = Field(default=1, ge=1)
    """Batches a step is made of, on each device."""
    seed: int = Field(default=0, ge=0)
    """Of weights, order, flips and masks."""
    data_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the training subjects that is used, chosen by the seed."""
    flip: bool = True
    """Clips are flipped left to right and upside down, each with probability one half (paper 4.2)."""
    jitter: JitterConfig = JitterConfig()
    """Small changes to the clips that change no truth."""
    precision: WantedPrecision = "auto"
    """Arithmetic of the encoder: auto is bf16 on a GPU that has it, else fp32."""
    compile: bool = False
    """The network goes through torch.compile: pays on GPUs and in long runs."""
    grad_checkpointing: bool = False
    """The encoder's activations are computed twice instead of kept: less memory, more time."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of samples that skip the encoder's last block; it rises from 0 at the first."""
    workers: int = Field(default=0, ge=0)
    """Processes that read clips, for each device; 0: the training process itself."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """A checkpoint to resume from after so many steps, and at the end of each epoch."""
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the run early, for trials; the schedule ends with it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.net.frames, self.net.size) != (self.clip.num_frames, self.clip.size):
            raise ValueError("net and clip differ in the number of frames or in the size")
        return self


class PretrainConfig(Recipe):
    """Masked auto-encoding."""

    kind: Literal["pretrain"] = "pretrain"
    """What the run is."""
    decoder: DecoderConfig
    """The decoder."""
    mask: MaskConfig = MaskConfig()
    """What is hidden."""
    norm_pix_loss: bool = True
    """The target of each cube is standardised in each channel."""
    min_cube_std: float = Field(default=0.0, ge=0)
    """Hidden cubes that deviate less (of 0..1) do not count: compression noise outside the sector. 0: all count."""
    init: str = ""
    """Weights to start from, of `trainer import-weights` or a run; empty: random."""


class FinetuneConfig(Recipe):
    """One task, or several on one encoder."""

    kind: Literal["finetune"] = "finetune"
    """What the run is."""
    tasks: tuple[Task, ...] = Field(min_length=1)
    """What the network learns."""
    encoder: str = ""
    """Weights of the encoder: a pre-training run or a file of `trainer import-weights`; empty: random."""
    linear_probe: bool = False
    """The encoder stays as it is."""
    use_unknown_views: bool = False
    """Loops whose view nobody knows train the tasks of certain views too."""
    view_only_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the loops that speak for the view alone, chosen by the seed: beside other tasks a few teach it."""
    head_bias_from_data: bool = True
    """The last layer starts at the mean of the training targets, so that no epoch is spent on finding it."""

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: a task stands twice")
        return self


_BASE_PRETRAIN: dict[str, Any] = {
    "net": NetConfig.base().model_copy(update={"final_norm": True}).model_dump(),
    "clip": ClipSpec().model_dump(),
    "decoder": DecoderConfig().model_dump(),
    "optimiser": {},
    "epochs": 30,
    "batch": 8,
    "workers": 4,
}
_BASE_FINETUNE: dict[str, Any] = {
    "net": NetConfig.base().model_copy(update={"final_norm": True}).model_dump(),
    "clip": ClipSpec().model_dump(),
    "optimiser": {"betas": (0.9, 0.98), "weight_decay": 1e-3, "warmup": 0.2},
    "epochs": 50,
    "batch": 16,
    "workers": 4,
}
_SMALL: dict[str, Any] = {
    "net": NetConfig.small().model_dump(),
    "clip": ClipSpec(size=112).model_dump(),
    "batch": 16,
    "workers": 0,
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "pretrain": {
        "base": _BASE_PRETRAIN,
        "small": _BASE_PRETRAIN
        | _SMALL
        | {
            "decoder": {"dim": 48, "depth": 2, "heads": 4, "mlp_dim": 192},
            "optimiser": {"peak_lr": 1e-3},
            "min_cube_std": 0.01,
        },
    },
    "finetune": {
        "base": _BASE_FINETUNE,
        "small": _BASE_FINETUNE | _SMALL | {"optimiser": _BASE_FINETUNE["optimiser"] | {"peak_lr": 1e-3}},
    },
}
"""Kind of run -> name -> content."""

_Config = TypeVar("_Config", bound=Recipe)


def resolve(model: type[_Config], preset: str, settings: Sequence[str], overrides: dict[str, Any]) -> _Config:
    """Return a configuration.

    Args:
        model: `PretrainConfig` or `FinetuneConfig`.
        preset: `base`, `small`, or a TOML file whose keys lie over those of base.
        settings: `key=value`, the key with dots (`optimiser.peak_lr=1e-3`), the value as in TOML, or a plain word.
        overrides: what options of the command say; they lie over all else.

    Raises:
        UsageError: the message names the key.
    """
    kind = "pretrain" if model is PretrainConfig else "finetune"
    presets = PRESETS[kind]
    content = presets[preset] if preset in presets else _merge(presets["base"], _read_toml(Path(preset)))
    for setting in settings:
        content = _merge(content, _parse_setting(setting))
    content = _merge(content, overrides)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UsageError(("" if error.errors()[0]["loc"] else "configuration: ") + first_mistake(error)) from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}: give base, small or a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file}: no TOML ({error})") from error


def _parse_setting(setting: str) -> dict[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {setting}: write key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    nested: dict[str, Any] = {}
    place = nested
    *parents, last = key.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return nested


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
