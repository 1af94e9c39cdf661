"""docs/operations.md lists every metric, as it is exposed."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.exposed import exposed

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def test_operations_lists_every_metric_with_its_type_and_labels(tmp_path: Path) -> None:
    """No more and no fewer."""
    rows = re.findall(r"^\| `(echo_node_\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), flags=re.MULTILINE)
    listed = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}

    assert listed == {*of_the_code(tmp_path)}
    assert len(rows) == len(listed)


def of_the_code(folder: Path) -> list[tuple[str, str, frozenset[str]]]:
    """Return name, type and labels of each metric."""
    return [
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
        )
        for family in text_string_to_metric_families(exposed(folder))
        if not family.name.endswith("_created")
    ]
