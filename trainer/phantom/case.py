"""The phantom patients of a data set, and the loops that are taken of them: a function of seed and number.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from model.phantom.anatomy import Pose, random_pose
from model.phantom.heart import Heart, random_heart
from model.phantom.ranges import (
    FRESH,
    MIXED_DEPTHS_MM,
    MIXED_FRAME_TIMES_MS,
    MIXED_SECONDS,
    TRAINING,
    Ranges,
    between,
)
from model.phantom.scan import Frames, render
from model.phantom.screen import Screen, random_screen
from model.tasks import View

_HEART, _SCREEN, _LOOP, _OTHER = range(4)  # salts of the random numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a phantom data set is drawn from."""

    seed: int
    fresh: bool = False
    """Hearts and screens beyond those of training on every side, to evaluate on."""
    mixed_depths: bool = False
    """Every study has its own imaging depth; otherwise all have one."""
    mixed_times: bool = False
    """Every loop has its own frame rate and length, up to several beats; otherwise it holds one beat or little more."""

    @property
    def ranges(self) -> Ranges:
        """Return the bounds."""
        ranges = FRESH if self.fresh else TRAINING
        if self.mixed_depths:
            ranges = replace(ranges, depth_mm=MIXED_DEPTHS_MM)
        return replace(ranges, frame_time_ms=MIXED_FRAME_TIMES_MS) if self.mixed_times else ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """A loop that was taken."""

    frames_THWC: Frames
    frame_time_ms: float
    view: View
    screen: Screen
    pose: Pose


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A phantom patient."""

    number: int
    """0-based."""
    plan: Plan
    heart: Heart
    screen: Screen
    """The scanner that this patient came under."""

    def random(self, *label: int) -> Generator:
        """Return random numbers of this patient and purpose alone."""
        return np.random.default_rng([self.plan.seed, self.number, _OTHER, *label])

    def film(
        self,
        view: View,
        number: int,
        *,
        num_frames: tuple[int, int] = (28, 44),
        has_colour: bool = False,
        pose: Pose | None = None,
    ) -> Film:
        """Return a loop; `number` tells loops of one patient apart."""
        rng = np.random.default_rng([self.plan.seed, self.number, _LOOP, number])
        pose = pose or random_pose(rng, self.plan.ranges)
        screen = replace(self.screen, has_colour=has_colour)
        frame_time_ms = between(rng, self.plan.ranges.frame_time_ms)
        # One beat at least, however slow the heart and short the frames.
        wanted = int(rng.integers(*num_frames, endpoint=True))
        if self.plan.mixed_times and wanted > 1:
            wanted = round(1000.0 * between(rng, MIXED_SECONDS) / frame_time_ms)
        frames_THWC = render(
            self.heart,
            view,
            num_frames=wanted if num_frames[1] == 1 else max(wanted, int(self.heart.beat_ms / frame_time_ms) + 2),
            frame_time_ms=frame_time_ms,
            rng=rng,
            screen=screen,
            pose=pose,
            begin_ms=float(rng.uniform(0.0, self.heart.beat_ms)),
        )
        return Film(frames_THWC=frames_THWC, frame_time_ms=frame_time_ms, view=view, screen=screen, pose=pose)

    @property
    def truth(self) -> dict[str, str]:
        """Return what is known of the patient: a row of `truth.csv`."""
        heart = self.heart
        return {
            "case": str(self.number),
            "lvef_percent": f"{heart.lvef_percent:.3f}",
            "edv_ml": f"{heart.edv_ml:.3f}",
            "esv_ml": f"{heart.esv_ml:.3f}",
            "heart_rate": f"{heart.heart_rate:.2f}",
            "stenosis": str(heart.stenosis),
            "depth_mm": f"{self.screen.depth_mm:.2f}",
        }


def make_case(plan: Plan, number: int, *, base: Screen | None = None) -> Case:
    """Return a patient of a data set; `base` is the screen of data sets that have one geometry."""
    ranges = plan.ranges
    heart = random_heart(np.random.default_rng([plan.seed, number, _HEART]), ranges)
    screen = random_screen(np.random.default_rng([plan.seed, number, _SCREEN]), ranges, base=base)
    return Case(number=number, plan=plan, heart=heart, screen=screen)


def bare(screen: Screen) -> Screen:
    """Return the screen without anything beside the fan."""
    return replace(screen, has_ecg=False, has_marks=False, has_text=False)
