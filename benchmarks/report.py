"""The tables and the picture of docs/performance.md, from the results that are committed.

    python benchmarks/report.py --write      rewrites the tables between the page's markers, and the picture

Of rows that measured the same, those of the newest run count. Without results a table says so. A test fails when the
page is not what this writes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.floors import Ceilings
from benchmarks.ratios import MEASURES, OURS, RESULTS, TARGETS, best_rows, measure, read_rows, summary, times_faster
from benchmarks.svg import Line, Panel, draw
from shared.deepseek_ocr.configuration import DeepseekOcrConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
PICTURE = PAGE.with_name("performance-concurrency.svg")
MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "No results are committed yet.\n"
UNITS = {"wall_s": "s", "ms_per_token": "ms a token", "pages_per_s": "pages/s"}
LABELS = {
    "latency": "decode, 1 request",
    "latency-page": "decode, 1 request, PAGE",
    "ttft": "time to first token, SMALL",
    "ttft-page": "time to first token, PAGE",
    "throughput": "SMALL, 256 requests, 512 new tokens",
    "prefill": "SMALL, 256 requests, 1 new token",
    "throughput-page": "PAGE, 128 requests, 512 new tokens",
    "prefill-page": "PAGE, 128 requests, 1 new token",
}
FAMILY = {"random": "DeepSeek-OCR", "random-ocr2": "DeepSeek-OCR-2", "random-unlimited": "Unlimited-OCR"}
"""Models of random weights by what `engine.py --model` calls them."""
BATCH_SIZE = 256
LOAD_STAGES = ("copy", "load", "place", "canary", "answer", "total")
PLAIN = "plain"
DIMENSIONS = {"ocr2": "DeepSeek-OCR-2", "v1": "DeepSeek-OCR and Unlimited-OCR"}
"""Whose dimensions rows of training have."""
SAME_TRAINING = ("card", "mode", "case", "batch", "text_tokens", "memory_gib", "unsloth_compile")

Row = Mapping[str, Any]


def newest(rows: Iterable[Row]) -> list[Row]:
    """Rows of the newest run of each card, engine, case, ablation, number of clients and adapters; summaries of all."""
    dates: dict[tuple[Any, ...], str] = {}
    kept = list(rows)

    def key(row: Row) -> tuple[Any, ...]:
        names = ("card", "engine", "case", "ablation", "clients", "adapters", "model", "dtype", "runner", "weights")
        return (*(row.get(name) for name in names), row["date"] if "ceilings" in row else None)

    for row in kept:
        dates[key(row)] = max(dates.get(key(row), ""), row["date"])
    return [row for row in kept if row["date"] == dates[key(row)]]


def family_table(rows: Sequence[Row]) -> str:
    """The models of the family side by side."""
    parts = []
    for card in _cards(row for row in rows if row.get("model") in FAMILY):
        own = {
            name: best_rows((row for row in rows if row["card"] == card and row.get("model") == name), OURS)
            for name in FAMILY
        }
        known = {name: best for name, best in own.items() if best}
        if len(known) < 2:
            continue
        lines = [_line(["case", "unit", *(FAMILY[name] for name in known)]), _line(["---"] * (2 + len(known)))]
        for case, unit in MEASURES.items():
            figures = [measure(best, case) for best in known.values()]
            lines.append(_line([LABELS[case], UNITS[unit], *("-" if it is None else f"{it:.4g}" for it in figures)]))
        parts.append("\n".join(lines) + "\n")
        parts += [
            _origin_line([row for row in best.values() if row["case"] in MEASURES], None) for best in known.values()
        ]
    return "\n".join(parts) or NOTHING


def of_ablated_commits(rows: Iterable[Row]) -> list[Row]:
    """Newest rows of each card's ablation and of the whole engine at the same commit."""
    kept = list(rows)
    last = {row["card"]: row["commit"] for row in sorted(kept, key=lambda row: str(row["date"])) if row.get("ablation")}
    return newest(row for row in kept if last.get(row["card"]) == row["commit"])


def engine_table(rows: Sequence[Row], recorded: Sequence[Row]) -> str:
    """Each card's cases against peers and floors."""
    parts = []
    for card in _cards(row for row in rows if row.get("model") == "random"):
        own = [row for row in rows if row["card"] == card and row.get("model") == "random"]
        measured = [row for row in own if "case" in row]
        best = best_rows(measured, OURS)
        newest_date = max((row["date"] for name, row in best.items() if name in MEASURES), default=None)
        last = [row for row in own if "ceilings" in row and row["date"] == newest_date]
        if not last:
            continue
        peers = [row for row in recorded if row["card"] == card]
        ceilings = Ceilings(**last[0]["ceilings"])
        cases = summary(measured, peers, DeepseekOcrConfig(), BATCH_SIZE, ceilings, TARGETS)["summary"]
        whole = [row for row in measured if row["date"] == newest_date and row["engine"] == OURS]
        parts += [_engine_rows(cases), _origin_line(whole, ceilings)]
    return "\n".join(parts) or NOTHING


def ablation_table(rows: Sequence[Row]) -> str:
    """What the absence of each idea costs."""
    parts = []
    for card in _cards(row for row in rows if row.get("ablation")):
        own = [row for row in rows if row["card"] == card and row.get("model") == "random" and "case" in row]
        whole = best_rows(own, OURS)
        ideas = dict.fromkeys(row["ablation"] for row in own if row.get("ablation"))
        names = [
            name for name in MEASURES if name in whole and any(r.get("ablation") and r["case"] == name for r in own)
        ]
        lines = [_line(["without", *(LABELS[name] for name in names)]), _line(["---"] * (1 + len(names)))]
        lines.append(_line(["nothing", *(_figure(name, measure(whole, name)) for name in names)]))
        for idea in ideas:
            without = _best_ablated(own, idea)
            cells = [_cost(name, measure(whole, name), measure(without, name)) for name in names]
            lines.append(_line([idea, *cells]))
        parts += ["\n".join(lines) + "\n", _origin_line([row for row in own if row.get("ablation")], None)]
    return "\n".join(parts) or NOTHING


def weights_table(rows: Sequence[Row], full: Sequence[Row]) -> str:
    """The engine with 8-bit rows against the engine with full weights."""
    parts = []
    for card in _cards(row for row in rows if row.get("model") == "random" and "case" in row):
        own, whole = (
            best_rows((row for row in each if row["card"] == card and row.get("model") == "random"), OURS)
            for each in (rows, full)
        )
        lines = [_line(["case", "unit", "8-bit rows", "weights in full", "times as fast"]), _line(["---"] * 5)]
        for name, unit in MEASURES.items():
            ours, theirs = measure(own, name), measure(whole, name)
            if ours is not None:
                faster = "-" if theirs is None else f"{times_faster(name, ours, theirs):.2f}"
                figures = [f"**{ours:.4g}**", "-" if theirs is None else f"{theirs:.4g}", faster]
                lines.append(_line([LABELS[name], UNITS[unit], *figures]))
        parts += ["\n".join(lines) + "\n", _origin_line(list(own.values()), None)] if own else []
    return "\n".join(parts) or NOTHING


def adapters_table(rows: Sequence[Row]) -> str:
    """One batch of adapters against the base alone, with adapters resident and without."""
    parts = []
    for card in _cards(row for row in rows if row.get("case") == "adapters"):
        own = [row for row in rows if row["card"] == card and row.get("model") == "random" and "case" in row]
        mixed = max((row for row in own if row["case"] == "adapters"), key=lambda row: row["pages_per_s"])
        resident = [row for row in own if row["case"] == "throughput" and row.get("adapters") == mixed["adapters"]]
        alone = best_rows(own, OURS).get("throughput")
        lines = [_line(["SMALL, 256 requests, 512 new tokens", "pages/s", "of base alone"]), _line(["---"] * 3)]
        # Of the same run, so that nothing but the adapters differs.
        base = max((row["pages_per_s"] for row in resident), default=None)
        some = f"{mixed['adapters']} adapters of rank {mixed['adapter_rank']}"
        for what, row in (
            ("base alone, no adapters resident", alone),
            (f"base alone, {some} resident", max(resident, key=lambda row: row["pages_per_s"], default=None)),
            (f"{some} in turn, in one batch", mixed),
        ):
            if row:
                share = f"{row['pages_per_s'] / base:.1%}" if base else "-"
                lines.append(_line([what, f"{row['pages_per_s']:.4g}", share]))
        parts += ["\n".join(lines) + "\n", _origin_line([mixed], None)]
    return "\n".join(parts) or NOTHING


def concurrency_table(rows: Sequence[Row]) -> str:
    """The picture, and what it shows in figures."""
    sweep = [row for row in rows if row.get("clients") and row.get("model") == "random"]
    if not sweep:
        return NOTHING
    parts = [f"![Throughput and latency against requests at once]({PICTURE.name})\n"]
    for card in _cards(sweep):
        heads = ["requests at once", "pages/s", "tokens/s", "latency, median", "latency, 99 %", "first token, median"]
        lines = [_line(heads), _line(["---"] * len(heads))]
        own = [row for row in sweep if row["card"] == card]
        for row in own:
            seconds = [f"{row[f'{name}_s']:.3g} s" for name in ("latency_p50", "latency_p99", "first_token_p50")]
            lines.append(
                _line([str(row["clients"]), f"{row['pages_per_s']:.4g}", f"{row['tokens_per_s']:.0f}", *seconds])
            )
        parts += ["\n".join(lines) + "\n", _origin_line(own, None)]
    return "\n".join(parts)


def cpu_table(rows: Sequence[Row]) -> str:
    """The shipped model and Tesseract on the same images and cores."""
    parts = []
    for card in _cards(rows):
        own = [row for row in rows if row["card"] == card and "reader" in row]
        lines = [_line(["reader", "how", "pages", "s a page", "pages/s", "CER"]), _line(["---"] * 6)]
        for row in own:
            cells = [f"{row['seconds_per_page']:.2f}", f"{row['pages_per_s']:.2f}", f"{row['cer']:.1%}"]
            lines.append(_line([row["reader"], row["how"], str(row["pages"]), *cells]))
        parts += ["\n".join(lines) + "\n", _origin_line(own, None)]
    return "\n".join(parts) or NOTHING


def exactness_table(rows: Sequence[Row]) -> str:
    """Identical characters and error rates by device."""
    if not rows:
        return NOTHING
    heads = ["engine", "weights", "pages", "identical characters", "identical pages", "CER of the reference"]
    lines = [_line([*heads, "CER of the engine"]), _line(["---"] * 7)]
    for row in rows:
        part = row["company"]
        where = f"{row['card']}, {row['dtype']}" + (", plain torch" if row.get("runner") == "plain" else "")
        shares = [f"{part[name]:.3%}" for name in ("identical_character_ratio", "identical_page_ratio")]
        rates = [f"{part[name]:.2%}" for name in ("reference_cer", "engine_cer")]
        lines.append(_line([where, row.get("weights", "")[:8], str(part["pages"]), *shares, *rates]))
    return "\n".join(lines) + "\n"


def loading_table(rows: Iterable[Row]) -> str:
    """From a folder to the first text of its adapter; the newest row of each card, model and rank."""
    parts = []
    for row in _last(rows, "card", "model", "rank"):
        heads = ["ms", *LOAD_STAGES, "worst total"]
        lines = [_line(heads), _line(["---"] * len(heads))]
        for case, name in (("idle", "idle engine"), ("busy", f"next to {row['streams']} pages")):
            figures = [row[case][f"{stage}_ms"] for stage in (*LOAD_STAGES, "worst_total")]
            lines.append(_line([name, *(f"{figure:.1f}" for figure in figures)]))
        gaps = ((row.get(f"gap_{what}ms"), said) for what, said in (("", "loads and canaries"),
                ("answer_", "an ordinary page that begins"), ("without_loads_", "neither")))  # fmt: skip
        said = ", ".join(f"{gap:.0f} ms with {said}" for gap, said in gaps if gap is not None)
        about = f"Model {row['model']}, rank {row['rank']}, weights of {row['weights_mb']:g} MB."
        parts += [
            "\n".join(lines) + "\n",
            f"{about} Longest time without new text of a page that is being read: {said}.\n",
        ]
        parts.append(_adapter_origin(row))
    return "\n".join(parts) or NOTHING


def publishing_table(rows: Iterable[Row]) -> str:
    """A service under load with publications and without; the newest row of each card."""
    parts = []
    for row in _last((row for row in rows if row.get("publications")), "card"):
        aims, quiet, live = row["targets"], row["without_publications"], row["with_publications"]
        low, high = row["p99_ratio_interval"]
        lines = [_line(["what", "figure", "aim"]), _line(["---"] * 3)]
        for what, figure, aim in (
            ("requests without and with publications", f"{quiet['requests']} and {live['requests']}", "-"),
            ("failed", f"{row['failed']}", f"{aims['failed']}"),
            ("not the text of the version named", f"{row['wrong']}", f"{aims['wrong']}"),
            ("latency, median", f"{quiet['p50_s']:.2f} s and {live['p50_s']:.2f} s", "-"),
            ("latency, 99 %", f"{quiet['p99_s']:.2f} s and {live['p99_s']:.2f} s", "-"),
            ("ratio of these", f"{row['p99_ratio']:.2f} (95 %: {low:.2f} to {high:.2f})", f"{aims['p99_ratio']}"),
            ("rename to first answer, idle: worst", f"{row['first_answer_s']:.2f} s", f"{aims['first_answer_s']} s"),
            ("rename to first answer, under load: median", f"{row['busy_answer_median_s']:.2f} s", "-"),
            (f"memory after {row['loads']} loads", f"{row['growth_mib']:+.1f} MiB", f"{aims['growth_mib']} MiB"),
        ):
            lines.append(_line([what, figure, aim]))
        load = f"{row['publications']} publications, one every {row['interval_s']:g} s,"
        about = f"{load} at {row['utilisation']:.0%} of {row['capacity_pages_per_s']:.2f} pages/s.\n"
        parts += ["\n".join(lines) + "\n", about, _adapter_origin(row)]
    return "\n".join(parts) or NOTHING


def _last(rows: Iterable[Row], *names: str) -> Sequence[Row]:
    return list({tuple(row.get(name) for name in names): row for row in rows}.values())


def _adapter_origin(row: Row) -> str:
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "triton") if name in row["versions"])
    clock = f" at {row['clock_mhz']} MHz" if row.get("clock_mhz") else ""
    return f"{row['card']}{clock}, {versions}, commit {row['commit'][:10]}, {row['date'][:10]}; `{row['command']}`.\n"


def training_table(rows: Iterable[Row]) -> str:
    """Steps and longest texts of each model and card; the newest of rows that measured the same."""
    # Rows from before there were two models name none.
    last = {
        (model, *(row.get(name) for name in SAME_TRAINING)): row for row in rows for model in [row.get("model", "ocr2")]
    }
    parts = []
    for model, card in dict.fromkeys((key[0], row["card"]) for key, row in last.items()):
        own = [row for key, row in last.items() if (key[0], row["card"]) == (model, card)]
        steps = [row for row in own if row["case"] == "step"]
        longest = [row for row in own if row["case"] == "longest"]
        parts += [f"{DIMENSIONS[model]}, {card}:\n"]
        parts += [_training_steps(steps)] if steps else []
        parts += [_longest_texts(longest)] if longest else []
        parts += [_training_origin(found) for found in (steps, longest) if found]
    return "\n".join(parts) or NOTHING


def circle_table(rows: Iterable[Row]) -> str:
    """Adapters that were trained, published and served on one device; the newest row of each model and card."""
    parts = []
    last = _last(rows, "card", "model")
    for card in dict.fromkeys(row["card"] for row in last):
        own = [row for row in last if row["card"] == card]
        head = ["model", "way", "training", "loss", "rename to first text", "to the whole answer",
                "others open then", "log probabilities, largest difference"]  # fmt: skip
        lines = [_line(head), _line(["---"] * len(head))]
        for row in own:
            for way, each in row["ways"].items():
                judge = each["logarithms"]["full" if each["four_bit"] else "trained"]
                others = sum(each["open_meanwhile"].values())
                same = f"{judge['max_difference']} ({judge['same_tokens']} of {judge['tokens']} tokens the same)"
                lines.append(_line([
                    row["model"], f"{row['backend']}, {'4 bits' if each['four_bit'] else way}",
                    f"{row['steps']} updates, {each['train_s']:g} s", f"{each['first_loss']} to {each['last_loss']}",
                    f"{each['rename_to_first_text_s']:g} s", f"{each['rename_to_answer_s']:g} s", str(others), same,
                ]))  # fmt: skip
        parts += ["\n".join(lines) + "\n", *(_adapter_origin(row) for row in _last(own, "command", "commit"))]
    return "\n".join(parts) or NOTHING


def _training_steps(rows: Sequence[Row]) -> str:
    lines = [_line(["mode", "batch", "text tokens", "ms a step", "speed", "peak GiB", "memory"]), _line(["---"] * 7)]
    for text_tokens in sorted({row["text_tokens"] for row in rows}):
        own = [row for row in rows if row["text_tokens"] == text_tokens]
        first = next((row for row in own if row["mode"] == PLAIN and "step_ms" in row), None)
        for row in own:
            name = f"{row['mode']}, compiled" if row.get("unsloth_compile") else row["mode"]
            cells = [name, str(row["batch"]), str(text_tokens)]
            if "step_ms" not in row:
                lines.append(_line([*cells, "out of memory", "", "", ""]))
                continue
            speed = f"{first['step_ms'] / row['step_ms']:.2f} x" if first else "-"
            share = f"{row['peak_gib'] / first['peak_gib']:.0%}" if first and first["peak_gib"] else "-"
            lines.append(_line([*cells, f"{row['step_ms']:g}", speed, f"{row['peak_gib']:g}", share]))
    return "\n".join(lines) + "\n"


def _longest_texts(rows: Sequence[Row]) -> str:
    lines = [_line(["mode", "memory", "longest text, tokens", "against plain"]), _line(["---"] * 4)]
    for row in rows:
        first = next((each for each in rows if each["mode"] == PLAIN and each["memory_gib"] == row["memory_gib"]), None)
        most = row["longest_text_tokens"]
        # Where nothing was too long, the search ended at its own limit or for lack of time.
        said = f"{most}" if row["too_long_text_tokens"] else f"{most} at least"
        times = f"{most / first['longest_text_tokens']:.1f} x" if first and first["longest_text_tokens"] else "-"
        lines.append(_line([row["mode"], f"{row['memory_gib']:g} GiB", said, times]))
    return "\n".join(lines) + "\n"


def _training_origin(rows: Sequence[Row]) -> str:
    """A line for each commit and set of versions."""
    names = ("torch", "transformers", "peft", "unsloth")
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        versions = ", ".join(f"{name} {row['versions'][name]}" for name in names if row["versions"].get(name))
        runs.setdefault((row["commit"], versions), []).append(row)
    lines = []
    for (commit, versions), own in runs.items():
        commands = "; ".join(f"`{each}`" for each in dict.fromkeys(row["command"] for row in own))
        modes, date = ", ".join(dict.fromkeys(row["mode"] for row in own)), max(row["date"] for row in own)
        of = f" ({modes})" if len(runs) > 1 else ""
        lines.append(f"{own[0]['card']}, {versions}, commit {commit[:10]}, {date[:10]}{of}; {commands}.\n")
    return "\n".join(lines)


def picture(rows: Sequence[Row]) -> str | None:
    """Throughput and latency against requests at once; None without a sweep."""
    sweep = [row for row in rows if row.get("clients") and row.get("model") == "random"]
    if not sweep:
        return None
    cards = _cards(sweep)

    def line(name: str, card: str, key: str) -> Line:
        return Line(name, [(row["clients"], row[key]) for row in sweep if row["card"] == card])

    tokens = sweep[0]["new_tokens"]
    return draw(
        [
            Panel(
                f"Throughput, SMALL with {tokens} new tokens",
                "requests at once",
                "pages/s",
                [line(card, card, "pages_per_s") for card in cards],
            ),
            Panel(
                "Latency of a request, and to its first token",
                "requests at once",
                "s",
                [
                    line(f"{card}: {label}", card, key)
                    for card in cards
                    for label, key in (
                        ("whole, median", "latency_p50_s"),
                        ("whole, 99 %", "latency_p99_s"),
                        ("first token, median", "first_token_p50_s"),
                    )
                ],
            ),
        ]
    )


def render(page: str, results: Path = RESULTS) -> tuple[str, str | None]:
    """The page with its tables, and the picture; no picture without a sweep."""
    rows = read_rows(sorted(results.glob("engine-*.jsonl")))
    measured = newest(rows)
    engine = [row for row in measured if not row.get("weights")]
    rounded = [row for row in measured if row.get("weights")]
    recorded = read_rows(sorted(results.glob("peers-*.jsonl")))
    drawn = picture(engine)
    tables: dict[str, Callable[[], str]] = {
        "engine": lambda: engine_table(engine, recorded),
        "family": lambda: family_table(engine),
        "ablation": lambda: ablation_table(of_ablated_commits(row for row in rows if not row.get("weights"))),
        "weights": lambda: weights_table(rounded, engine),
        "adapters": lambda: adapters_table(engine),
        "loading": lambda: loading_table(read_rows(sorted(results.glob("adapter-load-*.jsonl")))),
        "publishing": lambda: publishing_table(read_rows(sorted(results.glob("adapters-*.jsonl")))),
        "concurrency": lambda: concurrency_table(engine),
        "cpu": lambda: cpu_table(_last_run(read_rows(sorted(results.glob("cpu-reading-*.jsonl"))))),
        "circle": lambda: circle_table(read_rows(sorted(results.glob("circle-*.jsonl")))),
        "training": lambda: training_table(read_rows(sorted(results.glob("training-*.jsonl")))),
        "exactness": lambda: exactness_table(newest(read_rows(sorted(results.glob("exactness*.jsonl"))))),
    }
    return MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]()}\n{found[3]}", page), drawn


def main() -> None:
    """Show or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the page and the picture")
    arguments = parser.parse_args()
    page, drawn = render(PAGE.read_text(encoding="utf-8"))
    if not arguments.write:
        print(page)
        return
    PAGE.write_text(page, encoding="utf-8")
    if drawn:
        PICTURE.write_text(drawn, encoding="utf-8")


def _engine_rows(cases: Mapping[str, Any]) -> str:
    lines = [
        _line(
            ["case", "unit", "this engine", "vLLM", "times vLLM", "transformers", "floor", "share of floor", "target"]
        ),
        _line(["---"] * 9),
    ]
    for name, entry in cases.items():
        source = "" if entry.get("vllm_source") == "measured in this run" else " (recorded)"
        lines.append(
            _line(
                [
                    LABELS[name],
                    UNITS[entry["unit"]],
                    f"**{entry['value']:g}**",
                    f"{entry['vllm']:g}{source}" if "vllm" in entry else "-",
                    f"{entry['vllm_ratio']:.1f}" if "vllm_ratio" in entry else "-",
                    f"{entry['transformers']:g}" if "transformers" in entry else "-",
                    f"{entry['floor']:g}",
                    f"{entry['floor_share_ratio']:.0%}",
                    f"{entry['target']:g}, {'met' if entry['target_met'] else 'missed'}" if "target" in entry else "-",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _best_ablated(rows: Sequence[Row], idea: str) -> dict[str, Row]:
    """Best row of each case without an idea, whatever its number of requests."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.get("ablation") == idea:
            known = best.get(row["case"])
            if known is None or row["pages_per_s"] > known["pages_per_s"]:
                best[row["case"]] = row
    return best


def _cost(name: str, whole: float | None, without: float | None) -> str:
    if whole is None or without is None:
        return "-"
    return f"{_figure(name, without)}, {times_faster(name, whole, without):.2f}x slower"


def _figure(name: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.4g} {UNITS[MEASURES[name]]}"


def _origin_line(rows: Sequence[Row], ceilings: Ceilings | None) -> str:
    row = max(rows, key=lambda each: each["date"])
    versions = ", ".join(
        f"{name} {row['versions'][name]}" for name in ("torch", "triton", "transformers") if name in row["versions"]
    )
    clock = f" at {row['clock_mhz']} MHz" if row.get("clock_mhz") else ""
    reached = ""
    if ceilings:
        copied, multiplied = ceilings.copy_bytes_per_s / 1e12, ceilings.matmul_flops_per_s / 1e12
        reached = f" Ceilings in the same run: copy {copied:.2f} TB/s, matrix product {multiplied:.0f} TFLOP/s."
    return (
        f"{row['card']}{clock}, {versions}, commit {row['commit'][:10]}, {row['date'][:10]};"
        f" `{row['command']}`.{reached}\n"
    )


def _last_run(rows: Sequence[Row]) -> list[Row]:
    """Rows of the newest run of each card."""
    dates: dict[str, str] = {}
    for row in rows:
        dates[row["card"]] = max(dates.get(row["card"], ""), row["date"])
    return [row for row in rows if row["date"] == dates[row["card"]]]


def _cards(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["card"] for row in rows))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
