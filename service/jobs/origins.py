"""Where webhooks may be sent, and what signs them, as settings have it.

Addresses are parsed by the library that sends to them, so that both see the same host.
"""

from __future__ import annotations

import base64
import binascii

import httpx

SECRET_PREFIX = "whsec_"  # noqa: S105 -- a beginning  # pragma: allowlist secret  # nosec B105
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> str | None:
    """Scheme, host and port of a URL as `https://host:443`; None if it is none that a webhook may have."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        return None
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.host or parsed.userinfo or parsed.fragment:
        return None
    return f"{parsed.scheme}://{parsed.raw_host.decode('ascii')}:{parsed.port or _DEFAULT_PORTS[parsed.scheme]}"


def parse_origins(text: str) -> frozenset[str]:
    """Read a list of origins.

    Args:
        text: Origins such as `https://hooks.example.org`, separated by commas.

    Returns:
        Them, as `origin_of` writes them.

    Raises:
        ValueError: One of them is no origin.
    """
    origins = set()
    for part in (part.strip() for part in text.split(",")):
        origin = origin_of(part)
        if origin is None or httpx.URL(part).raw_path != b"/":
            raise ValueError(f"{part!r} is no origin such as https://hooks.example.org or http://10.0.0.5:8080")
        origins.add(origin)
    return frozenset(origins)


def parse_secret(text: str) -> bytes:
    """Read a secret.

    Args:
        text: `whsec_` and base64.

    Returns:
        Its bytes.

    Raises:
        ValueError: It is none, too short or too long.
    """
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"a secret is {SECRET_PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64; "
            f"make one with: echo {SECRET_PREFIX}$(openssl rand -base64 32)"
        )
    return secret
