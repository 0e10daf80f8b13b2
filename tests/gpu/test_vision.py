"""GpuVision against the model's own modules: small on a CPU (kernels interpreted), public dimensions on a GPU."""

from types import ModuleType

import numpy as np
import pytest
import torch

from service.engine.kernels.reference import vision as vision_reference
from service.engine.vision.runner import GpuVision, captured_counts, split_batch
from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from tests.support.interpreter import DEVICE, HAS_GPU, import_kernels, relative_error

pytestmark = [pytest.mark.gpu] if HAS_GPU else []
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
STEMS = {"patchify": (), "stem": (4, 8, 8, 16)}


def small_model(stem: tuple[int, ...] = ()) -> DeepseekOcrForConditionalGeneration:
    """Windows that do not divide the view, a global layer, heads 16 wide, all weights and biases of order one."""
    torch.manual_seed(0)
    config = DeepseekOcrConfig(
        sam_config=SamConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=128,
            window_size=3,
            global_layers=(1,),
            neck_channels=16,
            downsample_channels=(24, 32),
            stem_channels=stem,
        ),
        clip_config=ClipConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=42
        ),
        text_config=TextConfig(
            vocab_size=64, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        ),
    )
    return spread(DeepseekOcrForConditionalGeneration(config).eval()).to(DEVICE, DTYPE)


def spread(model: DeepseekOcrForConditionalGeneration) -> DeepseekOcrForConditionalGeneration:
    """Weights under which no bias, position or relative distance is negligible."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif "rel_pos" in name:
                parameter.normal_(std=0.2)
            elif "pos_embed" in name or "class_embedding" in name:
                parameter.normal_()
            elif parameter.ndim == 2 and "embed" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def page_views(*sides_px: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (side, side, 3), np.uint8) for side in sides_px]


def expected(model: DeepseekOcrForConditionalGeneration, view: np.ndarray) -> torch.Tensor:
    return model.encode_views(torch.from_numpy(view).unsqueeze(0).to(DEVICE))[0]


def kernel_set(name: str) -> ModuleType:
    return vision_reference if name == "reference" else import_kernels("service.engine.kernels.triton.vision")


@torch.inference_mode()
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_views_of_mixed_sizes_come_back_in_order(kernels: str, stem: str):
    model = small_model(STEMS[stem])
    vision = GpuVision(model, chunk_patches=2 * 64, kernels=kernel_set(kernels))
    views = page_views(64, 128, 64, 64, 192, 128)
    found = vision.encode(views)
    exact = model.float()
    torch.backends.cudnn.allow_tf32 = False
    for view, tokens in zip(views, found, strict=True):
        assert relative_error(tokens, expected(exact, view)) < (3e-2 if HAS_GPU else 1e-5)


@torch.inference_mode()
def test_views_already_on_the_device_give_the_same():
    vision = GpuVision(small_model(), kernels=kernel_set("reference"))
    views = page_views(64, 64, 128)
    on_device = [torch.from_numpy(view).to(DEVICE) for view in views]
    assert all(torch.equal(a, b) for a, b in zip(vision.encode(views), vision.encode(on_device), strict=True))


@pytest.mark.parametrize("patches", [16, 1600, 4096, 6400])
def test_every_number_of_views_is_made_of_captured_batches(patches: int):
    chunk = 65_536 // patches
    counts = captured_counts(patches, chunk)
    assert counts[0] == 1
    assert counts[-1] == chunk
    for views in (*range(1, min(chunk, 50)), chunk, 2 * chunk + 3):
        batches = split_batch(views, counts, chunk)
        assert sum(batches) == views
        assert set(batches) <= set(counts)


def test_without_graphs_views_are_cut_into_chunks():
    assert split_batch(23, [], 10) == [10, 10, 3]


def test_no_views_give_no_tokens():
    assert GpuVision(small_model(), kernels=kernel_set("reference")).encode([]) == []


@pytest.mark.skipif(not HAS_GPU, reason="public dimensions need a GPU")
class TestPublicDimensions:
    @pytest.fixture(scope="class")
    @classmethod
    def models(cls):
        torch.manual_seed(0)
        text = TextConfig(vocab_size=64, num_hidden_layers=1, intermediate_size=64)
        with torch.device("cuda"):
            exact = spread(DeepseekOcrForConditionalGeneration(DeepseekOcrConfig(text_config=text)).eval())
            near = DeepseekOcrForConditionalGeneration(DeepseekOcrConfig(text_config=text)).eval().bfloat16()
        near.load_state_dict(exact.state_dict())
        exact.load_state_dict(near.state_dict())  # the same, rounded, weights
        return exact, near

    @torch.inference_mode()
    @pytest.mark.parametrize("sides_px", [(640,), (1024,), (640, 1024, 640), (512, 1280)], ids=str)
    def test_bf16_is_near_float32(self, models, sides_px):
        exact, near = models
        views = page_views(*sides_px)
        for view, tokens in zip(views, GpuVision(near).encode(views), strict=True):
            truth = expected(exact, view)
            ours, eager = relative_error(tokens, truth), relative_error(expected(near, view), truth)
            print(f"{view.shape[0]} px: fused {ours:.2e}, modules {eager:.2e}")
            assert ours < max(1e-2, 1.1 * eager)

    @torch.inference_mode()
    def test_fp8_is_what_plain_torch_emulates(self, models):
        """Both are some 5 % off from products in full, and nearer to each other."""
        exact, near = models
        views = page_views(640, 1024)
        found = GpuVision(near, is_fp8=True).encode(views)
        emulated = GpuVision(near, kernels=vision_reference, is_fp8=True).encode(views)
        for view, ours, theirs in zip(views, found, emulated, strict=True):
            truth = expected(exact, view)
            error, plain = relative_error(ours, truth), relative_error(theirs, truth)
            print(f"{view.shape[0]} px: fused {error:.2e}, emulated {plain:.2e}")
            assert error < max(1e-2, 1.2 * plain)

    @torch.inference_mode()
    def test_graphs_give_what_single_launches_give(self, models):
        """Not bit by bit: batches of other sizes are multiplied in other tiles, so both have their own rounding."""
        exact, near = models
        plain, captured = GpuVision(near, graphs=False), GpuVision(near)
        captured.warm_up([640, 1024])
        for count in (1, 3, 10, 11, 27):
            views = page_views(*[640] * count, 1024)
            truths = [expected(exact, view) for view in views]
            for a, b, truth in zip(plain.encode(views), captured.encode(views), truths, strict=True):
                assert relative_error(b, truth) < max(1e-2, 1.1 * relative_error(a, truth))

    @torch.inference_mode()
    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")
    def test_encoding_never_waits(self, models):
        vision = GpuVision(models[1])
        vision.warm_up([640, 1024])
        views = page_views(*[640] * 6, 1024)
        vision.encode(views)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            vision.encode(views)
        finally:
            torch.cuda.set_sync_debug_mode("default")
