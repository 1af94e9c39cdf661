"""The frames of a file that the node's own readers open: DICOM and video."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.clip.source import Frames, LoopSource
from model.clip.spec import ClipSpec
from model.clip.transform import cut_out, locate_by_header


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReel:
    """A loop in a file."""

    source: LoopSource
    clip: ClipSpec
    """The recipe that the frames are cut out by."""
    check: Callable[[Frames], None] | None = None
    """Called with the frames that are read, (T, H, W, 3); it raises `NotALoop` if they are none."""

    @property
    def num_frames(self) -> int:
        """Return the number of its frames."""
        return self.source.header.num_frames

    @property
    def frame_time_ms(self) -> float | None:
        """Return what the file says."""
        return self.source.header.frame_time_ms

    @property
    def heart_rate(self) -> float | None:
        """Return what the file says."""
        return self.source.header.heart_rate

    def read(self, indices: Sequence[int]) -> list[Frames]:
        """Return these frames as the recipe cuts them out, RGB uint8 (H, W, 3) each."""
        frames_THWC = self.source.read(indices)
        if self.check is not None:
            self.check(frames_THWC)
        return list(cut_out(frames_THWC, locate_by_header(frames_THWC, self.clip, self.source.header)))
