"""Whether the engine writes what the reference writes: nano over an evaluation set.

    python benchmarks/exactness.py --data SET                                        CPU float32, token for token
    python benchmarks/exactness.py --data SET --write-reference reference.json       the reference's texts alone
    python benchmarks/exactness.py --data SET --reference reference.json --device cuda    GPU bfloat16

Without `--data` it reads the included samples. The reference is `generate` on a CPU in float32, one page at a time.
The engine reads the pages together, arriving in random order (`--seed`), and with `--alone` each alone as well.
Prints a table by tier, and one JSON object last: the share of identical characters (1 - edits / characters of the
reference) and the character error rates of both against the truth. `--out FILE` appends that object to a file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.origin import command, keep, origin
from benchmarks.reading import TruePage, exact_engine, reference_text, texts_alone, texts_in_company, true_pages
from shared.contract.text import ErrorCount, char_errors, edit_distance, total
from shared.deepseek_ocr.loading import load_checkpoint

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"


def identical_ratio(expected: Sequence[str], texts: Sequence[str]) -> float:
    """Share of the expected characters that are there, over all texts, unnormalised."""
    pairs = zip(expected, texts, strict=True)
    edits = total(
        ErrorCount(edit_distance(wanted, text) if wanted != text else 0, len(wanted)) for wanted, text in pairs
    )
    return 1 - edits.rate


def figures(pages: Sequence[TruePage], expected: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """How the engine's texts compare with the reference's, and both with the truth."""
    truths = [page.truth for page in pages]
    return {
        "pages": len(pages),
        "characters": sum(map(len, expected)),
        "identical_character_ratio": round(identical_ratio(expected, texts), 6),
        "identical_page_ratio": round(sum(map(str.__eq__, expected, texts)) / len(pages), 6),
        "reference_cer": round(total(map(char_errors, truths, expected)).rate, 6),
        "engine_cer": round(total(map(char_errors, truths, texts)).rate, 6),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(NANO), help="folder or Hugging Face id")
    parser.add_argument("--data", type=Path, help="evaluation set; none: the included samples")
    parser.add_argument("--limit", type=int, help="pages of a tier at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="the engine's; none: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=2048)
    parser.add_argument("--plain", action="store_true", help="plain torch on a GPU, to see what the type alone does")
    parser.add_argument("--seed", type=int, default=0, help="of order and times of arrival")
    parser.add_argument("--alone", action="store_true", help="read each page alone as well")
    parser.add_argument("--reference", type=Path, help="the reference's texts, as --write-reference left them")
    parser.add_argument("--write-reference", type=Path, help="write the reference's texts page by page, and stop")
    parser.add_argument("--out", help="file that the figures are appended to")
    parser.add_argument("--threads", type=int, help="threads of a tensor operation on a CPU")
    return parser.parse_args()


def kept_texts(path: Path | None, max_new_tokens: int) -> dict[str, str]:
    """The reference's texts by page, from a file that `--write-reference` wrote; none if there is no file yet.

    Raises:
        SystemExit: The file's answers have another limit.
    """
    if path is None or not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["max_new_tokens"] != max_new_tokens:
        raise SystemExit(f"{path} was made with --max-new-tokens {kept['max_new_tokens']}")
    return kept["texts"]


def reference_texts(arguments: argparse.Namespace, pages: Sequence[TruePage]) -> list[str]:
    """The reference's text of each page, from a file as far as it has them, else from the model."""
    texts = kept_texts(arguments.write_reference or arguments.reference, arguments.max_new_tokens)
    missing = [page for page in pages if page.name not in texts]
    checkpoint = load_checkpoint(arguments.checkpoint) if missing else None
    for number, page in enumerate(missing, 1):
        assert checkpoint
        texts[page.name] = reference_text(checkpoint, page.page, arguments.max_new_tokens)
        print(f"reference {number}/{len(missing)}", file=sys.stderr, flush=True)
        if arguments.write_reference:
            options = {"max_new_tokens": arguments.max_new_tokens, "texts": texts}
            arguments.write_reference.write_text(json.dumps(options, indent=1), encoding="utf-8")
    return [texts[page.name] for page in pages]


def show(pages: Sequence[TruePage], expected: Sequence[str], texts: Sequence[str]) -> None:
    """The table by tier."""
    print(f"{'tier':<16} {'pages':>5} {'characters':>10} {'identical':>10} {'CER ref':>8} {'CER':>8}")
    for tier in dict.fromkeys(page.tier for page in pages):
        places = [place for place, page in enumerate(pages) if page.tier == tier]
        part = figures(*([values[place] for place in places] for values in (pages, expected, texts)))  # type: ignore[arg-type]
        print(
            f"{tier:<16} {part['pages']:>5} {part['characters']:>10} {part['identical_character_ratio']:>10.4%}"
            f" {part['reference_cer']:>8.2%} {part['engine_cer']:>8.2%}"
        )


def weights_of(checkpoint: str) -> str:
    """SHA-256 of a folder's weights, so that a row says whose texts it counts; empty where they are no single file."""
    file = Path(checkpoint) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def main() -> None:
    """Compare and print."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    on_cpu = arguments.device == "cpu"
    dtype = getattr(torch, arguments.dtype or ("float32" if on_cpu else "bfloat16"))
    checkpoint = load_checkpoint(arguments.checkpoint, arguments.device, dtype)
    pages = true_pages(arguments.data, checkpoint.geometry, arguments.limit)
    expected = reference_texts(arguments, pages)
    if arguments.write_reference:
        return
    engine = exact_engine(checkpoint, arguments.batch_size, arguments.max_new_tokens, plain=arguments.plain)
    engine.warm_up()
    views = [page.page for page in pages]
    began_s = time.perf_counter()
    together = texts_in_company(engine, views, arguments.max_new_tokens, random.Random(arguments.seed))
    seconds = time.perf_counter() - began_s
    show(pages, expected, together)
    last: dict[str, Any] = {
        "benchmark": "exactness",
        "company": figures(pages, expected, together) | {"wall_s": round(seconds, 2)},
    }
    if arguments.alone:
        alone = list(texts_alone(engine, views, arguments.max_new_tokens))
        last["alone"] = figures(pages, expected, alone)
        last["alone_equals_company_page_ratio"] = sum(map(str.__eq__, alone, together)) / len(pages)
    last |= {"runner": "plain"} if arguments.plain else {}
    last |= {"weights": weights_of(arguments.checkpoint)}
    last |= {"model": engine.info.model_id, "device": engine.info.device, "dtype": engine.info.dtype}
    keep(last | origin(arguments.device) | {"command": command()}, arguments.out)


if __name__ == "__main__":
    main()
