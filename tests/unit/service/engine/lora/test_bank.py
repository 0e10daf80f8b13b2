"""What is taken from PEFT, what is refused, and logits of each way through the decoder against the merged model."""

import itertools
import json

import pytest
import torch

from service.engine.kernels.reference import decoder as reference
from service.engine.lora import hooks as lora_hooks
from service.engine.lora.bank import LowRank
from service.engine.lora.files import AdapterFiles, read_adapter
from service.engine.lora.registry import AdapterError, AdapterRegistry
from service.engine.lora.shapes import bank_bytes
from shared.contract.peft_config import parse_config
from shared.deepseek_ocr.configuration import TextConfig
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from tests.support.adapters import REFUSED_CONFIGS
from tests.support.lora import ATTENTION, merged, random_adapter, write_files
from tests.unit.service.engine.lora.lora_ways import MODEL, MODELS, bank_of, paged_logits, plain_logits, prompts_of
from tests.unit.service.engine.tiny import tiny_config, tiny_model

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("targets", [None, ATTENTION, ("down_proj",), ("gate_proj",), ("v_proj", "up_proj")])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", [plain_logits, paged_logits])
def test_logits_are_those_of_the_merged_model(way, name, targets):
    model = MODELS[name]
    bank = bank_of(model, splits_shared=way is paged_logits)
    adapters = [0, -1, 2, 1]
    chosen = {"targets": targets} if targets else {}
    files = [random_adapter(model, 5 + slot, rank=(8, 3, 5)[slot], use_rslora=slot == 1, **chosen) for slot in range(3)]
    for slot, file in enumerate(files):
        bank.load(
            slot, bank.pack(random_adapter(model, 50 + slot, rank=8))
        )  # what was there before must leave nothing behind
        bank.load(slot, bank.pack(file))
    prompts, tokens = prompts_of(4), [30, 40, 50, 60]
    found = way(model, prompts, tokens, bank, adapters)
    for row, adapter in enumerate(adapters):
        alone = model if adapter < 0 else merged(model, files[adapter])
        expected = plain_logits(alone, [prompts[row]], [tokens[row]])
        for mixed, single in zip(found, expected, strict=True):
            scale = float(single.abs().max())
            assert float((mixed[row] - single[0]).abs().max()) < 1e-4 * max(scale, 1)
            if adapter >= 0:
                base = plain_logits(model, [prompts[row]], [tokens[row]])
                assert not torch.allclose(base[0], expected[0], atol=1e-2)


@pytest.mark.parametrize("forms", [("stacked", "", "each"), ("down", "gate_up", "stacked")])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", [plain_logits, paged_logits])
def test_adapters_of_routed_experts_give_what_the_merged_model_gives(way, name, forms):
    model = MODELS[name]
    bank = bank_of(model, splits_shared=way is paged_logits, has_experts=True)
    adapters = [0, -1, 2, 1]
    files = [
        random_adapter(model, 5 + slot, rank=(8, 3, 5)[slot], use_rslora=slot == 1, experts=forms[slot])
        for slot in range(3)
    ]
    for slot, file in enumerate(files):
        bank.load(slot, bank.pack(random_adapter(model, 50 + slot, rank=8, experts="stacked")))
        bank.load(slot, bank.pack(file))
    assert bank.expert_slots == {slot for slot, form in enumerate(forms) if form}
    prompts, tokens = prompts_of(4), [30, 40, 50, 60]
    found = way(model, prompts, tokens, bank, adapters)
    for row, adapter in enumerate(adapters):
        alone = model if adapter < 0 else merged(model, files[adapter])
        expected = plain_logits(alone, [prompts[row]], [tokens[row]])
        for mixed, single in zip(found, expected, strict=True):
            assert float((mixed[row] - single[0]).abs().max()) < 1e-4 * max(float(single.abs().max()), 1)
        if adapter >= 0 and forms[adapter]:
            tensors = {key: value for key, value in files[adapter].tensors.items() if ".mlp.experts." not in key}
            without = merged(model, AdapterFiles(tensors, files[adapter].config))
            without_logits = plain_logits(without, [prompts[row]], [tokens[row]])
            assert not torch.allclose(without_logits[0], expected[0], atol=1e-2)


@pytest.mark.parametrize("way", [plain_logits, paged_logits])
def test_adapters_without_routed_experts_do_not_pay_for_them(way, monkeypatch):
    bank = bank_of(splits_shared=way is paged_logits, has_experts=True)
    bank.load(0, bank.pack(random_adapter(MODEL, 0, experts="stacked")))
    bank.load(1, bank.pack(random_adapter(MODEL, 1)))
    monkeypatch.setattr(reference, "mixture_lora", None)
    monkeypatch.setattr(lora_hooks, "mixture_lora", None)
    monkeypatch.setattr(LowRank, "expert", None)
    way(MODEL, prompts_of(2), [30, 40], bank, [1, -1])


def test_base_rows_are_bit_for_bit_what_they_are_without_adapters():
    bank = bank_of()
    for slot in range(3):
        bank.load(slot, bank.pack(random_adapter(MODEL, slot)))
    # Of different lengths, so that each is read alone; the step after it is one for all.
    prompts, tokens = [ids[:length] for ids, length in zip(prompts_of(4), (9, 7, 8, 5), strict=True)], [30, 40, 50, 60]
    adapted = plain_logits(MODEL, prompts, tokens, bank, [0, -1, 1, -1])[-1]
    base = plain_logits(MODEL, prompts, tokens)[-1]
    assert torch.equal(adapted[[1, 3]], base[[1, 3]])
    assert not torch.equal(adapted[[0, 2]], base[[0, 2]])


def test_base_rows_are_bit_for_bit_the_same_beside_any_adapters():
    """Dense layers alone: routed experts multiply as many tokens at once as chose them, whatever the reason."""
    config = tiny_config()
    config.text_config.first_k_dense_replace = config.text_config.num_hidden_layers
    torch.manual_seed(0)
    model = DeepseekOcrForConditionalGeneration(config).eval()
    bank = bank_of(model, splits_shared=True)
    for slot in range(3):
        bank.load(slot, bank.pack(random_adapter(model, slot)))
    prompts, tokens = prompts_of(4), [30, 40, 50, 60]
    one, other = (paged_logits(model, prompts, tokens, bank, [a, -1, b, -1]) for a, b in ((0, 1), (2, 0)))
    for mixed, again in zip(one, other, strict=True):
        assert torch.equal(mixed[[1, 3]], again[[1, 3]])
        assert not torch.equal(mixed[[0, 2]], again[[0, 2]])


def test_no_hook_stays_on_the_model():
    bank = bank_of()
    bank.load(0, bank.pack(random_adapter(MODEL, 0)))
    plain_logits(MODEL, prompts_of(1), [30], bank, [0])
    assert not any(module._forward_hooks for module in MODEL.modules())


def test_a_bank_takes_the_memory_that_was_planned():
    for name, model in MODELS.items():
        for splits_shared, has_experts in itertools.product((False, True), repeat=2):
            bank = bank_of(model, splits_shared=splits_shared, has_experts=has_experts)
            held = sum(
                tensor.numel() * 4
                for groups in bank.layers
                for group in groups.values()
                for tensor in (group.A_SQH, group.B_SOR)
            )
            text = model.config.text_config
            planned = bank_bytes(text, num_slots=3, max_rank=8, value_bytes=4, has_experts=has_experts)
            assert held == planned, name
    assert bank_bytes(TextConfig(), num_slots=0, max_rank=64, value_bytes=2) == 0


def changed(files, tensors=None, without=(), **config):
    kept = {name: tensor for name, tensor in files.tensors.items() if name not in without}
    values = {**files.config.values, **config}
    return AdapterFiles(kept | (tensors or {}), parse_config(json.dumps(values).encode()))


def pair_of(module, a_shape, b_shape):
    return {f"{module}.lora_A.weight": torch.zeros(a_shape), f"{module}.lora_B.weight": torch.zeros(b_shape)}


GOOD = random_adapter(MODEL, 0)
ROUTED = "base_model.model.model.layers.1.mlp.experts"
REFUSED = {
    "rank_too_large": random_adapter(MODEL, 0, rank=9),
    "unexpected_tensor": changed(GOOD, {"base_model.model.lm_head.weight": torch.zeros(2, 2)}),
    "tensor_missing": changed(GOOD, without=(f"{Q}.lora_B.weight",)),
    "wrong_shape": changed(GOOD, {f"{Q}.lora_A.weight": torch.zeros(4, 31)}),
    "wrong_dtype": changed(GOOD, {f"{Q}.lora_A.weight": torch.zeros(4, 32, dtype=torch.int64)}),
    "not_finite": changed(GOOD, {f"{Q}.lora_B.weight": torch.full((32, 4), float("inf"))}),
    "target_not_allowed": changed(GOOD, pair_of(ROUTED, (4, 32), (32, 4))),
    "unknown_module": changed(GOOD, pair_of(Q.replace("layers.0", "layers.9"), (4, 32), (32, 4))),
}
REFUSED_EXPERTS = {
    "unexpected_tensor": changed(
        random_adapter(MODEL, 0, experts="stacked"), pair_of(f"{ROUTED}.2.up_proj", (4, 32), (16, 4))
    ),
    "tensor_missing": changed(
        random_adapter(MODEL, 0, experts="stacked"), without=(f"{ROUTED}.base_layer.lora_B.weight",)
    ),
    "wrong_shape": changed(GOOD, pair_of(ROUTED, (15, 16), (32, 15))),
    "unknown_module": changed(GOOD, pair_of(f"{ROUTED}.4.up_proj", (4, 32), (16, 4))),
    "not_finite": changed(GOOD, {**pair_of(f"{ROUTED}.3.up_proj", (4, 32), (16, 4)),
                                 f"{ROUTED}.3.up_proj.lora_A.weight": torch.full((4, 32), float("nan"))}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "refused", "has_experts"),
    [*((reason, files, False) for reason, files in REFUSED.items()),
     *((reason, files, True) for reason, files in REFUSED_EXPERTS.items())],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_and_changes_nothing(reason, refused, has_experts):
    bank = bank_of(has_experts=has_experts)
    bank.load(0, bank.pack(GOOD))
    before = [group.B_SOR.clone() for groups in bank.layers for group in groups.values()]
    with pytest.raises(AdapterError) as caught:
        bank.load(0, bank.pack(refused))
    assert caught.value.reason == reason
    after = [group.B_SOR for groups in bank.layers for group in groups.values()]
    assert all(map(torch.equal, before, after))
    assert all(bool(tensor.isfinite().all()) for tensor in after)
    bank.load(1, bank.pack(GOOD))  # nothing of the refused one is left over either
    assert all(torch.equal(group.B_SOR[0], group.B_SOR[1]) for groups in bank.layers for group in groups.values())


@pytest.mark.parametrize("module", ["layers.1.mlp.experts.0.gate_proj", "layers.1.mlp.experts.base_layer"])
def test_routed_experts_are_refused_by_name(module):
    bank = bank_of()
    with pytest.raises(AdapterError, match="set DEEPSYNTH_ADAPTER_EXPERTS"):
        bank.load(0, bank.pack(changed(GOOD, pair_of(f"base_model.model.model.{module}", (4, 32), (16, 4)))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_single_number_that_is_none_is_found(dtype, side, value):
    key = f"{Q}.lora_{side}.weight"
    tensor = GOOD.tensors[key].clone()
    tensor[1, 2] = value
    bank = bank_of(dtype=dtype)
    bank.pack(GOOD)
    with pytest.raises(AdapterError, match="not_finite"):
        bank.pack(changed(GOOD, {key: tensor}))


def test_too_large_for_the_type_of_the_model():
    bank = bank_of(dtype=torch.float16)
    with pytest.raises(AdapterError, match="not_finite"):
        bank.load(0, bank.pack(changed(GOOD, {f"{Q}.lora_B.weight": torch.full((32, 4), 1e30)})))


def test_a_folder_of_peft_is_read(tmp_path):
    files = read_adapter(write_files(tmp_path, GOOD))
    assert files.config == GOOD.config
    assert files.tensors.keys() == GOOD.tensors.keys()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", None, "file_missing"),
        ("adapter_model.safetensors", None, "file_missing"),
        ("adapter_model.safetensors", b"torn", "header_invalid"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path, name, content, reason):
    write_files(tmp_path, GOOD)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("data", "reason"), REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_a_config_that_the_contract_refuses_is_refused_with_its_code(tmp_path, data, reason):
    write_files(tmp_path, GOOD)
    (tmp_path / "adapter_config.json").write_bytes(data)
    with pytest.raises(AdapterError) as caught:
        bank_of().pack(read_adapter(tmp_path))
    assert caught.value.reason == reason


def test_a_slot_is_free_again_when_nobody_uses_it():
    registry = AdapterRegistry(1)
    registry.add("a@1", registry.offer_slot("a@1"))
    with pytest.raises(AdapterError, match="no_slot"):
        registry.offer_slot("a@2")
    with pytest.raises(AdapterError, match="name_in_use"):
        registry.offer_slot("a@1")
    registry.drain("a@1")
    assert registry.find("a@1") is None
    assert registry.sweep({0}) == []
    assert registry.draining == {"a@1"}
    assert registry.sweep({-1}) == ["a@1"]
    registry.check_integrity()
    registry.add("a@2", registry.offer_slot("a@2"))
    assert registry.names == ("a@2",)


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


PATTERN = r"model\.layers\.\d+\..*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@pytest.mark.parametrize(
    ("targets", "parameters"),
    [(PATTERN, []), (PATTERN, PARAMETERS[:1]), (PATTERN, PARAMETERS[1:]), (PATTERN, PARAMETERS), (None, PARAMETERS)],
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_peft_saves_reads_as_with_peft(tmp_path, use_rslora, targets, parameters):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    config = peft.LoraConfig(
        r=5,
        lora_alpha=7,
        target_modules=targets,
        target_parameters=parameters or None,
        use_rslora=use_rslora,
        init_lora_weights=False,
        lora_dropout=0 if parameters else 0.1,
    )
    wrapped = peft.get_peft_model(model, config).eval()
    wrapped.save_pretrained(tmp_path)
    bank = bank_of(splits_shared=True, has_experts=bool(parameters))
    bank.load(2, bank.pack(read_adapter(tmp_path)))
    assert bank.expert_slots == ({2} if parameters else set())
    ids = prompts_of(1)
    with torch.inference_mode():
        embeds = model.embed_inputs(torch.tensor(ids), [])
        hidden, _ = model.decode(embeds, torch.arange(len(ids[0]))[None])
        expected = model.lm_head(hidden[:, -1])
    found = paged_logits(MODEL, ids, [30], bank, [2])[0]
    assert float((found - expected).abs().max()) < 1e-4 * max(1, float(expected.abs().max()))
