"""Which routes are served on which port, where operators have one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import Scope


class AdminPort:
    """Keeps routes for operators off the port for clients, and the other way round.

    A request is told by the port of the socket that it came in by, which nothing in it can change.
    """

    def __init__(self, port: int, *, admin: Sequence[APIRouter], shared: Sequence[APIRouter]) -> None:
        """Divide the routes; those of no router are for clients.

        Args:
            port: For operators.
            admin: Served there and nowhere else.
            shared: Served on both ports.
        """
        self._port = port
        self._admin = _paths(admin)
        self._shared = _paths(shared)

    def serves(self, scope: Scope) -> bool:
        """Whether the path of a request is served on its port."""
        is_admin = any(path.match(scope["path"]) for path in self._admin)
        if (scope.get("server") or ("", None))[1] != self._port:
            return not is_admin
        return is_admin or any(path.match(scope["path"]) for path in self._shared)


def _paths(routers: Sequence[APIRouter]) -> list[Any]:
    return [route.path_regex for router in routers for route in router.routes if isinstance(route, APIRoute)]
