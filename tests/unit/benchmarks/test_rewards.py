"""`benchmarks/rewards.py` without a GPU: what it refuses before it trains, its pace, its cards."""

from __future__ import annotations

import json

import pytest

from benchmarks import rewards
from benchmarks.origin import card_name


@pytest.mark.parametrize(("flags", "message"), [
    ("--updates 1", "--updates"), ("--seconds 0", "--seconds"), ("--cards 0", "--cards"),
    ("--real nowhere", "no folder nowhere/images"), ("", "no folder SETS/general"), ("--out SETS", "exists already"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_a_card_is_taken(tmp_path, monkeypatch, capsys, flags, message):
    for name in rewards.SETS if flags else ("mixed", "heldout"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    words = f"rewards.py SETS --out {tmp_path}/runs {flags}".replace("SETS", f"{tmp_path}/sets")
    monkeypatch.setattr("sys.argv", words.split())
    monkeypatch.setattr(rewards, "_start", lambda *_: pytest.fail("it begins to train"))
    with pytest.raises(SystemExit) as left:
        rewards.main()
    assert left.value.code == 2
    assert message.replace("SETS", f"{tmp_path}/sets") in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_pace_is_that_of_the_later_updates(tmp_path):
    """The first 20 updates take 2 s each, as pages are encoded; those after them a tenth of that."""
    lines = [
        {"event": "log", "step": step, "seconds": 2.0 * min(step, 20) + 0.2 * max(step - 20, 0)}
        for step in range(2, 41, 2)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert rewards.updates_per_s(tmp_path) == pytest.approx(5.0)


@pytest.mark.parametrize(("visible", "names"), [(None, ["0", "1"]), ("4,7", ["4", "7"])])
def test_cards_are_among_those_that_are_visible(monkeypatch, visible, names):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [card_name(number) for number in range(2)] == names
