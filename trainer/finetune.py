"""Fine-tuning: the encoder, a pooling and a head for one task, or for several that share the encoder (paper 4.3).

Legend: B clips, T frames, C = 3 RGB, S side of a clip, K tasks.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.clip.transform import normalise
from model.net.echo_vision import Branch, EchoVision, SharedBranch
from model.tasks import CATALOGUE, Kind, Task
from trainer import plots
from trainer.calibrate import calibrate
from trainer.config import FinetuneConfig
from trainer.data.cohort import Entry, fraction, labelled, target, thin
from trainer.data.loader import Batch, Clips
from trainer.data.store import open_stores
from trainer.encoder_weights import load_encoder
from trainer.errors import UsageError
from trainer.fit import Lesson, Parts, begin, fit, make_accelerator
from trainer.run import PLOTS, best_network


def finetune(
    data: Sequence[Path], out: Path, config: FinetuneConfig, *, resume: bool = False, command: tuple[str, ...] = ()
) -> None:
    """Train the tasks; `out` is then a finished run that can be evaluated and published.

    Raises:
        UsageError: the call or the configuration is wrong.
        DataError: a store does not fit, or has no label for a task.
        RunError: the encoder's weights do not fit, the loss is not finite, or the disk is full.
    """
    if config.batch <= len(config.tasks):
        raise UsageError(f"batch: must be larger than the number of tasks ({len(config.tasks)}), for the batch norms")
    stores = open_stores(data, config.clip)
    unknown = config.use_unknown_views
    train = labelled(stores, "train", config.tasks, use_unknown_views=unknown)
    train = fraction(train, config.data_fraction, config.seed)
    train = thin(train, config.tasks, config.view_only_fraction, config.seed, use_unknown_views=unknown)
    val = labelled(stores, "val", config.tasks, use_unknown_views=unknown)
    accelerator = make_accelerator(may_miss_parts=len(config.tasks) > 1)
    torch.manual_seed(config.seed)
    outputs = {task.value: CATALOGUE[task].num_outputs for task in config.tasks}
    network = EchoVision(config.net, outputs, drop_path=config.drop_path)
    network.encoder.is_checkpointed = config.grad_checkpointing
    if config.encoder:
        load_encoder(network.encoder, Path(config.encoder), config.net, config.clip)
    if config.linear_probe:
        network.encoder.requires_grad_(False)
    lesson_train = Clips(train, _targets_of(config), flip=config.flip, seed=config.seed, jitter=config.jitter)
    if config.head_bias_from_data:
        _start_heads(network, _target_means(lesson_train, config.tasks))
    run = begin(out, config, train, val, accelerator, tasks=config.tasks, resume=resume, command=command)
    scales = _scales(lesson_train, config.tasks)
    lesson = Lesson(
        network=network,
        parts=lambda module, batch: _parts(module, batch, config, scales),
        num_parts=len(config.tasks),
        train=lesson_train,
        val=Clips(val, _targets_of(config), flip=False, seed=config.seed),
    )

    def at_end() -> None:
        network = best_network(out, config)
        calibration = calibrate(network, val, config, device=str(accelerator.device))
        if calibration is not None:
            run.save_calibration(calibration)

    fit(lesson, config, run, accelerator, resume=resume,
        on_epoch=lambda: plots.loss_curves(out, out / PLOTS / "loss.png"), at_end=at_end)  # fmt: skip


def _targets_of(config: FinetuneConfig) -> Callable[[Entry], list[float]]:
    def of(entry: Entry) -> list[float]:
        values = [target(entry.sample, task, use_unknown_views=config.use_unknown_views) for task in config.tasks]
        return [math.nan if value is None else value for value in values]

    return of


def _parts(network: nn.Module, batch: Batch, config: FinetuneConfig, scales: dict[Task, float]) -> Parts:
    """Return each task's loss over the samples that have a label for it."""
    clip_BCTSS = normalise(batch.pixels_BTCSS, config.clip).transpose(1, 2)
    has_label_BK = ~batch.targets_BK.isnan()
    # In training a batch norm needs two samples: a task with one waits for another batch.
    fewest = 2 if network.training else 1
    labelled_rows = [torch.nonzero(has_label_B).squeeze(1) for has_label_B in has_label_BK.T]
    rows = {task: of for task, of in zip(config.tasks, labelled_rows, strict=True) if len(of) >= fewest}
    answers = network(clip_BCTSS, batch.indices_BT, {task.value: of for task, of in rows.items()})
    parts = {}
    for place, task in enumerate(config.tasks):
        if task in rows:
            of = rows[task]
            loss = task_loss(task, answers[task.value], batch.targets_BK[of, place])
            parts[task.value] = (loss / scales[task], len(of))
    return parts


def task_loss(task: Task, raw_BK: Tensor, target_B: Tensor) -> Tensor:
    """Return the mean loss of raw outputs: squared error, or the cross-entropy of the classes."""
    kind = CATALOGUE[task].kind
    if kind is Kind.CLASSES:
        return functional.cross_entropy(raw_BK, target_B.long())
    if kind is Kind.BINARY:
        return functional.binary_cross_entropy_with_logits(raw_BK[:, 0], target_B)
    return functional.mse_loss(raw_BK[:, 0], target_B)


def _target_means(clips: Clips, tasks: Sequence[Task]) -> dict[Task, Tensor]:
    """Return the raw output that fits best without looking: the mean, or the logits of the classes' shares."""
    means = {}
    for place, task in enumerate(tasks):
        known = _known(clips, place)
        kind = CATALOGUE[task].kind
        if kind is Kind.REGRESSION:
            means[task] = known.mean()[None]
        elif kind is Kind.BINARY:
            means[task] = torch.logit((known.sum() + 1.0) / (len(known) + 2.0))[None]
        else:
            counts = torch.bincount(known.long(), minlength=CATALOGUE[task].num_outputs)
            means[task] = torch.log((counts + 1.0) / (len(known) + len(counts)))
    return means


def _known(clips: Clips, place: int) -> Tensor:
    """Return the targets of the samples that speak for a task."""
    values_N = clips.targets_NK[:, place]
    return values_N[~values_N.isnan()]


def _scales(clips: Clips, tasks: Sequence[Task]) -> dict[Task, float]:
    """Return what each task's loss is divided by: a regression's variance, so that tasks on one encoder weigh alike."""
    scales = {}
    for place, task in enumerate(tasks):
        known = _known(clips, place)
        is_regression = CATALOGUE[task].kind is Kind.REGRESSION and len(known) > 1
        scales[task] = max(float(known.var()), 1e-6) if is_regression else 1.0
    return scales


@torch.no_grad()
def _start_heads(network: EchoVision, means: dict[Task, Tensor]) -> None:
    for task, mean in means.items():
        head = cast(Branch | SharedBranch, network.branches[task.value]).head
        last = [one for one in head if isinstance(one, nn.Linear)][-1]
        last.bias.copy_(mean)
