"""Every way a request can end without an answer: one tree, one status and one stable code each.

Knows nothing of HTTP frameworks, images or engines. What a caller may see of an error is its `code`, its fixed
`title` and the `public` facts its raiser chose; an exception's text goes to the log alone.

    DeepSynthError                        status  outcome
    |- ClientError                                client_error
    |  |- MalformedBodyError                 400
    |  |- AdminKeyError                      401
    |  |- AdminOffError                      403
    |  |- NotFoundError, ModelNotFoundError  404
    |  |- MethodNotAllowedError              405
    |  |- BodyTimeoutError                   408
    |  |- ModelRefusedError, AdapterConflictError, AdaptersOffError
    |  |                                     409
    |  |- TooLargeError                      413
    |  |  |- UploadTooLargeError, TooManyPixelsError, TooManyVisionTokensError
    |  |- UnsupportedTypeError               415
    |  |  |- NotMultipartError, UnsupportedFormatError, UnsupportedPixelsError
    |  `- UnprocessableError                 422
    |     |- InvalidFieldError, EmptyFileError, UndecodableError, MultiFrameError, TooManyPagesError,
    |     |  PageOutOfRangeError, AspectRatioError, PdfEncryptedError
    |     `- DecodeTimeoutError, DecodeMemoryError, DecodeCrashError
    |- CapacityError
    |  |- QueueFullError                     429  rejected
    |  `- NotReadyError, AdapterNotReadyError, DrainingError, EngineLostError
    |                                        503  unavailable
    |- DeadlineError                         504  timeout
    |- EngineError                           500  server_error
    |- InternalError                         500  server_error
    `- ClientGoneError                       499  client_disconnect (never sent: nobody listens)

    ConfigurationError stands apart: it stops the start and never reaches a client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

PublicValue = str | int | float | list[str]


class ConfigurationError(Exception):
    """The settings contradict themselves or name something that does not exist; the process does not start."""


class DeepSynthError(Exception):
    """Root of the tree; a class without a `code` of its own is a branch and is never raised."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = ""
    title: ClassVar[str] = ""
    outcome: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False
    rejection: ClassVar[str | None] = None
    """Reason under which `deepsynth_image_rejected_total` counts it; None when no image was to blame."""

    def __init__(self, detail: str = "", *, public: Mapping[str, PublicValue] | None = None) -> None:
        """Make an error.

        Args:
            detail: What happened, for the log alone.
            public: Facts the caller may see, such as a limit; never text that came from outside.
        """
        super().__init__(detail or self.title)
        self.public = dict(public or {})


class ClientError(DeepSynthError):
    """The request is at fault; sending it again unchanged will not help."""

    status = 400
    outcome = "client_error"


class MalformedBodyError(ClientError):
    """The multipart body breaks its own rules."""

    code = "malformed_body"
    title = "The request body could not be parsed as multipart/form-data."


class AdminKeyError(ClientError):
    """The route is an operator's, and the request has not shown the key."""

    status = 401
    code = "admin_key_required"
    title = "This route needs the admin key: Authorization: Bearer KEY."


class AdminOffError(ClientError):
    """The route is an operator's, and no key was set."""

    status = 403
    code = "admin_off"
    title = "This service was started without DEEPSYNTH_ADMIN_KEY, so nothing can be changed over HTTP."


class NotFoundError(ClientError):
    """No such route."""

    status = 404
    code = "not_found"
    title = "There is nothing at this path."


class ModelNotFoundError(ClientError):
    """The request names a model that is not served."""

    status = 404
    code = "model_not_found"
    title = "This model is not served here; GET /v1/models lists those that are."


class ModelRefusedError(ClientError):
    """The request names an adapter that this service knows and refuses to serve."""

    status = 409
    code = "model_refused"
    title = "This adapter was refused; the member reason says why, docs/adapters.md what to do."


class AdapterConflictError(ClientError):
    """An operator's wish that cannot be carried out as things stand."""

    status = 409
    code = "adapter_conflict"
    title = "This cannot be done as things stand; the member reason says why."


class AdaptersOffError(ClientError):
    """Adapters are not served here."""

    status = 409
    code = "adapters_off"
    title = "This service was started without DEEPSYNTH_ADAPTER_DIR, so it serves no adapters."


class MethodNotAllowedError(ClientError):
    """The route exists under another method."""

    status = 405
    code = "method_not_allowed"
    title = "This path does not take that method."


class BodyTimeoutError(ClientError):
    """The upload stalled or took too long."""

    status = 408
    code = "body_timeout"
    title = "The request body did not arrive in time."
    retryable = True


class TooLargeError(ClientError):
    """More than the service is willing to take."""

    status = 413


class UploadTooLargeError(TooLargeError):
    """The body or the file has too many bytes."""

    code = "upload_too_large"
    title = "The upload is larger than this service accepts."
    rejection = "too_large"


class TooManyPixelsError(TooLargeError):
    """A page has too many pixels or too long a side; known before it is decoded."""

    code = "too_many_pixels"
    title = "A page has more pixels, or a longer side, than this service accepts."
    rejection = "too_many_pixels"


class TooManyVisionTokensError(TooLargeError):
    """A page would cost more tokens than a sequence of this model can hold."""

    code = "too_many_vision_tokens"
    title = "A page needs more tokens than this model can take; choose a smaller mode."


class UnsupportedTypeError(ClientError):
    """Something this service does not read."""

    status = 415


class NotMultipartError(UnsupportedTypeError):
    """The body is no multipart form."""

    code = "not_multipart"
    title = "Send the file as multipart/form-data."


class UnsupportedFormatError(UnsupportedTypeError):
    """The file's content is none of the formats served, whatever its name says."""

    code = "unsupported_format"
    title = "The file is not a PNG, JPEG, WebP, TIFF or PDF."
    rejection = "unsupported_format"


class UnsupportedPixelsError(UnsupportedTypeError):
    """The format is served but its pixel type is not; better refused than read as a blank page."""

    code = "unsupported_pixel_type"
    title = "The image's pixel type is not supported; save it as 8 or 16 bit grey, RGB or CMYK."
    rejection = "unsupported_pixel_type"


class UnprocessableError(ClientError):
    """Understood, but cannot be done."""

    status = 422


class InvalidFieldError(UnprocessableError):
    """A form field is missing, unknown, repeated or out of its range."""

    code = "invalid_field"
    title = "A form field is missing, unknown or not valid."


class EmptyFileError(UnprocessableError):
    """The file has no bytes."""

    code = "empty_file"
    title = "The file is empty."
    rejection = "empty"


class UndecodableError(UnprocessableError):
    """Broken or cut off."""

    code = "undecodable_file"
    title = "The file is damaged or incomplete and could not be decoded."
    rejection = "undecodable"


class MultiFrameError(UnprocessableError):
    """An animated image without a choice of frames."""

    code = "multi_frame_unsupported"
    title = "The image has several frames; choose some with the field pages."
    rejection = "multi_frame"


class TooManyPagesError(UnprocessableError):
    """More pages than one request may hold."""

    code = "too_many_pages"
    title = "The document has more pages than one request may hold; choose some with the field pages."
    rejection = "too_many_pages"


class PageOutOfRangeError(UnprocessableError):
    """The selection names a page that the document does not have."""

    code = "page_out_of_range"
    title = "The field pages names a page that the document does not have."
    rejection = "page_out_of_range"


class AspectRatioError(UnprocessableError):
    """A sliver no reader could use."""

    code = "extreme_aspect_ratio"
    title = "One side of the page is far longer than the other; cut it into pieces."
    rejection = "aspect_ratio"


class PdfEncryptedError(UnprocessableError):
    """The PDF asks for a password."""

    code = "pdf_encrypted"
    title = "The PDF is protected by a password."
    rejection = "pdf_encrypted"


class DecodeTimeoutError(UnprocessableError):
    """Decoding ran past its time."""

    code = "decode_timeout"
    title = "Decoding the file took too long."
    rejection = "decode_timeout"


class DecodeMemoryError(UnprocessableError):
    """Decoding ran past its memory."""

    code = "decode_out_of_memory"
    title = "Decoding the file needed too much memory."
    rejection = "decode_oom"


class DecodeCrashError(UnprocessableError):
    """The decoder died of this file; the service did not."""

    code = "decode_crash"
    title = "The file could not be decoded."
    rejection = "decode_crash"


class CapacityError(DeepSynthError):
    """Nothing wrong with the request; the same one may succeed later."""

    status = 503
    outcome = "unavailable"
    retryable = True

    def __init__(
        self, detail: str = "", *, retry_after_s: int = 1, public: Mapping[str, PublicValue] | None = None
    ) -> None:
        """Make an error that says when to come back.

        Args:
            detail: What happened, for the log alone.
            retry_after_s: Whole seconds for the header Retry-After.
            public: Facts the caller may see.
        """
        super().__init__(detail, public=public)
        self.retry_after_s = retry_after_s


class QueueFullError(CapacityError):
    """Every place is taken; said before the body is read."""

    status = 429
    code = "queue_full"
    title = "The service is at capacity; try again later."
    outcome = "rejected"


class NotReadyError(CapacityError):
    """The model is still loading."""

    code = "not_ready"
    title = "The model is not ready yet."


class AdapterNotReadyError(CapacityError):
    """The adapter is there, but not in a slot yet."""

    code = "adapter_not_ready"
    title = "The adapter could not be made ready in time."


class DrainingError(CapacityError):
    """The process is about to stop."""

    code = "draining"
    title = "This instance is shutting down; send the request to another."


class EngineLostError(CapacityError):
    """The engine died under the request."""

    code = "engine_lost"
    title = "The engine was lost while it worked on this request."


class DeadlineError(DeepSynthError):
    """The request ran out of time, waiting or working."""

    status = 504
    code = "deadline_exceeded"
    title = "The request could not be finished in time."
    outcome = "timeout"
    retryable = True


class EngineError(DeepSynthError):
    """The engine could not start, or failed on a sequence."""

    code = "engine_failed"
    title = "The engine failed on this request."


class InternalError(DeepSynthError):
    """A fault of the service itself."""

    code = "internal_error"
    title = "Something went wrong inside the service."


class ClientGoneError(DeepSynthError):
    """The caller hung up; counted, never sent."""

    status = 499
    code = "client_disconnect"
    title = "The client closed the connection."
    outcome = "client_disconnect"


def _leaves(branch: type[DeepSynthError]) -> Iterator[type[DeepSynthError]]:
    for child in branch.__subclasses__():
        if child.code:
            yield child
        yield from _leaves(child)


def error_classes() -> dict[str, type[DeepSynthError]]:
    """Every error that can be raised, by code, in the order of the tree."""
    return {leaf.code: leaf for leaf in _leaves(DeepSynthError)}
