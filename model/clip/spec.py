"""The recipe of a clip: it travels with the weights, so that worker and trainer see the same numbers."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ClipSpec(BaseModel):
    """How a loop becomes the tensor that a network was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_frames: int = Field(default=16, ge=1)
    """Frames of a clip."""
    size: int = Field(default=224, ge=8)
    """Height and width of a clip, pixels; torch's resize fails below a few pixels."""
    crop: Literal["none", "sector"] = "none"
    """`sector`: what lies outside the ultrasound sector is black, and the sector fills a box of one shape; a loop whose
    sector is not found is refused. `none`: the whole screen, as the paper does."""
    depth_mm: float | None = Field(default=None, ge=20, le=400)
    """Height of the box of a sector, whatever the loop's depth: so a millimetre is as many pixels of every clip, and
    a loop whose header gives no sane scale is refused. None: as high as the sector, the scale given up."""
    sampling: Literal["uniform", "beat"] = "uniform"
    """`uniform`: evenly over the whole loop, as the paper does. `beat`: a clip of each beat by the heart rate of the
    header (60 a minute where it has none), whose answers are averaged."""
    beats: int = Field(default=3, ge=1, le=16)
    """Beats of a loop that are looked at, at most; of `beat` alone."""
    resize: Literal["squash", "fit"] = "squash"
    """Bilinear with antialias. `squash`: both sides to `size`, the aspect ratio given up, as the paper does. `fit`: the
    longer side to `size`, black beside the shorter one."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from each channel after division by 255; zero: the paper's code."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divides each channel afterwards; one: the paper's code."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.depth_mm is not None and self.crop != "sector":
            raise ValueError('depth_mm is the height of a sector\'s box: it needs crop = "sector"')
        return self


def frame_indices(num_available: int, num_wanted: int) -> tuple[int, ...]:
    """Return the frames of a loop that make a clip: floor(linspace(0, N - 1, n)), ascending, repeated in short loops.

    In integers, so that no platform rounds otherwise; equal to the paper's code for every N.
    """
    assert num_available > 0, "a loop has a frame"
    assert num_wanted > 0, "a clip has a frame"
    if num_wanted == 1:
        return (0,)
    return tuple(k * (num_available - 1) // (num_wanted - 1) for k in range(num_wanted))
