"""The table of training results: ratios against plain PEFT, newest rows, honest ends of searches."""

from __future__ import annotations

from benchmarks.report import NOTHING, training_table

ORIGIN = {"card": "Card X", "versions": {"torch": "2.11.0", "peft": "0.21.0"}, "commit": "c" * 40,
          "date": "2026-11-22T12:00:00+00:00", "command": "python benchmarks/training.py"}  # fmt: skip


def step(mode, text_tokens, step_ms, peak_gib, **changes):
    sizes = {"case": "step", "batch": 4, "text_tokens": text_tokens, "step_ms": step_ms, "peak_gib": peak_gib}
    return {"mode": mode, **sizes, **ORIGIN, **changes}


def longest(mode, most, too_long):
    return {"mode": mode, "case": "longest", "batch": 1, "memory_gib": 24.0, "longest_text_tokens": most,
            "too_long_text_tokens": too_long, **ORIGIN}  # fmt: skip


def test_ways_stand_beside_plain_peft_at_the_same_length():
    rows = [
        step("plain", 512, 999.0, 99.0),
        step("plain", 512, 480.0, 12.0),
        step("unsloth-cached", 512, 120.0, 9.0, versions={"torch": "2.11.0", "unsloth": "2026.10.9"}),
        step("plain", 2048, 600.0, 20.0),
        step("unsloth", 2048, 500.0, 10.0, unsloth_compile=True),
    ]
    table = training_table(rows)
    assert "| plain | 4 | 512 | 480 | 1.00 x | 12 | 100% |" in table
    assert "| unsloth-cached | 4 | 512 | 120 | 4.00 x | 9 | 75% |" in table
    assert "| unsloth, compiled | 4 | 2048 | 500 | 1.20 x | 10 | 50% |" in table
    assert "999" not in table
    assert "Card X, torch 2.11.0, peft 0.21.0, commit cccccccccc, 2026-11-22 (plain, unsloth); `" in table
    assert "Card X, torch 2.11.0, unsloth 2026.10.9, commit cccccccccc, 2026-11-22 (unsloth-cached); `" in table


def test_each_commit_is_named_with_its_rows():
    table = training_table([longest("plain", 6000, 6400), longest("unsloth", 36000, None) | {"commit": "d" * 40}])
    assert "commit cccccccccc, 2026-11-22 (plain); `python benchmarks/training.py`." in table
    assert "commit dddddddddd, 2026-11-22 (unsloth); `python benchmarks/training.py`." in table
    assert "(plain)" not in training_table([longest("plain", 6000, 6400)])


def test_what_did_not_fit_and_what_was_not_searched_to_its_end_are_said():
    out = {key: value for key, value in step("plain", 8192, 0, 0).items() if key not in {"step_ms", "peak_gib"}}
    table = training_table([out, step("unsloth", 8192, 900.0, 30.0), longest("plain", 6000, 6400),
                            longest("unsloth", 36000, None)])  # fmt: skip
    assert "| plain | 4 | 8192 | out of memory |" in table
    assert "| unsloth | 4 | 8192 | 900 | - | 30 | - |" in table
    assert "| plain | 24 GiB | 6000 | 1.0 x |" in table
    assert "| unsloth | 24 GiB | 36000 at least | 6.0 x |" in table


def test_without_results_the_page_says_so():
    assert training_table([]) == NOTHING


def test_each_models_rows_stand_for_themselves():
    rows = [step("plain", 512, 480.0, 12.0), step("plain", 512, 300.0, 10.0, model="v1"),
            step("unsloth", 512, 150.0, 5.0, model="v1"), step("plain", 512, 400.0, 12.0, model="ocr2")]  # fmt: skip
    table = training_table(rows)
    second, first = table.index("DeepSeek-OCR-2, Card X:"), table.index("DeepSeek-OCR and Unlimited-OCR, Card X:")
    assert "| unsloth | 4 | 512 | 150 | 2.00 x | 5 | 50% |" in table[first:]
    assert "| plain | 4 | 512 | 400 | 1.00 x | 12 | 100% |" in table[second:first]
    assert "480" not in table
