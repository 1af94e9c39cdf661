"""An ensemble: several bundles asked together, several members a task, on one device.

An ensemble is a folder of `ensemble.json` and its bundles, or a shelf of versions of which one is current;
docs/bundle-format.md fixes both. One pass of a bundle's
encoder serves all of its tasks. On the CPU clips run one by one, so that a number never depends on what else was in
the batch; on a GPU every batch is padded to one size for the same end. Several GPUs are several processes, one device
each.

Legend: B clips, T frames of a clip, H, W pixels, C = 3 RGB, S = H = W of a clip, L tokens, D width of the encoder.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from model import bundle, rollout
from model.attention import Attention
from model.bundle import Bundle, Closed, Sha256
from model.clip.spec import ClipSpec, frame_indices
from model.cores import cores_for
from model.errors import BundleError
from model.precision import Precision
from model.prediction import EnsembleInfo, LoopOutputs, decode
from model.tasks import CATALOGUE, LOOP_TASKS, STUDY_TASKS, Task, View

MANIFEST = "ensemble.json"

CURRENT = "current"
"""On a shelf: the link to the version that workers load."""

SHIPPED = Path(__file__).parent / "shipped"
"""The ensemble that the package brings; `make phantom-ensemble` makes it."""

FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""One plain path component: no separator, no leading dot, so that a manifest cannot name a file elsewhere."""


Fingerprint = tuple[str, int, int]
"""Tells cheaply whether another ensemble lies at a path; equal means: the same file."""


def locate(path: Path) -> Path:
    """Return the folder of `ensemble.json`: `path` itself, or on a shelf the version that is current now.

    A shelf may be switched at any moment: who locates once and reads there reads one version whole.

    Raises:
        BundleError: the links lead in a circle.
    """
    link = path / CURRENT
    try:
        return (link if link.is_symlink() else path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle, before Python 3.13
        raise BundleError(f"{path}: cannot be followed ({error}): mend its links") from error


def fingerprint(path: Path) -> Fingerprint:
    """Return what changes when another ensemble lies at `path`: where its manifest is, and which file that is.

    A path that leads to no manifest has a fingerprint too: an ensemble that is put there later changes it.
    """
    try:
        file = locate(path) / MANIFEST
        status = file.stat()
    except (BundleError, OSError):
        return (str(path), 0, 0)
    return (str(file), status.st_ino, status.st_mtime_ns)


def view_floor_of(threshold: float) -> float:
    """Return from where a view is uncertain unless something else is said: 0.4, for of five views chance is 0.2."""
    return min(0.4, threshold)


class Member(Closed):
    """A bundle of the ensemble."""

    name: FolderName
    """Its folder, beside `ensemble.json`."""
    sha256: Sha256
    """Digest of its `bundle.json`, which names that of its weights."""


class EnsembleManifest(Closed):
    """The content of `ensemble.json`."""

    format: Literal[1] = 1
    """Version of this format."""
    name: str = Field(min_length=1, max_length=64)
    """Name of the ensemble, as reports give it."""
    version: str = Field(min_length=1, max_length=64)
    """Its version, as reports give it."""
    statement: str = Field(min_length=1)
    """What its numbers are worth; stands in every report."""
    bundles: tuple[Member, ...] = Field(min_length=1)
    """Its bundles; their order is that of the members."""
    view_threshold: float = Field(gt=0, le=1)
    """Smallest mean probability at which a view counts as recognised."""
    view_floor: float = Field(default_factory=lambda known: view_floor_of(known.get("view_threshold", 1.0)), gt=0, le=1)
    """From here up to the threshold a view is uncertain: what is not measured for want of it is undetermined."""

    @model_validator(mode="after")
    def _floor_is_under_the_threshold(self) -> Self:
        if self.view_floor > self.view_threshold:
            raise ValueError(f"view_floor: is {self.view_floor}, over view_threshold, which is {self.view_threshold}")
        return self

    @model_validator(mode="after")
    def _bundles_are_distinct(self) -> Self:
        # A bundle that counts twice would make the spread too small.
        if len({member.name for member in self.bundles}) + len({member.sha256 for member in self.bundles}) < 2 * len(
            self.bundles
        ):
            raise ValueError("bundles: a bundle stands twice")
        return self


class Ensemble:
    """Bundles in memory, on one device, that answer for loops and for studies."""

    def __init__(
        self, manifest: EnsembleManifest, bundles: Sequence[Bundle], *, device: str, precision: Precision, batch: int
    ) -> None:
        """Keep checked bundles; `load` is the way in from a folder."""
        self.info = _info(manifest, bundles)
        self.spec: ClipSpec = bundles[0].manifest.clip
        """Recipe of every clip and still that goes in."""
        self._bundles = tuple(bundles)
        self._device = torch.device(device)
        self._precision = precision
        self._batch = 1 if self._device.type == "cpu" else batch

    @classmethod
    def load(cls, path: Path, device: str = "cpu", precision: Precision = "fp32", batch: int = 8) -> Self:
        """Return the ensemble of a folder, on `device`, after every bundle reproduced its reference outputs there.

        Args:
            path: the folder of `ensemble.json`, or a shelf.
            device: such as "cpu" or "cuda:0".
            precision: arithmetic of the encoders.
            batch: clips that a GPU runs at once; the CPU runs one at a time.

        Raises:
            BundleError: it is not whole; the message names the file and the remedy.
        """
        path = locate(path)
        file = path / MANIFEST
        manifest = bundle.read_closed(file, EnsembleManifest)
        for member in manifest.bundles:
            found = bundle.sha256_of(path / member.name / bundle.MANIFEST)
            if found != member.sha256:
                raise BundleError(
                    f"{path / member.name / bundle.MANIFEST}: sha256 is {found}, {MANIFEST} says {member.sha256}:"
                    " copy the whole ensemble again"
                )
        bundles = [bundle.load(path / member.name, device) for member in manifest.bundles]
        _check(file, bundles)
        return cls(manifest, bundles, device=device, precision=precision, batch=batch)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def tasks(self) -> frozenset[Task]:
        """Tasks that at least one member carries."""
        return frozenset(self.info.views)

    @property
    def digest(self) -> str:
        """sha256 over the manifest, which holds the digest of every bundle."""
        return self.info.digest

    def predict_loops(self, clips_BCTHW: Tensor, indices_BT: Tensor) -> list[LoopOutputs]:
        """Return what every member says about each loop, in the order of the clips.

        Args:
            clips_BCTHW: float32, made by `model.clip` with `spec`.
            indices_BT: integers, the clip's frames in their loop.
        """
        return self._predict(clips_BCTHW, indices_BT, LOOP_TASKS)

    def predict_study(self, stack_CTHW: Tensor, indices_T: Tensor) -> LoopOutputs:
        """Return what every member says about a study's stack of stills, as `stack_stills` makes it."""
        return self._predict(stack_CTHW[None], indices_T[None], STUDY_TASKS)[0]

    @torch.inference_mode()
    def attention(self, clips_BCTHW: Tensor, tasks: Iterable[Task]) -> Attention:
        """Return where the members that carry one of the tasks looked in each clip of a loop.

        The rollout of all tokens together, mean over the members; cells of another grid are brought to that of the
        first one.
        """
        wanted = frozenset(tasks)
        bundles = [one for one in self._bundles if wanted & frozenset(one.manifest.tasks)]
        assert bundles, "a task that no member carries"
        with bundle.exact():
            shares_Bthw = torch.stack([_shares(clip_CTHW, bundles) for clip_CTHW in self._send(clips_BCTHW)])
        return Attention.of(shares_Bthw.numpy())

    @torch.inference_mode()
    def _predict(self, clips_BCTHW: Tensor, indices_BT: Tensor, tasks: Iterable[Task]) -> list[LoopOutputs]:
        spec = self.spec
        assert clips_BCTHW.shape[1:] == (3, spec.num_frames, spec.size, spec.size), clips_BCTHW.shape
        assert indices_BT.shape == (len(clips_BCTHW), spec.num_frames), indices_BT.shape
        assert clips_BCTHW.dtype == torch.float32, clips_BCTHW.dtype
        wanted = [task for task in tasks if task in self.info.views]
        outputs: list[LoopOutputs] = []
        for start in range(0, len(clips_BCTHW), self._batch):
            clips = pad(clips_BCTHW[start : start + self._batch], self._batch)
            indices = pad(indices_BT[start : start + self._batch], self._batch)
            with bundle.exact():
                answers = self._run(self._send(clips), self._send(indices), wanted)
            num_real = min(self._batch, len(clips_BCTHW) - start)
            outputs.extend(
                {task: [decode(task, rows[place], at) for rows, at in answers[task]] for task in wanted}
                for place in range(num_real)
            )
        return outputs

    def _run(
        self, clips_BCTHW: Tensor, indices_BT: Tensor, tasks: Sequence[Task]
    ) -> Mapping[Task, list[tuple[list[list[float]], float]]]:
        """Return task -> member -> clip -> raw outputs, and beside the latter the member's view temperature."""
        answers: dict[Task, list[tuple[Tensor, float]]] = {task: [] for task in tasks}
        for one in self._bundles:
            own = [task for task in tasks if task in one.manifest.tasks]
            if not own:
                continue
            with cores_for(one.manifest.net):
                with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"):
                    tokens_BLD = one.network.encode(clips_BCTHW)
                raw = one.network.answer([task.value for task in own], tokens_BLD.float(), indices_BT)
            for task in own:
                answers[task].append((raw[task.value], one.manifest.view_temperature))
        # Only here does the host wait for the device.
        return {task: [(member.cpu().tolist(), at) for member, at in members] for task, members in answers.items()}

    def _send(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _shares(clip_CTHW: Tensor, bundles: Sequence[Bundle]) -> Tensor:
    """Return what each cell drew, mean over the encoders, all in the grid of the first: (t, h, w), one in all."""
    drawn = []
    for one in bundles:
        with cores_for(one.manifest.net):
            drawn.append(rollout.drawn(one.network.encoder, clip_CTHW, row=None)[None, None])  # float32: small numbers
    alike = torch.cat([functional.interpolate(one, bundles[0].manifest.net.grid, mode="area") for one in drawn])[:, 0]
    # Each has one vote: a coarse grid has fewer cells, and more in each.
    return (alike / alike.sum(dim=(1, 2, 3), keepdim=True)).mean(dim=0)


def pad(tensor_B: Tensor, size: int) -> Tensor:
    """Return a contiguous copy with zeros behind, so that its first axis is `size`."""
    padded = tensor_B.new_zeros((size, *tensor_B.shape[1:]))
    padded[: len(tensor_B)] = tensor_B
    return padded


def stack_stills(stills: Sequence[Tensor], spec: ClipSpec) -> tuple[Tensor, Tensor]:
    """Return a study's stack (3, T, S, S) and the positions of its frames (T,), as TMED-2's studies are stacked.

    Args:
        stills: (3, S, S) each, at least one, made by `model.clip` in the order of `aggregate.stills_wanted`; fewer than
            T are repeated, of more T are taken, evenly spread.
        spec: the ensemble's recipe.
    """
    positions = frame_indices(len(stills), spec.num_frames)
    return torch.stack([stills[position] for position in positions], dim=1), torch.tensor(positions)


def save(path: Path, manifest: EnsembleManifest) -> None:
    """Write `ensemble.json` into a folder that holds the bundles already, which makes it an ensemble."""
    bundle.write_json(path / MANIFEST, manifest)


def _info(manifest: EnsembleManifest, bundles: Sequence[Bundle]) -> EnsembleInfo:
    content = manifest.model_dump_json() + "".join(one.digest for one in bundles)
    views: dict[Task, frozenset[View]] = {}
    for task, info in CATALOGUE.items():
        trained_on = [one.manifest.views[task] for one in bundles if task in one.manifest.tasks]
        if trained_on:
            views[task] = info.views.intersection(*trained_on)
    return EnsembleInfo(
        name=manifest.name,
        version=manifest.version,
        statement=manifest.statement,
        digest=hashlib.sha256(content.encode()).hexdigest(),
        views=views,
        view_threshold=manifest.view_threshold,
        view_floor=manifest.view_floor,
    )


def _check(file: Path, bundles: Sequence[Bundle]) -> None:
    if any(one.manifest.clip != bundles[0].manifest.clip for one in bundles):
        raise BundleError(f"{file}: its bundles differ in their clip recipe: publish bundles of one recipe together")
    if not any(Task.VIEW in one.manifest.tasks for one in bundles):
        raise BundleError(f"{file}: no bundle recognises views, so that no loop could speak: add one with task view")
