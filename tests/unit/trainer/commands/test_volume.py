"""`trainer list`, `activate` and `withdraw` on a volume."""

from __future__ import annotations

import pytest

from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft
from trainer.cli import main


@pytest.fixture
def volume(tmp_path):
    """A volume with three versions of an adapter, the third in use."""
    (tmp_path / "volume").mkdir()
    volume = AdapterVolume(tmp_path / "volume")
    folder = write_peft(tmp_path / "trained")
    for _ in range(3):
        publish(volume, folder, announcement())
    return volume


def run(volume, *words):
    return main([*words, "--volume", str(volume.root)])


def states(volume, capsys):
    assert run(volume, "list") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["adapter", "state"]
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines}


def test_versions_are_listed_with_state_and_figures(volume, capsys):
    found = states(volume, capsys)
    assert list(found) == ["invoices@1", "invoices@2", "invoices@3"]
    assert [state.split("  ")[0] for state in found.values()] == ["published", "published", "in use"]
    assert "10.00%" in found["invoices@3"]
    assert run(volume, "list", "nothing") == 2
    assert "unknown_adapter" in capsys.readouterr().err


def test_a_version_is_activated(volume, capsys):
    assert run(volume, "activate", "invoices@1") == 0
    assert capsys.readouterr().out.startswith("invoices@1 is in use (was invoices@3)")
    assert str(volume.resolve("invoices")) == "invoices@1"
    assert run(volume, "activate", "invoices@9") == 2
    assert "unknown_version" in capsys.readouterr().err
    assert run(volume, "activate", "invoices") == 2
    assert "name a version, such as invoices@1" in capsys.readouterr().err


def test_a_withdrawn_version_gives_way_to_the_one_before_for_good(volume, capsys):
    assert run(volume, "withdraw", "invoices@3", "--why", "reads 8 as 3") == 0
    assert capsys.readouterr().out.startswith("invoices@3 is withdrawn; invoices@2 is in use.")
    assert states(volume, capsys)["invoices@3"].split("  ")[0] == "withdrawn"
    assert run(volume, "list") == 0
    assert "reads 8 as 3" in capsys.readouterr().out
    assert run(volume, "activate", "invoices@3") == 2
    assert "unknown_version" in capsys.readouterr().err
    for number in (2, 1):
        assert run(volume, "withdraw", f"invoices@{number}", "--why", "old") == 0
    assert "invoices has no version in use" in capsys.readouterr().out
    assert run(volume, "withdraw", "invoices@1", "--why", " ") == 2
    assert "--why needs a reason" in capsys.readouterr().err


def test_an_empty_volume_and_a_missing_one_are_told_apart(tmp_path, capsys):
    assert main(["list", "--volume", str(tmp_path)]) == 0
    assert "holds no adapters" in capsys.readouterr().out
    assert main(["list", "--volume", str(tmp_path / "none")]) == 2
    assert "volume_unavailable" in capsys.readouterr().err
