"""The volume's layout: names, discovery, the pointer, withdrawal; nothing outside the root is ever reached."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.contract.durable import sync_folder
from shared.contract.identity import (
    DRAFT_FILE,
    AdapterRef,
    check_name,
    parse_reference,
    parse_version,
    weights_revision,
)
from shared.contract.pointer import MAX_FORMER_VERSIONS, Pointer, parse_pointer, pointer_bytes
from shared.contract.refusals import AdapterRefusedError, Fault, Reason, VolumeError
from shared.contract.volume import AdapterVolume, served_version
from shared.contract.withdrawal import roll_back, withdraw, withdrawal_reason


@pytest.fixture
def volume(tmp_path):
    """Three versions whose content nobody looks at here, the second in use after the first."""
    for version in (1, 2, 3):
        folder = tmp_path / "volume" / "invoices" / str(version)
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    (tmp_path / "volume" / "invoices" / "current").write_text("2\n1\n")
    return AdapterVolume(tmp_path / "volume")


def fault_of(call, *arguments):
    with pytest.raises(VolumeError) as caught:
        call(*arguments)
    assert str(caught.value).startswith(f"{caught.value.code}: ")
    return caught.value.fault


@pytest.mark.parametrize("name", ["a", "9", "invoices", "de-frak-tur", "a" * 63])
def test_names_that_are_names(name):
    assert check_name(name) == name
    assert parse_reference(f"{name}@12") == (name, 12)
    assert parse_reference(name) == (name, None)


@pytest.mark.parametrize(
    "text",
    ["", "A", "-a", "a-", "a_b", "a.b", "a/b", "../a", "/etc", ".", "..", "a\n", "a\0", "ä", "a" * 64, "a@", "a@0",
     "a@01", "a@-1", "a@1.0", "a@1@2", "@1", "a@１", "a@1 ", "a@9999999999", "current\n", ".partial-1"],
)  # fmt: skip
def test_texts_that_are_no_references(volume, text):
    assert fault_of(parse_reference, text) is Fault.INVALID_NAME
    assert fault_of(volume.resolve, text) is Fault.INVALID_NAME


@given(st.text(max_size=70))
def test_a_reference_is_read_as_it_is_written_or_refused(text):
    try:
        name, version = parse_reference(text)
    except VolumeError:
        return
    assert text == name if version is None else text == str(AdapterRef(name, version))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(st.text(max_size=12))
def test_a_version_is_written_in_one_way(text):
    version = parse_version(text)
    assert version is None or str(version) == text


@given(st.integers(1, 999_999_999), st.lists(st.integers(1, 999_999_999), max_size=60))
def test_a_pointer_reads_back(current, former):
    assert parse_pointer(pointer_bytes(Pointer(current, tuple(former)))) == Pointer(
        current, tuple(former[:MAX_FORMER_VERSIONS])
    )


@given(st.binary(max_size=1500))
def test_any_bytes_are_a_pointer_or_none(data):
    pointer = parse_pointer(data)
    assert pointer is None or 1 <= pointer.current <= 999_999_999


def test_discovery_sees_complete_versions_alone(volume):
    (volume.root / "invoices" / "4").mkdir()
    (volume.root / "invoices" / ".partial-x").mkdir()
    (volume.root / "invoices" / "notes.txt").touch()
    (volume.root / "Not-a-name").mkdir()
    (volume.root / "a-file").touch()
    (volume.root / "a-link").symlink_to(volume.root / "invoices")
    listing = volume.discover()["invoices"]
    assert volume.names() == ["invoices"]
    assert listing.versions == (1, 2, 3)
    assert listing.incomplete == (4,)
    assert not listing.has_loose_files
    assert volume.look().misnamed == ("Not-a-name",)
    assert (listing.current, listing.former, listing.fault, listing.newest) == (2, (1,), None, 4)


def test_a_flood_of_versions_costs_a_bounded_look(volume):
    for version in range(4, 300):
        (volume.root / "invoices" / str(version)).mkdir()
        (volume.root / "invoices" / str(version) / "manifest.json").touch()
    listing = volume.listing("invoices")
    assert len(listing.versions) == 256 + 2
    assert listing.versions[-1] == listing.newest == 299
    # What is in use, was in use or is asked for is found, however old.
    assert volume.resolve("invoices") == AdapterRef("invoices", 2)
    assert volume.resolve("invoices@3") == AdapterRef("invoices", 3)
    assert withdraw(volume, AdapterRef("invoices", 2), "old") == 1
    volume.activate(AdapterRef("invoices", 7))
    assert volume.resolve("invoices") == AdapterRef("invoices", 7)


def test_a_missing_volume_is_not_an_empty_one(tmp_path):
    volume = AdapterVolume(tmp_path / "gone")
    assert fault_of(volume.names) is Fault.VOLUME_UNAVAILABLE
    assert fault_of(volume.discover) is Fault.VOLUME_UNAVAILABLE
    assert fault_of(volume.resolve, "invoices") is Fault.VOLUME_UNAVAILABLE


def test_an_adapter_that_vanishes_during_discovery_is_left_out(volume, monkeypatch):
    monkeypatch.setattr(AdapterVolume, "names", lambda _: ["gone", "invoices"])
    assert list(volume.discover()) == ["invoices"]


def test_a_volume_that_vanishes_during_discovery_is_a_fault(volume, monkeypatch):
    names = volume.names()
    os.rename(volume.root, volume.root.with_name("moved"))
    monkeypatch.setattr(AdapterVolume, "names", lambda _: names)
    assert fault_of(volume.discover) is Fault.VOLUME_UNAVAILABLE


def test_folders_that_are_no_adapters_do_not_hide_one_that_is_in_use(volume, monkeypatch):
    monkeypatch.setattr("shared.contract.volume.MAX_NAMES", 10)
    for number in range(30):
        (volume.root / f"empty-{number}").mkdir()
    content = volume.look()
    assert "invoices" in content.listings
    assert len(content.listings) == 10
    assert content.num_left_out == 21
    assert volume.names() == list(content.listings)


def test_a_folder_that_cannot_be_read_hides_no_other(volume, monkeypatch):
    (volume.root / "broken").mkdir()
    listing = AdapterVolume.listing

    def deny(self, name, besides=0):
        if name == "broken":
            raise VolumeError(Fault.PERMISSION_DENIED, "looking at broken")
        return listing(self, name, besides)

    monkeypatch.setattr(AdapterVolume, "listing", deny)
    content = volume.look()
    assert list(content.listings) == ["invoices"]
    assert content.faults == {"broken": Fault.PERMISSION_DENIED}
    assert fault_of(volume.discover) is Fault.PERMISSION_DENIED


def test_resolving(volume):
    assert volume.resolve("invoices") == AdapterRef("invoices", 2)
    assert volume.resolve("invoices@3") == AdapterRef("invoices", 3)
    assert fault_of(volume.resolve, "invoices@9") is Fault.UNKNOWN_VERSION
    assert fault_of(volume.resolve, "others") is Fault.UNKNOWN_ADAPTER


@pytest.mark.parametrize("content", [b"", b"2 1", b"two", b"0", b"-1", b"2\n\n1", b"\xff", b"2\n" * 600, b"../3"])
def test_a_pointer_of_nonsense_is_a_fault_and_pins_still_work(volume, content):
    (volume.root / "invoices" / "current").write_bytes(content)
    assert fault_of(volume.resolve, "invoices") is Fault.POINTER_INVALID
    assert volume.resolve("invoices@3") == AdapterRef("invoices", 3)
    volume.activate(AdapterRef("invoices", 3))
    assert volume.resolve("invoices") == AdapterRef("invoices", 3)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_pointer_that_is_no_file_is_a_fault(volume, kind):
    pointer = volume.root / "invoices" / "current"
    pointer.unlink()
    if kind == "link":
        pointer.symlink_to("3")
    elif kind == "folder":
        pointer.mkdir()
    else:
        os.mkfifo(pointer)
    assert fault_of(volume.resolve, "invoices") is Fault.POINTER_INVALID


def test_a_pointer_may_be_written_by_hand(volume):
    (volume.root / "invoices" / "current").write_text("3")
    assert volume.resolve("invoices") == AdapterRef("invoices", 3)


def test_links_lead_nowhere(volume, tmp_path):
    os.rename(volume.root / "invoices", tmp_path / "outside")
    (volume.root / "invoices").symlink_to(tmp_path / "outside")
    assert fault_of(volume.listing, "invoices") is Fault.UNKNOWN_ADAPTER
    assert volume.names() == []


def test_a_version_that_is_a_link_is_refused(volume):
    os.rename(volume.root / "invoices" / "3", volume.root / "elsewhere")
    (volume.root / "invoices" / "3").symlink_to("../elsewhere")
    with pytest.raises(AdapterRefusedError) as caught, volume.version_folder(AdapterRef("invoices", 3)):
        pass
    assert caught.value.reason is Reason.SYMLINK


def test_activation_needs_a_complete_version(volume):
    assert fault_of(volume.activate, AdapterRef("invoices", 4)) is Fault.UNKNOWN_VERSION
    volume.activate(AdapterRef("invoices", 3))
    assert (volume.root / "invoices" / "current").read_text() == "3\n2\n1\n"
    volume.activate(AdapterRef("invoices", 1))
    assert (volume.root / "invoices" / "current").read_text() == "1\n3\n2\n"


def test_withdrawing_the_version_in_use_returns_to_the_one_before(volume):
    assert withdraw(volume, AdapterRef("invoices", 2), "loops") == 1
    assert volume.resolve("invoices") == AdapterRef("invoices", 1)
    assert fault_of(volume.resolve, "invoices@2") is Fault.UNKNOWN_VERSION
    assert withdrawal_reason(volume, AdapterRef("invoices", 2)) == "loops"
    assert withdrawal_reason(volume, AdapterRef("invoices", 1)) is None
    assert (volume.root / "invoices" / "2").is_dir()


def test_withdrawing_another_version_leaves_the_pointer(volume):
    assert withdraw(volume, AdapterRef("invoices", 3), "worse") == 2
    assert (volume.root / "invoices" / "current").read_text() == "2\n1\n"


def test_withdrawing_everything_leaves_nothing_in_use(volume):
    for version in (1, 2, 3):
        left = withdraw(volume, AdapterRef("invoices", version), "all bad")
    assert left is None
    assert fault_of(volume.resolve, "invoices") is Fault.NO_CURRENT
    assert fault_of(withdraw, volume, AdapterRef("invoices", 9), "never was") is Fault.UNKNOWN_VERSION


def test_a_withdrawal_cut_short_after_its_mark_is_whole_all_the_same(volume):
    mark = volume.root / "invoices" / "2.withdrawn"
    mark.symlink_to("/etc/hostname")
    assert withdrawal_reason(volume, AdapterRef("invoices", 2)) == ""
    mark.unlink()
    mark.write_text("not even JSON")
    assert volume.resolve("invoices") == AdapterRef("invoices", 1)
    assert withdrawal_reason(volume, AdapterRef("invoices", 2)) == ""


def test_rolling_back(volume):
    volume.activate(AdapterRef("invoices", 3))
    assert roll_back(volume, "invoices", "worse") == (AdapterRef("invoices", 3), AdapterRef("invoices", 2))
    assert roll_back(volume, "invoices", "worse") == (AdapterRef("invoices", 2), AdapterRef("invoices", 1))
    assert fault_of(roll_back, volume, "invoices", "worse") is Fault.NO_CURRENT
    assert volume.resolve("invoices") == AdapterRef("invoices", 1)


def test_a_version_that_was_never_in_use_is_not_fallen_back_to(volume):
    (volume.root / "invoices" / "current").write_text("3\n")
    assert fault_of(roll_back, volume, "invoices", "worse") is Fault.NO_CURRENT
    withdraw(volume, AdapterRef("invoices", 3), "worse")
    assert served_version(volume.listing("invoices")) is None


STEPS = st.lists(
    st.tuples(st.sampled_from(["publish", "activate", "withdraw", "roll back", "tear"]), st.integers(1, 6)), max_size=14
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_is_done_only_whole_versions_that_stand_are_served(steps):
    with tempfile.TemporaryDirectory() as root:
        volume = AdapterVolume(Path(root))
        place = Path(root) / "a"
        place.mkdir()
        was_in_use = set()
        taken = 0
        for step, version in steps:
            before = volume.listing("a")
            reference = AdapterRef("a", version)
            with suppress(VolumeError):
                if step == "publish":
                    assert before.newest + 1 > taken
                    taken = before.newest + 1
                    (place / str(taken)).mkdir()
                    (place / str(taken) / "manifest.json").touch()
                elif step == "activate":
                    volume.activate(reference)
                elif step == "withdraw":
                    withdraw(volume, reference, "x")
                elif step == "roll back":
                    roll_back(volume, "a", "x")
                else:
                    (place / str(version) / "manifest.json").unlink(missing_ok=True)
            listing = volume.listing("a")
            served = served_version(listing)
            if step == "activate" and version in before.versions:
                was_in_use.add(version)
                assert served == version
            assert served is None or (served in listing.versions and served in was_in_use)
            assert not set(listing.withdrawn) & set(listing.versions)
            assert listing.newest >= before.newest


def test_reading_writes_nothing(volume, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "rename", "replace", "unlink", "write", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    assert volume.discover()["invoices"].versions == (1, 2, 3)
    assert volume.resolve("invoices") == AdapterRef("invoices", 2)
    assert fault_of(volume.activate, AdapterRef("invoices", 3)) is Fault.VOLUME_READ_ONLY
    assert fault_of(withdraw, volume, AdapterRef("invoices", 3), "x") is Fault.VOLUME_READ_ONLY


def test_a_folder_without_permission_is_said(volume, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    assert fault_of(volume.listing, "invoices") is Fault.PERMISSION_DENIED


def test_file_systems_that_sync_no_folders_are_put_up_with(volume, monkeypatch):
    def refuse(_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with volume.folder("invoices") as folder:
        sync_folder(folder)


def test_the_revision_of_a_folder_is_that_of_its_weights(tmp_path):
    assert weights_revision(tmp_path) is None
    (tmp_path / "model-2.safetensors").write_bytes(b"b")
    (tmp_path / "model-1.safetensors").write_bytes(b"a")
    (tmp_path / "config.json").write_bytes(b"c")
    assert weights_revision(tmp_path) == "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"


def test_a_draft_head_does_not_change_the_revision(tmp_path):
    (tmp_path / DRAFT_FILE).write_bytes(b"drafts")
    assert weights_revision(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with_drafts = weights_revision(tmp_path)
    (tmp_path / DRAFT_FILE).unlink()
    assert weights_revision(tmp_path) == with_drafts
