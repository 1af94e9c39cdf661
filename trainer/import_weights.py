"""`trainer import-weights`: a checkpoint of others to our safetensors, with what must be known to use it, and back.

What the weights do not say themselves goes into the file's metadata: whose they are and under which licence, the eps
of their LayerNorms, and how the pixels were normalised that they saw. `read_info` gives it back.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.bundle import Sha256, sha256_of
from model.checkpoint import read_checkpoint
from model.errors import WeightsError
from model.hugging_face import BiasNames
from model.net.stf import Layout
from model.tasks import Task
from model.weights import Family, Imported, echo_vision_branch, import_state, shape_of, to_hugging_face
from trainer.errors import DataError, UsageError

Normalisation = Literal["imagenet", "unit"]
"""Of pixels in 0..1: ImageNet's mean and standard deviation, or none."""

Triple = tuple[float, float, float]
_MEAN_STD: Mapping[Normalisation, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_LICENCES = {
    Family.OFFICIAL: "VideoMAE (MCG-NJU): CC BY-NC 4.0, not for commercial use",
    Family.HUGGING_FACE: "not stated in the file; MCG-NJU's on the hub: CC BY-NC 4.0, not for commercial use",
    Family.ECHO_VISION: "Echo-Vision-FM: none stated; it began with VideoMAE's weights, which are CC BY-NC 4.0",
}
_KEY = "echo_weights"  # of the safetensors metadata, whose values are text


class WeightsInfo(BaseModel):
    """What a file of imported weights says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1] = 1
    """Version of this description."""
    family: Family
    """Where the weights come from."""
    source: str
    """Name of the file that they were imported from."""
    source_sha256: Sha256 | None
    """Its digest; None of a folder."""
    licence: str
    """What is known of their licence."""
    dim: int
    """Width of the encoder."""
    depth: int
    """Blocks of the encoder."""
    mlp_dim: int
    """Hidden width of a block's MLP."""
    patch: int
    """Height and width of a token, pixels."""
    tubelet: int
    """Frames of a token."""
    final_norm: bool
    """A LayerNorm ends the encoder."""
    eps: float
    """Of the LayerNorms of all blocks."""
    decoder_dim: int | None
    """Width of the decoder; None, with what follows: there is none."""
    decoder_depth: int | None
    """Blocks of the decoder."""
    decoder_mlp_dim: int | None
    """Hidden width of a decoder block's MLP."""
    decoder_norm_eps: float | None
    """Of the LayerNorm that ends the decoder."""
    stf_layout: Layout | None
    """Layout that pool and head of a task were trained with; None: the file has none."""
    task: Task | None
    """Task of `branches.*`; None: the file has none."""
    mean: Triple
    """Subtracted from the pixels (0..1) that the weights were trained on."""
    std: Triple
    """Divided the pixels afterwards."""

    @classmethod
    def of(cls, imported: Imported, file: Path, task: Task | None, normalisation: Normalisation | None) -> Self:
        """Return the description of a checkpoint.

        Raises:
            WeightsError: a key that tells the architecture is missing.
        """
        shape = shape_of(imported.state)
        is_official = imported.family is Family.OFFICIAL
        eps = 1e-6 if is_official else 1e-12
        decoder_norm_eps = 1e-6 if is_official else 1e-5  # transformers leaves torch's default there
        has_branch = any(key.startswith(("stf.", "head.")) for key in imported.state)
        mean, std = _MEAN_STD[normalisation or _normalisation(imported)]
        return cls(
            family=imported.family,
            source=file.name,
            source_sha256=None if file.is_dir() else sha256_of(file),
            licence=_LICENCES[imported.family],
            dim=shape.dim,
            depth=shape.depth,
            mlp_dim=shape.mlp_dim,
            patch=shape.patch,
            tubelet=shape.tubelet,
            final_norm=shape.final_norm,
            eps=eps,
            decoder_dim=shape.decoder_dim,
            decoder_depth=shape.decoder_depth,
            decoder_mlp_dim=shape.decoder_mlp_dim,
            decoder_norm_eps=None if shape.decoder_depth is None else decoder_norm_eps,
            stf_layout="released" if has_branch else None,
            task=task,
            mean=mean,
            std=std,
        )


def convert(
    file: Path,
    out: Path,
    *,
    to_hf: bool = False,
    bias_names: BiasNames = "new",
    task: Task | None = None,
    normalisation: Normalisation | None = None,
) -> None:
    """Write a checkpoint to `out` as safetensors, in our names or in transformers'; nothing is ever overwritten.

    Args:
        file: a checkpoint of any family, ours among them, or its folder.
        out: a file that does not exist yet.
        to_hf: the names are those of transformers' VideoMAEForPreTraining.
        bias_names: of which transformers.
        task: of a fine-tuned Echo-Vision-FM: its pool and head become the branch of this task.
        normalisation: of the pixels that the weights saw, where it is other than their family's.

    Raises:
        UsageError: the call contradicts itself, or `out` is there.
        DataError: the file is no checkpoint that can be imported.
    """
    if to_hf and (task is not None or normalisation is not None):
        raise UsageError("--to-hf: transformers' file has no place for a task or a normalisation: leave them out")
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: exists: choose another name or remove it")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: no such folder: make it first")
    try:
        imported = import_state(read_checkpoint(file))
        _check_finite(imported.state)
        if to_hf:
            state, metadata = to_hugging_face(imported.state, bias_names=bias_names), {"format": "pt"}
        elif imported.family is Family.OURS:
            raise UsageError(f"{file}: is in our names already: use it as it is, or export it by --to-hf")
        else:
            state = imported.state if task is None else _with_branch(imported, task)
            info = WeightsInfo.of(imported, file, task, normalisation)
            metadata = {_KEY: info.model_dump_json(), "format": "pt"}
    except WeightsError as error:
        message = str(error)
        raise DataError(message if message.startswith(str(file)) else f"{file}: {message}") from error
    _write(out, state, metadata)


def read_info(file: Path) -> WeightsInfo | None:
    """Return what `convert` wrote about the weights; None: the file is no import.

    Raises:
        DataError: it is no safetensors file, or its description is of another version.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: no safetensors file ({error}): import it by trainer import-weights") from error
    if _KEY not in metadata:
        return None
    try:
        return WeightsInfo.model_validate(json.loads(metadata[_KEY]))
    except (ValueError, ValidationError) as error:
        raise DataError(f"{file}: its description cannot be read: import it again with this version") from error


def _normalisation(imported: Imported) -> Normalisation:
    """Return how the pixels were normalised that a checkpoint was trained on, as far as its form tells.

    Echo-Vision-FM pre-trains without a final LayerNorm and on pixels in 0..1; VideoMAE's pre-training has both the norm
    and ImageNet's mean and standard deviation.
    """
    if imported.family is Family.ECHO_VISION:
        return "unit"
    is_echo_pretraining = "encoder_to_decoder.weight" in imported.state and "encoder.norm.weight" not in imported.state
    return "unit" if imported.family is Family.HUGGING_FACE and is_echo_pretraining else "imagenet"


def _with_branch(imported: Imported, task: Task) -> dict[str, Tensor]:
    """Return encoder and branch as the state of an `EchoVision` of one task."""
    branch = {f"branches.{task}.{key}": value for key, value in echo_vision_branch(imported, task).items()}
    return {key: value for key, value in imported.state.items() if key.startswith("encoder.")} | branch


def _check_finite(state: Mapping[str, Tensor]) -> None:
    bad = sorted(key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all())
    if bad:
        raise WeightsError(f"not finite: {bad}")


def _write(out: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `out` whole or not at all."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        # Clones: safetensors refuses tensors that share their storage.
        own = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        save_file(own, temporary, metadata)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # safetensors lets its owner alone read
        out.hardlink_to(temporary)  # unlike a rename, this takes nobody's place
    except FileExistsError as error:
        raise UsageError(f"{out}: exists: choose another name or remove it") from error
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{out}: cannot be written ({error}): choose a place with room and rights") from error
    finally:
        temporary.unlink(missing_ok=True)
