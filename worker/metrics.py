"""What a worker counts: loops and why others are none, how long each step took, reports, and its GPU."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import structlog
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dicom_node.metrics.shared import LIVE
from model.clip.select import Reason
from worker.engine import Engine
from worker.loops import UNREADABLE, RefusedLoop, Verdict

log = structlog.get_logger(__name__)

ReportOutcome = Literal["composed", "handed_in", "impossible", "put_off"]
"""Written from the start; drafted before the study was complete; no report can be made; the disk did not take it."""
REPORT_OUTCOMES: tuple[ReportOutcome, ...] = ("composed", "handed_in", "impossible", "put_off")

Interruption = Literal["no_ensemble", "ledger", "disk", "mistake"]
"""The ensemble cannot be used; the ledger is away; the disk gives no file back; what nobody foresaw."""
INTERRUPTIONS: tuple[Interruption, ...] = ("no_ensemble", "ledger", "disk", "mistake")

STEPS = ("decode", "network", "attention")

_STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120)
_GPU_EVERY = 5.0  # seconds


class WorkerMetrics:
    """The counts of one process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Make them, all at 0."""
        self._analysed = Counter("echo_node_loops_analysed", "Loops that have a result", registry=registry)
        refused = Counter(
            "echo_node_instances_not_analysed",
            "Instances that carry no number, by reason",
            ["reason"],
            registry=registry,
        )
        self._refused = {code: refused.labels(code) for code in (*map(str, Reason), UNREADABLE)}
        interrupted = Counter(
            "echo_node_analysis_interrupted",
            "Times that the analysis of a study was given up for now, by reason",
            ["reason"],
            registry=registry,
        )
        self._interrupted = {reason: interrupted.labels(reason) for reason in INTERRUPTIONS}
        reports = Counter(
            "echo_node_reports", "Reports that were due, by what became of them", ["outcome"], registry=registry
        )
        self._reports = {outcome: reports.labels(outcome) for outcome in REPORT_OUTCOMES}
        seconds = Histogram(
            "echo_node_loop_seconds",
            "Work on one instance by step: read and decode it, the networks' answers, where they looked",
            ["step"],
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._seconds = {step: seconds.labels(step) for step in STEPS}
        self._info = Gauge(
            "echo_node_worker_info",
            "1: the networks that a worker holds, and where; 0: that it held before",
            ["ensemble", "version", "device"],
            registry=registry,
            multiprocess_mode=LIVE,
        )
        self._gpu = {
            name: Gauge(f"echo_node_gpu_{name}", text, ["gpu"], registry=registry, multiprocess_mode=LIVE)
            for name, text in (
                ("memory_used_bytes", "GPU memory that is in use, by whomever"),
                ("memory_total_bytes", "GPU memory that there is"),
                ("utilisation_ratio", "Share of the time in which the GPU computed, over the last second or so"),
            )
        }
        self._engine: Engine | None = None

    def answered(self, verdict: Verdict) -> None:
        """Count an instance whose answer was recorded."""
        if isinstance(verdict, RefusedLoop):
            self._refused[verdict.code].inc()
        else:
            self._analysed.inc()

    def step(self, name: str) -> AbstractContextManager[Any]:
        """Time a step on one instance for as long as the block lasts."""
        timer: AbstractContextManager[Any] = self._seconds[name].time()
        return timer

    def reported(self, outcome: ReportOutcome) -> None:
        """Count a report."""
        self._reports[outcome].inc()

    def interrupted(self, reason: Interruption) -> None:
        """Count a study that was given up for now."""
        self._interrupted[reason].inc()

    def holds(self, engine: Engine) -> None:
        """Say which networks answer now."""
        if engine is self._engine:
            return
        if self._engine is not None:
            self._info.labels(*_names(self._engine)).set(0)
        self._info.labels(*_names(engine)).set(1)
        self._engine = engine

    def look_at_gpu(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        """Note what the GPU says of itself."""
        free, total = cuda.mem_get_info(device)
        index = str(device.index or 0)
        self._gpu["memory_used_bytes"].labels(index).set(total - free)
        self._gpu["memory_total_bytes"].labels(index).set(total)
        self._gpu["utilisation_ratio"].labels(index).set(cuda.utilization(device) / 100)

    def watch_gpu(self, device: torch.device) -> None:
        """Look at the GPU again and again in a thread, if it is one, for as long as the process lives."""
        if device.type == "cuda":
            look: Callable[[], None] = lambda: self.look_at_gpu(device)  # noqa: E731
            threading.Thread(target=_repeat, args=(look,), name="gpu", daemon=True).start()


def _repeat(look: Callable[[], None]) -> None:
    pause = threading.Event()
    while not pause.wait(_GPU_EVERY):
        try:
            look()
        except Exception:  # of drivers, of NVML: no reason to analyse nothing
            log.exception("gpu_not_seen")
            return


def _names(engine: Engine) -> tuple[str, str, str]:
    return engine.info.name, engine.info.version, str(engine.device)
