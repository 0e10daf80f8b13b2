"""Publishing: what lies on the volume afterwards, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest

from shared.contract import leftovers, publication
from shared.contract.identity import AdapterRef
from shared.contract.leftovers import sweep
from shared.contract.lora_content import ContentLimits
from shared.contract.manifest import parse_manifest, to_json
from shared.contract.publication import bring_forward, publish
from shared.contract.refusals import AdapterRefusedError, Fault, Reason, VolumeError
from shared.contract.verification import ServingPolicy, verify
from shared.contract.volume import AdapterVolume
from shared.contract.withdrawal import withdraw
from tests.support.adapters import announcement, evaluation, lora_tensors, write_peft

FILE_CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "close", "stat", "listdir")


@pytest.fixture
def volume(tmp_path):
    root = tmp_path / "volume"
    root.mkdir()
    return AdapterVolume(root)


@pytest.fixture
def source(tmp_path):
    return write_peft(tmp_path / "trained")


def hidden(volume, name="invoices"):
    return sorted(entry for entry in os.listdir(volume.root / name) if entry.startswith("."))


def assert_whole(volume, tmp_path, name="invoices"):
    """The newest version that a reader sees passes, and so does the one in use."""
    listing = volume.listing(name)
    assert listing.incomplete == ()
    assert listing.fault is None
    for version in {*listing.versions[-1:], *([listing.current] if listing.current else [])}:
        verify(volume, AdapterRef(name, version), tmp_path / f"copy-{os.urandom(4).hex()}", ServingPolicy())
    if listing.current is not None:
        assert listing.current in listing.versions
    return listing


def test_a_published_version_is_a_peft_folder_with_a_manifest(volume, source):
    published = publish(volume, source, announcement())
    folder = volume.root / "invoices" / "1"
    assert str(published.reference) == "invoices@1"
    assert published.in_use == 1
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert (folder / "adapter_model.safetensors").read_bytes() == (source / "adapter_model.safetensors").read_bytes()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("nano", 4)
    assert "auto_mapping" not in config
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    assert manifest == published.manifest
    assert (manifest.lora.rank, manifest.lora.alpha) == (4, 8.0)
    assert manifest.lora.targets == ("q_proj", "v_proj")
    assert hidden(volume) == []


def test_versions_grow_and_the_pointer_remembers(volume, source):
    for _ in range(3):
        publish(volume, source, announcement())
    assert (volume.root / "invoices" / "current").read_text() == "3\n2\n1\n"
    assert str(volume.resolve("invoices")) == "invoices@3"
    assert str(volume.resolve("invoices@2")) == "invoices@2"


def test_a_version_that_is_not_activated_is_there_but_not_in_use(volume, source):
    assert publish(volume, source, announcement(), activate=False).in_use is None
    with pytest.raises(VolumeError) as caught:
        volume.resolve("invoices")
    assert caught.value.fault is Fault.NO_CURRENT
    assert publish(volume, source, announcement()).in_use == 2
    assert publish(volume, source, announcement(), activate=False).in_use == 2


def test_a_number_is_never_taken_twice(volume, source):
    publish(volume, source, announcement())
    publish(volume, source, announcement())
    withdraw(volume, AdapterRef("invoices", 2), "worse on receipts")
    os.rename(volume.root / "invoices" / "2", volume.root / "gone")
    assert publish(volume, source, announcement()).reference.version == 3


@pytest.mark.parametrize("obstacle", ["folder", "file", "link"])
def test_a_number_that_somebody_took_meanwhile_is_passed_over(volume, source, obstacle, monkeypatch):
    (volume.root / "invoices").mkdir()
    place = volume.root / "invoices" / "1"
    if obstacle == "folder":
        place.mkdir()
        (place / "theirs").touch()
    elif obstacle == "file":
        place.touch()
    else:
        place.symlink_to("nowhere")
    # A list that is out of date, as network file systems may give it.
    listing = AdapterVolume.listing
    monkeypatch.setattr(AdapterVolume, "listing", lambda self, name: _stale(listing(self, name)))
    assert publish(volume, source, announcement(), activate=False).reference.version == 2


def _stale(listing):
    object.__setattr__(listing, "newest", 0)
    return listing


def test_a_rename_whose_answer_got_lost_counts_once(volume, source, monkeypatch):
    rename = os.rename

    def lossy(first, second, **folders):
        rename(first, second, **folders)
        if second == "1":
            raise FileNotFoundError(errno.ENOENT, "the repeated request found nothing to rename")

    monkeypatch.setattr(os, "rename", lossy)
    assert publish(volume, source, announcement()).reference.version == 1
    assert volume.listing("invoices").versions == (1,)


def test_many_publishers_at_once_get_a_number_each(volume, source):
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(publish(volume, source, announcement()).reference.version))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 13))
    assert volume.listing("invoices").current == 12
    assert hidden(volume) == []


def test_the_later_number_stays_in_use_whoever_finishes_last(volume, source):
    first = publish(volume, source, announcement(), activate=False).reference
    (volume.root / "invoices" / "1" / "manifest.json").write_text(
        (volume.root / "invoices" / "1" / "manifest.json").read_text().replace('"activate":false', '"activate":true')
    )
    publish(volume, source, announcement())
    assert bring_forward(volume, first) == 2
    # Somebody who was held up between looking and writing.
    volume.point(volume.listing("invoices"), 1)
    assert bring_forward(volume, first) == 2
    assert volume.listing("invoices").current == 2


def test_bad_adapters_leave_no_trace(volume, tmp_path):
    broken = write_peft(tmp_path / "broken", use_dora=True)
    with pytest.raises(AdapterRefusedError) as caught:
        publish(volume, broken, announcement())
    assert caught.value.reason is Reason.DORA
    assert os.listdir(volume.root) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evaluation": None}, Reason.NOT_EVALUATED),
        ({"evaluation": evaluation(0.1, 0.1)}, Reason.NOT_BETTER),
        ({"evaluation": evaluation(0.1, 0.099)}, Reason.NOT_BETTER),
    ],
)
def test_an_adapter_that_is_not_proven_better_needs_a_reason(volume, source, changes, reason):
    with pytest.raises(AdapterRefusedError) as caught:
        publish(volume, source, announcement(**changes))
    assert caught.value.reason is reason
    assert publish(volume, source, announcement(**changes, forced="a trial")).manifest.forced == "a trial"


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), Reason.FILE_MISSING),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), Reason.FILE_MISSING),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            Reason.PICKLE,
        ),
        (lambda folder: (folder / "adapter_config.json").write_bytes(b" " * 300_000), Reason.FILE_TOO_LARGE),
    ],
)
def test_folders_that_are_no_peft_folders_are_refused(volume, source, prepare, reason):
    prepare(source)
    with pytest.raises(AdapterRefusedError) as caught:
        publish(volume, source, announcement())
    assert caught.value.reason is reason


def test_weights_over_the_limit_are_refused_while_they_are_copied(volume, source):
    policy = ServingPolicy(limits=ContentLimits(max_weights_bytes=100))
    with pytest.raises(AdapterRefusedError) as caught:
        publish(volume, source, announcement(), policy=policy)
    assert caught.value.reason is Reason.FILE_TOO_LARGE


def test_a_missing_volume_is_not_made(tmp_path, source):
    with pytest.raises(VolumeError) as caught:
        publish(AdapterVolume(tmp_path / "not-mounted"), source, announcement())
    assert caught.value.fault is Fault.VOLUME_UNAVAILABLE
    assert not (tmp_path / "not-mounted").exists()


def test_a_trainer_that_knows_only_the_document_can_publish(volume, source, tmp_path):
    folder = volume.root / "invoices" / ".partial-by-hand"
    folder.mkdir(parents=True)
    config = json.loads((source / "adapter_config.json").read_text()) | {"base_model_name_or_path": "nano"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(source / "adapter_model.safetensors", folder)
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size_bytes": path.stat().st_size}
        for path in folder.iterdir()
    }
    manifest = {
        "format": "1.0",
        "name": "invoices",
        "version": 1,
        "publication_id": "0123456789abcdef" * 2,
        "created": "2026-11-22T12:00:00+01:00",
        "activate": True,
        "base": {"model_id": "nano", "revision": "ab" * 32},
        "lora": {"rank": 4, "alpha": 8, "dtype": "F32", "targets": ["q_proj", "v_proj"], "num_tensors": 4},
        "files": files,
        "code": {"program": "another trainer", "version": "0", "commit": "unknown"},
        "forced": "it has no evaluation",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    folder.rename(folder.with_name("1"))
    (volume.root / "invoices" / "current").write_text("1")
    reference = volume.resolve("invoices")
    assert verify(volume, reference, tmp_path / "private", ServingPolicy()).manifest.lora.rank == 4
    assert publish(volume, source, announcement()).in_use == 2
    assert (volume.root / "invoices" / "current").read_text() == "2\n1\n"


def test_numbers_that_ran_out_are_said(volume, source):
    (volume.root / "invoices" / "999999999").mkdir(parents=True)
    with pytest.raises(VolumeError) as caught:
        publish(volume, source, announcement())
    assert caught.value.fault is Fault.CONTENDED


def test_a_publisher_that_never_gets_a_number_gives_up(volume, source, monkeypatch):
    def taken(*_, **__):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(publication, "MAX_ATTEMPTS", 3)
    monkeypatch.setattr(os, "rename", taken)
    with pytest.raises(VolumeError) as caught:
        publish(volume, source, announcement())
    assert caught.value.fault is Fault.CONTENDED
    assert volume.listing("invoices").versions == ()


class Death(BaseException):
    """A process that is no more: nothing that it would still do has an effect."""


def counted(monkeypatch, act):
    """Let `act(number)` decide about every file operation, counted from one."""
    number = 0

    def wrapped(call):
        def run(*arguments, **named):
            nonlocal number
            number += 1
            act(number)
            return call(*arguments, **named)

        return run

    for name in FILE_CALLS:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    return lambda: number


@pytest.fixture
def copies(volume, source, tmp_path):
    """Any number of volumes alike, each with two versions and somebody's unfinished work."""
    publish(volume, source, announcement())
    publish(volume, source, announcement())

    def copy(number):
        return AdapterVolume(Path(shutil.copytree(volume.root, tmp_path / f"copy-{number}")))

    return copy


def moments(copies, source, act):
    """Publish with `act(number, moment)` deciding about file operations, a moment later each time, to the last one."""
    for moment in itertools.count(1):
        volume = copies(moment)
        with pytest.MonkeyPatch.context() as patch:
            total = counted(patch, lambda number, moment=moment: act(number, moment))
            try:
                publish(volume, source, announcement())
                error = None
            except (Death, VolumeError) as raised:
                error = raised
        if total() < moment:
            return
        yield volume, error


def test_death_before_any_file_operation_leaves_whole_versions_alone(copies, source, tmp_path):
    def die(number, moment):
        if number >= moment:
            raise Death

    outcomes = []
    for volume, error in moments(copies, source, die):
        assert isinstance(error, Death)
        listing = assert_whole(volume, tmp_path)
        outcomes.append((listing.versions, listing.current))
        sweep(volume, "invoices", older_than_s=-1.0)
        assert hidden(volume) == []
        published = publish(volume, source, announcement())
        assert published.in_use == published.reference.version == listing.versions[-1] + 1
    # In this order, and nothing else.
    assert list(dict.fromkeys(outcomes)) == [((1, 2), 2), ((1, 2, 3), 2), ((1, 2, 3), 3)]
    assert len(outcomes) > 50


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (errno.ENOSPC, Fault.STORAGE_FULL),
        (errno.EROFS, Fault.VOLUME_READ_ONLY),
        (errno.ESTALE, Fault.VOLUME_UNAVAILABLE),
    ],
)
def test_a_failure_of_any_file_operation_has_a_code_and_leaves_nothing_half(copies, source, tmp_path, number, fault):
    def fail(count, moment):
        if count == moment:
            raise OSError(number, os.strerror(number))

    seen = set()
    for volume, error in moments(copies, source, fail):
        listing = assert_whole(volume, tmp_path)
        assert listing.versions in {(1, 2), (1, 2, 3)}
        assert error is not None or listing.current == 3
        seen |= {error.fault} if isinstance(error, VolumeError) else set()
    assert seen - {Fault.VOLUME_UNAVAILABLE} == {fault} - {Fault.VOLUME_UNAVAILABLE}


def test_a_full_disk_is_said_and_leaves_the_last_version_in_use(volume, tmp_path, source):
    publish(volume, source, announcement())
    large = write_peft(
        tmp_path / "large",
        tensors=lora_tensors(modules={"layers.0.q_proj": (4000, 4000), "layers.0.v_proj": (4000, 4000)}),
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(VolumeError) as caught:
            publish(volume, large, announcement())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.fault is Fault.STORAGE_FULL
    assert "make room" in str(caught.value)
    assert hidden(volume) == []
    assert str(volume.resolve("invoices")) == "invoices@1"


def test_sweeping_goes_by_the_volumes_clock(volume, source, monkeypatch):
    publish(volume, source, announcement())
    place = volume.root / "invoices"
    for name, age_s in ((".partial-old", 2 * 86400), (".partial-new", 60), (".current-old", 2 * 86400)):
        (place / name).mkdir() if "partial" in name else (place / name).touch()
        stamp = (place / "current").stat().st_mtime - age_s
        os.utime(place / name, (stamp, stamp))
    (place / ".trash-left").mkdir()
    # This machine's clock is of no account, however wrong.
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert sorted(sweep(volume, "invoices")) == [".current-old", ".partial-old", ".trash-left"]
    assert hidden(volume) == [".partial-new"]
    assert volume.listing("invoices").versions == (1,)


def test_a_partial_that_is_still_written_to_is_not_swept(volume, source):
    publish(volume, source, announcement())
    partial = volume.root / "invoices" / ".partial-slow"
    partial.mkdir()
    (partial / "adapter_model.safetensors").touch()
    stamp = (volume.root / "invoices" / "current").stat().st_mtime - 10 * 86400
    os.utime(partial, (stamp, stamp))
    assert sweep(volume, "invoices") == []


def test_what_is_swept_cannot_be_published_any_more(volume, source, monkeypatch):
    taken = []
    write = to_json

    def held_up(manifest):
        if not taken:
            taken.extend(sweep(volume, "invoices", older_than_s=-1.0))
        return write(manifest)

    monkeypatch.setattr(publication, "to_json", held_up)
    with pytest.raises(VolumeError) as caught:
        publish(volume, source, announcement())
    assert caught.value.fault is Fault.VOLUME_UNAVAILABLE
    assert len(taken) == 1
    assert not (volume.root / "invoices").exists()


def test_what_cannot_be_removed_is_not_reported_as_removed(volume, source, monkeypatch):
    publish(volume, source, announcement())
    (volume.root / "invoices" / ".trash-left").mkdir()
    monkeypatch.setattr(leftovers, "remove_entry", lambda *_: False)
    assert sweep(volume, "invoices") == []
