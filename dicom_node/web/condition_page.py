"""The pages of the node itself: how it is, and how it is configured."""

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from dicom_node.ledger import condition
from dicom_node.ledger.dead_letters import dead_letters
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.listing import count_unfinished
from dicom_node.settings import Peer, Settings
from dicom_node.store import InstanceStore
from dicom_node.web.answers import Pages
from dicom_node.web.configuration import sections
from dicom_node.web.health import Health
from dicom_node.web.pages import shell

_MOST = 50  # of each list


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownPeer:
    """A peer of the configuration, and what passed between us."""

    peer: Peer
    contact: condition.PeerContact


def condition_routes(
    *, pages: Pages, settings: Settings, sessions: Sessions, store: InstanceStore, health: Health
) -> APIRouter:
    """Return the routes of health and configuration."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/health")
    def show_health(request: Request) -> HTMLResponse:
        wrong = health.wrong()
        names = [(peer.name, peer.ae_title) for peer in settings.peers]
        contacts = condition.contacts(sessions, names)
        return pages.page(
            "health",
            **shell(request),
            wrong=wrong,
            queue=condition.queue(sessions),
            counts={one.value: number for one, number in count_unfinished(sessions).items()},
            peers=[ShownPeer(peer=peer, contact=one) for peer, one in zip(settings.peers, contacts, strict=True)],
            recent=condition.RECENT,
            holders=condition.holders(sessions),
            ensemble=condition.last_ensemble(sessions),
            free=store.free_bytes(),
            reserve=settings.node.min_free_bytes,
            room=settings.room,
            letters=dead_letters(sessions, _MOST),
            failures=condition.failures(sessions, _MOST),
            most=_MOST,
        )

    @routes.get("/configuration")
    def show_configuration(request: Request) -> HTMLResponse:
        return pages.page("configuration", **shell(request), sections=sections(settings))

    return routes
