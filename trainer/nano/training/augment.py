"""Degradation on the device: makes clean ink look as from a scanner, a camera or a screen.

Works on whole canvases before they are cut into views. Independent of `trainer.data.render.degrade`, which degrades the
evaluation set on the CPU: nano is never tested on the code that it was trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.nano.training.jpeg import jpeg_loss

BORDER = 127 / 255
"""Grey around the paper, as in the published padding."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """Draws a degradation per image; `severity` (0 to 1) scales both how often and how much."""

    severity: float
    generator: torch.Generator
    side_px: int = 640
    """Of a view; the canvas may be a band of one."""

    def __call__(self, ink_BHW: Tensor, paper_B4: Tensor) -> tuple[Tensor, Tensor]:
        """Degrade a batch.

        Shapes:
            ink_BHW: uint8, 255 where nothing is printed
            paper_B4: float, x0, y0, x1, y1 of each image's paper on its canvas, in pixels
            returns: uint8 `[B, 3, H, W]`, grey outside the paper; `[B, 2, 3]`, the map from a point of the result
                to where its ink came from, both in `[-1, 1]` as `affine_grid` has them
        """
        coverage = 1 - ink_BHW.float() / 255
        coverage = self._needles(self._stroke(coverage))
        coverage, placement_B23 = self._place(coverage, paper_B4)
        coverage = self._wear(self._resample(coverage))
        coverage = self._bleed_through(coverage)
        grey = self._age(self._print(self._blur(coverage)))
        grey = self._binarise(self._noise(grey))
        grey = self._compress(grey)
        return self._colour(grey, paper_B4), placement_B23

    def _uniform(self, size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        sample = torch.rand(size, device=self.generator.device, generator=self.generator)
        return low + (high - low) * sample

    def _chosen(self, size: int, probability: float) -> Tensor:
        return self._uniform(size) < probability * self.severity

    def _some(self, size: int, probability: float) -> Tensor:
        """Indices of the chosen images, on the device, without synchronising for their number."""
        count = round(size * probability * self.severity)
        return torch.randperm(size, device=self.generator.device, generator=self.generator)[:count]

    def _stroke(self, coverage_BHW: Tensor) -> Tensor:
        """Heavier or thinner strokes, as from toner and thresholds."""
        for sign in (1, -1):
            rows = self._some(len(coverage_BHW), 0.1)
            if len(rows):
                x = coverage_BHW[rows, None]
                grown = sign * F.max_pool2d(sign * x, 3, stride=1, padding=1)
                share = self._uniform(len(rows), 0.15, 0.7 if sign > 0 else 0.4)[:, None, None]
                coverage_BHW = coverage_BHW.index_copy(0, rows, torch.lerp(x[:, 0], grown[:, 0], share))
        return coverage_BHW

    def _needles(self, coverage_BHW: Tensor) -> Tensor:
        """Dots of a needle printer, or of a worn thermal head, some of which hardly strike."""
        _, H, W = coverage_BHW.shape
        ys, xs = (torch.arange(side, device=coverage_BHW.device) + 0.5 for side in (H, W))
        for pitch in (1.6, 2.0, 2.4):
            rows = self._some(len(coverage_BHW), 0.05)
            if not len(rows):
                continue
            B = len(rows)
            high, wide = math.ceil(H / pitch), math.ceil(W / pitch)
            cells = F.interpolate(coverage_BHW[rows, None], size=(high, wide), mode="bilinear", antialias=True)
            limit = self._uniform(B, 0.18, 0.38)[:, None, None, None]
            struck = ((cells - limit) * 6).clamp(0, 1)
            # Nine needles print a line of dots each.
            weak = 1 - 0.7 * (torch.rand(B, 9, device=cells.device, generator=self.generator) < 0.08).float()
            strength = self._uniform(B, 0.6, 1.0)[:, None] * weak
            struck = struck * strength[:, torch.arange(high, device=cells.device) % 9][:, None, :, None]
            dots = F.interpolate(struck, size=(H, W), mode="nearest")[:, 0]
            radius = self._uniform(B, 0.42, 0.75)[:, None, None]
            dy, dx = (((place * count / side) % 1 - 0.5) for place, count, side in ((ys, high, H), (xs, wide, W)))
            away = (dy[:, None] ** 2 + dx[None, :] ** 2).sqrt()
            round_dots = ((radius - away) * pitch + 0.5).clamp(0, 1)
            coverage_BHW = coverage_BHW.index_copy(0, rows, dots * round_dots)
        return coverage_BHW

    def _place(self, coverage_BHW: Tensor, paper_B4: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate up to 3 degrees, shear, scale and stretch about the paper's middle."""
        B, H, W = coverage_BHW.shape
        x0, y0, x1, y1 = paper_B4.unbind(1)
        # Long thin paper (one line) has no margin to turn in: its ends may move by a tenth of its height.
        limit = torch.minimum((y1 - y0) / (x1 - x0).clamp(min=1) * 0.2, torch.full_like(x0, math.radians(3)))
        on = self._chosen(B, 0.5).float()
        angle = on * limit * self._uniform(B, -1, 1)
        shear = on * limit * self._uniform(B, -1, 1)
        scale_x = 1 + on * self._uniform(B, -0.02, 0.12)
        scale_y = 1 + on * self._uniform(B, -0.02, 0.12)
        cos, sin = angle.cos(), angle.sin()
        middle_x, middle_y = (x0 + x1) / W - 1, (y0 + y1) / H - 1
        a, b = cos * scale_x, (-sin + shear) * scale_y * H / W
        c, d = sin * scale_x * W / H, cos * scale_y
        shift_x = middle_x - a * middle_x - b * middle_y
        shift_y = middle_y - c * middle_x - d * middle_y
        matrix = torch.stack([torch.stack([a, b, shift_x], 1), torch.stack([c, d, shift_y], 1)], 1)
        grid = F.affine_grid(matrix, [B, 1, H, W], align_corners=False)
        placed = F.grid_sample(coverage_BHW[:, None], grid, align_corners=False, padding_mode="zeros")[:, 0]
        return placed, matrix

    def _resample(self, coverage_BHW: Tensor) -> Tensor:
        """Scan at a lower resolution and enlarge again."""
        _, H, W = coverage_BHW.shape
        for factor in (0.85, 0.7, 0.55):
            rows = self._some(len(coverage_BHW), 0.12)
            if len(rows):
                small = F.interpolate(coverage_BHW[rows, None], scale_factor=factor, mode="bilinear", antialias=True)
                large = F.interpolate(small, size=(H, W), mode="bicubic").clamp(0, 1)
                coverage_BHW = coverage_BHW.index_copy(0, rows, large[:, 0])
        return coverage_BHW

    def _wear(self, coverage_BHW: Tensor) -> Tensor:
        """Worn type: strokes swell or break from letter to letter, and ink misses the grain of the paper."""
        rows = self._some(len(coverage_BHW), 0.22)
        if not len(rows):
            return coverage_BHW
        B, (_, H, W) = len(rows), coverage_BHW.shape
        fine = torch.randn(B, 1, H // 2, W // 2, device=coverage_BHW.device, generator=self.generator)
        grain = F.interpolate(fine, size=(H, W), mode="bilinear")[:, 0]
        # Cells of about 20 px: a letter each.
        letters = self._field(B, H, W, max(H, self.side_px) // 20, W // 20)
        x = coverage_BHW[rows]
        soft = F.avg_pool2d(x[:, None], 3, stride=1, padding=1)[:, 0]
        swing, roughness, lean = (
            value[:, None, None]
            for value in (self._uniform(B, 0, 0.35), self._uniform(B, 0, 0.16), self._uniform(B, -0.12, 0.1))
        )
        hardness = self._uniform(B, 2.5, 6)[:, None, None]
        limit = (0.42 + lean + swing * letters + roughness * grain).clamp(max=0.85)
        limit = torch.maximum(limit, 0.51 / hardness)  # blank paper stays blank
        worn = ((soft - limit) * hardness + 0.5).clamp(0, 1)
        return coverage_BHW.index_copy(0, rows, torch.maximum(worn, 0.25 * x))

    def _bleed_through(self, coverage_BHW: Tensor) -> Tensor:
        rows = self._some(len(coverage_BHW), 0.12)
        if not len(rows):
            return coverage_BHW
        behind = F.avg_pool2d(coverage_BHW.roll(1, 0)[rows].flip(2)[:, None], 5, stride=1, padding=2)[:, 0]
        # Thin old paper shows the other side in patches.
        _, H, W = coverage_BHW.shape
        patches = 1 + 0.6 * self._field(len(rows), H, W, 7, 7)
        strength = self._uniform(len(rows), 0.05, 0.3)[:, None, None] * patches.clamp(0.2, 1.6)
        return coverage_BHW.index_copy(0, rows, torch.maximum(coverage_BHW[rows], strength * behind))

    def _blur(self, coverage_BHW: Tensor) -> Tensor:
        """Gaussian blur of up to 1.3 px, another one for each image."""
        B, _, _ = coverage_BHW.shape
        sigma = 0.05 + self._chosen(B, 0.55) * self._uniform(B, 0.2, 0.4 + 0.9 * self.severity)
        offsets = torch.arange(-3, 4, device=coverage_BHW.device)
        kernel = torch.exp(-(offsets[None] ** 2) / (2 * sigma[:, None] ** 2))
        kernel = kernel / kernel.sum(1, keepdim=True)
        x = coverage_BHW[None]
        x = F.conv2d(x, kernel[:, None, None, :], padding=(0, 3), groups=B)
        return F.conv2d(x, kernel[:, None, :, None], padding=(3, 0), groups=B)[0]

    def _print(self, coverage_BHW: Tensor) -> Tensor:
        """Ink and paper become grey levels, with texture and uneven light."""
        B, H, W = coverage_BHW.shape
        soft = self._chosen(B, 0.75).float()
        paper = 1 - soft * self._uniform(B, 0, 0.4)
        ink = soft * self._uniform(B, 0, 0.5) * paper
        texture = self._field(B, H, W, 48, 48) * 0.04 + self._field(B, H, W, 5, 5) * 0.12
        amount = self._chosen(B, 0.5) * self._uniform(B)
        level = paper[:, None, None] + amount[:, None, None] * texture
        grey = torch.lerp(level, ink[:, None, None].expand_as(level), coverage_BHW)
        inverted = (self._uniform(B) < 0.1 * min(1.0, 2 * self.severity))[:, None, None]
        return torch.where(inverted, 1 - grey, grey).clamp(0, 1)

    def _age(self, grey_BHW: Tensor) -> Tensor:
        """Stains, and the shadow of a book's fold or edge at one side."""
        rows = self._some(len(grey_BHW), 0.18)
        if not len(rows):
            return grey_BHW
        B, (_, H, W) = len(rows), grey_BHW.shape
        stains = (self._field(B, H, W, 9, 9) - 0.35).clamp(0, 1) * self._uniform(B, 0, 0.35)[:, None, None]
        away = torch.linspace(0, 1, W, device=grey_BHW.device)[None]
        away = torch.where((self._uniform(B) < 0.5)[:, None], away, 1 - away)
        fold = self._uniform(B, 0, 0.4)[:, None] * torch.exp(-away / self._uniform(B, 0.01, 0.2)[:, None])
        aged = grey_BHW[rows] * (1 - stains) * (1 - fold)[:, None]
        return grey_BHW.index_copy(0, rows, aged)

    def _field(self, B: int, H: int, W: int, cells_high: int, cells_wide: int) -> Tensor:
        """Smooth random field, about -1 to 1; a band of a view has its share of the cells."""
        cells_high = cells_high * H // self.side_px if self.side_px > H else cells_high
        shape = (B, 1, max(cells_high, 2), max(cells_wide, 2))
        coarse = torch.randn(shape, device=self.generator.device, generator=self.generator) * 0.5
        return F.interpolate(coarse, size=(H, W), mode="bilinear")[:, 0]

    def _noise(self, grey_BHW: Tensor) -> Tensor:
        B = len(grey_BHW)
        sigma = (self._chosen(B, 0.5) * self._uniform(B, 0, 0.1))[:, None, None]
        noise = torch.randn(grey_BHW.shape, device=grey_BHW.device, generator=self.generator)
        grey_BHW = grey_BHW + sigma * noise
        speckle_share = (self._chosen(B, 0.12) * self._uniform(B, 0, 0.01))[:, None, None]
        draw = torch.rand(grey_BHW.shape, device=grey_BHW.device, generator=self.generator)
        specks = F.max_pool2d((draw < speckle_share * 0.25).float()[:, None], 2, stride=1, padding=1)[:, 0, :-1, :-1]
        return torch.lerp(grey_BHW, (draw * 977 % 1.0).round(), specks)

    def _binarise(self, grey_BHW: Tensor) -> Tensor:
        """Fax and old scans: only black and white."""
        B = len(grey_BHW)
        low, high = grey_BHW.amin((1, 2)), grey_BHW.amax((1, 2))
        threshold = torch.lerp(low, high, self._uniform(B, 0.42, 0.62))[:, None, None]
        return torch.where(self._chosen(B, 0.14)[:, None, None], (grey_BHW > threshold).float(), grey_BHW.clamp(0, 1))

    def _compress(self, grey_BHW: Tensor) -> Tensor:
        rows = self._some(len(grey_BHW), 0.35)
        if not len(rows):
            return grey_BHW
        quality = self._uniform(len(rows), 18, 85)
        return grey_BHW.index_copy(0, rows, jpeg_loss(grey_BHW[rows], quality))

    def _colour(self, grey_BHW: Tensor, paper_B4: Tensor) -> Tensor:
        """Tint of any colour or of yellowed paper, then grey outside the paper."""
        B, H, W = grey_BHW.shape
        tint = 1 - (self._chosen(B, 0.4).float()[:, None] * self._uniform(B * 3, 0, 0.2).view(B, 3))
        yellow = self._chosen(B, 0.2) * self._uniform(B)
        tint = tint * (1 - torch.stack([0.05 * yellow, 0.14 * yellow, 0.38 * yellow], 1))
        colour_BCHW = grey_BHW[:, None] * tint[:, :, None, None]
        ys = torch.arange(H, device=grey_BHW.device)[None, :, None]
        xs = torch.arange(W, device=grey_BHW.device)[None, None, :]
        x0, y0, x1, y1 = (side[:, None, None] for side in paper_B4.unbind(1))
        inside = (xs >= x0) & (xs < x1) & (ys >= y0) & (ys < y1)
        colour_BCHW = torch.where(inside[:, None], colour_BCHW, torch.full_like(colour_BCHW, BORDER))
        return (colour_BCHW * 255).round().to(torch.uint8)


def cut_views(
    colour_BCHW: Tensor, paper_B4: Tensor, columns: int, rows: int, side_px: int, shrink: int
) -> tuple[Tensor, Tensor]:
    """Global views and tiles of a batch of canvases of one grid.

    The global view shrinks the paper to fit, centred on grey, as `shared.deepseek_ocr.images` does with Pillow.
    `shrink` is a whole factor by which every paper of the batch shrinks at least; averaging by it first keeps small
    print from aliasing.

    Shapes:
        colour_BCHW: uint8 `[B, 3, rows * side_px, columns * side_px]`; `[B, 3, side_px, side_px]` when columns is 0
        returns: uint8 `[B, side, side, 3]` and `[B, rows * columns, side, side, 3]`
    """
    B = len(colour_BCHW)
    if columns == 0:
        views = colour_BCHW.permute(0, 2, 3, 1).contiguous()
        return views, views.new_empty(B, 0, side_px, side_px, 3)
    tiles = colour_BCHW.view(B, 3, rows, side_px, columns, side_px).permute(0, 2, 4, 3, 5, 1)
    x0, y0, x1, y1 = paper_B4.unbind(1)
    extent = torch.maximum(x1 - x0, y1 - y0)
    W, H = columns * side_px, rows * side_px
    averaged = F.avg_pool2d(colour_BCHW.float(), shrink)
    zero = torch.zeros_like(extent)
    matrix = torch.stack(
        [
            torch.stack([extent / W, zero, (x0 + x1) / W - 1], 1),
            torch.stack([zero, extent / H, (y0 + y1) / H - 1], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [B, 3, side_px, side_px], align_corners=False)
    outside = (grid.abs() > 1).any(-1)[:, None]
    sampled = F.grid_sample(averaged, grid, align_corners=False, padding_mode="border")
    sampled = torch.where(outside, torch.full_like(sampled, 127.0), sampled)
    globals_BHWC = sampled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return globals_BHWC, tiles.reshape(B, rows * columns, side_px, side_px, 3)
