from __future__ import annotations

import json
import logging
import sys

from service.telemetry.logs import JsonFormatter, TextFormatter, request_id


def record(message: str = "request", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.INFO, "x.py", 1, message, None, None)
    made.fields = fields
    return made


def failed_record() -> logging.LogRecord:
    made = record("failed")
    try:
        int("the text of a page")
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_json_line_holds_message_fields_and_request() -> None:
    token = request_id.set("abc")
    line = json.loads(JsonFormatter().format(record(status=200)))
    request_id.reset(token)
    assert (line["message"], line["status"], line["request_id"], line["level"]) == ("request", 200, "abc", "info")
    assert line["time"].endswith("Z")


def test_text_line_is_one_line() -> None:
    line = TextFormatter().format(record(status=200, duration_s=0.123456, name="a\nb"))
    assert line.endswith("info    request status=200 duration_s=0.1235 name=a\\nb")


def test_exception_is_logged_by_type_and_place_without_its_text() -> None:
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(failed_record())
        assert "ValueError" in line
        assert "test_logs.py" in line
        assert "the text of a page" not in line


def test_control_characters_cannot_forge_a_line_or_move_the_cursor() -> None:
    why = "fine\r12:00:00 error all is lost\x1b[2J\u2028\udc80 ä"
    line = TextFormatter().format(record("pinned", why=why))
    assert line.endswith(r"why=fine\r12:00:00 error all is lost\x1b[2J\u2028\udc80 ä")
