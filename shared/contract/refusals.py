"""Why adapters are refused and how volumes fail: one table each, with stable codes.

A `Reason` is about an adapter: the same folder will be refused again. A `Fault` is about the volume, the private
storage or a name: the adapter may be fine. Knows neither files nor manifests. `docs/adapters.md` has both tables.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Reason(StrEnum):
    """Why an adapter is refused; values are stable and are used as metric labels."""

    MANIFEST_MISSING = "manifest_missing"
    MANIFEST_TOO_LARGE = "manifest_too_large"
    MANIFEST_NOT_JSON = "manifest_not_json"
    MANIFEST_FORMAT = "manifest_format"
    MANIFEST_INVALID = "manifest_invalid"
    IDENTITY_MISMATCH = "identity_mismatch"
    NOT_EVALUATED = "not_evaluated"
    NOT_BETTER = "not_better"
    WITHDRAWN = "withdrawn"

    UNSAFE_PATH = "unsafe_path"
    SYMLINK = "symlink"
    HARD_LINK = "hard_link"
    NOT_A_REGULAR_FILE = "not_a_regular_file"
    PICKLE = "pickle"
    UNEXPECTED_FILE = "unexpected_file"
    FILE_MISSING = "file_missing"
    FILE_TOO_LARGE = "file_too_large"
    SIZE_MISMATCH = "size_mismatch"
    CHECKSUM_MISMATCH = "checksum_mismatch"

    CONFIG_NOT_JSON = "config_not_json"
    CONFIG_INVALID = "config_invalid"
    NOT_LORA = "not_lora"
    UNSUPPORTED_OPTION = "unsupported_option"
    DORA = "dora"
    RSLORA = "rslora"  # for readers of a volume that cannot scale by the root of the rank; ours can
    MODULES_TO_SAVE = "modules_to_save"
    CONFIG_CONFLICT = "config_conflict"

    WRONG_BASE_MODEL = "wrong_base_model"
    WRONG_BASE_REVISION = "wrong_base_revision"
    RANK_TOO_LARGE = "rank_too_large"
    TARGET_NOT_ALLOWED = "target_not_allowed"
    TARGET_WITHOUT_TENSORS = "target_without_tensors"
    UNKNOWN_MODULE = "unknown_module"

    HEADER_TOO_LARGE = "header_too_large"
    HEADER_INVALID = "header_invalid"
    OFFSETS_INVALID = "offsets_invalid"
    TOO_MANY_TENSORS = "too_many_tensors"
    UNEXPECTED_TENSOR = "unexpected_tensor"
    TENSOR_MISSING = "tensor_missing"
    WRONG_DTYPE = "wrong_dtype"
    WRONG_SHAPE = "wrong_shape"
    NOT_FINITE = "not_finite"
    ZEROED = "zeroed"
    NO_EFFECT = "no_effect"


ADVICE: dict[Reason, tuple[str, str]] = {
    Reason.MANIFEST_MISSING: ("there is no `manifest.json`", "publish with `python -m trainer publish`; do not copy"),
    Reason.MANIFEST_TOO_LARGE: ("`manifest.json` is larger than the limit", "leave out what the format does not name"),
    Reason.MANIFEST_NOT_JSON: ("`manifest.json` is no JSON object, or repeats a key", "write plain UTF-8 JSON"),
    Reason.MANIFEST_FORMAT: ("the manifest has a format that this reader does not know", "update the reader"),
    Reason.MANIFEST_INVALID: ("a field of the manifest is missing, unknown or out of range", "see the fields below"),
    Reason.IDENTITY_MISMATCH: ("the manifest is about another name or version than its folder", "publish it again"),
    Reason.NOT_EVALUATED: ("no evaluation and no reason for publishing without one", "evaluate base and adapter"),
    Reason.NOT_BETTER: ("not better than the base model, and not forced", "train on, or force with a reason"),
    Reason.WITHDRAWN: ("the version was withdrawn", "publish a new version"),
    Reason.UNSAFE_PATH: ("the manifest names a path, not a plain file of the folder", "name files without folders"),
    Reason.SYMLINK: ("an entry is a symbolic link", "put the file itself there"),
    Reason.HARD_LINK: ("a file has further hard links", "copy the file"),
    Reason.NOT_A_REGULAR_FILE: ("an entry is a folder, a device or a pipe", "leave only the three files"),
    Reason.PICKLE: ("a file could run code when it is loaded (`.bin`, `.pt`, `.pth`, ...)", "save as safetensors"),
    Reason.UNEXPECTED_FILE: ("a file that the format does not name", "leave only the three files"),
    Reason.FILE_MISSING: ("the weights or `adapter_config.json` are missing", "publish the whole PEFT folder"),
    Reason.FILE_TOO_LARGE: ("a file is larger than the limit", "use a lower rank or fewer targets"),
    Reason.SIZE_MISMATCH: ("a file is shorter or longer than the manifest says", "publish again: it was torn"),
    Reason.CHECKSUM_MISMATCH: ("a file's bytes are not those of the manifest", "publish again: it was damaged"),
    Reason.CONFIG_NOT_JSON: ("`adapter_config.json` is no JSON object, or repeats a key", "save it with PEFT"),
    Reason.CONFIG_INVALID: ("a value of `adapter_config.json` has the wrong type or range", "save it with PEFT"),
    Reason.NOT_LORA: ("PEFT type other than LORA", "train a LoRA"),
    Reason.UNSUPPORTED_OPTION: ("a LoRA option that is not served is switched on", "train without it"),
    Reason.DORA: ("DoRA (`use_dora`)", "train without `use_dora`"),
    Reason.RSLORA: ("rank-stabilised scaling (`use_rslora`) where the reader does not take it", "train without it"),
    Reason.MODULES_TO_SAVE: ("whole modules are saved with the LoRA (`modules_to_save`)", "train LoRA alone"),
    Reason.CONFIG_CONFLICT: ("manifest, `adapter_config.json` and weights contradict each other", "publish again"),
    Reason.WRONG_BASE_MODEL: ("trained on another base model", "serve that base, or train on this one"),
    Reason.WRONG_BASE_REVISION: ("trained on another revision of the base model", "train on the revision served"),
    Reason.RANK_TOO_LARGE: ("the rank is above the limit", "train with a lower rank"),
    Reason.TARGET_NOT_ALLOWED: ("a target module that the reader does not take", "choose other target modules"),
    Reason.TARGET_WITHOUT_TENSORS: ("a target module that no tensor belongs to", "name targets that exist"),
    Reason.UNKNOWN_MODULE: ("a tensor is for a module that the base model lacks", "train on the base served"),
    Reason.HEADER_TOO_LARGE: ("the safetensors header is longer than the limit or than the file", "save again"),
    Reason.HEADER_INVALID: ("the safetensors header cannot be read", "save the weights again"),
    Reason.OFFSETS_INVALID: ("tensors overlap, leave holes or lie outside the file", "save the weights again"),
    Reason.TOO_MANY_TENSORS: ("more tensors than the limit", "choose fewer target modules"),
    Reason.UNEXPECTED_TENSOR: ("a tensor that is no LoRA matrix of a linear module", "save the LoRA alone"),
    Reason.TENSOR_MISSING: ("a module has only one of its two matrices, or there are none", "save the whole LoRA"),
    Reason.WRONG_DTYPE: ("a tensor is not F32, F16 or BF16, or types are mixed", "save all in one of them"),
    Reason.WRONG_SHAPE: ("a tensor's shape does not fit the rank or the module", "save the LoRA again"),
    Reason.NOT_FINITE: ("a weight is NaN or infinite", "train with a lower learning rate"),
    Reason.ZEROED: ("a `lora_A` matrix holds nothing but zeros", "publish again: the file was damaged"),
    Reason.NO_EFFECT: ("every `lora_B` matrix is zero: the adapter does nothing", "train it"),
}
"""What each reason means and what to do about it."""


class Fault(StrEnum):
    """Why an operation on a volume failed; values are stable."""

    INVALID_NAME = "invalid_name"
    UNKNOWN_ADAPTER = "unknown_adapter"
    UNKNOWN_VERSION = "unknown_version"
    NO_CURRENT = "no_current"
    POINTER_INVALID = "pointer_invalid"
    VOLUME_UNAVAILABLE = "volume_unavailable"
    VOLUME_READ_ONLY = "volume_read_only"
    PERMISSION_DENIED = "permission_denied"
    STORAGE_FULL = "storage_full"
    CONTENDED = "contended"
    IO = "io"


FAULTS: dict[Fault, tuple[str, str]] = {
    Fault.INVALID_NAME: ("not a name, or not `name@version`", "use a-z, 0-9 and -, at most 63 characters"),
    Fault.UNKNOWN_ADAPTER: ("no adapter of that name", "look at the names on the volume"),
    Fault.UNKNOWN_VERSION: ("the adapter has no such version", "look at its versions"),
    Fault.NO_CURRENT: ("the adapter has no version in use", "activate one"),
    Fault.POINTER_INVALID: ("the file `current` does not name a version", "activate a version; that rewrites it"),
    Fault.VOLUME_UNAVAILABLE: ("the volume, or a folder of it, is not there now", "mount it, or make its folder"),
    Fault.VOLUME_READ_ONLY: ("the volume is mounted read-only", "publish from where it may be written"),
    Fault.PERMISSION_DENIED: ("this process may not read or write there", "give its user the right"),
    Fault.STORAGE_FULL: ("no space or quota left, or a file may not grow so far", "make room; try again"),
    Fault.CONTENDED: ("too many others published at the same time", "try again"),
    Fault.IO: ("any other failure of a file operation", "see the message; try again"),
}
"""What each fault means and what to do about it."""

_FAULTS_BY_ERRNO = {
    errno.ENOSPC: Fault.STORAGE_FULL,
    errno.EDQUOT: Fault.STORAGE_FULL,
    errno.EFBIG: Fault.STORAGE_FULL,
    errno.EROFS: Fault.VOLUME_READ_ONLY,
    errno.EACCES: Fault.PERMISSION_DENIED,
    errno.EPERM: Fault.PERMISSION_DENIED,
    errno.ENOENT: Fault.VOLUME_UNAVAILABLE,
    errno.ESTALE: Fault.VOLUME_UNAVAILABLE,
    errno.ENODEV: Fault.VOLUME_UNAVAILABLE,
    errno.ENXIO: Fault.VOLUME_UNAVAILABLE,
    errno.ENOTCONN: Fault.VOLUME_UNAVAILABLE,
    errno.ETIMEDOUT: Fault.VOLUME_UNAVAILABLE,
    errno.EHOSTDOWN: Fault.VOLUME_UNAVAILABLE,
}


class ContractError(Exception):
    """Base class: an adapter or a volume violates the contract; `code` is stable."""

    code: str


class AdapterRefusedError(ContractError):
    """The adapter must not be served or published; trying again cannot help."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Build the message from code, detail and advice.

        Args:
            reason: Its value becomes `code`.
            detail: File, tensor or value at fault, for people; may contain text from the folder.
        """
        super().__init__(f"{reason}: {detail}; {ADVICE[reason][1]}")
        self.reason = reason
        self.code = reason.value
        self.detail = detail


class VolumeError(ContractError):
    """An operation on the volume or the private storage failed, or a name is wrong; the adapter may be fine."""

    def __init__(self, fault: Fault, detail: str) -> None:
        """Build the message from code, detail and advice.

        Args:
            fault: Its value becomes `code`.
            detail: The attempted operation, for people.
        """
        super().__init__(f"{fault}: {detail}; {FAULTS[fault][1]}")
        self.fault = fault
        self.code = fault.value
        self.detail = detail


def volume_error(error: OSError, doing: str) -> VolumeError:
    """Turn a failed file operation into an error with a stable code.

    Args:
        error: From the operating system; its `errno` decides the fault.
        doing: The attempted operation, such as "writing version 3 of invoices".

    Returns:
        The error, to be raised from `error`.
    """
    fault = _FAULTS_BY_ERRNO.get(error.errno or 0, Fault.IO)
    return VolumeError(fault, f"{doing} failed: {error.strerror or type(error).__name__}")


@contextmanager
def reporting(doing: str) -> Iterator[None]:
    """Turn every `OSError` of a block into a `VolumeError`.

    Args:
        doing: The block's operation, such as "sweeping invoices".

    Yields:
        Nothing.

    Raises:
        VolumeError: A file operation failed.
    """
    try:
        yield
    except OSError as error:
        raise volume_error(error, doing) from error


def reasons_table() -> str:
    """The reasons as a Markdown table."""
    rows = [f"| `{reason}` | {meaning} | {advice} |" for reason, (meaning, advice) in ADVICE.items()]
    return "\n".join(["| reason | what it means | what to do |", "|---|---|---|", *rows])


def faults_table() -> str:
    """The faults as a Markdown table."""
    rows = [f"| `{fault}` | {meaning} | {advice} |" for fault, (meaning, advice) in FAULTS.items()]
    return "\n".join(["| fault | what it means | what to do |", "|---|---|---|", *rows])
