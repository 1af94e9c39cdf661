"""The roads by which a study can be fetched; apart from them, so that the command line need not load the network."""

from enum import StrEnum


class Road(StrEnum):
    """How a study comes from its peer."""

    GET = "get"
    """C-GET: over the association that asks for it."""
    MOVE = "move"
    """C-MOVE: the peer sends it to the running node."""
    WEB = "web"
    """QIDO-RS and WADO-RS."""

    @property
    def label(self) -> str:
        """Return the service's name."""
        return {Road.GET: "C-GET", Road.MOVE: "C-MOVE", Road.WEB: "WADO-RS"}[self]
