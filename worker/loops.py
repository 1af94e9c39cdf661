"""One instance through the network: a result, or the reason why it carries no number."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import structlog
import torch

from model.aggregate import speaks_for
from model.attention import Attention
from model.clip.loop import Clips, Seen, load_clips
from model.clip.sector import Sector
from model.clip.spec import ClipSpec
from model.errors import NotALoop, UnreadableLoop
from model.prediction import Loop, LoopOutputs, outputs_from_json, outputs_to_json
from model.tasks import View
from worker.engine import Engine
from worker.errors import UnreadableNow


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

Timed = Callable[[str], AbstractContextManager[object]]
"""Times a step on one instance, by its name, for as long as the block lasts."""

UNREADABLE = "unreadable"
"""Reason of what is damaged; every other is a `Reason`."""

Show = Callable[[Path, Seen], None]
"""Is given the decoded frames of the loop at a path, in the thread that decoded them; must not raise."""

MAX_DECODERS = 4
"""Loops that are decoded at once, however many cores there are: each may take the memory of the largest loop."""

log = structlog.get_logger(__name__)


# Others come of the bytes too: EINVAL where a header sends its reader before the start of the file.
_OF_THE_MACHINE = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EHOSTDOWN,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTCONN,
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


def analyse_files(
    paths: Sequence[Path],
    engine: Engine,
    *,
    with_attention: bool = False,
    step: Callable[[], None] = lambda: None,
    timed: Timed = lambda _step: nullcontext(),
    show: Show = lambda _path, _seen: None,
) -> Iterator[Verdict]:
    """Yield the verdict on each file, in order; the next ones are decoded while the network looks at this one.

    Args:
        paths: the files.
        engine: who looks at them.
        with_attention: find out where it looked too, in loops that can carry a number.
        step: called when a loop has its answers, and finding out where the engine looked begins.
        timed: of the steps "decode", "network" and "attention".
        show: shows a loop to whoever wants to keep a picture of it.

    Raises:
        UnreadableNow: the disk, not the file, is at fault.
    """
    # Each decodes on one core: torch's own threads would get in the way of each other's and of the network's.
    num_decoders = min(MAX_DECODERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_decoders, "decode", initializer=torch.set_num_threads, initargs=(1,)) as decoders:
        ahead: deque[Future[Clips | RefusedLoop]] = deque()
        waiting = iter(paths)
        for _ in range(len(paths)):
            # The one that is looked at next, and one for each decoder: loops that wait take memory.
            for path in islice(waiting, num_decoders + 1 - len(ahead)):
                ahead.append(decoders.submit(_clips_or_reason, path, engine.spec, timed, partial(show, path)))
            prepared = ahead.popleft().result()
            if isinstance(prepared, RefusedLoop):
                yield prepared
            else:
                with timed("network"):
                    outputs = engine.look_at(prepared)
                step()
                attention = None
                if with_attention:
                    with timed("attention"):
                        attention = attention_of(prepared, outputs, engine)
                yield AnalysedLoop(
                    outputs=outputs,
                    frames=prepared.frames,
                    sector=prepared.sector,
                    header_view=prepared.header_view,
                    attention=attention,
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


def _clips_or_reason(path: Path, spec: ClipSpec, timed: Timed, show: Callable[[Seen], None]) -> Clips | RefusedLoop:
    try:
        with timed("decode"):
            return load_clips(path, spec, show)
    except NotALoop as error:
        return RefusedLoop(code=error.reason.value, reason=str(error))
    except UnreadableLoop as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE:
            raise UnreadableNow(f"{path}: {cause.strerror}") from error
        return RefusedLoop(code=UNREADABLE, reason=str(error))
