"""`deepsynth keys`, as an operator would use it."""

import json
import re
from pathlib import Path

import pytest

from service.__main__ import main
from service.access.key_ring import KeyRing


def test_a_key_is_created_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = str(tmp_path / "keys.json")
    assert main(["keys", "create", "team-a", "--per-minute", "60", "--days", "30", "--file", path]) == 0
    secret = capsys.readouterr().out.strip()
    key = KeyRing(path=Path(path)).find(secret)
    assert key is not None
    assert (key.name, key.requests_per_minute) == ("team-a", 60.0)
    assert main(["keys", "list", "--file", path]) == 0
    shown = capsys.readouterr().out
    assert re.search("team-a.*60/minute", shown)
    assert secret not in shown
    assert main(["keys", "list", "--json", "--file", path]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "team-a"
    assert "sha256" not in row
    assert main(["keys", "revoke", "team-a", "--file", path]) == 0
    assert KeyRing(path=Path(path)).find(secret) is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["create", "Team A"], "NAME"),
        (["create", "team-a"], "already"),
        (["create", "b", "--per-minute", "0"], "--per-minute"),
        (["create", "b", "--concurrent", "0"], "--concurrent"),
        (["create", "b", "--days", "1e18"], "--days"),
        (["revoke", "nobody"], "no key nobody"),
    ],
)
def test_what_is_not_possible_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
):
    path = tmp_path / "keys.json"
    assert main(["keys", "create", "team-a", "--file", str(path)]) == 0
    before = path.read_bytes()
    assert main(["keys", *arguments, "--file", str(path)]) == 1
    assert part in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_missing_folder_or_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for arguments in (["create", "a"], ["list"], ["revoke", "a"]):
        assert main(["keys", *arguments, "--file", str(tmp_path / "none" / "keys.json")]) == 1
        assert capsys.readouterr().err.count("\n") == 1
