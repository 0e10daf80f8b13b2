from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.config import PREFIX, RENAMED, Quantization, ServiceSettings, load_settings, variable_names
from service.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[3]


def load(**variables: str) -> ServiceSettings:
    return load_settings({f"{PREFIX}{name}": value for name, value in variables.items()}, env_file=None)


def test_defaults_are_those_of_the_specification() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, "nano")
    assert (settings.enable_metrics, settings.enable_tracing) == (True, False)
    assert (settings.ocr_save_samples, settings.ocr_privacy_allowed) == (False, False)
    assert settings.max_upload_bytes == 20 * 1024 * 1024
    assert (settings.max_pixels, settings.max_side_px) == (40_000_000, 12_000)
    assert (settings.max_frames, settings.max_pdf_pages, settings.max_new_tokens) == (16, 50, 4096)


def test_names_of_the_specification_are_read() -> None:
    settings = load(
        ENABLE_METRICS="false",
        ENABLE_TRACING="true",
        OCR_BATCH_SIZE="3",
        OCR_MAX_WAIT_MS="7",
        DEFAULT_MODEL="m",
        SAMPLE_DIR="./kept",
        OCR_PRIVACY_ALLOWED="true",
    )
    assert (settings.enable_metrics, settings.enable_tracing) == (False, True)
    assert (settings.ocr_batch_size, settings.ocr_max_wait_ms) == (3, 7.0)
    assert (settings.default_model, str(settings.sample_dir)) == ("m", "kept")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PROT", "PORT"),
        ("MAX_PIXEL", "MAX_PIXELS"),
        ("OCR_BATCHSIZE", "OCR_BATCH_SIZE"),
        ("ENABLE_METRIC", "ENABLE_METRICS"),
    ],
)
def test_misspelt_name_stops_the_start_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{PREFIX}{name} is not a setting; did you mean {PREFIX}{nearest}"):
        load(**{name: "1"})


def test_webhooks_need_origins_and_a_secret() -> None:
    secret = "whsec_" + "QUJD" * 8  # pragma: allowlist secret
    settings = load(JOB_WEBHOOK_ORIGINS="https://a.example", JOB_WEBHOOK_SECRET=secret)
    assert settings.job_webhook_secret is not None
    assert secret not in repr(settings)
    with pytest.raises(ConfigurationError, match="JOB_WEBHOOK_SECRET, which signs them"):
        load(JOB_WEBHOOK_ORIGINS="https://a.example")
    with pytest.raises(ConfigurationError, match=r"DEEPSYNTH_JOB_WEBHOOK_ORIGINS: 'a\.example' is no origin"):
        load(JOB_WEBHOOK_ORIGINS="a.example", JOB_WEBHOOK_SECRET=secret)
    with pytest.raises(ConfigurationError, match="DEEPSYNTH_JOB_WEBHOOK_SECRET: a secret is whsec_") as refused:
        load(JOB_WEBHOOK_SECRET="not-a-good-one")  # pragma: allowlist secret
    assert "not-a-good-one" not in str(refused.value)


def test_unlike_name_is_refused_without_a_guess() -> None:
    with pytest.raises(ConfigurationError, match="DEEPSYNTH_QQQQQQ is not a setting; trainer settings"):
        load_settings({"DEEPSYNTH_QQQQQQ": "1"}, env_file=None)


def test_trainers_names_are_passed_over() -> None:
    assert load(TRAINER_ANYTHING="x") == load()


def test_other_programs_names_are_passed_over() -> None:
    assert load_settings({"PORT": "1", "HOME": "/"}, env_file=None) == load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "http"),
        ("ENABLE_METRICS", "perhaps"),
        ("DEVICE", "tpu"),
        ("MAX_CONCURRENT_REQUESTS", "0"),
        ("OTLP_ENDPOINT", "collector:4317"),
        ("MAX_NEW_TOKENS", "4097"),
        ("DEADLINE_S", "-1"),
    ],
)
def test_value_out_of_bounds_is_refused_by_its_full_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{PREFIX}{name}: "):
        load(**{name: value})


def test_empty_value_counts_as_unset() -> None:
    assert load(PORT="", MODEL="") == load()


def test_queue_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="DEEPSYNTH_MAX_CONCURRENT_REQUESTS is smaller"):
        load(MAX_CONCURRENT_REQUESTS="2", OCR_BATCH_SIZE="3")


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("DEEPSYNTH_PORT=1111\nDEEPSYNTH_HOST=0.0.0.0\nOTHER=x\n")
    settings = load_settings({"DEEPSYNTH_PORT": "2222"}, env_file=file)
    assert (settings.port, settings.host) == (2222, "0.0.0.0")


def test_misspelt_name_in_the_file_is_found_too(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("DEEPSYNTH_PROT=1111\n")
    with pytest.raises(ConfigurationError, match="DEEPSYNTH_PORT"):
        load_settings({}, env_file=file)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_name_works_and_warns(old: str, new: str, tmp_path: Path) -> None:
    value = {"QUANTIZATION": "int8", "IMAGE_MEMORY_BYTES": str(2**30)}.get(new, "9")
    warnings: list[str] = []
    settings = load_settings({PREFIX + old: value}, env_file=None, warn=warnings.append)
    assert settings == load(**{new: value}) != load()
    assert [f"{PREFIX}{old} has been renamed to {PREFIX}{new}" in each for each in warnings] == [True]
    file = tmp_path / ".env"
    file.write_text(f"{PREFIX}{old}={value}\n")
    assert load_settings({}, env_file=file, warn=warnings.append) == settings
    assert warnings[1:] == warnings[:1]


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_and_new_name_together_are_refused(old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"{PREFIX}{old}=9\n")
    with pytest.raises(ConfigurationError, match=f"{PREFIX}{old} is the old name of {PREFIX}{new}, and both are set"):
        load_settings({PREFIX + new: "9"}, env_file=file)
    assert load_settings({PREFIX + old: "", PREFIX + new: ""}, env_file=None) == load()


def test_old_names_take_part_in_the_search_for_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match="did you mean DEEPSYNTH_MAX_CONCURRENT_REQUESTS"):
        load(QUEUE_SIZ="1")


def test_bad_value_of_an_old_name_is_refused_under_that_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^DEEPSYNTH_QUEUE_SIZE: "):
        load(QUEUE_SIZE="0")


def test_full_is_still_a_word_for_no_quantization() -> None:
    assert load(WEIGHTS="full").quantization is Quantization.NONE is load(QUANTIZATION="none").quantization


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().port = 1  # type: ignore[misc]


def test_constructor_refuses_unknown_names() -> None:
    with pytest.raises(ValidationError):
        ServiceSettings(prot=1)  # type: ignore[call-arg]


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in ServiceSettings.model_fields.items() if not field.description] == []
    assert len(variable_names()) == len(ServiceSettings.model_fields)


def test_nothing_else_in_the_service_reads_the_environment() -> None:
    readers = []
    for path in sorted((ROOT / "service").rglob("*.py")):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        if names & {"environ", "getenv", "environb"}:
            readers.append(path.name)
    assert readers == ["config.py"]
