"""Every model that requests may name: the base model, and adapters if they are served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from service.adapters.manager import AdapterManager
from service.adapters.versions import AdapterVersion
from service.engine.protocol import EngineHandle
from service.errors import ModelNotFoundError
from shared.contract.answer import FinishReason
from shared.contract.prompts import Task, tasks_of


class Lease(Protocol):
    """A model that does not change while a document is read."""

    @property
    def model_id(self) -> str:
        """What answers: the base model, or `name@version`."""

    def finished(self, reasons: Iterable[FinishReason]) -> None:
        """Record how the document's pages ended."""


@dataclass(frozen=True, slots=True)
class BaseLease:
    """The base model, which is always loaded."""

    model_id: str

    def finished(self, reasons: Iterable[FinishReason]) -> None:
        """Do nothing: the base model has no rollback."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as clients see it."""

    model_id: str
    root: str
    """The model itself, or `name@version`."""
    parent: str | None
    """The base model of an adapter."""
    tasks: tuple[Task, ...]
    """What it can do."""


class ServedModels:
    """The models of one service.

    Args:
        engine: Has the base model.
        adapters: None if adapters are not served.
        default: Model for requests that name none; None for the base model.
        cascade: Name that stands for two models, the default one first; None if there is none.
    """

    def __init__(
        self,
        engine: EngineHandle,
        adapters: AdapterManager | None = None,
        default: str | None = None,
        cascade: str | None = None,
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._default = default
        self._cascade = cascade

    @property
    def _first(self) -> str:
        """The model that reads first in a cascade."""
        return self._engine.info.model_id if self._default in (None, self._cascade) else str(self._default)

    def check(self, model_id: str | None) -> str:
        """Check that a request may name a model.

        Args:
            model_id: None for the default model.

        Returns:
            The name to lease. A `ModelRefusedError` says that the adapter was refused.

        Raises:
            ModelNotFoundError: The model does not exist.
        """
        base = self._engine.info.model_id
        wanted = model_id or self._default or base
        if wanted in (base, self._cascade):
            return wanted
        if self._adapters is None:
            raise ModelNotFoundError(public={"known": [base]})
        try:
            self._adapters.check(wanted)
        except ModelNotFoundError as error:
            known = error.public.get("known")
            models = [base, *(known if isinstance(known, list) else [])]
            raise ModelNotFoundError(public={**error.public, "known": models}) from None
        return wanted

    def tasks(self, model_id: str) -> tuple[Task, ...]:
        """What a model can do: the base model's tasks, and the one that an adapter was evaluated for.

        Args:
            model_id: As `check` returned it.

        Returns:
            The tasks, of a cascade those of its first model; all of an adapter's version whose manifest has not been
            read yet.
        """
        if model_id == self._cascade:
            return self.tasks(self.check(self._first))
        if self._adapters is None or model_id == self._engine.info.model_id:
            return self._engine.info.tasks
        return self._with(self._adapters.check(model_id))

    def _with(self, version: AdapterVersion) -> tuple[Task, ...]:
        has_prompts = tasks_of(self._engine.info.prompts)
        if version.weights_sha256 is None:
            return has_prompts
        able = {*self._engine.info.tasks, version.task}
        return tuple(task for task in has_prompts if task in able)

    def lease(self, model_id: str) -> contextlib.AbstractAsyncContextManager[Lease]:
        """Keep a model, as `check` returned it, loaded while a document is read; of a cascade the first one."""
        if model_id == self._cascade:
            return self.lease(self.check(self._first))
        if self._adapters is None or model_id == self._engine.info.model_id:
            return contextlib.nullcontext(BaseLease(model_id))
        return self._adapters.lease(model_id)

    def listed(self) -> list[ListedModel]:
        """The base model, then each adapter's name, followed by its versions that have passed."""
        base = self._engine.info.model_id
        tasks = self._engine.info.tasks
        models = [ListedModel(base, base, None, tasks)]
        if self._cascade is not None:
            models.append(ListedModel(self._cascade, self._first, base, tasks))
        if self._adapters is None:
            return models
        for name, entry in sorted(self._adapters.catalog.entries.items()):
            passed = [each for _, each in sorted(entry.versions.items()) if each.has_passed and not each.refusal]
            if entry.active is not None:
                active = entry.versions[entry.active]
                models.append(ListedModel(name, active.model_id, base, self._with(active)))
            models += [ListedModel(version.model_id, version.model_id, base, self._with(version)) for version in passed]
        return models
