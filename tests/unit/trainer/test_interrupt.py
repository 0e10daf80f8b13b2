"""Ctrl-C ends a command with one line and the status that shells expect."""

from __future__ import annotations

import signal

import pytest

from trainer import cli
from trainer.commands import smoke
from trainer.training.errors import TrainingStopped


def interrupted(*_: object) -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", list(cli.KEPT))
def test_a_command_that_is_interrupted_says_what_is_kept(command, monkeypatch, capsys):
    parser = cli.build_parser()
    known = parser.parse_args
    monkeypatch.setattr(cli, "build_parser", lambda: parser)

    def parse(arguments):
        options = known(["report", "runs/none"])
        options.command, options.run = command, interrupted
        return options

    monkeypatch.setattr(parser, "parse_args", parse)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == f"\ninterrupted; {cli.KEPT[command]}\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_stopped_ends_with_the_status_of_its_signal(number, status, monkeypatch, capsys):
    def stopped(*_: object) -> str:
        raise TrainingStopped("stopped after update 3", number)

    monkeypatch.setattr("trainer.commands.train.run_train", stopped)
    assert cli.main(["train", "--dataset-name", "x"]) == status
    assert capsys.readouterr().err == "stopped after update 3\n"


def test_smoke_ends_with_the_status_of_an_interrupted_step(tmp_path):
    options = cli.build_parser().parse_args(["smoke", "--out", str(tmp_path / "smoke")])
    with pytest.raises(SystemExit) as ended:
        smoke.run_smoke(lambda _: 130, options, None)
    assert ended.value.code == 130
