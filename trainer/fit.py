"""The training loop that pre-training and fine-tuning share: exact to resume, the same on one process or several.

All that is random is a function of (seed, step or epoch, part or sample), so that a checkpoint needs no generator's
state.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from model.precision import choose_precision
from model.tasks import Task
from trainer.config import FinetuneConfig, PretrainConfig
from trainer.data.cohort import Cohort
from trainer.data.loader import Batch, Clips, Plan, all_batches, training_batches
from trainer.errors import RunError
from trainer.optim import clip_gradient, make_optimiser, set_learning_rate
from trainer.provenance import provenance_of
from trainer.run import Best, RunFolder
from trainer.schedule import learning_rate

log = logging.getLogger(__name__)

Parts = Mapping[str, tuple[Tensor, int]]
"""Part of the loss -> its mean over the samples of a batch that have it, and their number."""

_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What is learned, and from what."""

    network: nn.Module
    parts: Callable[[nn.Module, Batch], Parts]
    """The loss of a batch, part by part; each part counts alike."""
    num_parts: int
    """Parts there are."""
    train: Clips
    val: Clips


def make_accelerator(*, may_miss_parts: bool = False) -> Accelerator:
    """Return the processes and the device of this run; `accelerate launch` decides how many there are.

    Args:
        may_miss_parts: a batch may hold no sample for a part of the loss, so that some weights get no gradient.
    """
    # Precision is the configuration's, not the launcher's: a run means the same however it is started.
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=may_miss_parts)],
    )


def begin(
    out: Path,
    config: PretrainConfig | FinetuneConfig,
    train: Cohort,
    val: Cohort,
    accelerator: Accelerator,
    *,
    tasks: tuple[Task, ...],
    resume: bool,
    command: tuple[str, ...],
) -> RunFolder:
    """Return the folder of a run, made or checked by the main process before any other goes on.

    Raises:
        UsageError: there is a run already, or the one to resume was started otherwise.
        RunError: there is none to resume.
    """
    if accelerator.is_main_process:
        provenance = provenance_of(config, train, tasks, command)
        (RunFolder.reopen if resume else RunFolder.create)(out, config, provenance)
        log.info("%d clips of %d subjects, %d for validation", len(train.entries), train.num_subjects, len(val.entries))
    accelerator.wait_for_everyone()
    return RunFolder(out)


def fit(
    lesson: Lesson,
    config: PretrainConfig | FinetuneConfig,
    run: RunFolder,
    accelerator: Accelerator,
    *,
    resume: bool,
    on_epoch: Callable[[], None],
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Train to the end of the schedule; the run then holds its best weights and all its figures.

    Args:
        lesson: what is learned.
        config: how.
        run: the folder; only the main process writes to it.
        accelerator: of `make_accelerator`.
        resume: go on from the last checkpoint.
        on_epoch: called by the main process after each epoch, for pictures.
        at_end: called by the main process when the best weights are there, before the run counts as finished.

    Raises:
        RunError: the loss is not finite, or the disk is full; the last checkpoint stays.
    """
    device, main = accelerator.device, accelerator.is_main_process
    world = accelerator.num_processes
    network = lesson.network.to(device)
    optimiser = make_optimiser(network, config.net.depth, config.optimiser)
    plan = Plan(num_samples=len(lesson.train), batch=config.batch, parts=world * config.accumulation,
                seed=config.seed, epochs=config.epochs, max_steps=config.max_steps)  # fmt: skip
    first_step, best = 0, math.inf
    state = run.load_checkpoint(device) if resume else None
    if main:
        run.cut_metrics(state)
    accelerator.wait_for_everyone()
    if state is not None:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, best = state["step"], state["best"]
    if config.compile:
        network.compile()
    wrapped = accelerator.prepare_model(network)
    batches = training_batches(lesson.train, plan, first_step=first_step, rank=accelerator.process_index,
                               world=world, workers=config.workers, pin=device.type == "cuda")  # fmt: skip
    pace = _Pace(first_step, plan.total_steps)
    for step in range(first_step, plan.total_steps):
        rate = learning_rate(step, plan.total_steps, config.optimiser)
        set_learning_rate(optimiser, rate)
        wrapped.train()  # not the network alone: what wraps it is asked whether this is training
        loss, norm = _step(lesson, wrapped, optimiser, batches, config, accelerator, step)
        clips_a_second = pace.after(step, plan, loss, rate, is_main=main)
        done = step + 1
        is_epoch_end = done % plan.steps_an_epoch == 0 or done == plan.total_steps
        if main:
            run.record({"step": done, "epoch": plan.epoch_of(step), "loss": loss, "lr": rate, "grad_norm": norm,
                        "clips_per_second": round(clips_a_second, 2)})  # fmt: skip
        if is_epoch_end:
            figures = validate(lesson, wrapped, config, accelerator)
            epochs = plan.epoch_of(step) + 1
            if main:
                log.info("epoch %d of %d: validation loss %.5f", epochs, config.epochs, figures["loss"])
                run.record({"step": done, "epoch": epochs, **{f"val_{key}": value for key, value in figures.items()}})
                if figures["loss"] < best:
                    chosen = Best(step=done, epoch=epochs, metric=figures["loss"], is_phantom=run.is_phantom)
                    run.save_best(network.state_dict(), config, chosen)
            best = min(best, figures["loss"])
        if main and (is_epoch_end or done % config.checkpoint_steps == 0):
            run.save_checkpoint({"network": network.state_dict(), "optimiser": optimiser.state_dict(),
                                 "step": done, "best": best})  # fmt: skip
        if main and is_epoch_end:
            on_epoch()
    if main:
        if not math.isfinite(best):
            raise RunError(f"{run.path}: no epoch had a finite validation loss: nothing is worth keeping")
        at_end()
        run.finish()
    accelerator.wait_for_everyone()


@torch.no_grad()
def validate(
    lesson: Lesson, network: nn.Module, config: PretrainConfig | FinetuneConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Return each part's mean over the validation samples, and `loss`, the mean of the parts."""
    network.eval()
    sums: dict[str, list[float]] = {}
    batches = all_batches(lesson.val, config.batch, rank=accelerator.process_index, world=accelerator.num_processes,
                          workers=config.workers, pin=accelerator.device.type == "cuda")  # fmt: skip
    inner = accelerator.unwrap_model(network)  # several processes may have unlike numbers of batches
    for batch in batches:
        with autocast(accelerator.device, config):
            parts = lesson.parts(inner, batch.to(accelerator.device))
        for name, (mean, count) in parts.items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(mean) * count
            total[1] += count
    if accelerator.num_processes > 1:
        sums = _over_processes(sums)
    figures = {name: total / count for name, (total, count) in sorted(sums.items())}
    return {"loss": sum(figures.values()) / len(figures), **figures}


def autocast(device: torch.device, config: PretrainConfig | FinetuneConfig) -> torch.autocast:
    """Return the arithmetic of the configuration: bf16 matrix products, or float32."""
    is_bf16 = choose_precision(device.type, config.precision) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)


def _step(
    lesson: Lesson,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Batch],
    config: PretrainConfig | FinetuneConfig,
    accelerator: Accelerator,
    step: int,
) -> tuple[float, float]:
    """Make one step, and return its loss over all processes and the norm of the gradient."""
    seen: list[tuple[int, int]] = []
    total = torch.zeros((), device=accelerator.device)
    for turn in range(config.accumulation):
        batch = next(batches).to(accelerator.device)
        seen += batch.places
        # Drop path's choices depend on the place in the run, not on what was drawn before it.
        torch.manual_seed(_seed(config.seed, step, turn * accelerator.num_processes + accelerator.process_index))
        is_last = turn == config.accumulation - 1
        with nullcontext() if is_last else accelerator.no_sync(network):
            with autocast(accelerator.device, config):
                parts = lesson.parts(network, batch)
            loss = torch.stack([mean for mean, _ in parts.values()]).sum() / lesson.num_parts / config.accumulation
            torch.autograd.backward(loss)
        total += loss.detach()
    value = float(accelerator.reduce(total, reduction="mean"))
    norm = clip_gradient(lesson.network.parameters(), config.optimiser.clip_norm)
    if not (math.isfinite(value) and math.isfinite(norm)):
        keys = ", ".join(lesson.train.cohort.entries[number].sample.key for _, number in seen)
        raise RunError(
            f"step {step + 1}: the loss is not finite in the batch of {keys}: look at these, or lower"
            " optimiser.peak_lr; the last checkpoint and the best weights stay"
        )
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value, norm


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _over_processes(sums: Mapping[str, list[float]]) -> dict[str, list[float]]:
    gathered: list[dict[str, list[float]] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, dict(sums))
    joined: dict[str, list[float]] = {}
    for one in gathered:
        for name, (total, count) in (one or {}).items():
            place = joined.setdefault(name, [0.0, 0.0])
            place[0] += total
            place[1] += count
    return joined


class _Pace:
    """How fast the run is; says so every few seconds."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        self._first, self._total = first_step, total_steps
        self._start = self._said = time.monotonic()

    def after(self, step: int, plan: Plan, loss: float, rate: float, *, is_main: bool) -> float:
        """Return the clips a second since the start."""
        now = time.monotonic()
        steps_a_second = (step + 1 - self._first) / max(now - self._start, 1e-9)
        clips_a_second = steps_a_second * plan.batch * plan.parts
        if is_main and now - self._said >= _PROGRESS_SECONDS:
            self._said = now
            left = int((self._total - step - 1) / steps_a_second)
            log.info("step %d of %d: loss %.5f, learning rate %.2e, %.1f clips/s, %d:%02d:%02d left", step + 1,
                     self._total, loss, rate, clips_a_second, left // 3600, left // 60 % 60, left % 60)  # fmt: skip
        return clips_a_second
