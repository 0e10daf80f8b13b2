"""Calls about adapters to the engine's process, and the folders that a new process loads again.

The engine's own `AdapterRegistry` knows which slot an adapter is in; it is lost with its process, so the service keeps
what it takes to fill another one. Runs on the event loop. Free of torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from service.engine.lora.registry import AdapterError
from service.engine.process.codec import AdapterReply, LoadAdapter, UnloadAdapter
from service.engine.process.connection import EngineConnection
from service.engine.protocol import AdapterLoad
from service.errors import EngineLostError

_ALREADY_GONE = "unknown_adapter"

_log = logging.getLogger(__name__)


class AdapterCalls:
    """Adapters of one engine, across its restarts.

    Invariant: an adapter is listed from the reply to its load until the command to unload it is sent.
    """

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}
        self._calls: dict[int, asyncio.Future[AdapterReply]] = {}
        self._numbers = itertools.count(1)

    @property
    def names(self) -> Collection[str]:
        """Adapters that new sequences may use."""
        return self._folders.keys()

    async def load(self, connection: EngineConnection, model_id: str, folder: Path) -> AdapterLoad:
        """Load an adapter.

        Args:
            connection: To the engine's process.
            model_id: `name@version`.
            folder: Its files.

        Returns:
            What it cost.

        Raises:
            AdapterError: The engine refuses it.
        """
        reply = await self._call(connection, LoadAdapter(next(self._numbers), model_id, quote(bytes(folder))))
        if reply.reason:
            raise AdapterError(reply.reason, reply.detail)
        self._folders[model_id] = folder
        return AdapterLoad(reply.read_s, reply.place_s)

    async def unload(self, connection: EngineConnection, model_id: str) -> None:
        """Unload an adapter; returns when its slot is free.

        Args:
            connection: To the engine's process.
            model_id: Its name.

        Raises:
            AdapterError: The engine could not.
        """
        self.forget(model_id)
        reply = await self._call(connection, UnloadAdapter(next(self._numbers), model_id))
        if reply.reason not in {"", _ALREADY_GONE}:
            raise AdapterError(reply.reason, reply.detail)

    def forget(self, model_id: str) -> None:
        """Do not load this adapter into the next process."""
        self._folders.pop(model_id, None)

    async def load_again(self, connection: EngineConnection) -> None:
        """Load what the lost process had into a new one.

        Args:
            connection: To the new process.
        """
        for model_id, folder in list(self._folders.items()):
            # Listed again once it is loaded, so an adapter that ends this process as well is not tried a third time.
            del self._folders[model_id]
            try:
                await self.load(connection, model_id, folder)
            except AdapterError as error:
                _log.error("%s was not loaded again after the engine's restart: %s", model_id, error.reason)

    def take_reply(self, reply: AdapterReply) -> None:
        """End a call."""
        future = self._calls.pop(reply.call, None)
        if future and not future.done():
            future.set_result(reply)

    def fail_calls(self, reason: str) -> None:
        """End every call with an `EngineLostError`: the process has gone."""
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(EngineLostError(reason))

    async def _call(self, connection: EngineConnection, command: LoadAdapter | UnloadAdapter) -> AdapterReply:
        future: asyncio.Future[AdapterReply] = asyncio.get_running_loop().create_future()
        self._calls[command.call] = future
        connection.send(command)
        try:
            return await future
        finally:
            self._calls.pop(command.call, None)
