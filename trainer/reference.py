"""The paper's figures, and why ours may not be put beside them (Echo-Vision-FM, Nat Commun 2025)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from model.tasks import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """A line of the paper's tables."""

    name: str
    """Network."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Named as ours; volumes in mL."""


WITH_STF = "Echo-Vision-FM with STF-Net (paper)"
WITHOUT_STF = "Echo-Vision-FM without STF-Net (paper)"


def _row(name: str, **figures: float) -> PaperRow:
    return PaperRow(name=name, figures=MappingProxyType(figures))


PAPER: Mapping[tuple[str, Task], tuple[PaperRow, ...]] = MappingProxyType(
    {
        ("echonet", Task.LVEF): (
            _row(WITH_STF, mae=3.87, r2=0.825),
            _row(WITHOUT_STF, mae=4.56, r2=0.757),
            _row("VideoMAE with STF-Net (paper)", mae=4.67, r2=0.741),
            _row("VideoResNet (paper)", mae=5.44, r2=0.632),
            _row("random start with STF-Net (paper)", mae=6.79, r2=0.464),
            _row("EchoNet-Dynamic (own report)", mae=4.1, rmse=5.3, r2=0.81),
            _row("EchoCardMAE (own report)", mae=3.78),
        ),
        ("echonet", Task.LVESV): (
            _row(WITH_STF, mae=9.43, r2=0.782),
            _row(WITHOUT_STF, mae=9.81, r2=0.785),
            _row("VideoResNet (paper)", mae=10.64, r2=0.754),
        ),
        ("echonet", Task.LVEDV): (
            _row(WITH_STF, mae=16.04, r2=0.742),
            _row(WITHOUT_STF, mae=21.82, r2=0.525),
            _row("VideoResNet (paper)", mae=17.34, r2=0.685),
        ),
        ("echonet", Task.LVEF_REDUCED): (
            _row(WITH_STF, accuracy=0.905, auc=0.931, f1=0.941),
            _row(WITHOUT_STF, accuracy=0.878, auc=0.917, f1=0.924),
        ),
        ("camus", Task.LVEF): (
            _row(WITH_STF, mae=4.42, r2=0.658, pearson=0.828, bias=-1.19),
            _row(WITHOUT_STF, mae=5.53, r2=0.609, pearson=0.8649, bias=-3.29),
        ),
        ("camus", Task.LVESV): (
            _row(WITH_STF, mae=15.14, r2=0.697),
            _row(WITHOUT_STF, mae=17.60, r2=0.388),
            _row("VideoResNet (paper)", mae=12.00, r2=0.661),
        ),
        ("camus", Task.LVEDV): (_row(WITH_STF, mae=15.87, r2=0.682), _row(WITHOUT_STF, mae=20.40, r2=0.549)),
        ("camus", Task.LVEF_REDUCED): (_row(WITH_STF, accuracy=0.765, auc=0.862, f1=0.789),),
        ("tmed", Task.AORTIC_STENOSIS): (
            _row(WITH_STF, accuracy=0.620, auc=0.849, f1=0.555),
            _row(WITHOUT_STF, accuracy=0.651, auc=0.828, f1=0.563),
        ),
    }
)
"""(data set, task) -> what the paper, and others, report on its test split."""

TEST_SUBJECTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"echonet": (1270, 1290), "camus": (50, 50), "tmed": (110, 125)}
)
"""Data set -> fewest and most patients that its real test split has, over its releases."""

_PROTOCOL = (
    "The paper's released code averages 50 random draws of at most 16 batches of 8 test clips, and its interval is that"
    " of this average; ours is every test sample once, with an interval over resampled patients, which is wider."
)
_OF_DATASET = {
    "camus": (
        "The released code evaluates the two-chamber half sequence alone; ours is the mean of a patient's two views"
        " (each view stands in evaluation.json)."
    ),
    "tmed": (
        "The released code leaves out the studies whose first listed image is of another view; ours keeps every"
        " labelled study."
    ),
}
_OF_TASK = {
    ("camus", Task.LVEF_REDUCED): "The released code takes an LVEF under 45 % as reduced on CAMUS; ours under 50 %.",
    ("camus", Task.LVESV): "The released code learns CAMUS volumes as mL/100; ours as ln(mL), as the paper says.",
    ("camus", Task.LVEDV): "The released code learns CAMUS volumes as mL/100; ours as ln(mL), as the paper says.",
    ("camus", Task.LVEF): "The paper does not say whether its bias is the prediction minus the truth, as ours is.",
    ("echonet", Task.LVEF_REDUCED): "F1 is that of the class preserved, the larger one, as in the paper.",
}


def reasons(dataset: str, task: Task, num_subjects: int, *, is_phantom: bool = False) -> list[str]:
    """Return why our figures of a data set may not be put beside the paper's."""
    found = []
    if is_phantom:
        found.append("**Phantoms**: no patient is in this data. The figures say nothing about the paper's.")
    low, high = TEST_SUBJECTS.get(dataset, (0, num_subjects))
    if not is_phantom and not low <= num_subjects <= high:
        found.append(
            f"**Not the paper's test set**: {num_subjects} patients, where the real {dataset} has about {low}:"
            " a part, or another split. The figures below say nothing about the paper's."
        )
    found.append(_PROTOCOL)
    found += [_OF_DATASET[dataset]] if dataset in _OF_DATASET else []
    found += [_OF_TASK[dataset, task]] if (dataset, task) in _OF_TASK else []
    return found
