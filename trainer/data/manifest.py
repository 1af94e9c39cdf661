"""What a clip store holds: its recipe, and one line a sample."""

from typing import Literal, Self

from pydantic import Field, model_validator

from model.bundle import Closed, Sha256
from model.clip.spec import ClipSpec
from model.tasks import Task, View

Split = Literal["train", "val", "test"]
Pixels = Literal["raw", "jpeg", "avi"]


class Sample(Closed):
    """One clip, and what is known of it."""

    key: str
    """Unique in the store; further clips of a loop have `#` and their number behind it."""
    subject: str
    """The patient."""
    study: str
    """The examination."""
    source: str
    """File of the loop below the data set's root; of a stack its study."""
    split: Split
    """Which side of the split the patient is on."""
    beat: int = Field(default=0, ge=0)
    """Which clip of the loop this is, by the recipe; 0: the first, or the only one."""
    kind: Literal["loop", "stack", "still"]
    """A cine loop, a study's stack of stills, or one still repeated."""
    view: View | None
    """What it shows; None: nobody knows, or several views."""
    targets: dict[Task, float | str]
    """LVEF in %, volumes in mL, grade and view by name; LVEF < 50 % follows from the LVEF."""
    frame_time_ms: float | None
    """Between two frames of the loop."""
    num_frames: int = Field(ge=1)
    """Frames of the loop, or stills of the stack."""
    indices: tuple[int, ...]
    """The frame of the loop, or the place in the stack, of each frame of the clip."""
    take: tuple[int, ...]
    """Which stored frame stands at each place of the clip."""
    stored: int = Field(ge=1)
    """Frames that are stored: repeated ones once."""
    shard: int = Field(ge=0)
    """Number of the shard."""
    offset: int = Field(ge=0)
    """Of its bytes in the shard."""
    length: int = Field(ge=0)
    """Its bytes."""

    @property
    def loop_key(self) -> str:
        """Return the key of the loop, which its clips share."""
        return self.key.removesuffix(f"#{self.beat}") if self.beat else self.key

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.indices) != len(self.take) or max(self.take) >= self.stored:
            raise ValueError("take and indices do not fit the stored frames")
        return self


class StoreInfo(Closed):
    """The content of `store.json`, which is written last: with it a store is whole."""

    format: Literal[1] = 1
    """Version of this format."""
    dataset: str
    """Data set."""
    clip: ClipSpec
    """Recipe of the clips; pixels are stored before its normalisation."""
    pixels: Pixels
    """`raw`: what the node computes, bit for bit; `jpeg` (quality 92, 4:2:0): a fraction of the bytes; `avi`: whole
    loops in their own size as Motion JPEG, as the paper trained, decoded anew at each reading."""
    samples_sha256: Sha256
    """Digest of `samples.jsonl`."""
    made_of: Sha256
    """Digest of all that the bytes follow from."""
    counts: dict[str, int]
    """Files seen, kept, and skipped by reason."""
    is_phantom: bool = False
    """Synthetic: no patient is in it."""
    notes: dict[str, float] = Field(default_factory=dict)
    """Figures of the data set that are worth keeping."""
