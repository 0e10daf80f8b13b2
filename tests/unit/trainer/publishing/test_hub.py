"""Pushing to the Hub, against a client that stands for it: what is uploaded, and how failures are told."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft
from trainer.cli import main
from trainer.publishing import hub


class FakeHub:
    """Keeps what it is given."""

    def __init__(self, **failures: Exception) -> None:
        self.failures = failures
        self.repositories: dict[str, bool] = {}
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []

    def whoami(self):
        self._fail("whoami")
        return {"name": "team"}

    def create_repo(self, repo_id, *, private, exist_ok):
        self._fail("create_repo")
        assert exist_ok
        self.repositories.setdefault(repo_id, private)

    def create_commit(self, repo_id, *, operations, commit_message):
        self._fail("create_commit")
        assert repo_id in self.repositories
        files = {}
        for operation in operations:
            with operation.as_file() as file:
                files[operation.path_in_repo] = file.read()
        self.commits.append((repo_id, commit_message, files))

        class Commit:
            commit_url = f"https://hub.example/{repo_id}/commit/1"

        return Commit()

    def _fail(self, call):
        if call in self.failures:
            raise self.failures[call]


def refusal(status: int) -> HfHubHTTPError:
    request = httpx.Request("POST", "https://hub.example/api")
    return HfHubHTTPError(f"{status} secret detail", response=httpx.Response(status, request=request))


@pytest.fixture
def volume(tmp_path):
    folder = tmp_path / "volume"
    folder.mkdir()
    publish(AdapterVolume(folder), write_peft(tmp_path / "trained"), announcement())
    return folder


@pytest.fixture
def push(volume, monkeypatch):
    def run(fake, *words):
        monkeypatch.setattr(hub, "HfApi", lambda: fake)
        return main(["push", "invoices", "--volume", str(volume), "--hub-model-id", "team/invoices", *words])

    return run


def test_a_version_is_pushed_as_it_lies_on_the_volume_with_a_card(volume, push, capsys):
    fake = FakeHub()
    assert push(fake, "--hub-private") == 0
    assert capsys.readouterr().out == "pushed invoices@1 to https://hub.example/team/invoices/commit/1\n"
    assert fake.repositories == {"team/invoices": True}
    ((_, title, files),) = fake.commits
    assert title == "invoices@1"
    card = files.pop("README.md").decode()
    assert files == {path.name: path.read_bytes() for path in (volume / "invoices" / "1").iterdir()}
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "| adapter | line | 10 | 10.00% |" in card
    assert "held-out (10 pages)" in card
    assert "base_model:" not in card, "nano is no repository of the Hub"


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ({"whoami": LocalTokenNotFoundError("none")}, "hf auth login"),
        ({"whoami": refusal(401)}, "does not take the token"),
        ({"whoami": ConnectionError("no route")}, "cannot be reached"),
        ({"create_repo": refusal(403)}, "may not write there"),
        ({"create_commit": refusal(500)}, "it answered 500"),
        ({"create_commit": TimeoutError("slow")}, "to try again: python -m trainer push invoices@1"),
    ],
)
def test_the_hubs_failures_are_one_line_that_says_what_to_do(push, capsys, failures, message):
    assert push(FakeHub(**failures)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "secret detail" not in error
    assert error.count("\n") == 1


def test_a_place_that_is_none_is_said(push, volume, capsys):
    assert push(FakeHub(), "--hub-model-id", "invoices") == 2
    assert "OWNER/NAME" in capsys.readouterr().err
    assert main(["push", "invoices@7", "--volume", str(volume), "--hub-model-id", "team/x"]) == 2
    assert "unknown_version" in capsys.readouterr().err


def test_publishing_pushes_afterwards_and_a_failed_push_leaves_the_version(tmp_path, volume, monkeypatch, capsys):
    words = ["publish", "--adapter", str(tmp_path / "trained"), "--volume", str(volume), "--name", "invoices",
             "--base", "team/base", "--base-revision", "0" * 40, "--force", "a trial",
             "--push-to-hub", "--hub-model-id", "team/invoices"]  # fmt: skip
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "published invoices@2" in captured.err
    assert "pushed invoices@2" in captured.out
    assert "base_model: team/base\n" in fake.commits[0][2]["README.md"].decode()

    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub(create_commit=refusal(500)))
    assert main(words) == 2
    assert "push invoices@3" in capsys.readouterr().err
    assert AdapterVolume(volume).listing("invoices").current == 3

    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub(whoami=LocalTokenNotFoundError("none")))
    assert main(words) == 2
    assert AdapterVolume(volume).listing("invoices").current == 3, "nothing is published that cannot be pushed"
