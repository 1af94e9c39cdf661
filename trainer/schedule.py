"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from trainer.config import OptimiserConfig


def learning_rate(step: int, total: int, config: OptimiserConfig) -> float:
    """Return the learning rate of a step, 0-based: a line up to the peak, then half a cosine down to the smallest.

    The recursion of the paper's code (pl_bolts' LinearWarmupCosineAnnealingLR) in closed form.
    """
    warmup = int(config.warmup * total)
    if step < warmup:
        return config.start_lr + step * (config.peak_lr - config.start_lr) / max(warmup - 1, 1)
    progress = (step - warmup) / (total - warmup)
    return config.min_lr + 0.5 * (config.peak_lr - config.min_lr) * (1.0 + math.cos(math.pi * progress))
