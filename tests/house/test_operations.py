"""Every event that someone must act on has its heading in docs/operations.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ERRORS = {"error", "exception", "critical"}


def test_every_error_event_has_its_heading_and_every_heading_its_event() -> None:
    """In the order of the alphabet, so that a person finds it."""
    text = (ROOT / "docs" / "operations.md").read_text()
    headings = re.findall(r"^### (\w+)$", text, flags=re.MULTILINE)

    assert headings == sorted(set(_error_events()))


def test_every_event_that_operations_names_exists() -> None:
    """In backquotes with an underscore, it is an event, a state or a setting; metrics have a test of their own."""
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("| `echo_node_"))
    named = set(re.findall(r"`(?!echo_node_)([a-z]+(?:_[a-z]+)+)`", text))
    known = {*_events(), "calling_ae", "called_ae", "data_dir"}

    assert len(named) > 5
    assert named <= known


def _error_events() -> Iterator[str]:
    return (event for level, event in _log_calls() if level in ERRORS)


def _events() -> Iterator[str]:
    return (event for _, event in _log_calls())


def _log_calls() -> Iterator[tuple[str, str]]:
    """Yield level and name of each event that node and worker may log."""
    for package in ("dicom_node", "worker"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[event, *_]):
                        yield from ((level, name) for name in _names(event, path))


def _names(event: ast.expr, path: Path) -> list[str]:
    match event:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.IfExp(body=body, orelse=other):
            return [*_names(body, path), *_names(other, path)]
    raise AssertionError(f"{path}:{event.lineno}: the name of an event is a literal, so that it can be found")
