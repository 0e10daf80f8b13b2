"""Flags by hyphen, underscore or the specification's name; whole names alone; one line for a mistake."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from trainer.cli import build_parser, main
from trainer.commands.parser import CommandParser
from trainer.training.options import ALIASES, make_options


def leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], CommandParser]]:
    """Every command that takes flags, with its words."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        assert isinstance(parser, CommandParser)
        yield words, parser
    for action in inner:
        for name, command in action.choices.items():
            yield from leaves(command, (*words, name))


COMMANDS = dict(leaves(build_parser()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_flag_of_every_command_works_by_underscore_and_by_hyphen(words):
    parser = COMMANDS[words]
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    for flag in flags:
        underscored = f"--{flag[2:].replace('-', '_')}"
        assert parser._own_name(underscored) == flag
        assert parser._own_name(f"{underscored}=a_b-c") == f"{flag}=a_b-c", "values stay as they are"


@pytest.mark.parametrize("name", ALIASES)
def test_each_alias_means_a_flag_that_some_command_has(name):
    found = {parser._own_name(f"--{name}") for parser in COMMANDS.values()} - {f"--{name}"}
    assert found <= {f"--{each.replace('_', '-')}" for each in ALIASES[name]}
    assert found


def test_the_specifications_names_are_taken_by_train_and_in_files():
    given = COMMANDS["train",].parse_args(
        ["--dataset_name", "d", "--batch_size", "2", "--text_field", "t", "--image-field=i", "--num_samples", "3",
         "--model_path", "m"])  # fmt: skip
    assert (given.dataset_name, given.batch_size, given.text_column, given.image_column) == ("d", "2", "t", "i")
    assert (given.max_train_samples, given.model) == ("3", "m")
    options = make_options({"text_field": "t", "num-samples": 3, "model_path": "m"})
    assert (options.text_column, options.max_train_samples, options.model) == ("t", 3, "m")


def test_lists_are_split_at_commas_too():
    for written in (["q_proj,v_proj"], ["q_proj", "v_proj"], "q_proj, v_proj"):
        assert make_options({"target_modules": written}).target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(("words", "message"), [
    ("train --learning-rat 1e-3", "there is no option --learning-rat; did you mean --learning-rate? [option_unknown]"),
    ("train --learning_rat=1e-3", "there is no option --learning_rat; did you mean --learning-rate? [option_unknown]"),
    ("train --batch 4", "did you mean --batch-size?"),
    ("train --preset smok", "choose from 'smoke'"),
    ("report", "required: RUN"),
    ("trane", "choose from 'prepare', 'train'"),
])  # fmt: skip
def test_a_mistake_is_one_line_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert "--help`" in error
    assert error.count("\n") == 1
