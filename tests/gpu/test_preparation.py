"""Images through pinned memory that is far too small for all of them, against Pillow's views."""

import numpy as np
import torch
from PIL import Image

from service.engine.vision.preparation import Preparation, Staging
from shared.deepseek_ocr.forms import PageImage, in_colours
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, plan_views
from shared.deepseek_ocr.images import prepare_views
from tests.support.kernels import DEVICE, GPU_MARK, HAS_GPU

pytestmark = GPU_MARK
GEOMETRY = GeometryConfig(tile_px=80, global_px=96, min_tiles=2, max_tiles=6)


def test_images_do_not_overtake_each_other():
    choose = np.random.default_rng(0)
    preparation = Preparation(torch.device(DEVICE))
    preparation._staging = Staging(torch.device(DEVICE), num_bytes=3 * 300 * 300)
    made = []
    for _ in range(200 if HAS_GPU else 5):
        width_px, height_px = choose.integers(1, 301, 2).tolist()
        colours = int(choose.choice([1, 3]))
        pixels = choose.integers(0, 256, (height_px, width_px, colours), np.uint8)
        taken = pixels.copy()
        page = PageImage(plan_views(width_px, height_px, Mode.GUNDAM, GEOMETRY), in_colours(taken))
        made.append((in_colours(pixels), page.plan, preparation.prepare(page, GEOMETRY)))
        # The image may be gone as soon as it was taken.
        taken[:] = 0
    for pixels, plan, views in made:
        global_view_HWC, tiles_THWC = prepare_views(Image.fromarray(pixels), plan, GEOMETRY)
        for found, expected in zip(views, [global_view_HWC, *tiles_THWC], strict=True):
            assert np.array_equal(torch.as_tensor(found).cpu().numpy(), expected)
