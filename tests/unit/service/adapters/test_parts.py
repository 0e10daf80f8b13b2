"""Pure decisions about adapters, the folder that keeps them, and work beside the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from service.adapters.base_revision import base_revisions
from service.adapters.policy import SlotUse, candidates, choose_victim
from service.adapters.rollback import Outcome, RollbackRule, judge
from service.adapters.storage import Decisions, Storage
from service.adapters.threads import in_thread
from service.adapters.versions import REFUSAL_REASONS, ServiceReason
from service.adapters.watcher import pause_after_s
from service.errors import ConfigurationError
from service.telemetry import metrics
from service.telemetry.metrics import MAX_MODEL_LABELS, OTHER_MODEL, Metrics
from shared.contract.identity import AdapterRef, weights_revision
from shared.contract.volume import AdapterListing

FINE, LOOP, FAILURE = Outcome.FINE, Outcome.LOOP, Outcome.FAILURE
RULE = RollbackRule(pages=10, margin=0.2)


@pytest.mark.parametrize(
    ("newest", "former", "kind"),
    [
        ([LOOP] * 3 + [FINE] * 7, [FINE] * 10, LOOP),
        ([LOOP] * 2 + [FINE] * 8, [FINE] * 10, None),
        ([LOOP] * 5 + [FINE] * 5, [LOOP] * 4 + [FINE] * 6, None),
        ([FAILURE] * 3 + [FINE] * 7, [LOOP] * 10, FAILURE),
        ([FAILURE, FAILURE, LOOP] + [FINE] * 7, [FINE] * 10, None),
        ([LOOP] * 9, [FINE] * 10, None),
        ([LOOP] * 10, [FINE] * 9, None),
        ([], [], None),
    ],
)
def test_a_version_is_judged_by_what_its_predecessor_did(newest, former, kind):
    verdict = judge(newest, former, RULE)
    assert (verdict and verdict.kind) == kind


def test_the_rule_can_be_switched_off():
    assert judge([LOOP] * 10, [FINE] * 10, RollbackRule(pages=0)) is None
    assert judge([], [], RollbackRule(pages=0)) is None


def listing(versions, current, former=()):
    return AdapterListing("a", tuple(versions), (), (), current, tuple(former))


@pytest.mark.parametrize(
    ("found", "pin", "chosen", "former", "kept", "expected"),
    [
        (listing([1, 2, 3], 3, [1]), None, None, [], [], [3, 1]),
        (listing([1, 2, 3], 3, [1]), 2, None, [], [], [2, 3, 1]),
        (listing([1, 2, 3], 3), None, None, [2], [], [3, 2]),
        (listing([1], 3, [2, 1]), None, None, [], [2], [2, 1]),
        (listing([1, 2], None), None, None, [], [], []),
        (listing([1, 2], 1, [1]), 1, None, [1], [1], [1]),
        # The version that was chosen before comes before those that were in use.
        (listing([1, 2, 3], 3), None, 2, [1], [2], [3, 2, 1]),
        (listing([1, 2, 3], 3, [1]), None, 2, [], [2], [3, 2, 1]),
        (listing([1, 2], 9), None, 2, [1], [2], [2, 1]),
    ],
)
def test_candidates_come_in_order_and_only_if_they_can_be_had(found, pin, chosen, former, kept, expected):
    assert candidates(found, pin=pin, chosen=chosen, former=former, kept=kept) == expected


def test_the_least_recently_used_of_the_idle_leaves_first():
    assert choose_victim({}) is None
    assert choose_victim({"a": SlotUse(1, 1), "b": SlotUse(0, 9), "c": SlotUse(0, 8)}) == "c"
    assert choose_victim({"a": SlotUse(1, 5), "b": SlotUse(2, 4)}) == "b"


def test_reasons_are_those_that_metrics_know():
    assert REFUSAL_REASONS == metrics.ADAPTER_REFUSALS
    assert len(set(REFUSAL_REASONS)) == len(REFUSAL_REASONS)
    assert tuple(Outcome) == metrics.ADAPTER_OUTCOMES
    assert {ServiceReason.CANARY_FAILED} <= set(REFUSAL_REASONS)


def test_labels_of_models_are_bounded_and_know_no_versions():
    made = Metrics()
    labels = {made.model_label(f"a{number}@{version}") for version in (1, 2) for number in range(100)}
    assert labels == {*(f"a{number}" for number in range(MAX_MODEL_LABELS)), OTHER_MODEL}


def test_decisions_are_kept_and_copies_are_not(tmp_path: Path):
    storage = Storage(tmp_path / "state")
    assert storage.open() == Decisions()
    decisions = Decisions({"a": 3}, {"a@2": {"reason": "rolled_back", "why": "x", "who": "y"}})
    storage.save(decisions)
    copy = storage.new_copy(AdapterRef("a", 3))
    copy.mkdir()
    storage.close()
    storage.close()
    assert not copy.exists()
    again = Storage(tmp_path / "state")
    assert again.open() == decisions
    again.close()


def test_a_state_folder_belongs_to_one_process(tmp_path: Path):
    first = Storage(tmp_path)
    first.open()
    with pytest.raises(ConfigurationError, match="is in use by another process"):
        Storage(tmp_path).open()
    first.close()
    second = Storage(tmp_path)
    second.open()
    second.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pins": {}}', '{"pins": {"a": "x"}, "refusals": {}}'])
def test_decisions_that_cannot_be_read_stop_the_start(tmp_path: Path, content: str):
    (tmp_path / "decisions.json").write_text(content)
    storage = Storage(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        storage.open()
    storage.close()


def test_a_place_that_cannot_be_used_stops_the_start(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Storage(tmp_path / "file" / "state").open()


def test_a_temporary_folder_goes_with_the_process():
    storage = Storage(None)
    storage.open()
    place = storage.new_copy(AdapterRef("a", 1)).parent
    storage.record("refused", who="me")
    assert place.is_dir()
    storage.close()
    assert not place.exists()


def test_a_disk_that_is_full_does_not_stop_an_order(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    storage = Storage(tmp_path)
    storage.open()
    (tmp_path / "audit.jsonl").mkdir()
    (tmp_path / "decisions.json").mkdir()
    storage.record("pinned", who="ada", why="a test", name="a", version=3)
    storage.save(Decisions({"a": 3}))
    assert "could not be written to the audit log" in caplog.text
    assert "could not be saved" in caplog.text
    storage.close()


def test_a_line_of_the_audit_log_says_who_what_when_and_why(tmp_path: Path):
    storage = Storage(tmp_path)
    storage.open()
    storage.record("pinned", who="ada", why="line\nbreak", name="a", version=3, before=None)
    line = json.loads((tmp_path / "audit.jsonl").read_text())
    assert (line["who"], line["what"], line["why"], line["name"], line["version"]) == (
        "ada", "pinned", "line\nbreak", "a", 3,
    )  # fmt: skip
    assert "before" not in line
    assert line["time"].endswith("+00:00")
    storage.close()


async def test_work_beside_the_loop_gives_what_it_gives_and_may_be_left_behind():
    assert await in_thread(lambda: 7, "a-test") == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0, "a-test")
    gate = threading.Event()
    hanging = asyncio.create_task(in_thread(gate.wait, "a-test"))
    await asyncio.sleep(0.01)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    gate.set()
    await asyncio.sleep(0.01)


def test_the_revision_of_a_folder_is_that_of_its_weights_and_of_a_snapshot_its_commit(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert base_revisions(str(tmp_path)) == {weights_revision(tmp_path)}
    snapshot = tmp_path / ("ab" * 20)
    snapshot.mkdir()
    (snapshot / "model.safetensors").write_bytes(b"weights")
    assert base_revisions(str(snapshot)) == {weights_revision(tmp_path), "ab" * 20}
    assert base_revisions(str(tmp_path / "nowhere")) == frozenset()
    assert base_revisions("nobody/never-downloaded") == frozenset()


@pytest.mark.parametrize(
    ("look_s", "pause_s"), [(0.0, 0.25), (0.06, 0.25), (0.1, 0.4), (0.24, 0.96), (0.5, 1.0), (10.0, 1.0)]
)
def test_a_slow_volume_is_looked_at_less_often_but_never_seldom(look_s: float, pause_s: float):
    assert pause_after_s(look_s, 0.25) == pytest.approx(pause_s)
    assert pause_after_s(look_s, 30.0) == 30.0
