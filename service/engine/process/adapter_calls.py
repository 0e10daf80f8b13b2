"""Adapters of the engine's process as the service's side knows them: which it holds, and commands under way.

Owns the calls and their replies, and the folders from which a new process is given what a lost one held. Runs on the
event loop. Free of torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from service.engine.lora.registry import AdapterError
from service.engine.process.codec import AdapterReply, Command, LoadAdapter, UnloadAdapter
from service.engine.protocol import AdapterLoad
from service.errors import EngineLostError

_ALREADY_GONE = "unknown_adapter"

_log = logging.getLogger(__name__)


class Sender(Protocol):
    """Whoever takes commands to the process; `link.Link` does."""

    def send(self, command: Command) -> None:
        """Queue a command."""


class Residents:
    """What one engine holds, across its restarts.

    Invariant: an adapter is listed from its reply on until the order to unload it goes out.
    """

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}
        self._calls: dict[int, asyncio.Future[AdapterReply]] = {}
        self._numbers = itertools.count(1)

    @property
    def names(self) -> Collection[str]:
        """Adapters that new sequences may use."""
        return self._folders.keys()

    async def load(self, sender: Sender, model_id: str, folder: Path) -> AdapterLoad:
        """Have an adapter loaded.

        Args:
            sender: The way to the process.
            model_id: `name@version`.
            folder: Where its files lie.

        Returns:
            What it cost.

        Raises:
            AdapterError: The engine refuses it.
        """
        call = next(self._numbers)
        reply = await self._ask(sender, LoadAdapter(call, model_id, str(folder)))
        if reply.reason:
            raise AdapterError(reply.reason, reply.detail.removeprefix(f"{reply.reason}: "))
        self._folders[model_id] = folder
        return AdapterLoad(reply.read_s, reply.place_s)

    async def unload(self, sender: Sender, model_id: str) -> None:
        """Have an adapter unloaded; returns when its slot is free.

        Args:
            sender: The way to the process.
            model_id: Its name.

        Raises:
            AdapterError: The engine could not.
        """
        self.forget(model_id)
        call = next(self._numbers)
        reply = await self._ask(sender, UnloadAdapter(call, model_id))
        if reply.reason not in {"", _ALREADY_GONE}:
            raise AdapterError(reply.reason, reply.detail.removeprefix(f"{reply.reason}: "))

    def forget(self, model_id: str) -> None:
        """A coming process is not to have this adapter."""
        self._folders.pop(model_id, None)

    async def load_again(self, sender: Sender) -> None:
        """Give a new process what the lost one held.

        Args:
            sender: The way to the new one.
        """
        for model_id, folder in list(self._folders.items()):
            # Listed again once it is back; one that ends this process as well is not given to a third.
            del self._folders[model_id]
            try:
                await self.load(sender, model_id, folder)
            except AdapterError as error:
                _log.error("%s did not come back with the engine: %s", model_id, error.reason)

    def take_reply(self, reply: AdapterReply) -> None:
        """End a call."""
        future = self._calls.pop(reply.call, None)
        if future and not future.done():
            future.set_result(reply)

    def fail_calls(self, reason: str) -> None:
        """The process is gone: whoever waits for it hears so."""
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(EngineLostError(reason))

    async def _ask(self, sender: Sender, command: LoadAdapter | UnloadAdapter) -> AdapterReply:
        future: asyncio.Future[AdapterReply] = asyncio.get_running_loop().create_future()
        self._calls[command.call] = future
        sender.send(command)
        try:
            return await future
        finally:
            self._calls.pop(command.call, None)
