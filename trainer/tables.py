"""The figures of an evaluation as a page for people, beside the paper's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model.tasks import CATALOGUE, Task
from trainer.reference import PAPER, reasons

_NAMES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "pearson": "Pearson r",
    "bias": "bias",
    "std": "SD of differences",
    "accuracy": "accuracy",
    "auc": "AUC",
    "f1": "F1",
    "f1_reduced": "F1 of reduced",
}
_IN_UNIT = {"mae", "rmse", "bias", "std"}

Block = Mapping[str, Any]


def page(document: Block) -> str:
    """Return an evaluation as Markdown: each task, each data set, ours and the paper's."""
    lines = [
        f"# Evaluation of {document['run']}",
        "",
        f"Data: {document['data']}; split {document['split']}; {document['n']} samples of"
        f" {document['n_subjects']} patients.",
        "Brackets hold the 95 % interval over resampled patients. A dash: not defined, or not reported.",
        "",
    ]
    for name, content in document["tasks"].items():
        lines += _task(Task(name), content, document["datasets"])
    for name, why in document.get("not_evaluated", {}).items():
        lines += [f"## {name}", "", f"Not evaluated: {why}.", ""]
    return "\n".join(lines)


def _task(task: Task, content: Block, datasets: Mapping[str, Any]) -> Iterator[str]:
    info = CATALOGUE[task]
    yield f"## {task.value}: {info.title}"
    yield ""
    parts = content.get("per_dataset") or {content["datasets"][0]: content}
    if "per_dataset" in content:
        yield from _table(task, [("ours, all data sets", content)])
        yield ""
    for name, part in parts.items():
        dataset, is_phantom = datasets[name]["dataset"], datasets[name]["is_phantom"]
        yield f"### {name}"
        yield ""
        ours: list[tuple[str, Block]] = []
        if "per_study" in part and part["per_study"]["n"] != part["n"]:
            ours.append(("**ours, a study**", part["per_study"]))
        ours.append(("**ours, a sample**", part))
        paper = PAPER.get((dataset, task), ())
        yield from _table(task, [*ours, *((row.name, row.figures) for row in paper)])
        yield ""
        if paper:
            told = reasons(dataset, task, part["n_subjects"], is_phantom=is_phantom)
            yield from (f"- {reason}" for reason in told)
            yield ""
    views = content.get("per_view", {})
    if len(views) > 1 and task is not Task.VIEW:
        yield "### each view"
        yield ""
        yield from _table(task, list(views.items()))
        yield ""


def _table(task: Task, rows: Sequence[tuple[str, Block]]) -> Iterator[str]:
    figures = [name for name in _NAMES if any(name in row for _, row in rows)]
    unit = CATALOGUE[task].unit
    titles = [f"{_NAMES[name]}, {unit}" if unit and name in _IN_UNIT else _NAMES[name] for name in figures]
    yield "| | n | " + " | ".join(titles) + " |"
    yield "|---" * (len(titles) + 2) + "|"
    for label, row in rows:
        cells = [_cell(row, name) for name in figures]
        yield f"| {label} | {row.get('n', '-')} | " + " | ".join(cells) + " |"


def _cell(row: Block, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    digits = 2 if name in _IN_UNIT else 3
    interval = row.get("ci95", {}).get(name)
    return f"{value:.{digits}f}" + (f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else "")
