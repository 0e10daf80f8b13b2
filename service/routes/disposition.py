"""File names: of an upload, as it can be trusted, and of an answer that a client may save (RFC 6266)."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote_to_bytes

MAX_NAME_CHARACTERS = 100
UNNAMED = "document"
_EXTENDED_NAME = re.compile(rb""";\s*filename\*\s*=\s*"?(UTF-8|ISO-8859-1)'[^'";]*'([^;"\s]*)""", re.IGNORECASE)
_NOT_ASCII_NAME = re.compile(r"[^A-Za-z0-9 ._()-]")


def safe_name(given: str | None) -> str:
    """The name of an uploaded file without folders and without characters that are not shown or change how text runs.

    Args:
        given: As the client sent it.

    Returns:
        Never empty, at most `MAX_NAME_CHARACTERS` long.
    """
    name = re.split(r"[/\\]", given or "")[-1]
    # Cc, Cf, Cs and so on: controls, marks of direction, lone surrogates.
    shown = "".join(character for character in name if not unicodedata.category(character).startswith("C"))
    return shown.strip(" .")[-MAX_NAME_CHARACTERS:].strip(" .") or UNNAMED


def browser_name(name: str) -> str:
    """The name of a file that a browser put into a form, with quotes and line ends escaped.

    Source: https://html.spec.whatwg.org/multipage/form-control-infrastructure.html, "multipart/form-data".
    """
    return re.sub("%(22|0A|0D)", lambda found: chr(int(found[1], 16)), name, flags=re.IGNORECASE)


def extended_name(header: bytes) -> str:
    """The parameter `filename*` of a Content-Disposition (RFC 8187); empty if it cannot be read."""
    found = _EXTENDED_NAME.search(header)
    if found is None:
        return ""
    return unquote_to_bytes(found[2]).decode(found[1].decode().lower(), "replace")


def content_disposition(name: str, extension: str) -> str:
    """The header of an answer to save under the upload's name with another extension.

    Args:
        name: From `safe_name`.
        extension: With its dot.

    Returns:
        The header's value: for names beyond ASCII in both forms, old clients take the first.
    """
    stem = name.rpartition(".")[0] or name
    saved = f"{stem}{extension}"
    plain = _NOT_ASCII_NAME.sub("_", saved)
    if plain == saved:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(saved, safe='')}"
