r"""A domain that nano reads badly, as sets to train and to measure on: forms with a cell for each letter.

    python benchmarks/comb_domain.py write sets/comb --fonts nano-data/fonts --corpus nano-data/corpus \
        --heldout-fonts nano-data/fonts-heldout --heldout-corpus nano-data/corpus-heldout

Writes these sets into the folder, all drawn by the trainer's own `prepare`:

- `mixed`: forms in the training faces and general pages, split for training and validation;
- `heldout`: forms in faces of other families with texts of another seed, which training never sees;
- `general` and `general-check`: ordinary lines and blocks of held-out faces and texts, which must not get worse. The
  first measures that at the end, the second during training.

Then, on a GPU:

    python -m trainer train --dataset-name sets/comb/mixed --forgetting-dataset sets/comb/general-check \
        --output-dir runs/comb --backend peft --batch-size 32 --learning-rate 3e-4 --lora-rank 16 --lora-alpha 32 \
        --target-modules q_proj k_proj v_proj o_proj --max-steps 600 --eval-steps 200 --max-eval-samples 32 \
        --cuda-graphs
    python -m trainer evaluate --adapter runs/comb --data sets/comb/heldout --max-new-tokens 128 \
        --json runs/comb/evaluation.json
    python -m trainer evaluate --adapter runs/comb --data sets/comb/general --json runs/comb/general.json
    python -m trainer publish --adapter runs/comb --base shared/nano --evaluation runs/comb/evaluation.json \
        --volume adapters --name comb --min-improvement 0.88

Higher rates read the forms better and general pages worse. With 160 general pages, rate 2e-3 and rank 32 on the dense
layers as well, blocks lost three points; benchmarks/LOG.md has all recipes that were tried.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DRAWING = ("--convert-to-images", "--read-column", "comb", "--text-column", "text", "--split-column", "split",
           "--page-size", "640x256", "--margin", "16", "--font-size", "20-32")  # fmt: skip
TRAIN_SEED, HELDOUT_SEED = 1, 2
GENERAL_TIERS = ("line", "block")


def main() -> int:
    """Parse and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    write = parser.add_subparsers(dest="command", required=True).add_parser("write")
    write.add_argument("folder", type=Path, help="receives the sets; must not exist")
    for name in ("fonts", "corpus", "heldout-fonts", "heldout-corpus"):
        write.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help="docs/nano-data.md builds it")
    write.add_argument("--pages", type=int, default=2000, metavar="N", help="forms to train on (%(default)s)")
    write.add_argument("--general", type=int, default=800, metavar="N", help="general pages among them (%(default)s)")
    write.add_argument("--heldout", type=int, default=200, metavar="N", help="forms to measure on (%(default)s)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    _forms(options.folder, "comb", options.fonts, (options.pages, 48), TRAIN_SEED, ("train", "validation"))
    _forms(options.folder, "heldout", options.heldout_fonts, (options.heldout,), HELDOUT_SEED, ("test",))
    held_out = options.heldout_fonts, options.heldout_corpus
    _general(options.folder / "general", *held_out, 22, 80)
    _general(options.folder / "drawn-check", *held_out, 23, 16)
    _general(options.folder / "drawn-set", options.fonts, options.corpus, 21, options.general)
    for name in ("check", "set"):
        drawn = options.folder / f"drawn-{name}"
        _prepare(drawn, options.folder / f"general-{name}", "--text-is-file", "--validation-share", "0")
        shutil.rmtree(drawn)
    _mix(options.folder)
    return 0


def _forms(folder: Path, name: str, fonts: Path, counts: tuple[int, ...], seed: int, splits: tuple[str, ...]) -> None:
    """Draw forms; the texts of one seed are divided among the splits."""
    from trainer.commands.smoke import write_texts

    texts = folder / f"{name}.jsonl"
    write_texts(texts, sum(counts), seed)
    places = [split for split, count in zip(splits, counts, strict=True) for _ in range(count)]
    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    lines = (json.dumps(row | {"split": place}) + "\n" for row, place in zip(rows, places, strict=True))
    texts.write_text("".join(lines), encoding="utf-8")
    _prepare(texts, folder / name, *DRAWING, "--fonts", str(fonts), "--seed", str(seed))


def _general(folder: Path, fonts: Path, corpus: Path, seed: int, count: int) -> None:
    """Ordinary pages as an evaluation set, half lines and half blocks."""
    from trainer.nano.pages.evaluation_set import build_evaluation_set

    build_evaluation_set(fonts, corpus, folder, seed, dict.fromkeys(GENERAL_TIERS, count // 2))


def _mix(folder: Path) -> None:
    """Put forms and general pages into one folder: file names give the split, validation reads forms alone."""
    import pyarrow
    from pyarrow import parquet

    mixed = folder / "mixed"
    mixed.mkdir()
    for name in ("comb", "general-set"):
        for file in (folder / name / "data").glob("*.parquet"):
            table = parquet.read_table(file)
            if "image" in table.column_names:
                # Drawn texts are samples of several pages; the files of a source have the same columns.
                pages = table.column("image").combine_chunks()
                lists = pyarrow.ListArray.from_arrays(list(range(len(pages) + 1)), pages)
                table = table.set_column(table.column_names.index("image"), "images", lists)
            parquet.write_table(table.replace_schema_metadata(None), mixed / f"{file.stem}-{name}.parquet")
    for name in ("comb", "general-set"):
        shutil.rmtree(folder / name)


def _prepare(source: Path, out: Path, *flags: str) -> None:
    from trainer.cli import main as trainer

    if trainer(["prepare", str(source), *flags, "--out", str(out)]):
        raise SystemExit(f"prepare of {source.name} failed")


if __name__ == "__main__":
    sys.exit(main())
