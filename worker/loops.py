"""One instance through the network: a result, or the reason why it carries no number."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.clip.loop import Clips, load_clips
from model.clip.sector import Sector
from model.clip.spec import ClipSpec
from model.errors import NotALoop, UnreadableLoop
from model.prediction import LoopOutputs, outputs_from_json, outputs_to_json
from model.tasks import View
from worker.engine import Engine


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysedLoop:
    """A loop and what the ensemble says of it."""

    outputs: LoopOutputs
    frames: tuple[int, ...]
    """0-based frames of the loop that were looked at, ascending."""
    sector: Sector | None = None
    """What was cut out of the screen; None: nothing was."""
    header_view: View | None = None
    """The view that the header names; None: it names none."""

    def to_json(self) -> dict[str, Any]:
        """Return the form that the ledger keeps; floats survive it to the last bit."""
        sector = None if self.sector is None else self.sector.to_json()
        return {
            "outputs": outputs_to_json(self.outputs),
            "frames": list(self.frames),
            "sector": sector,
            "header_view": self.header_view,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "AnalysedLoop":
        """Return what `to_json` was made of."""
        sector, view = document.get("sector"), document.get("header_view")  # rows of an older version have neither
        return cls(
            outputs=outputs_from_json(document["outputs"]),
            frames=tuple(document["frames"]),
            sector=None if sector is None else Sector.from_json(sector),
            header_view=None if view is None else View(view),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedLoop:
    """An instance that carries no number, and why."""

    code: str
    """Of the closed set of reasons."""
    reason: str
    """In words that a cardiologist understands."""


Verdict = AnalysedLoop | RefusedLoop


def analyse_files(paths: Sequence[Path], engine: Engine) -> Iterator[Verdict]:
    """Yield the verdict on each file, in order; the next one is decoded while the network looks at this one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as decoder:
        ahead = [decoder.submit(_clips_or_reason, path, engine.spec) for path in paths[:1]]
        for position in range(len(paths)):
            prepared = ahead.pop().result()
            ahead += [
                decoder.submit(_clips_or_reason, path, engine.spec) for path in paths[position + 1 : position + 2]
            ]
            if isinstance(prepared, RefusedLoop):
                yield prepared
            else:
                yield AnalysedLoop(
                    outputs=engine.look_at(prepared),
                    frames=prepared.frames,
                    sector=prepared.sector,
                    header_view=prepared.header_view,
                )


def _clips_or_reason(path: Path, spec: ClipSpec) -> Clips | RefusedLoop:
    try:
        return load_clips(path, spec)
    except NotALoop as error:
        return RefusedLoop(code=error.reason.value, reason=str(error))
    except UnreadableLoop as error:
        return RefusedLoop(code="unreadable", reason=str(error))
