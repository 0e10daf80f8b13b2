"""Keys, the key file, and the ring that reads it again."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.access.key import Key, Scope, digest_of, new_secret
from service.access.key_file import editing, read_keys
from service.access.key_ring import KeyRing
from service.errors import ConfigurationError


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def key(name: str, secret: str, **more: object) -> Key:
    return Key.model_validate({"name": name, "sha256": digest_of(secret), **more})


def write(path: Path, *keys: Key) -> None:
    with editing(path) as found:
        found[:] = keys


def test_admin_has_every_scope_and_others_only_their_own():
    assert all(key("a", "x", scopes=["admin"]).allows(scope) for scope in Scope)
    reader = key("b", "x")
    assert [scope for scope in Scope if reader.allows(scope)] == [Scope.OCR]


def test_a_key_ends_at_its_time():
    now = datetime.now(UTC)
    assert key("a", "x", expires=now).is_expired(now)
    assert not key("a", "x", expires=now + timedelta(seconds=1)).is_expired(now)


def test_secrets_are_random_and_never_in_the_file(tmp_path: Path):
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(first) > 40
    path = tmp_path / "keys.json"
    write(path, key("a", first), key("b", second))
    assert first not in path.read_text()
    assert second not in path.read_text()
    assert [each.name for each in read_keys(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "Invalid JSON"),
        ("[]", "object"),
        ('{"keys": [{"name": "a"}]}', "keys.0.sha256"),
        ('{"keys": [{"name": "A b", "sha256": "%s"}]}' % ("0" * 64), "keys.0.name"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scope": "ocr"}]}' % ("0" * 64), "keys.0.scope"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scopes": []}]}' % ("0" * 64), "keys.0.scopes"),
        (json.dumps({"keys": [{"name": "a", "sha256": "0" * 64}] * 2}), "more than one key has the name a"),
        (json.dumps({"keys": [{"name": f"k{n}", "sha256": "0" * 64} for n in range(1001)]}), "more than 1000 keys"),
        ("x" * 1_100_000, "larger than"),
    ],
)
def test_an_invalid_file_says_where_it_is_wrong(tmp_path: Path, content: str, part: str):
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=part):
        read_keys(path)


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="No such file"):
        KeyRing(path=tmp_path / "keys.json")


def test_keys_come_and_go_with_the_file(tmp_path: Path):
    path, clock = tmp_path / "keys.json", Clock()
    write(path, key("old", "secret-of-old"))
    ring = KeyRing([key("fixed", "secret-of-fixed")], path, clock=clock)
    assert ring.find("secret-of-old")
    assert ring.find("secret-of-fixed")
    write(path, key("new", "secret-of-new"))
    clock.now_s += 1.1
    assert ring.find("secret-of-old") is None
    found = ring.find("secret-of-new")
    assert found is not None
    assert found.name == "new"
    assert ring.find("secret-of-fixed")


@pytest.mark.parametrize("fault", ["broken", "gone", "name of a fixed key"])
def test_a_file_that_went_bad_changes_nothing(tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture):
    path, clock = tmp_path / "keys.json", Clock()
    write(path, key("old", "secret-of-old"))
    ring = KeyRing([key("fixed", "secret-of-fixed")], path, clock=clock)
    if fault == "broken":
        path.write_text("{")
    elif fault == "gone":
        path.unlink()
    else:
        write(path, key("fixed", "another"))
    clock.now_s += 1.1
    assert ring.find("secret-of-old")
    assert "stay in force" in caplog.text
    path.unlink(missing_ok=True)
    write(path, key("new", "secret-of-new"))
    clock.now_s += 1.1
    assert ring.find("secret-of-new")


def test_the_file_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, clock = tmp_path / "keys.json", Clock()
    write(path, key("a", "s"))
    ring = KeyRing(path=path, clock=clock)
    looks = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **more: looks.append(self) or stat(self, **more))
    for _ in range(50):
        ring.find("s")
    assert not looks
    clock.now_s += 1.1
    for _ in range(50):
        ring.find("s")
    assert len(looks) == 1


def test_editing_that_fails_leaves_the_file(tmp_path: Path):
    path = tmp_path / "keys.json"
    write(path, key("a", "s"))
    before = path.read_bytes()

    def fail() -> None:
        with editing(path) as keys:
            keys.clear()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["keys.json"]
