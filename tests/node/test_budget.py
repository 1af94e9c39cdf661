"""The memory of one process for what peers send: nobody takes it all, and nobody waits for ever."""

import threading
from datetime import timedelta
from io import BytesIO

from dicom_node.budget import Budget, Room

NOW, SOON, LONG = timedelta(0), timedelta(seconds=20), timedelta(hours=1)
GRANTED, TOO_LONG, TOO_LATE = Room.GRANTED, Room.TOO_LONG, Room.TOO_LATE


def test_half_is_everyones_and_the_other_half_is_for_the_first_in_line() -> None:
    budget = Budget(100)

    asked = [budget.ask(sender, 0, 20, NOW) for sender in ("a", "b")]
    first = [budget.ask("a", 20, 20, NOW), budget.ask("a", 40, 20, NOW)]
    others = [budget.ask("b", 20, 20, NOW), budget.ask("c", 0, 20, NOW)]

    assert asked + first + others == [GRANTED] * 4 + [TOO_LATE] * 2
    assert budget.spent() == 80


def test_an_object_that_the_whole_budget_does_not_hold_is_refused_at_once() -> None:
    budget = Budget(100)

    answers = [budget.ask("a", num_so_far, 20, SOON) for num_so_far in range(0, 120, 20)]

    assert answers == [GRANTED] * 5 + [TOO_LONG]


def test_an_object_counts_until_nobody_holds_it() -> None:
    budget = Budget(100)
    content = BytesIO()
    content.write(bytes(45))
    budget.ask("a", 0, 45, NOW)
    budget.complete("a", content)

    before = budget.ask("b", 0, 45, NOW), budget.ask("c", 0, 20, NOW)
    del content

    assert before == (GRANTED, TOO_LATE)  # b is first in line
    assert budget.ask("c", 0, 5, NOW) is GRANTED


def test_who_waits_goes_on_when_there_is_room_again() -> None:
    budget = Budget(100)
    budget.ask("a", 0, 50, NOW)
    budget.ask("b", 0, 20, NOW)  # first in line
    answers: list[Room] = []
    waiting = threading.Thread(target=lambda: answers.append(budget.ask("c", 0, 20, SOON)))
    waiting.start()

    budget.leave("a")
    waiting.join()

    assert answers == [GRANTED]


def test_who_is_cut_off_waits_no_longer() -> None:
    budget = Budget(100)
    budget.ask("a", 0, 50, NOW)
    budget.ask("b", 0, 20, NOW)
    answers: list[Room] = []
    waiting = threading.Thread(target=lambda: answers.append(budget.ask("c", 0, 20, LONG)), daemon=True)
    waiting.start()
    while "c" not in budget._coming:
        pass

    budget.leave("c")
    waiting.join(10)

    assert answers == [TOO_LATE]


def test_the_next_is_first_in_line_when_the_first_is_done() -> None:
    budget = Budget(100)
    for sender in ("a", "b"):
        budget.ask(sender, 0, 25, NOW)
    was_first = budget.ask("a", 25, 25, NOW)
    refused = budget.ask("b", 25, 25, NOW)
    budget.complete("a", BytesIO())

    assert (was_first, refused) == (GRANTED, TOO_LATE)
    assert [budget.ask("b", 25 * n, 25, NOW) for n in (1, 2, 3)] == [GRANTED] * 3


def test_what_waits_to_be_kept_is_waited_for() -> None:
    """It is gone in a moment, which an object in the middle is not."""
    budget = Budget(100)
    content = BytesIO()
    content.write(bytes(90))
    budget.ask("a", 0, 90, NOW)
    budget.complete("a", content)

    waiting = budget.ask("b", 0, 20, NOW)
    del content

    assert (waiting, budget.ask("b", 0, 20, NOW)) == (TOO_LATE, GRANTED)
