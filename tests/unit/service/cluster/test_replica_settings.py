"""Settings that belong to one service stop a replica, by name."""

from __future__ import annotations

import pytest

from service.cluster.replica_settings import check_settings
from service.config import load_settings
from service.errors import ConfigurationError


def test_a_setting_for_one_service_is_named() -> None:
    given = {"DEEPSYNTH_JOB_DIR": "jobs", "DEEPSYNTH_ADMIN_PORT": "9000"}
    with pytest.raises(ConfigurationError, match="DEEPSYNTH_ADMIN_PORT, DEEPSYNTH_JOB_DIR"):
        check_settings(load_settings(given, env_file=None))


def test_what_replicas_share_is_taken() -> None:
    check_settings(load_settings({"DEEPSYNTH_ADAPTER_DIR": "volume", "DEEPSYNTH_OCR_BATCH_SIZE": "8"}, env_file=None))
