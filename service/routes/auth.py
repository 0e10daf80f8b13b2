"""Who may call a route: keys, compared before a body is read. Routers take these checks as dependencies."""

from __future__ import annotations

import hmac

from fastapi import Request

from service.deps import Services, ServicesDep
from service.errors import AdminKeyError, AdminOffError


def has_admin_key(request: Request, services: Services) -> bool:
    """Whether the request carries the admin key; false if none is set."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = services.admin_key
    # As bytes: compare_digest refuses text outside ASCII, which a header may hold.
    return bool(wanted) and scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), str(wanted).encode())


async def require_admin(request: Request, services: ServicesDep) -> None:
    """Let only requests with the admin key through: `AdminOffError` if none is set, else `AdminKeyError`."""
    if not services.admin_key:
        raise AdminOffError
    if not has_admin_key(request, services):
        raise AdminKeyError
