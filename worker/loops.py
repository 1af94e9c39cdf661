"""One instance through the network: a result, or the reason why it carries no number."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from model.aggregate import speaks_for
from model.attention import Attention
from model.clip.loop import Clips, load_clips
from model.clip.sector import Sector
from model.clip.spec import ClipSpec
from model.errors import NotALoop, UnreadableLoop
from model.prediction import Loop, LoopOutputs, outputs_from_json, outputs_to_json
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
    attention: Attention | None = None
    """Where the networks looked; None: nobody asked, or the loop can carry no number."""

    def to_json(self) -> dict[str, Any]:
        """Return the form that the ledger keeps; floats survive it to the last bit."""
        sector = None if self.sector is None else self.sector.to_json()
        return {
            "outputs": outputs_to_json(self.outputs),
            "frames": list(self.frames),
            "sector": sector,
            "header_view": self.header_view,
            "attention": None if self.attention is None else self.attention.to_json(),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "AnalysedLoop":
        """Return what `to_json` was made of."""
        # Rows of an older version have none of the three.
        sector, view, attention = (document.get(name) for name in ("sector", "header_view", "attention"))
        return cls(
            outputs=outputs_from_json(document["outputs"]),
            frames=tuple(document["frames"]),
            sector=None if sector is None else Sector.from_json(sector),
            header_view=None if view is None else View(view),
            attention=None if attention is None else Attention.from_json(attention),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedLoop:
    """An instance that carries no number, and why."""

    code: str
    """Of the closed set of reasons."""
    reason: str
    """In words that a cardiologist understands."""


Verdict = AnalysedLoop | RefusedLoop

log = structlog.get_logger(__name__)


def analyse_files(
    paths: Sequence[Path], engine: Engine, *, with_attention: bool = False, step: Callable[[], None] = lambda: None
) -> Iterator[Verdict]:
    """Yield the verdict on each file, in order; the next one is decoded while the network looks at this one.

    Args:
        paths: the files.
        engine: who looks at them.
        with_attention: find out where it looked too, in loops that can carry a number.
        step: called when a loop has its answers, and finding out where the engine looked begins.
    """
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
                outputs = engine.look_at(prepared)
                step()
                yield AnalysedLoop(
                    outputs=outputs,
                    frames=prepared.frames,
                    sector=prepared.sector,
                    header_view=prepared.header_view,
                    attention=attention_of(prepared, outputs, engine) if with_attention else None,
                )


def attention_of(clips: Clips, outputs: LoopOutputs, engine: Engine) -> Attention | None:
    """Return where the engine looked in a loop; None: the loop can carry no number, so that it is not worth the work,
    or the work failed: it costs about as much as the answers did, which stand all the same."""
    tasks = speaks_for(Loop(key="", outputs=outputs, header_view=clips.header_view), engine.info)
    try:
        return engine.attention(clips, tasks) if tasks else None
    except RuntimeError as error:  # PyTorch's own, as when a GPU's memory is full
        log.warning("attention_failed", error=type(error).__name__)
        return None


def _clips_or_reason(path: Path, spec: ClipSpec) -> Clips | RefusedLoop:
    try:
        return load_clips(path, spec)
    except NotALoop as error:
        return RefusedLoop(code=error.reason.value, reason=str(error))
    except UnreadableLoop as error:
        return RefusedLoop(code="unreadable", reason=str(error))
