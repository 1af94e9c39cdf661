"""`trainer import-weights`: a checkpoint of others to our safetensors, with what must be known to use it, and back.

What the weights do not say themselves goes into the file's metadata: whose they are and under which licence, the eps
of their LayerNorms, and how the pixels were normalised that they saw. `read_info` gives it back.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.bundle import Closed, Sha256, sha256_of
from model.checkpoint import read_checkpoint
from model.clip.spec import ClipSpec
from model.errors import WeightsError
from model.hugging_face import BiasNames
from model.net.echo_vision import NetConfig
from model.net.mae import DecoderConfig
from model.tasks import Task
from model.weights import Family, Imported, echo_vision_branch, import_state, shape_of, to_hugging_face
from trainer.errors import DataError, UsageError

Normalisation = Literal["imagenet", "unit"]
"""Of pixels in 0..1: ImageNet's mean and standard deviation, or none."""

_CLIPS: Mapping[Normalisation, ClipSpec] = {
    "imagenet": ClipSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": ClipSpec(),
}
_LICENCES = {
    Family.OFFICIAL: "VideoMAE (MCG-NJU): CC BY-NC 4.0, not for commercial use",
    Family.HUGGING_FACE: "not stated in the file; MCG-NJU's on the hub: CC BY-NC 4.0, not for commercial use",
    Family.ECHO_VISION: "Echo-Vision-FM: none stated; it began with VideoMAE's weights, which are CC BY-NC 4.0",
}
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}  # of VideoMAE's four sizes, by width
_KEY = "config"  # of the safetensors metadata, where a run has its configuration


class WeightsInfo(Closed):
    """What a file of imported weights says of itself."""

    kind: Literal["import"] = "import"
    """What the file is; a run's says `pretrain` or `finetune`."""
    family: Family
    """Where the weights come from."""
    source: str
    """Name of the file that they were imported from."""
    source_sha256: Sha256 | None
    """Its digest; None of a folder."""
    licence: str
    """What is known of their licence."""
    net: NetConfig
    """Architecture that they fill; of an encoder alone, pool and head mean nothing."""
    decoder: DecoderConfig | None
    """Decoder of the pre-training; None: there is none."""
    clip: ClipSpec
    """Recipe of the clips that they were trained on."""
    task: Task | None
    """Task of `branches.*`; None: the file has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What weights cannot say of themselves; None: what the family usually has."""

    heads: int | None = None
    """Attention heads of a block, in VideoMAE's four sizes known by their width."""
    frames: int | None = None
    """Frames of a clip, usually 16."""
    size: int | None = None
    """Height and width of a clip, usually 224 pixels."""
    normalisation: Normalisation | None = None
    """Of the pixels; else as `_normalisation` judges."""


def convert(
    file: Path,
    out: Path,
    *,
    to_hf: bool = False,
    bias_names: BiasNames = "new",
    task: Task | None = None,
    geometry: Geometry | None = None,
) -> None:
    """Write a checkpoint to `out` as safetensors, in our names or in transformers'; nothing is ever overwritten.

    Args:
        file: a checkpoint of any family, ours among them, or its folder.
        out: a file that does not exist yet.
        to_hf: the names are those of transformers' VideoMAEForPreTraining.
        bias_names: of which transformers.
        task: of a fine-tuned Echo-Vision-FM: its pool and head become the branch of this task.
        geometry: what the weights cannot say, where it is other than their family's.

    Raises:
        UsageError: the call contradicts itself, or `out` is there.
        DataError: the file is no checkpoint that can be imported.
    """
    if to_hf and (task is not None or geometry is not None):
        raise UsageError("--to-hf: transformers' file has no place for a task or a geometry: leave them out")
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
            info = _describe(imported, file, task, geometry or Geometry())
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
    if '"kind":"import"' not in metadata.get(_KEY, ""):
        return None
    try:
        return WeightsInfo.model_validate_json(metadata[_KEY])
    except ValidationError as error:
        raise DataError(f"{file}: its description cannot be read: import it again with this version") from error


def _describe(imported: Imported, file: Path, task: Task | None, geometry: Geometry) -> WeightsInfo:
    """Return the description of a checkpoint.

    Raises:
        WeightsError: a key that tells the architecture is missing.
        UsageError: the geometry does not fit the weights, or is needed.
    """
    state, shape = imported.state, shape_of(imported.state)
    is_official = imported.family is Family.OFFICIAL
    clip = _CLIPS[geometry.normalisation or _normalisation(imported)]
    frames, size = geometry.frames or clip.num_frames, geometry.size or _size(state, shape.patch) or clip.size
    branch: dict[str, object] = {}
    if imported.family is Family.ECHO_VISION:
        branch = {"stf_layout": "released", "pool": "stf" if "stf.joint_attention.V" in state else "max"}
        if branch["pool"] == "stf":
            branch["stf_attention_dim"] = len(state["stf.joint_attention.V"])
        layers = sorted(int(key.split(".")[1]) for key in state if re.fullmatch(r"head\.\d+\.running_mean", key))
        branch["head_hidden"] = tuple(len(state[f"head.{layer}.running_mean"]) for layer in layers)
    decoder = None
    if shape.decoder_dim and shape.decoder_depth and shape.decoder_mlp_dim:
        decoder = DecoderConfig(
            dim=shape.decoder_dim,
            depth=shape.decoder_depth,
            heads=max(1, shape.decoder_dim // 64),
            mlp_dim=shape.decoder_mlp_dim,
            norm_eps=1e-6 if is_official else 1e-5,
        )
    try:
        net = NetConfig.model_validate(
            {
                "frames": frames,
                "size": size,
                "tubelet": shape.tubelet,
                "patch": shape.patch,
                "dim": shape.dim,
                "depth": shape.depth,
                "heads": geometry.heads or _HEADS.get(shape.dim, 0),
                "mlp_dim": shape.mlp_dim,
                "eps": 1e-6 if is_official else 1e-12,
                "final_norm": shape.final_norm,
                **branch,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) or "geometry"
        raise UsageError(f"{file}: {what}: {first['msg']}: say it by --heads, --frames and --size") from error
    return WeightsInfo(
        family=imported.family,
        source=file.name,
        source_sha256=None if file.is_dir() else sha256_of(file),
        licence=_LICENCES[imported.family],
        net=net,
        decoder=decoder,
        clip=clip.model_copy(update={"num_frames": frames, "size": size}),
        task=task,
    )


def _size(state: Mapping[str, Tensor], patch: int) -> int | None:
    """Return the size of a clip that STF-Net's spatial convolution, which covers a whole frame, was made for."""
    conv = state.get("stf.spatial_conv.weight")
    return None if conv is None else int(conv.shape[-1]) * patch


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
