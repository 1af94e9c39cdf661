"""What the benchmarks share: two sides that are measured in turn, their ratio with its spread, and where it is written.

Machines are noisy: absolute figures of one say little, and two sides measured an hour apart say nothing. Here each pair
is measured one after the other, in alternating order, and the ratio is the median of the pairs' ratios.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two that are compared."""

    name: str
    """With its version."""
    measure: Callable[[], float]
    """Does the work once and returns the figure: seconds, bytes, or so many a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Some measurements of one thing."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return that of one value or more."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of docs/benchmarks.md."""

    claim: str
    ours: str
    """With its unit."""
    peer: str
    """With its name, version and unit; empty: the claim is an absolute one."""
    figure: Spread
    """The ratio; or the figure itself, where there is no peer."""
    num_samples: int
    """Pairs; or measurements, where there is no peer."""
    reach: str
    """Empty: none was set."""
    is_reached: bool

    def __str__(self) -> str:
        """Return a line for a terminal."""
        figure = f"{short(self.figure.median)} [{short(self.figure.low)}, {short(self.figure.high)}]"
        reach = f"; to reach {self.reach}: {'yes' if self.is_reached else 'NO'}" if self.reach else ""
        sides = f"ours {self.ours}" + (f", {self.peer}" if self.peer else "")
        return f"{self.claim}: {figure} of {self.num_samples} ({sides}){reach}"


class Results:
    """The rows of one benchmark: printed as they come, and kept for the page."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def compare(
        self,
        claim: str,
        ours: Side,
        peer: Side,
        *,
        unit: str,
        pairs: int,
        at_least: float | None = None,
        at_most: float | None = None,
        is_rate: bool = False,
        scale: float = 1.0,
    ) -> Row:
        """Measure both sides in turn, after one unmeasured time each, and add the row.

        Args:
            claim: what the ratio says.
            ours: one side.
            peer: the other side, in the same run.
            unit: of both figures, after `scale`.
            pairs: how often each is measured.
            at_least: the ratio to reach: how many times better ours is.
            at_most: the ratio not to exceed: how many times the peer's figure ours is. Not beside `at_least`.
            is_rate: more is better; else less is.
            scale: factor of the figures as they are shown.
        """
        for side in (ours, peer):
            side.measure()
        measured = []
        for number in range(pairs):
            order = (ours, peer) if number % 2 == 0 else (peer, ours)
            found = {side.name: side.measure() for side in order}
            measured.append((found[ours.name], found[peer.name]))
        is_ours_above = is_rate or at_most is not None
        ratios = [own / other if is_ours_above else other / own for own, other in measured]
        own, other = (statistics.median(one) * scale for one in zip(*measured, strict=True))
        return self._add(
            Row(
                claim=claim,
                ours=f"{short(own)} {unit}",
                peer=f"{peer.name}: {short(other)} {unit}",
                figure=Spread.of(ratios),
                num_samples=pairs,
                reach=_reach(at_least, at_most, " x"),
                is_reached=_is_reached(statistics.median(ratios), at_least, at_most),
            )
        )

    def measure(
        self,
        claim: str,
        values: Sequence[float],
        *,
        unit: str,
        at_least: float | None = None,
        at_most: float | None = None,
        statistic: Callable[[Sequence[float]], float] = statistics.median,
    ) -> Row:
        """Add a row without a peer; `statistic` of the values is what must reach."""
        value = statistic(values)
        return self._add(
            Row(
                claim=claim,
                ours=f"{short(value)} {unit}",
                peer="",
                figure=Spread.of(values),
                num_samples=len(values),
                reach=_reach(at_least, at_most, f" {unit}"),
                is_reached=_is_reached(value, at_least, at_most),
            )
        )

    def _add(self, row: Row) -> Row:
        print(row, flush=True)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        return row


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the command line that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--results", type=Path, help="append the rows to this file, as JSON lines")
    return made


def seconds(work: Callable[[], object]) -> Callable[[], float]:
    """Return a measure: how long the work takes."""

    def measured() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return measured


def same_work(holds: bool, what: str) -> None:
    """End the benchmark if the two sides did not do the same work.

    Raises:
        SystemExit: they did not.
    """
    if not holds:
        raise SystemExit(f"not the same work: {what}")


def percentile(of: int) -> Callable[[Sequence[float]], float]:
    """Return the function that gives this percentile of some values."""

    def taken(values: Sequence[float]) -> float:
        return sorted(values)[min(len(values) - 1, len(values) * of // 100)]

    return taken


def _reach(at_least: float | None, at_most: float | None, unit: str) -> str:
    if at_least is not None:
        return f">= {at_least:g}{unit}"
    return "" if at_most is None else f"<= {at_most:g}{unit}"


def _is_reached(value: float, at_least: float | None, at_most: float | None) -> bool:
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def short(value: float) -> str:
    """Return a figure of three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
