"""Settings that replicas cannot have: folders and a port that belong to one service. Knows nothing of Ray."""

from __future__ import annotations

from service.config import ServiceSettings
from service.errors import ConfigurationError


def check_settings(settings: ServiceSettings) -> None:
    """Refuse settings that replicas would have to share.

    Args:
        settings: Of every replica.

    Raises:
        ConfigurationError: Some of them are set; it names them.
    """
    wrong = {
        "DEEPSYNTH_ADAPTER_STATE_DIR": settings.adapter_state_dir is not None,
        "DEEPSYNTH_ADMIN_PORT": settings.admin_port is not None,
        "DEEPSYNTH_JOB_DIR": settings.job_dir is not None,
        "DEEPSYNTH_OCR_SAVE_SAMPLES": settings.ocr_save_samples,
    }
    if named := [name for name, is_set in wrong.items() if is_set]:
        raise ConfigurationError(f"replicas on Ray cannot share what these settings are for; unset {', '.join(named)}")
