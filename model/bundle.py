"""A bundle: one network with everything needed to reproduce the numbers that its training reported.

A bundle is a folder of two files, `bundle.json` and `weights.safetensors`; docs/bundle-format.md fixes them. It loads
only whole: every digest right, every weight present, and the reference outputs reproduced on this machine.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.clip.spec import ClipSpec
from model.cores import cores_for
from model.errors import BundleError
from model.net.echo_vision import EchoVision, NetConfig
from model.tasks import CATALOGUE, Task, View

log = logging.getLogger(__name__)

MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A digest, 64 hexadecimal digits."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_REFERENCE_SEED = 20_251_105
_REFERENCE_STEP = 4  # the reference clip pretends to be every fourth frame of its loop


class Closed(BaseModel):
    """A part of a file that other programs write: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Reference(Closed):
    """What the network must answer to a clip that everybody can make from a seed."""

    seed: int = _REFERENCE_SEED
    """Seed of numpy's PCG64, from which `reference_clip` makes the clip."""
    outputs: dict[Task, tuple[float, ...]]
    """Raw outputs of each head (fp32, not decoded)."""
    rtol: float = Field(default=1e-3, gt=0, le=0.05)
    """Largest relative difference."""
    atol: float = Field(default=1e-4, gt=0, le=0.05)
    """Largest absolute difference, added to the relative one."""


class Manifest(Closed):
    """The content of `bundle.json`; normalisation stands in `clip`, final_norm and eps in `net`."""

    format: Literal[1] = 1
    """Version of this format."""
    tasks: tuple[Task, ...] = Field(min_length=1)
    """Heads of the network; all share one encoder."""
    net: NetConfig
    """Shape of the network."""
    clip: ClipSpec
    """Recipe of every tensor that the network was trained on."""
    views: dict[Task, tuple[View, ...]]
    """Views that each task was trained on; a loop of another view does not speak for it."""
    view_temperature: float = Field(default=1.0, gt=0)
    """Divides the logits of the view head, so that its probabilities come true as often as they say; 1: untouched."""
    data_digests: dict[str, Sha256]
    """Data set -> digest of what was trained on."""
    code_version: str = Field(min_length=1)
    """Version of the package that trained it."""
    seed: int = Field(ge=0)
    """Seed of the training."""
    weights_dtype: Literal["float32", "float16"]
    """How floating-point weights are stored; they are computed with as float32."""
    weights_sha256: Sha256
    """Digest of `weights.safetensors`."""
    reference: Reference
    """Proof that the weights still say what they said."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: a task stands twice")
        if set(self.views) != set(self.tasks):
            raise ValueError("views: needs exactly one entry for each of tasks")
        if set(self.reference.outputs) != set(self.tasks):
            raise ValueError("reference.outputs: needs exactly one entry for each of tasks")
        for task, outputs in self.reference.outputs.items():
            if len(outputs) != CATALOGUE[task].num_outputs:
                raise ValueError(f"reference.outputs.{task}: needs {CATALOGUE[task].num_outputs} numbers")
        if (self.clip.num_frames, self.clip.size) != (self.net.frames, self.net.size):
            raise ValueError("clip and net: differ in the number of frames or in the size")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A network that was checked, ready to answer."""

    manifest: Manifest
    network: EchoVision
    """In evaluation mode, float32, on the device it was loaded to, without gradients."""
    digest: str
    """sha256 of `bundle.json`, which names the digest of the weights."""


def load(path: Path, device: str = "cpu") -> Bundle:
    """Return the bundle of a folder, on `device`, after its reference outputs were reproduced there in float32.

    Raises:
        BundleError: the folder is no whole bundle; the message names the file and the remedy.
    """
    file = path / MANIFEST
    manifest = read_closed(file, Manifest)
    weights = path / WEIGHTS
    digest = sha256_of(weights)
    if digest != manifest.weights_sha256:
        raise BundleError(f"{weights}: sha256 is {digest}, {MANIFEST} says {manifest.weights_sha256}: copy it again")
    network = _build(manifest)
    _fill(network, _read_weights(weights, manifest), weights)
    network = network.to(device).eval().requires_grad_(False)
    bundle = Bundle(manifest=manifest, network=network, digest=sha256_of(file))
    _check_reference(bundle, file, device)
    log.debug("loaded bundle %s (%s)", path, bundle.digest)
    return bundle


def save(
    path: Path,
    network: EchoVision,
    *,
    net: NetConfig,
    clip: ClipSpec,
    views: Mapping[Task, Sequence[View]],
    data_digests: Mapping[str, str],
    code_version: str,
    seed: int,
    view_temperature: float = 1.0,
    weights_dtype: Literal["float32", "float16"] = "float32",
) -> Bundle:
    """Write a new bundle to `path`, whole or not at all, and return it as it loads again.

    Args:
        path: a folder that does not exist yet; its parent does.
        network: its heads are the keys of `views`.
        net: the configuration that `network` was built from.
        clip: recipe of its clips.
        views: task -> views that it was trained on.
        data_digests: data set -> sha256 of what was trained on.
        code_version: version of the code that trained it.
        seed: seed of the training.
        view_temperature: what divides the logits of the view head.
        weights_dtype: how the weights are stored.

    Raises:
        BundleError: the folder exists, or the bundle does not fit together.
    """

    def write(folder: Path) -> None:
        weights = folder / WEIGHTS
        state = {key: _stored(value, _DTYPES[weights_dtype]) for key, value in network.state_dict().items()}
        save_file(state, weights)
        tasks = tuple(views)
        blank = {task: (0.0,) * CATALOGUE[task].num_outputs for task in tasks}
        try:
            manifest = Manifest(
                tasks=tasks,
                net=net,
                clip=clip,
                views={task: tuple(seen) for task, seen in views.items()},
                view_temperature=view_temperature,
                data_digests=dict(data_digests),
                code_version=code_version,
                seed=seed,
                weights_dtype=weights_dtype,
                weights_sha256=sha256_of(weights),
                reference=Reference(outputs=blank),
            )
        except ValidationError as error:
            raise BundleError(f"{path}: {first_mistake(error)}") from error
        # The outputs are those of the weights as stored, which float16 has rounded.
        stored = _build(manifest)
        _fill(stored, _read_weights(weights, manifest), weights)
        outputs = reference_outputs(stored.eval(), manifest, "cpu")
        reference = manifest.reference.model_copy(update={"outputs": outputs})
        write_json(folder / MANIFEST, manifest.model_copy(update={"reference": reference}))

    write_folder(path, write)
    return load(path)


def reference_clip(clip: ClipSpec, seed: int) -> tuple[Tensor, Tensor]:
    """Return the reference clip (1, 3, T, S, S), uniform in [0, 1), and its frame indices (1, T)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    shape = (1, 3, clip.num_frames, clip.size, clip.size)
    indices_BT = torch.arange(clip.num_frames)[None] * _REFERENCE_STEP
    return torch.from_numpy(generator.random(shape, dtype=np.float32)), indices_BT


def exact() -> AbstractContextManager[None]:
    """Return a context in which a GPU's convolutions keep all of float32 and choose the same algorithm every time."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


@torch.inference_mode()
def reference_outputs(network: EchoVision, manifest: Manifest, device: str) -> dict[Task, tuple[float, ...]]:
    """Return what a network in evaluation mode answers to the reference clip, in float32."""
    clip_BCTHW, indices_BT = reference_clip(manifest.clip, manifest.reference.seed)
    indices_BT = indices_BT.to(device)
    with exact(), cores_for(manifest.net):
        tokens_BLD = network.encode(clip_BCTHW.to(device))
        answers = network.answer([task.value for task in manifest.tasks], tokens_BLD, indices_BT)
    return {task: tuple(answers[task.value][0].float().cpu().tolist()) for task in manifest.tasks}


_Model = TypeVar("_Model", bound=BaseModel)


def read_closed(file: Path, model: type[_Model]) -> _Model:
    """Return the content of a JSON file as a closed model.

    Raises:
        BundleError: the file is missing or is no such document.
    """
    try:
        return model.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}): give the folder of a published one") from error
    except ValidationError as error:
        raise BundleError(f"{file}: {first_mistake(error)}: publish it again with this version") from error


def write_json(file: Path, document: BaseModel) -> None:
    """Write the document as JSON with sorted keys, which is the same text for the same content."""
    text = json.dumps(document.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
    file.write_text(text + "\n", encoding="ascii")


def sha256_of(file: Path) -> str:
    """Return the digest of a file, in hexadecimal.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}): copy the whole bundle again") from error


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make `path` from what `write` puts into an empty folder: nothing half-written is ever seen under that name.

    Raises:
        BundleError: `path` exists.
    """
    if path.exists():
        raise BundleError(f"{path}: exists: choose another name or remove it")
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(temporary)
        for part in (*temporary.rglob("*"), temporary):
            part.chmod(0o755 if part.is_dir() else 0o644)  # mkdtemp and safetensors let their owner alone read
            _fsync(part)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Undrawn(TorchFunctionMode):
    """Leaves random weights undrawn: of those that are replaced at once, drawing would take seconds."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        if func in (nn.init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_):
            return None  # nobody who initialises looks at it
        return func(*args, **cast(dict[str, object], kwargs or {}))


def _build(manifest: Manifest) -> EchoVision:
    """Return the network of a manifest, whose weights are still to be filled."""
    # What is drawn all the same must not move the caller's generator.
    with _Undrawn(), torch.random.fork_rng(devices=[]):
        return EchoVision(manifest.net, {task.value: CATALOGUE[task].num_outputs for task in manifest.tasks})


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()


def _read_weights(file: Path, manifest: Manifest) -> dict[str, Tensor]:
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file}: no safetensors file ({error}): copy the bundle again") from error
    wanted = _DTYPES[manifest.weights_dtype]
    for key, value in state.items():
        if value.is_floating_point() and value.dtype != wanted:
            raise BundleError(f"{file}: {key} is {value.dtype}, {MANIFEST} says {wanted}: publish it again")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _fill(network: EchoVision, state: Mapping[str, Tensor], file: Path) -> None:
    own = network.state_dict()
    remedy = "publish it again with this version"
    for problem, keys in (("missing", own.keys() - state.keys()), ("unknown", state.keys() - own.keys())):
        if keys:
            raise BundleError(f"{file}: {problem} weights {', '.join(sorted(keys)[:5])} ({len(keys)}): {remedy}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise BundleError(f"{file}: {key} is {tuple(value.shape)}, not {tuple(own[key].shape)}: {remedy}")
    network.load_state_dict(state)


def _check_reference(bundle: Bundle, file: Path, device: str) -> None:
    reference = bundle.manifest.reference
    for task, answer in reference_outputs(bundle.network, bundle.manifest, device).items():
        expected = reference.outputs[task]
        if not np.allclose(answer, expected, rtol=reference.rtol, atol=reference.atol):
            raise BundleError(
                f"{file}: {task} answers {list(answer)} to the reference clip on {device}, not {list(expected)}:"
                " the weights or this machine's arithmetic are wrong; publish it again or use another device"
            )


def first_mistake(error: ValidationError) -> str:
    """Return the first mistake of a closed document: its key, if there is one, and what is wrong."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
