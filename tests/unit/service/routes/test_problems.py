from __future__ import annotations

import pytest

from service.errors import (
    DeepSynthError,
    InvalidFieldError,
    ModelNotFoundError,
    PageOutOfRangeError,
    error_classes,
)
from service.routes.problems import azure_error, mistral_error, openai_error
from service.schemas import AnalyzeProblem, MistralProblem, OpenAIProblem

CLASSES = error_classes()


@pytest.mark.parametrize("code", CLASSES)
def test_every_error_has_the_shape_of_each_api(code: str):
    error = CLASSES[code]("a detail for the log")
    openai, mistral, azure = openai_error(error, "id"), mistral_error(error, "id"), azure_error(error, "id")
    assert AnalyzeProblem.model_validate(azure).error.code == code
    assert OpenAIProblem.model_validate(openai).error.code == MistralProblem.model_validate(mistral).code == code
    assert ("detail" in mistral) is (error.status == 422)
    assert "for the log" not in str([openai, mistral, azure])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
        (504, "server_error"),
    ],
)
def test_types_of_openais_errors_follow_the_status(status: int, kind: str):
    of_status = [cls for cls in CLASSES.values() if cls.status == status]
    assert of_status
    assert {openai_error(cls(), "id")["error"]["type"] for cls in of_status} == {kind}


@pytest.mark.parametrize(
    ("error", "parameter"),
    [
        (ModelNotFoundError(public={"known": ["nano"]}), "model"),
        (InvalidFieldError(public={"field": "max_new_tokens", "expected": "a number"}), "max_completion_tokens"),
        (InvalidFieldError(public={"field": "messages.0.content", "expected": "text"}), "messages.0.content"),
        (InvalidFieldError(public={"field": "", "expected": ["model"]}), None),
        (PageOutOfRangeError(public={"pages": 3}), "pages"),
    ],
)
def test_parameter_has_the_name_that_clients_know(error: DeepSynthError, parameter: str | None):
    assert openai_error(error, "id")["error"]["param"] == mistral_error(error, "id")["param"] == parameter


def test_message_says_what_is_expected():
    error = InvalidFieldError(public={"field": "mode", "expected": ["tiny", "base"]})
    message = openai_error(error, "id")["error"]["message"]
    assert message == "A parameter is missing, unknown or not valid. (parameter: mode; expected: tiny, base)"


def test_detail_of_a_mistral_error_has_the_place_as_parts():
    error = InvalidFieldError(public={"field": "document.image_url.0", "expected": "text"})
    assert mistral_error(error, "id")["detail"][0]["loc"] == ["body", "document", "image_url", 0]
