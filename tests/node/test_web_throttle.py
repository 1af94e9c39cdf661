"""Wrong tokens and logins, counted on a clock that moves when told."""

from datetime import timedelta

from dicom_node.web.logins import LASTS, Logins
from dicom_node.web.throttle import TRIES, TRIES_OF_ALL, WINDOW, Throttle

NOW = timedelta()


class Seconds:
    """A monotonic clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now

    def pass_by(self, time: timedelta) -> None:
        """Move it on."""
        self.now += time.total_seconds()


def fail(throttle: Throttle, address: str, times: int = TRIES) -> None:
    """Let an address try wrong tokens."""
    for _ in range(times):
        throttle.count(address)


def test_an_address_waits_until_its_window_ends() -> None:
    clock = Seconds()
    throttle = Throttle(clock)
    fail(throttle, "203.0.113.7", TRIES - 1)
    before = throttle.wait("203.0.113.7")
    clock.pass_by(timedelta(seconds=20))
    fail(throttle, "203.0.113.7", 1)
    waits = throttle.wait("203.0.113.7")
    clock.pass_by(waits)

    assert before == NOW
    assert waits == WINDOW - timedelta(seconds=20)
    assert throttle.wait("203.0.113.7") == NOW


def test_another_address_does_not_wait() -> None:
    throttle = Throttle(Seconds())
    fail(throttle, "203.0.113.7")

    assert throttle.wait("203.0.113.8") == NOW


def test_the_right_token_is_a_new_beginning() -> None:
    throttle = Throttle(Seconds())
    fail(throttle, "203.0.113.7", TRIES - 1)
    throttle.forget("203.0.113.7")
    fail(throttle, "203.0.113.7", TRIES - 1)

    assert throttle.wait("203.0.113.7") == NOW


def test_the_addresses_of_one_ipv6_subscriber_are_one() -> None:
    throttle = Throttle(Seconds())
    for number in range(TRIES):
        throttle.count(f"2001:db8::{number}")

    assert throttle.wait("2001:db8::ffff") > NOW
    assert throttle.wait("2001:db8:0:1::1") == NOW


def test_an_ipv4_address_is_the_same_in_ipv6_clothes() -> None:
    throttle = Throttle(Seconds())
    fail(throttle, "::ffff:203.0.113.7")

    assert throttle.wait("203.0.113.7") > NOW
    assert throttle.wait("::ffff:203.0.113.8") == NOW


def test_under_an_attack_from_many_addresses_each_has_one_try_and_a_new_one_gets_in() -> None:
    clock = Seconds()
    throttle = Throttle(clock)
    for number in range(TRIES_OF_ALL):
        throttle.count(f"203.0.113.{number}")

    assert throttle.wait("203.0.113.0") > NOW  # it has had its one
    assert throttle.wait("198.51.100.1") == NOW
    clock.pass_by(WINDOW)
    throttle.count("203.0.113.0")
    assert throttle.wait("203.0.113.0") == NOW  # the attack is over: five again


def test_an_attack_from_any_number_of_addresses_fills_no_memory() -> None:
    throttle = Throttle(Seconds())
    for number in range(10_000):
        throttle.count(f"10.0.{number // 256}.{number % 256}")

    assert len(throttle) == 4096
    assert throttle.wait("10.0.39.15") > NOW  # the newest is remembered


def test_a_login_ends_by_itself() -> None:
    clock = Seconds()
    logins = Logins(clock)
    name = logins.begin()
    clock.pass_by(LASTS - timedelta(seconds=1))
    is_valid_before = logins.is_valid(name)
    clock.pass_by(timedelta(seconds=1))

    assert is_valid_before
    assert not logins.is_valid(name)


def test_logins_do_not_pile_up() -> None:
    logins = Logins()
    first = logins.begin()
    names = [logins.begin() for _ in range(1000)]

    assert not logins.is_valid(first)
    assert all(logins.is_valid(name) for name in names)


def test_the_forms_of_two_logins_differ_and_those_of_one_do_not() -> None:
    logins = Logins()
    one, other = logins.begin(), logins.begin()

    assert logins.form_token(one) == logins.form_token(one)
    assert len({logins.form_token(name) for name in (one, other, "")}) == 3
    assert Logins().form_token(one) != logins.form_token(one)
