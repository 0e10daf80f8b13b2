"""What `adapter_config.json` may say, and what its numbers mean."""

from __future__ import annotations

import json

import pytest

from shared.contract.peft_config import parse_config
from shared.contract.refusals import AdapterRefusedError, Reason
from tests.support.adapters import REFUSED_CONFIGS, peft_config


def config_bytes(**changes):
    return json.dumps(peft_config(**changes)).encode()


@pytest.mark.parametrize("takes_parameters", [False, True])
@pytest.mark.parametrize(("data", "reason"), REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_each_is_refused_with_its_reason(data, reason, takes_parameters):
    with pytest.raises(AdapterRefusedError) as caught:
        parse_config(data, takes_parameters=takes_parameters)
    assert caught.value.reason is reason


def test_scaling_follows_peft():
    assert parse_config(config_bytes(rank=16, lora_alpha=32)).scaling == 2.0
    assert parse_config(config_bytes(rank=16, lora_alpha=32, use_rslora=True)).scaling == 8.0


@pytest.mark.parametrize("targets", [None, [], ["q_proj"]])
def test_target_parameters_are_for_readers_that_take_them(targets):
    data = config_bytes(target_parameters=["mlp.experts.down_proj"], target_modules=targets)
    assert parse_config(data, takes_parameters=True).target_modules == tuple(targets or ())
    with pytest.raises(AdapterRefusedError) as caught:
        parse_config(data)
    assert caught.value.reason is Reason.UNSUPPORTED_OPTION
