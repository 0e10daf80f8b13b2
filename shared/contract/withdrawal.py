"""Withdraws a published version for good, by a mark next to it that every reader respects.

The version's folder stays, so its number is never used again and what was served can still be inspected. Knows nothing
of publishing.
"""

from __future__ import annotations

import errno
import json
from datetime import UTC, datetime

from shared.contract.durable import read_small, replace_file
from shared.contract.identity import AdapterRef
from shared.contract.manifest import parse_object, utc
from shared.contract.refusals import AdapterRefusedError, Fault, Reason, VolumeError, reporting
from shared.contract.volume import MARK_PREFIX, WITHDRAWN_SUFFIX, AdapterVolume, served_version

MAX_MARK_BYTES = 4096
MAX_REASON_CHARS = 500


def withdraw(volume: AdapterVolume, reference: AdapterRef, reason: str) -> int | None:
    """Mark a version as withdrawn. If it is in use, the version used before replaces it.

    The mark is written first. A crash before the pointer moves is harmless, since readers skip a marked version.

    Args:
        volume: Must be writable.
        reference: A version on the volume, complete or not.
        reason: For people; cut to `MAX_REASON_CHARS`.

    Returns:
        The version in use afterwards, or None.

    Raises:
        VolumeError: There is no such version, or the volume cannot be written.
    """
    listing = volume.listing(reference.name, reference.version)
    if reference.version not in {*listing.versions, *listing.incomplete, *listing.withdrawn}:
        raise VolumeError(Fault.UNKNOWN_VERSION, f"{reference} is not there to be withdrawn")
    mark = {"format": 1, "created": utc(datetime.now(UTC)).isoformat(), "reason": reason[:MAX_REASON_CHARS]}
    with volume.folder(reference.name) as folder, reporting(f"withdrawing {reference}"):
        replace_file(f"{reference.version}{WITHDRAWN_SUFFIX}", json.dumps(mark).encode() + b"\n", folder, MARK_PREFIX)
    listing = volume.listing(reference.name)
    served = served_version(listing)
    if served is not None and served != listing.current:
        volume.point(listing, served)
    return served


def roll_back(volume: AdapterVolume, name: str, reason: str) -> tuple[AdapterRef, AdapterRef]:
    """Withdraw the version in use and return to the one before it.

    Args:
        volume: Must be writable.
        name: Name of an adapter on the volume.
        reason: For people; cut to `MAX_REASON_CHARS`.

    Returns:
        The version that was withdrawn, and the one in use now.

    Raises:
        VolumeError: No version is in use, or none was used before (`no_current`; nothing is changed then), or the
            volume failed.
    """
    left = volume.resolve(name)
    listing = volume.listing(name)
    if not any(number in listing.versions and number != left.version for number in listing.former):
        raise VolumeError(Fault.NO_CURRENT, f"{name} has nothing to go back to from version {left.version}")
    served = withdraw(volume, left, reason)
    if served is None:
        raise VolumeError(Fault.NO_CURRENT, f"{name} lost the version that it was to go back to")
    return left, AdapterRef(name, served)


def withdrawal_reason(volume: AdapterVolume, reference: AdapterRef) -> str | None:
    """Why a version was withdrawn.

    Args:
        volume: May be read-only.
        reference: A version of an adapter on the volume.

    Returns:
        The reason, empty if the mark has none; None if the version was not withdrawn.

    Raises:
        VolumeError: There is no such adapter, or the volume failed.
    """
    with volume.folder(reference.name) as folder, reporting(f"looking at {reference}"):
        try:
            data = read_small(f"{reference.version}{WITHDRAWN_SUFFIX}", folder, MAX_MARK_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            data = None  # a link is a mark too, but is not followed
    try:
        reason = parse_object(data or b"", Reason.MANIFEST_NOT_JSON).get("reason")
    except AdapterRefusedError:
        return ""
    return reason[:MAX_REASON_CHARS] if isinstance(reason, str) else ""
