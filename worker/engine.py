"""The ensemble in this process: loaded once, on the device that the configuration names, and asked loop by loop.

Legend: B clips of a loop, T clip frames, S side of the clip in pixels, 3 = RGB.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from model.attention import Attention
from model.clip.loop import Clips
from model.clip.spec import ClipSpec
from model.ensemble import Ensemble, fingerprint
from model.errors import BundleError
from model.precision import WantedPrecision, choose_precision
from model.prediction import EnsembleInfo, LoopOutputs, mean_outputs
from model.tasks import Task
from worker.errors import NoEnsemble

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An ensemble that is ready to answer."""

    ensemble: Ensemble
    """The networks, on their device."""

    @property
    def info(self) -> EnsembleInfo:
        """Return who answers."""
        return self.ensemble.info

    @property
    def device(self) -> torch.device:
        """Return where it computes."""
        return self.ensemble.device

    @property
    def digest(self) -> str:
        """Return the digest that results are kept under."""
        return self.ensemble.info.digest

    @property
    def spec(self) -> ClipSpec:
        """Return the recipe of the clips."""
        return self.ensemble.spec

    def look_at(self, clips: Clips) -> LoopOutputs:
        """Return what each member says of one loop: the mean over its clips."""
        indices_BT = torch.tensor(clips.indices, dtype=torch.long)
        return mean_outputs(self.ensemble.predict_loops(clips.pixels_BCTSS, indices_BT))

    def attention(self, clips: Clips, tasks: Iterable[Task]) -> Attention:
        """Return where the members that carry one of the tasks looked in each clip of one loop."""
        return self.ensemble.attention(clips.pixels_BCTSS, tasks)


class CurrentEngine:
    """The engine of a path; when another ensemble lies there, that one from the next call on."""

    def __init__(self, path: Path, load: Callable[[Path], Engine]) -> None:
        """Load the ensemble that lies there now.

        Raises:
            NoEnsemble: it cannot be used.
        """
        self._path = path
        self._load = load
        # Taken before the loading: a switch in between is seen at the next call.
        self._seen = fingerprint(path)
        self._engine = load(path)

    def __call__(self) -> Engine:
        """Return the engine to use now; one that cannot be loaded leaves the last one in use, and says so once."""
        found = fingerprint(self._path)
        if found == self._seen:
            return self._engine
        self._seen = found
        before = self._engine.info
        try:
            self._engine = self._load(self._path)
        except NoEnsemble as error:
            log.error("ensemble_refused", reason=str(error), still_used=before.version, digest=before.digest)
        else:
            now = self._engine.info
            log.info("ensemble_replaced", version=now.version, digest=now.digest, replaced=before.version,
                     replaced_digest=before.digest)  # fmt: skip
        return self._engine


def load_engine(path: Path, *, device: str = "auto", precision: WantedPrecision = "auto") -> Engine:
    """Return the ensemble of `path` on its device; its reference outputs were reproduced.

    Raises:
        NoEnsemble: it cannot be used.
    """
    chosen = choose_device(device)
    try:
        ensemble = Ensemble.load(path, device=chosen, precision=choose_precision(chosen, precision))
    except BundleError as error:
        raise NoEnsemble(str(error)) from error
    log.info("ensemble_loaded", name=ensemble.info.name, version=ensemble.info.version, digest=ensemble.info.digest,
             device=chosen)  # fmt: skip
    return Engine(ensemble=ensemble)


def choose_device(wanted: str) -> str:
    """Return the device: the first GPU where there is one, unless the configuration names another.

    Raises:
        NoEnsemble: a GPU is asked for that PyTorch does not see.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise NoEnsemble(f"worker.device: {wanted}: PyTorch sees no GPU; use cpu or auto, or mend the driver")
    return wanted
