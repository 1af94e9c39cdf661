"""Every test of the fault table has a guard that it was seen to miss, and the guards are where they are said to be."""

import ast
import re

import pytest

from tests.guards import ROOT, Guard, guards

GUARDS = guards()


def test_every_test_of_the_fault_table_has_a_guard_that_can_be_taken_out() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", page))

    assert named - {one.test for one in GUARDS} == set()
    assert {one.test for one in GUARDS} - named == set()


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.test.partition("::")[2])
def test_a_guard_stands_where_it_is_said_to_and_its_file_is_python_without_it(guard: Guard) -> None:
    """A change that moves it takes its entry along; `python -m tests.guards` shows that its test notices."""
    whole = (ROOT / guard.file).read_text()

    assert whole.count(guard.old) == 1
    assert guard.new != guard.old
    if guard.file.endswith(".py"):
        ast.parse(whole.replace(guard.old, guard.new))
