"""What a clip store holds: its recipe, and one line a sample."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.clip.spec import ClipSpec
from model.tasks import Task, View

Split = Literal["train", "val", "test"]
Pixels = Literal["raw", "jpeg"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Closed(BaseModel):
    """A line or file of a store: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Sample(Closed):
    """One clip, and what is known of it."""

    key: str
    """Unique in the store."""
    subject: str
    """The patient."""
    study: str
    """The examination."""
    source: str
    """File of the loop below the data set's root; of a stack its study."""
    split: Split
    """Which side of the split the patient is on."""
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
    """`raw`: what the node computes, bit for bit; `jpeg` (quality 92, 4:4:4): a fraction of the bytes."""
    samples_sha256: Sha256
    """Digest of `samples.jsonl`."""
    counts: dict[str, int]
    """Files seen, kept, and skipped by reason."""
