"""Everything that decides who may use the service; built once, from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from service.access.key import Scope
from service.access.key_ring import KeyRing
from service.access.limits import KeyLimits, WrongKeys


@dataclass(frozen=True, slots=True)
class Access:
    """Keys and their limits."""

    ring: KeyRing
    limits: KeyLimits
    wrong_keys: WrongKeys
    needs_key: bool
    """Whether reading documents takes a key; commands for adapters always do."""

    @property
    def has_admin(self) -> bool:
        """Whether there is a key for commands at all."""
        return any(key.allows(Scope.ADMIN) for key in self.ring.keys)
