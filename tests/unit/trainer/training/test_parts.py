"""Parts of a training run by themselves: options, targets, order, batches, features, checkpoints."""

from __future__ import annotations

import errno
import json
from array import array

import pytest
import torch
from safetensors.torch import save_file

from shared.deepseek_ocr.geometry import Mode, plan_views
from tests.support.ocr2 import tiny_ocr2
from tests.support.tiny_model import TINY_GEOMETRY, tiny_model, tiny_tokenizer
from trainer.backends.protocol import as_pattern
from trainer.reading.generation import generate_from_features, generate_texts
from trainer.training import features as features_module
from trainer.training.checkpoints import commit, newest_valid, prune, restore_replaced, validation_error
from trainer.training.collator import Collator
from trainer.training.dataset import TrainingSample
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.features import CachedEncoder, FeatureCache
from trainer.training.options import TrainingOptions, load_file, make_options, option_fields
from trainer.training.presets import PRESETS, preset_values
from trainer.training.targets import choose_modules, touches_vision

ATTENTION_OF_TINY = tuple(
    f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in ("q", "k", "v", "o")
)


class TestOptions:
    def test_later_layers_go_before_earlier_ones_and_names_take_dashes(self):
        options = make_options({"batch-size": 2, "lora_rank": 8}, {"batch_size": "6"})
        assert (options.batch_size, options.lora_rank) == (6, 8)

    def test_the_specifications_names_are_there(self):
        wanted = [
            "dataset-name",
            "batch-size",
            "num-epochs",
            "max-train-samples",
            "max-eval-samples",
            "output-dir",
            "use-qlora",
            "gradient-accumulation-steps",
            "use-wandb",
            "wandb-project",
            "push-to-hub",
            "hub-model-id",
        ]
        assert {name.replace("-", "_") for name in wanted} <= option_fields().keys()

    def test_a_misspelt_name_gets_its_nearest(self):
        with pytest.raises(TrainingError, match=r"did you mean learning_rate\?") as caught:
            make_options({"learning-rte": 1})
        assert caught.value.code is TrainingCode.OPTION_UNKNOWN

    @pytest.mark.parametrize(
        "values",
        [
            {"batch_size": 2.5}, {"batch_size": True}, {"batch_size": 0}, {"batch_size": "x"},
            {"learning_rate": "fast"}, {"use_qlora": "yes"}, {"target_modules": 3}, {"target_modules": ()},
            {"backend": "other"},
            {"lora_dropout": 1.0}, {"push_to_hub": True}, {"model": 3}, {"batch_size": None},
        ],
    )  # fmt: skip
    def test_impossible_values_are_refused(self, values):
        with pytest.raises(TrainingError, match="it has to be") as caught:
            make_options(values)
        assert caught.value.code is TrainingCode.OPTION_INVALID

    def test_a_file_holds_the_same_options(self, tmp_path):
        (tmp_path / "run.yaml").write_text("batch-size: 3\ntarget-modules: [q_proj, v_proj]\nmax-steps: null\n")
        options = make_options(load_file(tmp_path / "run.yaml"))
        assert (options.batch_size, options.target_modules, options.max_steps) == (3, ("q_proj", "v_proj"), None)

    @pytest.mark.parametrize("text", ["a: [", "just words", "- a\n- b"])
    def test_a_file_without_options_is_refused(self, tmp_path, text):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(TrainingError):
            load_file(tmp_path / "run.yaml")

    def test_what_is_recorded_makes_the_same_options(self):
        options = make_options({"target_modules": "q_proj,k_proj", "output_dir": "somewhere", "max_steps": 3})
        assert make_options(json.loads(json.dumps(options.as_json()))) == options

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_hold_options(self, name):
        assert isinstance(make_options(preset_values(name, has_gpu=True)), TrainingOptions)


class TestTargets:
    def test_ends_of_names_mean_the_decoder(self):
        chosen = choose_modules(tiny_model(), ("q_proj", "k_proj", "v_proj", "o_proj"), with_vision=False)
        assert sorted(chosen) == sorted(ATTENTION_OF_TINY)
        assert not touches_vision(chosen)

    def test_routed_experts_are_never_among_them(self):
        chosen = choose_modules(tiny_model(), ("gate_proj", "down_proj"), with_vision=False)
        assert not any(".experts." in name for name in chosen)
        assert any("shared_experts" in name for name in chosen)

    def test_the_vision_part_takes_a_word_or_a_whole_name(self):
        model = tiny_model()
        whole = next(name for name, _ in model.named_modules() if name.endswith("qkv_proj"))
        assert choose_modules(model, (whole,), with_vision=False) == (whole,)
        assert touches_vision(choose_modules(model, ("qkv_proj",), with_vision=True))
        with pytest.raises(TrainingError, match="--train-vision"):
            choose_modules(model, ("qkv_proj",), with_vision=False)

    def test_a_projector_that_is_one_module_is_vision(self):
        chosen = choose_modules(tiny_ocr2(), ("multi_modal_projector",), with_vision=True)
        assert chosen == ("model.multi_modal_projector",)
        assert touches_vision(chosen)

    def test_one_target_that_matches_nothing_is_an_error_that_names_what_there_is(self):
        with pytest.raises(TrainingError, match=r"'qproj' matches no module.*q_proj \(2\).*down_proj") as caught:
            choose_modules(tiny_model(), ("k_proj", "qproj"), with_vision=False)
        assert caught.value.code is TrainingCode.TARGET_UNMATCHED

    def test_a_pattern_matches_whole_names_alone(self):
        import re

        pattern = as_pattern(["model.layers.1.q", "model.layers.2.q"])
        assert re.fullmatch(pattern, "model.layers.1.q")
        assert not re.fullmatch(pattern, "model.layers.10.q")
        assert not re.fullmatch(pattern, "modelxlayers.1.q")


def sample(text_ids, views=1):
    plan = plan_views(60, 30, Mode.SMALL, TINY_GEOMETRY)
    return TrainingSample("one", (plan,) * views, ((0, 1),) * views, array("I", text_ids), "text")


class TestBatches:
    def test_the_loss_sees_answer_and_end_alone(self):
        collator = Collator([0], 3, [7, 8], (1, 2))
        batch = collator([(5, sample([20, 21, 22])), (9, sample([30]))])
        image = plan_views(60, 30, Mode.SMALL, TINY_GEOMETRY).num_vision_tokens
        prompt = [0, *[3] * image, 7, 8]
        assert batch["input_ids"].tolist() == [[*prompt, 20, 21, 22, 1], [*prompt, 30, 1, 2, 2]]
        ignored = [-100] * len(prompt)
        assert batch["labels"].tolist() == [[*ignored, 20, 21, 22, 1], [*ignored, 30, 1, -100, -100]]
        assert batch["indices"].tolist() == [5, 9]

    def test_logits_that_are_kept_are_those_that_predict_labels(self):
        collator = Collator([0], 3, [7, 8], (1, 2))
        batch = collator([(0, sample([20, 21, 22])), (1, sample([30], views=2))])
        model = tiny_model()
        whole = model(input_ids=batch["input_ids"] % 64 + 4, labels=batch["labels"]).loss
        kept = batch["logits_to_keep"]
        part = model(input_ids=batch["input_ids"] % 64 + 4, labels=batch["labels"][:, -kept:], logits_to_keep=kept).loss
        torch.testing.assert_close(whole, part)


class TestFeatures:
    def test_what_memory_has_no_room_for_goes_to_disk_and_the_rest_is_forgotten(self, tmp_path):
        page = [torch.full((4, 8), float(index), dtype=torch.bfloat16) for index in range(5)]
        with FeatureCache(tmp_path / "features.bin", 2 * 64, 2 * 64) as cache:
            for index, tensor in enumerate(page):
                cache.put(index, tensor)
            for index in range(4):
                assert torch.equal(cache.get(index), page[index])
            assert cache.get(4) is None
            assert cache.sizes == {"samples": 4, "memory_bytes": 128, "disk_bytes": 128}
        assert not (tmp_path / "features.bin").exists()

    def test_a_full_disk_costs_time_and_nothing_else(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
        with FeatureCache(tmp_path / "features.bin", 0, 1000) as cache:
            cache.put(0, torch.zeros(4, 8))
            assert cache.get(0) is None

    def test_a_disk_that_is_nearly_full_is_left_alone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(features_module, "_free_bytes", lambda _: 1)
        with FeatureCache(tmp_path / "features.bin", 0, 1000) as cache:
            cache.put(0, torch.zeros(4, 8))
            assert cache.get(0) is None

    def test_only_what_is_missing_is_encoded(self, tmp_path):
        asked = []

        def encode(rows):
            asked.append(list(rows))
            return [torch.full((2, 2), float(row)) for row in rows]

        with FeatureCache(tmp_path / "features.bin", 10_000, 0) as cache:
            encoder = CachedEncoder(cache, encode, most_at_once=2)
            encoder.features([3], torch.device("cpu"))
            found = encoder.features([1, 3, 2, 1, 4], torch.device("cpu"))
        assert asked == [[3], [1, 2], [4]]
        assert [int(each[0, 0]) for each in found] == [1, 3, 2, 1, 4]

    def test_reading_from_features_is_reading_from_pages(self):
        from shared.contract.prompts import Task, prompt_for
        from shared.deepseek_ocr.forms import PageViews
        from shared.deepseek_ocr.images import prepare_views
        from tests.support.page_sources import drawn

        model, tokenizer = tiny_model(), tiny_tokenizer()
        pages = []
        for size in ((60, 30), (120, 40), (50, 50)):
            plan = plan_views(*size, TINY_GEOMETRY.default_mode, TINY_GEOMETRY)
            pages.append(PageViews(plan, *prepare_views(drawn("ab", size, "RGB"), plan, TINY_GEOMETRY)))
        prompt = prompt_for(Task.FREE)
        expected = generate_texts(model, tokenizer, pages, prompt, 12, "cpu", 2)

        def features_of(index):
            page = pages[index]
            grid = [(page.plan.tile_columns, page.plan.tile_rows)]
            tiles = torch.as_tensor(page.tiles_THWC) if page.plan.num_tiles else None
            return model.image_features(torch.as_tensor(page.global_view_HWC)[None], tiles, grid)[0]

        prompts = [tokenizer.encode_prompt(page.plan, prompt) for page in pages]
        with torch.no_grad():
            assert generate_from_features(model, tokenizer, prompts, features_of, 12, "cpu", 2) == expected


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def written(folder, name="step-3.partial", tensors=None, config="{}"):
    partial = folder / name
    partial.mkdir(parents=True)
    save_file({KEY: torch.ones(2, 3)} if tensors is None else tensors, partial / "adapter_model.safetensors")
    (partial / "adapter_config.json").write_text(config)
    return partial


class TestCheckpoints:
    def test_what_is_committed_is_sound_until_a_byte_changes(self, tmp_path):
        commit(written(tmp_path), tmp_path / "step-3", {KEY: (2, 3)})
        assert validation_error(tmp_path / "step-3") is None
        assert newest_valid(tmp_path) == (tmp_path / "step-3", [])
        (tmp_path / "step-3" / "adapter_config.json").write_text("{ }")
        assert newest_valid(tmp_path) == (None, ["step-3: adapter_config.json has changed"])

    @pytest.mark.parametrize(
        ("tensors", "fault"),
        [
            ({KEY: torch.full((2, 3), float("nan"))}, "not finite"),
            ({KEY: torch.ones(3, 3)}, "has shape"),
            ({}, "1 tensors are missing"),
            ({KEY: torch.ones(2, 3), "strange": torch.ones(1)}, "not the adapter's, first strange"),
        ],
    )
    def test_what_is_not_the_adapter_never_counts(self, tmp_path, tensors, fault):
        with pytest.raises(TrainingError, match=fault) as caught:
            commit(written(tmp_path, tensors=tensors), tmp_path / "step-3", {KEY: (2, 3)})
        assert caught.value.code is TrainingCode.CHECKPOINT_CORRUPT
        assert not (tmp_path / "step-3").exists()

    def test_a_cut_file_never_counts(self, tmp_path):
        partial = written(tmp_path)
        file = partial / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(TrainingError, match="does not load"):
            commit(partial, tmp_path / "step-3", {KEY: (2, 3)})

    def test_a_kill_between_two_renames_loses_nothing(self, tmp_path):
        commit(written(tmp_path), tmp_path / "best", {KEY: (2, 3)})
        (tmp_path / "best").rename(tmp_path / ".best.replaced")
        restore_replaced(tmp_path / "best")
        assert validation_error(tmp_path / "best") is None

    def test_the_newest_are_kept_by_number_not_by_name(self, tmp_path):
        for step in (9, 10, 100):
            commit(written(tmp_path, f"step-{step}.partial"), tmp_path / f"step-{step}", {KEY: (2, 3)})
        written(tmp_path, "step-101.partial")
        prune(tmp_path, keep=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-100"]
