"""What decoding a long PDF costs: bytes to the image processes, their CPU time, the first page's delay, the total.

    python benchmarks/intake.py --pages 50 --megabytes 20

The PDF is made of noise JPEGs, one a page. Its pages are asked for one after another, as `DocumentReader` does; with
several documents they share the image processes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import resource
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from service import frames
from service.intake.document import Document
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pool import ImagePool
from shared.deepseek_ocr.geometry import GeometryConfig, Mode

MIB = 1024 * 1024
SIDE_PX = 640


def noise_pdf(pages: int, size_bytes: int) -> bytes:
    """A PDF of `pages` pages that all show noise and together have about `size_bytes`."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(pages):
        pixels = random.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
        images.append(Image.fromarray(pixels))
    for quality in range(95, 5, -5):
        buffer = io.BytesIO()
        images[0].save(buffer, "PDF", save_all=True, append_images=images[1:], quality=quality)
        if buffer.tell() <= size_bytes:
            break
    return buffer.getvalue()


async def read(pool: ImagePool, data: bytes, pages: int) -> tuple[float, int]:
    """Decode every page of a document; returns the first page's delay in seconds and how often it was sent."""
    document, began_s, first_s = Document(data, IntakeLimits(max_pdf_pages=pages)), time.perf_counter(), 0.0
    for page in (await pool.open(document)).pages:
        await pool.decode(document, DecodeTask(page, Mode.GUNDAM, GeometryConfig()))
        first_s = first_s or time.perf_counter() - began_s
    pool.close(document)
    return first_s, document.num_sent


def count_bytes() -> list[int]:
    """Count what this process sends through sockets, in a list of one number."""
    sent = [0]

    def send(pipe: socket.socket, header: bytes, *tail: bytes | memoryview, deadline_s: float | None = None) -> None:
        sent[0] += sum(len(part) for part in tail)
        original(pipe, header, *tail, deadline_s=deadline_s)

    original, frames.send = frames.send, send
    return sent


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """Start the image processes, read, and stop them, so that the kernel has their CPU time."""
    data = noise_pdf(options.pages, int(options.megabytes * 1e6))
    pool = ImagePool(
        workers=options.workers, memory_bytes=1024 * MIB, timeout_s=60.0, max_file_bytes=max(20 * MIB, len(data))
    )
    await pool.start()
    sent, began_s = count_bytes(), time.perf_counter()
    results = await asyncio.gather(*(read(pool, data, options.pages) for _ in range(options.documents)))
    total_s = time.perf_counter() - began_s
    await pool.stop()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "pages": options.pages,
        "documents": options.documents,
        "workers": options.workers,
        "file_mb": round(len(data) / 1e6, 2),
        "sent_mb": round(sent[0] / 1e6, 2),
        "sent_times": sum(times for _, times in results),
        "first_page_s": round(max(first_s for first_s, _ in results), 3),
        "total_s": round(total_s, 2),
        "children_cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "child_peak_mb": round(usage.ru_maxrss / 1000, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--documents", type=int, default=1, help="read at the same time")
    parser.add_argument("--workers", type=int, default=2, help="image processes")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
