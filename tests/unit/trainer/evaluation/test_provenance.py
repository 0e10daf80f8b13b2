"""Where figures come from."""

from __future__ import annotations

import subprocess

from trainer.evaluation.provenance import UNKNOWN, machine, package_versions, source_commit


def test_a_commit_is_dirty_by_its_code_alone(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    folder = tmp_path / "package"
    folder.mkdir()
    assert source_commit(folder) == UNKNOWN
    for name in ("code.py", "weights.bin"):
        (folder / name).write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "First")
    commit = git("rev-parse", "HEAD")
    (folder / "weights.bin").write_text("2")
    (folder / "new.py").write_text("untracked")
    assert source_commit(folder) == commit
    (folder / "code.py").write_text("2")
    assert source_commit(folder) == f"{commit}-dirty"


def test_versions_and_machine_are_told_without_hosts_or_folders():
    assert package_versions()["torch"].startswith("2.")
    assert set(machine()) == {"processor", "cores"}
    assert "/" not in "".join(package_versions().values())
