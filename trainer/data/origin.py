"""What a data set says of its clips before any pixel is read, and how their frames are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from model.clip.source import Frames
from model.clip.spec import ClipSpec
from model.tasks import Task, View
from trainer.data.manifest import Split

PHANTOM_MARK = "PHANTOM"
"""A file of this name at the root of a data set says that no patient is in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """One clip to be made."""

    key: str
    """Unique in the data set."""
    subject: str
    """The patient."""
    study: str
    """The examination."""
    source: str
    """The loop's file below the root; of a stack its study."""
    files: tuple[str, ...]
    """What is read, below the root; of a stack its stills in their order."""
    split: Split | None
    """Side of the official split; None: the data set has none."""
    kind: Literal["loop", "stack", "still"]
    """A cine loop, a study's stack of stills, or one still repeated."""
    view: View | None
    """What it shows, where that is known."""
    targets: dict[Task, float | str]
    """As in the store."""
    frame_time_ms: float | None = None
    """Between two frames; None: the file says."""
    is_reversed: bool = False
    """The frames run backwards in the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """What is left out, and why."""

    path: str
    """Below the root."""
    reason: str
    """In words; up to a colon it is the same for all of a kind, and counted."""
    is_bad: bool
    """The data set is damaged here; not merely something that is no clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A data set, as its tables tell it."""

    origins: tuple[Origin, ...]
    """In the order of their keys."""
    skipped: tuple[Skip, ...] = ()
    """What the tables rule out already."""
    notes: dict[str, float] = field(default_factory=dict)
    """Figures of the data set that are worth keeping."""


class Reel(Protocol):
    """The frames of an origin, in the order of the clip."""

    @property
    def num_frames(self) -> int:
        """Return the frames of the loop, or the stills of the stack."""
        ...

    @property
    def frame_time_ms(self) -> float | None:
        """Return the time between two frames."""
        ...

    @property
    def heart_rate(self) -> float | None:
        """Return the beats a minute."""
        ...

    def read(self, indices: Sequence[int]) -> list[Frames]:
        """Return these frames, RGB uint8 (H, W, 3) each; the stills of a stack may differ in size.

        Raises:
            NotALoop: the pixels show that it is none.
            UnreadableLoop: they cannot be decoded.
        """
        ...


class DataSet(Protocol):
    """A data set's layout on disk: a module of this package."""

    def survey(self, root: Path) -> Listing:
        """Return what the tables say.

        Raises:
            DataError: a table or a column is missing.
        """
        ...

    def open_reel(self, root: Path, origin: Origin, clip: ClipSpec) -> Reel:
        """Return the frames of an origin, cut out by the recipe.

        Raises:
            NotALoop: the header says that it is none.
            UnreadableLoop: the file cannot be read.
        """
        ...
