"""What a scrape says, as numbers."""

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, kw_only=True)
class Scrape:
    """The samples of one answer of `/metrics`."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of one sample.

        Raises:
            KeyError: there is no such sample.
        """
        return self.samples[name, frozenset(labels.items())]

    def of(self, name: str) -> dict[str, float]:
        """Return the values of all samples of a name, by their labels' values."""
        return {
            " ".join(value for _, value in sorted(labels)): number
            for (one, labels), number in self.samples.items()
            if one == name
        }


def scrape(port: int, token: str = "") -> Scrape:
    """Ask 127.0.0.1 at this port."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", headers=headers, timeout=30)
    answer.raise_for_status()
    return parsed(answer.text)


def parsed(text: str) -> Scrape:
    """Return the samples of an answer."""
    return Scrape(
        samples={
            (one.name, frozenset(one.labels.items())): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }
    )
