"""A loopback server that speaks the Hub's protocol, for the real client: `with serve_hub() as hub`."""

from tests.hub.faults import Fault, cut, cut_after, refuse, stall, together
from tests.hub.server import serve_hub
from tests.hub.store import Hub, Repository, User

__all__ = ["Fault", "Hub", "Repository", "User", "cut", "cut_after", "refuse", "serve_hub", "stall", "together"]
