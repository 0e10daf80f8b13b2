"""Folders on a volume that must never be served: each is refused with its own reason, and leaves no copy behind."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from shared.contract import verification
from shared.contract.identity import AdapterRef
from shared.contract.lora_content import ContentLimits
from shared.contract.publication import publish
from shared.contract.refusals import ADVICE, AdapterRefusedError, Fault, Reason, VolumeError
from shared.contract.verification import ServingPolicy, verify
from shared.contract.volume import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, AdapterVolume
from shared.contract.withdrawal import withdraw
from tests.support.adapters import (
    BASE,
    MODULES,
    announcement,
    lora_tensors,
    peft_config,
    safetensors_bytes,
    with_header,
    write_peft,
)

POLICY = ServingPolicy(
    base_model="nano",
    base_revisions=frozenset({BASE.revision}),
    module_shapes=MODULES,
    limits=ContentLimits(max_rank=8, max_tensors=8, max_weights_bytes=20_000),
)
Q = "base_model.model.model.layers.0.self_attn.q_proj"
REFERENCE = AdapterRef("invoices", 1)


def edit_manifest(folder: Path, **changes: object) -> None:
    """Change fields by dotted path."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = manifest
        for parent in parents:
            place = place[parent]
        place[last] = value
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def put(folder: Path, name: str, data: bytes) -> None:
    """Replace a file by one that the manifest vouches for: a publisher that lies consistently."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def put_config(folder: Path, **changes: object) -> None:
    config = peft_config(**({"base_model_name_or_path": "nano"} | changes))
    put(folder, CONFIG_FILE, json.dumps(config).encode())


def put_tensors(folder: Path, changes, dtype: str = "F32") -> None:
    tensors = lora_tensors()
    changes(tensors)
    put(folder, WEIGHTS_FILE, safetensors_bytes(tensors, dtype))


def put_header(folder: Path, change) -> None:
    data = safetensors_bytes(lora_tensors())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    put(folder, WEIGHTS_FILE, with_header(change(header) or header, data[8 + length :]))


def set_value(key, value):
    def change(tensors):
        tensors[key][1, 2] = value

    return change


def tear(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def zero_tail(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-300] + bytes(300))


def link_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder.parent.parent / "elsewhere")
    (folder / WEIGHTS_FILE).symlink_to(folder.parent.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    folder.rename(folder.parent / "real")
    folder.symlink_to("real")


def pipe(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)


class Canary:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os._exit, (13,)


def shift(name: str, places: int):
    def change(header):
        header[name]["data_offsets"] = [value + places for value in header[name]["data_offsets"]]

    return change


def twice(header):
    text = json.dumps(header)
    return (text[:-1] + ", " + text[1:]).encode()


def rename_module(new: str):
    return lambda tensors: [
        tensors.update({key.replace("self_attn.q_proj", new): tensors.pop(key)}) for key in list(tensors) if Q in key
    ]


HOSTILE = {
    "no manifest": (lambda folder: (folder / MANIFEST_FILE).unlink(), Reason.MANIFEST_MISSING),
    "manifest of a megabyte": (
        lambda folder: (folder / MANIFEST_FILE).write_bytes(b" " * 1024 * 1024),
        Reason.MANIFEST_TOO_LARGE,
    ),
    "manifest cut off": (
        lambda folder: (folder / MANIFEST_FILE).write_bytes((folder / MANIFEST_FILE).read_bytes()[:200]),
        Reason.MANIFEST_NOT_JSON,
    ),
    "manifest as a pile of brackets": (
        lambda folder: (folder / MANIFEST_FILE).write_bytes(b"[" * 200_000),
        Reason.MANIFEST_NOT_JSON,
    ),
    "manifest of another major format": (lambda folder: edit_manifest(folder, format="2.0"), Reason.MANIFEST_FORMAT),
    "manifest with a misspelt field": (lambda folder: edit_manifest(folder, forcd="x"), Reason.MANIFEST_INVALID),
    "manifest of another version": (lambda folder: edit_manifest(folder, version=7), Reason.IDENTITY_MISMATCH),
    "manifest of another name": (lambda folder: edit_manifest(folder, name="others"), Reason.IDENTITY_MISMATCH),
    "not evaluated": (lambda folder: edit_manifest(folder, evaluation=None), Reason.NOT_EVALUATED),
    "worse than the base": (lambda folder: edit_manifest(folder, evaluation__adapter__cer=0.6), Reason.NOT_BETTER),
    "absolute path": (
        lambda folder: edit_manifest(folder, **{"files__/etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}),
        Reason.UNSAFE_PATH,
    ),
    "path upwards": (
        lambda folder: edit_manifest(folder, **{"files__../2/x": {"sha256": "0" * 64, "size_bytes": 1}}),
        Reason.UNSAFE_PATH,
    ),
    "weights are a link": (link_weights, Reason.SYMLINK),
    "folder is a link": (link_folder, Reason.SYMLINK),
    "weights have two names": (
        lambda folder: os.link(folder / WEIGHTS_FILE, folder.parent / "second"),
        Reason.HARD_LINK,
    ),
    "weights are a pipe": (pipe, Reason.NOT_A_REGULAR_FILE),
    "a folder inside": (lambda folder: (folder / "more").mkdir(), Reason.NOT_A_REGULAR_FILE),
    "a pickle": (
        lambda folder: (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary())),
        Reason.PICKLE,
    ),
    "training arguments": (lambda folder: (folder / "training_args.bin").touch(), Reason.PICKLE),
    "a pickle in the place of weights": (
        lambda folder: put(folder, WEIGHTS_FILE, pickle.dumps(Canary())),
        Reason.HEADER_TOO_LARGE,
    ),
    "code": (lambda folder: (folder / "modelling.py").touch(), Reason.UNEXPECTED_FILE),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), Reason.FILE_MISSING),
    "huge weights": (
        lambda folder: put(folder, WEIGHTS_FILE, bytes(30_000)),
        Reason.FILE_TOO_LARGE,
    ),
    "torn": (tear, Reason.SIZE_MISMATCH),
    "zero-filled tail": (zero_tail, Reason.CHECKSUM_MISMATCH),
    "config is no JSON": (lambda folder: put(folder, CONFIG_FILE, b"r: 4"), Reason.CONFIG_NOT_JSON),
    "config without a rank": (lambda folder: put_config(folder, r=None), Reason.CONFIG_INVALID),
    "config without targets": (lambda folder: put_config(folder, target_modules=None), Reason.CONFIG_INVALID),
    "not a LoRA": (lambda folder: put_config(folder, peft_type="LOHA"), Reason.NOT_LORA),
    "DoRA": (lambda folder: put_config(folder, use_dora=True), Reason.DORA),
    "rank-stabilised in the manifest alone": (
        lambda folder: edit_manifest(folder, lora__use_rslora=True),
        Reason.CONFIG_CONFLICT,
    ),
    "modules to save": (lambda folder: put_config(folder, modules_to_save=["lm_head"]), Reason.MODULES_TO_SAVE),
    "biases": (lambda folder: put_config(folder, bias="all"), Reason.UNSUPPORTED_OPTION),
    "ranks by pattern": (lambda folder: put_config(folder, rank_pattern={"q": 64}), Reason.UNSUPPORTED_OPTION),
    "PiSSA": (lambda folder: put_config(folder, init_lora_weights="pissa_niter_4"), Reason.UNSUPPORTED_OPTION),
    "an option of the future": (lambda folder: put_config(folder, use_xlora=True), Reason.UNSUPPORTED_OPTION),
    "config of another alpha": (lambda folder: put_config(folder, lora_alpha=64), Reason.CONFIG_CONFLICT),
    "config of another base": (
        lambda folder: put_config(folder, base_model_name_or_path="/models/other"),
        Reason.CONFIG_CONFLICT,
    ),
    "wrong base": (lambda folder: edit_manifest(folder, base__model_id="other"), Reason.WRONG_BASE_MODEL),
    "wrong revision": (lambda folder: edit_manifest(folder, base__revision="0" * 40), Reason.WRONG_BASE_REVISION),
    "huge rank": (lambda folder: edit_manifest(folder, lora__rank=4096), Reason.RANK_TOO_LARGE),
    "huge rank in the config": (lambda folder: put_config(folder, r=4096), Reason.RANK_TOO_LARGE),
    "targets in the manifest alone": (
        lambda folder: edit_manifest(folder, lora__targets=["gate_proj"]),
        Reason.CONFIG_CONFLICT,
    ),
    "a target that matches nothing": (
        lambda folder: put_config(folder, target_modules=["q_proj", "v_proj", "w_proj"]),
        Reason.TARGET_WITHOUT_TENSORS,
    ),
    "a module that does not exist": (
        lambda folder: put_tensors(folder, rename_module("other.q_proj")),
        Reason.UNKNOWN_MODULE,
    ),
    "header longer than the file": (
        lambda folder: put(folder, WEIGHTS_FILE, (10**6).to_bytes(8, "little") + b"{}"),
        Reason.HEADER_TOO_LARGE,
    ),
    "header of 2**63 bytes": (
        lambda folder: put(folder, WEIGHTS_FILE, (2**63).to_bytes(8, "little") + b"{}"),
        Reason.HEADER_TOO_LARGE,
    ),
    "header is a list": (lambda folder: put_header(folder, lambda _: [1]), Reason.HEADER_INVALID),
    "header names a tensor twice": (lambda folder: put_header(folder, twice), Reason.HEADER_INVALID),
    "metadata of numbers": (
        lambda folder: put_header(folder, lambda header: header.update(__metadata__={"a": 1})),
        Reason.HEADER_INVALID,
    ),
    "empty file": (lambda folder: put(folder, WEIGHTS_FILE, b""), Reason.HEADER_TOO_LARGE),
    "tensors overlap": (
        lambda folder: put_header(folder, shift(f"{Q}.lora_B.weight", -16)),
        Reason.OFFSETS_INVALID,
    ),
    "a tensor outside the file": (
        lambda folder: put_header(folder, shift("base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight", 64)),
        Reason.OFFSETS_INVALID,
    ),
    "bytes after the last tensor": (
        lambda folder: put(folder, WEIGHTS_FILE, safetensors_bytes(lora_tensors()) + bytes(8)),
        Reason.OFFSETS_INVALID,
    ),
    "too many tensors": (
        lambda folder: put(
            folder, WEIGHTS_FILE, safetensors_bytes(lora_tensors(modules={f"l.{i}.q_proj": (2, 2) for i in range(9)}))
        ),
        Reason.TOO_MANY_TENSORS,
    ),
    "a whole weight": (
        lambda folder: put_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": np.ones((2, 2))})),
        Reason.UNEXPECTED_TENSOR,
    ),
    "missing keys": (
        lambda folder: put_tensors(folder, lambda tensors: tensors.pop(f"{Q}.lora_B.weight")),
        Reason.TENSOR_MISSING,
    ),
    "no tensors": (lambda folder: put_tensors(folder, lambda tensors: tensors.clear()), Reason.TENSOR_MISSING),
    "wrong dtype": (
        lambda folder: put_header(folder, lambda header: header[f"{Q}.lora_A.weight"].update(dtype="I32")),
        Reason.WRONG_DTYPE,
    ),
    "transposed": (
        lambda folder: put_tensors(
            folder, lambda tensors: tensors.update({f"{Q}.lora_A.weight": tensors[f"{Q}.lora_A.weight"].T})
        ),
        Reason.WRONG_SHAPE,
    ),
    "negative side": (
        lambda folder: put_header(folder, lambda header: header[f"{Q}.lora_A.weight"].update(shape=[-4, -8])),
        Reason.WRONG_SHAPE,
    ),
    "another width than the base": (
        lambda folder: put_tensors(
            folder, lambda tensors: tensors.update({f"{Q}.lora_A.weight": np.ones((4, 10), "<f4")})
        ),
        Reason.WRONG_SHAPE,
    ),
    "types are mixed": (
        lambda folder: put_header(
            folder,
            lambda header: (
                header[f"{Q}.lora_A.weight"].update(dtype="BF16", shape=[8, 8])
                or header[f"{Q}.lora_B.weight"].update(dtype="F32")
            ),
        ),
        Reason.WRONG_DTYPE,
    ),
    "a tensor with a further field": (
        lambda folder: put_header(folder, lambda header: header[f"{Q}.lora_A.weight"].update(code="x")),
        Reason.HEADER_INVALID,
    ),
    "a tensor without an end": (
        lambda folder: put_header(folder, lambda header: header[f"{Q}.lora_A.weight"].update(data_offsets=[0])),
        Reason.OFFSETS_INVALID,
    ),
    "a tensor of more bytes than its shape": (
        lambda folder: put_header(folder, lambda header: header[f"{Q}.lora_A.weight"].update(shape=[4, 4])),
        Reason.OFFSETS_INVALID,
    ),
    "a tensor of truths": (
        lambda folder: put_header(folder, lambda header: header[f"{Q}.lora_A.weight"].update(shape=[True, 32])),
        Reason.WRONG_SHAPE,
    ),
    "a tensor for a module that is no target": (
        lambda folder: put_config(folder, target_modules=["v_proj"]),
        Reason.CONFIG_CONFLICT,
    ),
    "alpha of zero": (lambda folder: put_config(folder, lora_alpha=0), Reason.CONFIG_INVALID),
    "a base that is a number": (
        lambda folder: put_config(folder, base_model_name_or_path=7),
        Reason.CONFIG_INVALID,
    ),
    "a config of a megabyte": (
        lambda folder: put(folder, CONFIG_FILE, b" " * 1024 * 1024),
        Reason.FILE_TOO_LARGE,
    ),
    "longer than the manifest says": (
        lambda folder: (folder / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes() + b" "),
        Reason.SIZE_MISMATCH,
    ),
    "the manifest is a folder": (
        lambda folder: (folder / MANIFEST_FILE).unlink() or (folder / MANIFEST_FILE).mkdir(),
        Reason.NOT_A_REGULAR_FILE,
    ),
    "the manifest names a pickle": (
        lambda folder: edit_manifest(folder, **{"files__x.pt": {"sha256": "0" * 64, "size_bytes": 1}}),
        Reason.PICKLE,
    ),
    "the manifest names a further file": (
        lambda folder: edit_manifest(folder, **{"files__x.txt": {"sha256": "0" * 64, "size_bytes": 1}}),
        Reason.UNEXPECTED_FILE,
    ),
    "the manifest leaves the weights out": (
        lambda folder: edit_manifest(folder, files={CONFIG_FILE: {"sha256": "0" * 64, "size_bytes": 1}}),
        Reason.FILE_MISSING,
    ),
    "weights with too many bytes that the manifest plays down": (
        lambda folder: (folder / WEIGHTS_FILE).write_bytes(bytes(30_000)),
        Reason.FILE_TOO_LARGE,
    ),
    "NaN": (lambda folder: put_tensors(folder, set_value(f"{Q}.lora_B.weight", np.nan)), Reason.NOT_FINITE),
    "infinity": (lambda folder: put_tensors(folder, set_value(f"{Q}.lora_A.weight", -np.inf)), Reason.NOT_FINITE),
    "zeroed before it was hashed": (
        lambda folder: put_tensors(folder, lambda tensors: tensors[f"{Q}.lora_A.weight"].fill(0)),
        Reason.ZEROED,
    ),
    "untrained": (
        lambda folder: put_tensors(
            folder, lambda tensors: [values.fill(-0.0) for key, values in tensors.items() if "lora_B" in key]
        ),
        Reason.NO_EFFECT,
    ),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    publish(AdapterVolume(root), write_peft(tmp_path_factory.mktemp("trained")), announcement())
    return root


@pytest.fixture
def volume(published, tmp_path):
    return AdapterVolume(Path(shutil.copytree(published, tmp_path / "volume")))


def refusal(volume, tmp_path, policy=POLICY):
    with pytest.raises(AdapterRefusedError) as caught:
        verify(volume, REFERENCE, tmp_path / "private", policy)
    assert not (tmp_path / "private").exists()
    return caught.value


def test_the_good_one_passes(volume, tmp_path):
    verified = verify(volume, REFERENCE, tmp_path / "private", POLICY)
    assert verified.manifest.reference == REFERENCE
    assert sorted(verified.content.modules) == sorted(MODULES)
    assert verified.weights_path.read_bytes() == (volume.root / "invoices" / "1" / WEIGHTS_FILE).read_bytes()
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_broken_folder_is_refused_with_its_reason(volume, tmp_path, case):
    break_it, reason = HOSTILE[case]
    break_it(volume.root / "invoices" / "1")
    error = refusal(volume, tmp_path)
    assert error.reason is reason, error
    assert str(error).startswith(f"{reason.value}: ")
    assert ADVICE[reason][1] in str(error)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_float_type_is_searched_for_values_that_are_none(volume, tmp_path, dtype, value):
    folder = volume.root / "invoices" / "1"
    edit_manifest(folder, lora__dtype=dtype)
    put_tensors(folder, lambda _: None, dtype)
    verify(volume, REFERENCE, tmp_path / "good", POLICY)
    put_tensors(folder, set_value(f"{Q}.lora_A.weight", value), dtype)
    assert refusal(volume, tmp_path).reason is Reason.NOT_FINITE


@pytest.mark.parametrize(
    ("name", "swap", "reason"),
    [
        (WEIGHTS_FILE, "link", Reason.SYMLINK),
        (WEIGHTS_FILE, "pipe", Reason.NOT_A_REGULAR_FILE),
        (MANIFEST_FILE, "pipe", Reason.NOT_A_REGULAR_FILE),
    ],
)
def test_an_entry_that_is_swapped_after_it_was_looked_at_is_refused(volume, tmp_path, monkeypatch, name, swap, reason):
    place = volume.root / "invoices" / "1" / name
    look = verification.check_entries

    def look_and_swap(*arguments):
        look(*arguments)
        place.unlink()
        place.symlink_to("/etc/hostname") if swap == "link" else os.mkfifo(place)

    monkeypatch.setattr(verification, "check_entries", look_and_swap)
    assert refusal(volume, tmp_path).reason is reason


def test_a_withdrawn_version_is_refused(volume, tmp_path):
    withdraw(volume, REFERENCE, "loops on receipts")
    assert refusal(volume, tmp_path).reason is Reason.WITHDRAWN


def test_every_reason_of_verification_is_met_by_a_case():
    # The engine refuses targets; no reader here refuses rsLoRA.
    elsewhere = {Reason.WITHDRAWN, Reason.TARGET_NOT_ALLOWED, Reason.RSLORA}
    assert {reason for _, reason in HOSTILE.values()} | elsewhere == set(Reason)


def test_a_clock_that_is_wrong_by_decades_changes_nothing(volume, tmp_path):
    for number, created in enumerate(("1970-01-01T00:00:00Z", "2099-12-31T00:00:00+14:00")):
        edit_manifest(volume.root / "invoices" / "1", created=created)
        verify(volume, REFERENCE, tmp_path / str(number), POLICY)


def test_no_unpickler_runs(volume, tmp_path):
    # Canary ends the process where it is loaded.
    put(volume.root / "invoices" / "1", CONFIG_FILE, pickle.dumps(Canary()))
    assert refusal(volume, tmp_path).reason is Reason.CONFIG_NOT_JSON


def test_a_volume_that_vanishes_while_a_version_is_copied_is_no_refusal(volume, tmp_path, monkeypatch):
    read = os.read

    def stale(descriptor, size):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(WEIGHTS_FILE):
            raise OSError(116, "Stale file handle")
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", stale)
    with pytest.raises(VolumeError) as caught:
        verify(volume, REFERENCE, tmp_path / "private", POLICY)
    assert caught.value.fault is Fault.VOLUME_UNAVAILABLE
    assert not (tmp_path / "private").exists()


def test_private_storage_that_is_full_is_no_refusal(volume, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(VolumeError) as caught:
        verify(volume, REFERENCE, tmp_path / "private", POLICY)
    assert caught.value.fault is Fault.STORAGE_FULL


def test_a_file_that_grows_under_the_copy_is_cut_at_the_limit(volume, tmp_path, monkeypatch):
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, size) or b"more" * 1000)
    assert refusal(volume, tmp_path).reason in {Reason.FILE_TOO_LARGE, Reason.MANIFEST_TOO_LARGE}


def test_what_changes_after_the_copy_does_not_matter(volume, tmp_path):
    verified = verify(volume, REFERENCE, tmp_path / "private", POLICY)
    before = verified.weights_path.read_bytes()
    (volume.root / "invoices" / "1" / WEIGHTS_FILE).write_bytes(b"")
    assert verified.weights_path.read_bytes() == before


def test_an_unknown_version_is_a_fault_of_the_question(volume, tmp_path):
    with pytest.raises(VolumeError) as caught:
        verify(volume, AdapterRef("invoices", 9), tmp_path / "private", POLICY)
    assert caught.value.fault is Fault.UNKNOWN_VERSION


def test_a_pattern_of_targets_is_not_evaluated(volume, tmp_path):
    put_config(volume.root / "invoices" / "1", target_modules="(a+)+$")
    verify(volume, REFERENCE, tmp_path / "private", POLICY)


def test_a_reader_that_knows_less_leaves_the_question_open(volume, tmp_path):
    edit_manifest(volume.root / "invoices" / "1", base__revision="0" * 40)
    verify(volume, REFERENCE, tmp_path / "private", ServingPolicy())
