"""The parser of every command: flags with hyphens or underscores, whole names alone, and one line for a mistake.

argparse takes any unambiguous beginning of a flag, so a misspelt `--learning-rat` would be taken in silence, and an
unknown flag prints the usage of all. This parser names the nearest flag instead.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, overload

from trainer.training.options import ALIASES

USAGE_STATUS = 2


class CommandParser(argparse.ArgumentParser):
    """A parser whose subparsers are of the same kind."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | arguments)

    @overload  # type: ignore[override] # as argparse's stubs have it
    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> tuple[argparse.Namespace, list[str]]: ...

    @overload
    def parse_known_args(
        self, args: Sequence[str] | None, namespace: argparse.Namespace
    ) -> tuple[argparse.Namespace, list[str]]: ...

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, with each flag under its own name; an unknown flag ends the program."""
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        known = [self._own_name(word) for word in given[:end]] + given[end:]
        found: argparse.Namespace
        found, rest = super().parse_known_args(known, namespace)
        unknown = next((word.partition("=")[0] for word in rest if word.startswith("-") and word != "--"), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown.replace("_", "-"), self._option_string_actions, n=1)
            self.error(f"there is no option {unknown}{f'; did you mean {near[0]}?' if near else ''} [option_unknown]")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print one line that says where help is, and exit with status 2."""
        self.exit(USAGE_STATUS, f"error: {message}; see `{self.prog} --help`\n")

    def _own_name(self, word: str) -> str:
        """The flag that a word means, by underscores or by an alias; another word as it is."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        plain = name.removeprefix("--").replace("-", "_")
        for each in (plain, *ALIASES.get(plain, ())):
            candidate = f"--{each.replace('_', '-')}"
            if candidate in self._option_string_actions:
                return f"{candidate}{equals}{value}"
        return word
