"""The tree of errors: one class per way in which a request can fail, each with a status and a stable code.

Clients see the `code`, the fixed `title` and the members in `public`; an exception's text goes to the log alone. Knows
nothing of HTTP frameworks, images or engines.

    DeepSynthError                        status  outcome
    |- ClientError                                client_error
    |  |- MalformedBodyError, MalformedJsonError, InvalidHostError, UnsupportedParameterError
    |  |                                     400
    |  |- KeyMissingError, KeyInvalidError, AdminKeyError, JobKeyError
    |  |                                     401
    |  |- KeyScopeError, AdminOffError       403
    |  |- NotFoundError, ModelNotFoundError, JobNotFoundError, SampleNotFoundError
    |  |                                     404
    |  |- MethodNotAllowedError              405
    |  |- NotAcceptableError                 406
    |  |- BodyTimeoutError                   408
    |  |- ModelRefusedError, AdapterConflictError, AdaptersOffError, JobsOffError, JobNotFinishedError,
    |  |  SamplesOffError, SampleOptedOutError
    |  |                                     409
    |  |- TooLargeError                      413
    |  |  |- UploadTooLargeError, TooManyPixelsError, TooManyVisionTokensError, TextTooLongError
    |  |- UnsupportedTypeError               415
    |  |  |- NotMultipartError, NotJsonError, UnsupportedFormatError, UnsupportedPixelsError
    |  `- UnprocessableError                 422
    |     |- InvalidFieldError, PagesTogetherError, RemoteUrlError, InvalidDataUrlError, NoTextError,
    |     |  UnreadableError, WebhookNotAllowedError, TextNotUnicodeError
    |     |- EmptyFileError, UndecodableError, TooManyPagesError, DocumentTooLongError,
    |     |  PageOutOfRangeError, AspectRatioError, PdfEncryptedError
    |     `- DecodeTimeoutError, DecodeMemoryError, DecodeCrashError
    |- CapacityError
    |  |- QueueFullError, KeyRateError, KeyConcurrencyError, TooManyWrongKeysError, JobQueueFullError
    |  |                                     429  rejected
    |  |- NotReadyError, AdapterNotReadyError, DrainingError, EngineLostError, DecodeKilledError,
    |  |  DecodeUnavailableError, SampleStorageError
    |  |                                     503  unavailable
    |  `- JobStorageFullError, AdapterStateError
    |                                         507  unavailable
    |- DeadlineError                         504  timeout
    |- EngineError, PoisonPageError, JobInterruptedError
    |                                         500  server_error
    |- InternalError                         500  server_error
    `- ClientGoneError                       499  client_disconnect (counted, never sent)

    ConfigurationError is separate: it stops the start and never reaches a client.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

MAX_RETRY_AFTER_S = 600
PublicValue = str | int | float | list[str]


class ConfigurationError(Exception):
    """The settings contradict themselves or name something that does not exist; the process does not start."""


class DeepSynthError(Exception):
    """Root of the tree; a class without a `code` of its own is a branch and is never raised."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = ""
    title: ClassVar[str] = ""
    outcome: ClassVar[str] = "server_error"
    retryable: bool = False
    rejection: ClassVar[str | None] = None
    """Its label in `deepsynth_image_rejected_total`; None if the file is not the cause."""

    def __init__(self, detail: str = "", *, public: Mapping[str, PublicValue] | None = None) -> None:
        """Make an error.

        Args:
            detail: For the log alone.
            public: Members that the client sees, such as a limit; of a request at most the name of a field.
        """
        super().__init__(detail or self.title)
        self.public = dict(public or {})


class ClientError(DeepSynthError):
    """The request is wrong; repeating it will not help."""

    status = 400
    outcome = "client_error"


class MalformedBodyError(ClientError):
    """The body is not valid multipart."""

    code = "malformed_body"
    title = "The request body could not be parsed as multipart/form-data."


class InvalidHostError(ClientError):
    """The Host header is missing, repeated, no host name or address, or not an allowed one."""

    code = "invalid_host"
    title = "The Host header must be there once, with an allowed host name or address and an optional port."


class MalformedJsonError(ClientError):
    """The body is not JSON that can be read within the limits."""

    code = "malformed_json"
    title = "The request body is not valid JSON, or is nested too deeply or has too many values."


class UnsupportedParameterError(ClientError):
    """A parameter of another service's API that would change the answer and that this one does not have."""

    code = "unsupported_parameter"
    title = "This parameter is not supported with this value."


class KeyMissingError(ClientError):
    """Keys are set, and the request has none."""

    status = 401
    code = "key_required"
    title = "This service needs a key: Authorization: Bearer KEY."


class KeyInvalidError(ClientError):
    """The key is unknown, revoked or expired."""

    status = 401
    code = "key_invalid"
    title = "This key is unknown, revoked or expired."


class KeyScopeError(ClientError):
    """The key is valid, but not for this route."""

    status = 403
    code = "key_scope"
    title = "This key lacks the scope that the route needs."


class AdminKeyError(ClientError):
    """The route needs an admin key, and the request does not carry one."""

    status = 401
    code = "admin_key_required"
    title = "This route needs an admin key: Authorization: Bearer KEY."


class JobKeyError(ClientError):
    """A list of jobs was asked for without a key, which says whose."""

    status = 401
    code = "job_key_required"
    title = "GET /jobs lists the jobs of one client: send the key that they were submitted with."


class AdminOffError(ClientError):
    """The route needs an admin key, and there is none."""

    status = 403
    code = "admin_off"
    title = "Routes that need an admin key are off: neither DEEPSYNTH_ADMIN_KEY nor a key with the scope admin is set."


class NotFoundError(ClientError):
    """No such route."""

    status = 404
    code = "not_found"
    title = "This path does not exist."


class ModelNotFoundError(ClientError):
    """The request names a model that is not served."""

    status = 404
    code = "model_not_found"
    title = "This model does not exist; GET /v1/models lists the served models."


class JobNotFoundError(ClientError):
    """No such job, or it belongs to another key."""

    status = 404
    code = "job_not_found"
    title = "This job does not exist, has been erased, or was submitted with another key."


class ModelRefusedError(ClientError):
    """The request names an adapter that was refused."""

    status = 409
    code = "model_refused"
    title = "This adapter was refused; reason says why, and docs/adapters.md what to do."


class AdapterConflictError(ClientError):
    """An operator's command that is not possible now."""

    status = 409
    code = "adapter_conflict"
    title = "This is not possible now; reason says why."


class AdaptersOffError(ClientError):
    """No adapter volume is configured."""

    status = 409
    code = "adapters_off"
    title = "DEEPSYNTH_ADAPTER_DIR is not set, so no adapters are served."


class JobsOffError(ClientError):
    """No folder for jobs is configured."""

    status = 409
    code = "jobs_off"
    title = "DEEPSYNTH_JOB_DIR is not set, so this service takes no jobs."


class JobNotFinishedError(ClientError):
    """A whole document was asked for while its pages are being read."""

    status = 409
    code = "job_not_finished"
    title = "The job is not finished; until then, its result is JSON with the pages that are."
    retryable = True


class SampleNotFoundError(ClientError):
    """No sample is kept of the answer, or of that page of it."""

    status = 404
    code = "sample_not_found"
    title = "No page of an answer with this id is kept: it is unknown, has expired, or was erased."


class SamplesOffError(ClientError):
    """The service keeps no samples."""

    status = 409
    code = "samples_off"
    title = "This service keeps no samples; DEEPSYNTH_OCR_SAVE_SAMPLES and DEEPSYNTH_OCR_PRIVACY_ALLOWED turn them on."


class SampleOptedOutError(ClientError):
    """The client asked that nothing be stored."""

    status = 409
    code = "sample_opted_out"
    title = "Nothing of this answer may be stored: its request or this one said so."


class MethodNotAllowedError(ClientError):
    """The route exists with another method."""

    status = 405
    code = "method_not_allowed"
    title = "This path does not support this method."


class NotAcceptableError(ClientError):
    """The client accepts none of the output formats."""

    status = 406
    code = "not_acceptable"
    title = "No output format has a media type that the header Accept allows; available lists them."


class BodyTimeoutError(ClientError):
    """The upload stalled or took too long."""

    status = 408
    code = "body_timeout"
    title = "The request body did not arrive in time."
    retryable = True


class TooLargeError(ClientError):
    """Larger than a limit of the service."""

    status = 413


class UploadTooLargeError(TooLargeError):
    """The body or the file has too many bytes."""

    code = "upload_too_large"
    title = "The upload exceeds the maximum size."
    rejection = "too_large"


class TooManyPixelsError(TooLargeError):
    """A page has too many pixels or too long a side; checked before it is decoded."""

    code = "too_many_pixels"
    title = "A page exceeds the maximum number of pixels or the maximum width or height."
    rejection = "too_many_pixels"


class TooManyVisionTokensError(TooLargeError):
    """A page needs more tokens than a sequence of this model can hold."""

    code = "too_many_vision_tokens"
    title = "A page needs more tokens than the model supports; choose a smaller mode."


class TextTooLongError(TooLargeError):
    """A corrected text is longer than any page."""

    code = "text_too_long"
    title = "The text exceeds the maximum length."


class UnsupportedTypeError(ClientError):
    """An unsupported content type or format."""

    status = 415


class NotMultipartError(UnsupportedTypeError):
    """The body is not a multipart form."""

    code = "not_multipart"
    title = "Send the file as multipart/form-data."


class NotJsonError(UnsupportedTypeError):
    """The body is not said to be JSON."""

    code = "not_json"
    title = "Send the request as application/json."


class UnsupportedFormatError(UnsupportedTypeError):
    """The file's content, not its name, is in no supported format; `found` and `advice` say more where it is known."""

    code = "unsupported_format"
    title = "The file is not a PNG, JPEG, WebP, TIFF, GIF, BMP, JPEG 2000, AVIF, HEIC or PDF."
    rejection = "unsupported_format"


class UnsupportedPixelsError(UnsupportedTypeError):
    """The format is supported but its pixel type is not; it would decode to a blank page."""

    code = "unsupported_pixel_type"
    title = "The image's pixel type is not supported; save it as 8 or 16 bit grey, RGB or CMYK."
    rejection = "unsupported_pixel_type"


class UnprocessableError(ClientError):
    """Valid, but cannot be processed."""

    status = 422


class InvalidFieldError(UnprocessableError):
    """A field or an option is missing, unknown, repeated or out of its range."""

    code = "invalid_field"
    title = "A field of the request or the query string is missing, unknown or not valid; field names it."


class PagesTogetherError(UnprocessableError):
    """The model reads each page alone, and several in one pass were asked for."""

    code = "pages_together_unsupported"
    title = "This model reads each page alone; GET /v1/models says which models read several pages in one pass."


class RemoteUrlError(UnprocessableError):
    """The file is named by a URL, which this service never fetches."""

    code = "remote_url_not_allowed"
    title = "The service fetches no URLs: send the file as a data URL, or upload it to POST /ocr."


class InvalidDataUrlError(UnprocessableError):
    """A data URL is not valid."""

    code = "invalid_data_url"
    title = "The file is not a valid data URL: send data:TYPE;base64,DATA."


class NoTextError(UnprocessableError):
    """The document was read, and there is no text on it; only for clients that cannot take an empty answer."""

    code = "no_text"
    title = "No text was found in the document."


class WebhookNotAllowedError(UnprocessableError):
    """A webhook to an address that the operator has not listed."""

    code = "webhook_not_allowed"
    title = "webhook_url is not at one of the origins that DEEPSYNTH_JOB_WEBHOOK_ORIGINS lists."


class TextNotUnicodeError(UnprocessableError):
    """A corrected text cannot be stored as UTF-8."""

    code = "text_not_unicode"
    title = "The text is not valid UTF-8, or has half of a surrogate pair."


class UnreadableError(UnprocessableError):
    """The document shows something, but no text that can be trusted; for clients that cannot take an empty answer."""

    code = "unreadable"
    title = "The document shows something, but no text that could be trusted; pages lists where."


class EmptyFileError(UnprocessableError):
    """The file has no bytes."""

    code = "empty_file"
    title = "The file is empty."
    rejection = "empty"


class UndecodableError(UnprocessableError):
    """The file is damaged or truncated."""

    code = "undecodable_file"
    title = "The file is damaged or incomplete."
    rejection = "undecodable"


class TooManyPagesError(UnprocessableError):
    """The document has too many pages for one request."""

    code = "too_many_pages"
    title = "The document exceeds the maximum number of pages; select some with pages."
    rejection = "too_many_pages"


class DocumentTooLongError(UnprocessableError):
    """At the pace of the pages before, a document would not be finished before its deadline."""

    code = "document_too_long"
    title = "The document cannot be read before its deadline; limit is the number of pages that can."


class PageOutOfRangeError(UnprocessableError):
    """The selection includes a page that the document does not have."""

    code = "page_out_of_range"
    title = "The selection in pages has a page that the document does not have."
    rejection = "page_out_of_range"


class AspectRatioError(UnprocessableError):
    """A page too narrow to read."""

    code = "extreme_aspect_ratio"
    title = "One side of the page is far longer than the other; split the page."
    rejection = "aspect_ratio"


class PdfEncryptedError(UnprocessableError):
    """The PDF needs a password."""

    code = "pdf_encrypted"
    title = "The PDF is password-protected; send a copy without a password, such as qpdf --decrypt makes."
    rejection = "pdf_encrypted"


class DecodeTimeoutError(UnprocessableError):
    """Decoding exceeded its time limit."""

    code = "decode_timeout"
    title = "Decoding the file took too long."
    rejection = "decode_timeout"


class DecodeMemoryError(UnprocessableError):
    """Decoding exceeded its memory limit, or the process was killed twice while it decoded this file."""

    code = "decode_out_of_memory"
    title = "Decoding the file needed too much memory."
    rejection = "decode_oom"


class DecodeCrashError(UnprocessableError):
    """The file crashed its decoding process."""

    code = "decode_crash"
    title = "The file could not be decoded."
    rejection = "decode_crash"


class CapacityError(DeepSynthError):
    """The request is fine; repeating it later may succeed."""

    status = 503
    outcome = "unavailable"
    retryable = True

    def __init__(
        self, detail: str = "", *, retry_after_s: int = 1, public: Mapping[str, PublicValue] | None = None
    ) -> None:
        """Make an error that says when to retry.

        Args:
            detail: For the log alone.
            retry_after_s: Seconds for the header Retry-After.
            public: Members that the client sees.
        """
        super().__init__(detail, public=public)
        self.retry_after_s = retry_after_s


def whole_seconds(seconds: float) -> int:
    """A wait as the header Retry-After has it: whole seconds, 1 to `MAX_RETRY_AFTER_S`."""
    return min(max(math.ceil(seconds), 1), MAX_RETRY_AFTER_S)


class QueueFullError(CapacityError):
    """The maximum of concurrent requests is reached; raised before the body is read."""

    status = 429
    code = "queue_full"
    title = "The service is at capacity; retry later."
    outcome = "rejected"


class KeyRateError(CapacityError):
    """The key has sent as many documents as it may for now."""

    status = 429
    code = "key_rate_limited"
    title = "This key has reached its documents per minute; retry later."
    outcome = "rejected"


class KeyConcurrencyError(CapacityError):
    """The key has as many documents in work as it may."""

    status = 429
    code = "key_concurrency"
    title = "This key has reached its limit of concurrent documents; retry when one is finished."
    outcome = "rejected"


class TooManyWrongKeysError(CapacityError):
    """The address has sent too many wrong keys."""

    status = 429
    code = "too_many_wrong_keys"
    title = "Too many wrong keys from this address; retry later."
    outcome = "rejected"


class JobQueueFullError(CapacityError):
    """The maximum of unfinished jobs is reached; raised before the body is read."""

    status = 429
    code = "job_queue_full"
    title = "Too many jobs are unfinished; retry later."
    outcome = "rejected"


class JobStorageFullError(CapacityError):
    """The documents and results of jobs take all the space that they may, or all that there is."""

    status = 507
    code = "job_storage_full"
    title = "There is no space for another job; erase finished ones, or retry later."


class AdapterStateError(CapacityError):
    """An operator's decision could not be saved, so it was not taken."""

    status = 507
    code = "adapter_state_unwritable"
    title = "The decision could not be saved in DEEPSYNTH_ADAPTER_STATE_DIR, so it was not taken; make room there."


class NotReadyError(CapacityError):
    """The model is still loading."""

    code = "not_ready"
    title = "The model is not ready."


class AdapterNotReadyError(CapacityError):
    """The adapter exists but could not be loaded in time."""

    code = "adapter_not_ready"
    title = "The adapter was not loaded in time."


class DrainingError(CapacityError):
    """The process is shutting down."""

    code = "draining"
    title = "This instance is shutting down; send the request to another."


class EngineLostError(CapacityError):
    """The engine died while it worked on the request."""

    code = "engine_lost"
    title = "The engine stopped while it worked on this request."


class DecodeKilledError(CapacityError):
    """The image process was killed from outside, by an operator or for the host's lack of memory."""

    code = "decode_killed"
    title = "The process that decoded the file was killed from outside; send the file again."


class DecodeUnavailableError(CapacityError):
    """There is no process to decode the file in: the system has no memory, processes or descriptors left."""

    code = "decode_unavailable"
    title = "No process could be started to decode the file; send the file again later."


class SampleStorageError(CapacityError):
    """Samples could not be written, read or erased; a page that is not kept after its answer is only counted."""

    code = "sample_storage_failed"
    title = "Samples could not be written, read or erased; the service's log says why."


class DeadlineError(DeepSynthError):
    """The request exceeded its deadline, waiting or running."""

    status = 504
    code = "deadline_exceeded"
    title = "The request exceeded its deadline."
    outcome = "timeout"
    retryable = True


class EngineError(DeepSynthError):
    """The engine could not start, or failed on a sequence."""

    code = "engine_failed"
    title = "The engine failed on this request."


class PoisonPageError(DeepSynthError):
    """The engine died twice while it read this page, the second time alone; its content is refused for a time."""

    code = "poison_request"
    title = "The engine stopped twice while it read this page; it is refused for ten minutes."


class JobInterruptedError(DeepSynthError):
    """The process ended several times while it read the same pages of a job, which may be why."""

    code = "job_interrupted"
    title = "The service ended each time it tried to read this page."


class InternalError(DeepSynthError):
    """A bug in the service."""

    code = "internal_error"
    title = "Internal error."


class ClientGoneError(DeepSynthError):
    """The client disconnected; counted, never sent."""

    status = 499
    code = "client_disconnect"
    title = "The client closed the connection."
    outcome = "client_disconnect"


def let_go(error: BaseException | None) -> None:
    """Cut an error, and those that it came from, off the frames that it passed.

    A frame that has the error in a variable, and the traceback that has the frame, keep each other until the garbage
    collector runs, and the request's upload with them. Tracebacks are for the log, so this comes after it.
    """
    rest, seen = [error], set()
    while rest:
        each = rest.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        rest += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            rest += each.exceptions


def _leaves(branch: type[DeepSynthError]) -> Iterator[type[DeepSynthError]]:
    for child in branch.__subclasses__():
        if child.code:
            yield child
        yield from _leaves(child)


def error_classes() -> dict[str, type[DeepSynthError]]:
    """Every error that can be raised, by code, in the order of the tree."""
    return {leaf.code: leaf for leaf in _leaves(DeepSynthError)}
