"""Sides of a split by patient, for data sets that bring none."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from trainer.data.manifest import Split
from trainer.data.origin import Origin
from trainer.errors import DataError

_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.8), ("val", 0.1), ("test", 0.1))


def divide(origins: Sequence[Origin], *, seed: int, only: Split | None) -> tuple[Origin, ...]:
    """Return the origins with a side each, all of a patient on one.

    Args:
        origins: of one data set.
        seed: of sides that are drawn: 80 % train, 10 % val, 10 % test; a patient's side depends on nothing else.
        only: every patient comes to this side, whatever the data set says; for test sets from elsewhere.

    Raises:
        DataError: the data set's own split has a patient on both sides.
    """
    sided = tuple(replace(one, split=only or one.split or draw_side(one.subject, seed)) for one in origins)
    sides: dict[str, Split | None] = {}
    for one in sided:
        if sides.setdefault(one.subject, one.split) != one.split:
            raise DataError(
                f"subject {one.subject}: the data set's split has it in {sides[one.subject]} and in {one.split}"
                f" ({one.source}): get the split's table again"
            )
    return sided


def draw_side(subject: str, seed: int) -> Split:
    """Return the side of a patient."""
    digest = hashlib.sha256(f"{seed}/{subject}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for side, share in _SHARES:
        if place < share:
            return side
        place -= share
    return _SHARES[-1][0]
