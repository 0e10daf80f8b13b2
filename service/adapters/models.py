"""Every model that requests may name: the base, and the adapters where they are served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from service.adapters.manager import AdapterManager
from service.engine.protocol import EngineHandle, FinishReason
from service.errors import ModelNotFoundError


class Lease(Protocol):
    """A model that stays what it is while one document is read."""

    @property
    def model_id(self) -> str:
        """What answers: the base model, or `name@version`."""

    def finished(self, reasons: Iterable[FinishReason]) -> None:
        """Note how the document's pages ended."""


@dataclass(frozen=True, slots=True)
class BaseLease:
    """The base model; it is always there."""

    model_id: str

    def finished(self, reasons: Iterable[FinishReason]) -> None:
        """Nothing is held against the base."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as clients see it."""

    model_id: str
    root: str
    """What it stands for now: itself, or `name@version`."""
    parent: str | None
    """The base model of an adapter."""


class ServedModels:
    """The models of one service.

    Args:
        engine: Knows the base model.
        adapters: The adapters; None where none are served.
        default: What answers a request that names no model; None for the base.
    """

    def __init__(
        self, engine: EngineHandle, adapters: AdapterManager | None = None, default: str | None = None
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._default = default

    def check(self, model_id: str | None) -> str:
        """Whether a request may name a model.

        Args:
            model_id: What it names; None where nothing.

        Returns:
            The name to lease. A `ModelRefusedError` says that it names a refused adapter.

        Raises:
            ModelNotFoundError: There is none of that name.
        """
        base = self._engine.info.model_id
        wanted = model_id or self._default or base
        if wanted == base:
            return base
        if self._adapters is None:
            raise ModelNotFoundError(public={"known": [base]})
        try:
            self._adapters.check(wanted)
        except ModelNotFoundError as error:
            known = error.public.get("known")
            raise ModelNotFoundError(public={"known": [base, *(known if isinstance(known, list) else [])]}) from None
        return wanted

    def lease(self, model_id: str) -> contextlib.AbstractAsyncContextManager[Lease]:
        """Have a model ready until a document is read.

        Args:
            model_id: What `check` returned.

        Returns:
            The lease, as a context.
        """
        if self._adapters is None or model_id == self._engine.info.model_id:
            return contextlib.nullcontext(BaseLease(model_id))
        return self._adapters.lease(model_id)

    def listed(self) -> list[ListedModel]:
        """The base, then each name that stands for a version, then every version that has passed."""
        base = self._engine.info.model_id
        models = [ListedModel(base, base, None)]
        if self._adapters is None:
            return models
        for name, entry in sorted(self._adapters.catalog.entries.items()):
            passed = [each for _, each in sorted(entry.versions.items()) if each.has_passed and not each.refusal]
            if entry.active is not None:
                models.append(ListedModel(name, entry.versions[entry.active].model_id, base))
            models += [ListedModel(version.model_id, version.model_id, base) for version in passed]
        return models
