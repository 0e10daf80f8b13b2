from __future__ import annotations

import pytest
from fastapi import APIRouter

from service.routes.ports import AdminPort

admin, shared = APIRouter(), APIRouter()


@admin.post("/adapters/{name}/pin")
@admin.get("/metrics")
@shared.get("/livez")
async def answer() -> None:
    """Never called."""


PORT = AdminPort(9000, admin=[admin], shared=[shared])


@pytest.mark.parametrize(
    ("path", "for_clients", "for_operators"),
    [
        ("/metrics", False, True),
        ("/adapters/a/pin", False, True),
        ("/livez", True, True),
        ("/ocr", True, False),
        ("/adapters/a/b/pin", True, False),
        ("/metrics/", True, False),
        ("//metrics", True, False),
    ],
)
def test_a_path_is_served_on_its_port(path: str, for_clients: bool, for_operators: bool) -> None:
    assert PORT.serves({"path": path, "server": ("127.0.0.1", 8000)}) is for_clients
    assert PORT.serves({"path": path, "server": ("127.0.0.1", 9000)}) is for_operators


def test_a_request_whose_port_is_not_known_is_a_clients() -> None:
    assert not PORT.serves({"path": "/metrics", "server": None})
    assert PORT.serves({"path": "/ocr"})
