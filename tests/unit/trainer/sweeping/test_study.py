"""A sweep's order, budget and resumption, with runs that answer from a formula."""

from __future__ import annotations

import io
import json
import re
import threading
from collections import Counter

import pytest

pytest.importorskip("optuna")

from trainer.cli import main
from trainer.commands.sweep import devices_of
from trainer.report.sweep import sweep_page
from trainer.sweeping import study as study_module
from trainer.sweeping.space import parse_space
from trainer.sweeping.study import Budget, Sweep, best_trial
from trainer.sweeping.trial import End, TrialResult
from trainer.training.errors import TrainingError
from trainer.training.options import make_options

RATE = "learning-rate=1e-4..1e-1:log"


class Runs:
    """Replaces training; the error rate is lowest at a learning rate of 0.01."""

    def __init__(self):
        self.options = []
        self.ends = {}

    def __call__(self, options, device, report, is_over):
        self.options.append(options)
        number = len(self.options)
        options.output_dir.mkdir(parents=True, exist_ok=True)
        cer = min(abs(options.learning_rate - 0.01) + 0.001 * options.lora_rank, 0.9)
        end = self.ends.get(number, End.COMPLETE)
        if end is End.COMPLETE and report(50, cer * 2):
            end = End.PRUNED
        return TrialResult(end, None if end is End.FAILED else cer, 10.0, "it broke" if end is End.FAILED else "")


@pytest.fixture
def runs(monkeypatch):
    stand_in = Runs()
    monkeypatch.setattr(study_module, "run_trial", stand_in)
    return stand_in


def sweep(folder, *words, trials=6, seconds=None, jobs=1, **options):
    fixed = make_options({"dataset_name": "d", **options})
    return Sweep(folder, fixed, parse_space(words), Budget(trials, seconds, (None,) * jobs), io.StringIO())


def test_trials_are_run_recorded_and_reported(tmp_path, runs):
    record = sweep(tmp_path / "s", RATE, "lora-rank=2..16").run(resume=False)
    assert [each["number"] for each in record["trials"]] == list(range(6))
    assert record == json.loads((tmp_path / "s" / "sweep.json").read_text())
    best = best_trial(record["trials"])
    complete = [each["cer"] for each in record["trials"] if each["state"] == "complete"]
    assert best["cer"] == min(complete)
    assert [options.output_dir.name for options in runs.options] == [f"{number:04d}" for number in range(6)]
    page = sweep_page(record, "rates")
    assert page.count("<svg") == 3, "one by trial, one for each option"
    assert re.findall(r'<tr><th scope="row" class="left">(\d+)</th>', page)[0] == str(best["number"] + 1)
    assert "<script" not in page


def test_every_combination_is_run_once_where_there_are_few(tmp_path, runs):
    record = sweep(tmp_path / "s", "lora-rank=2,4", "learning-rate=0.1,0.01,0.001", trials=50).run(resume=False)
    assert len({(options.lora_rank, options.learning_rate) for options in runs.options}) == len(runs.options) == 6
    assert best_trial(record["trials"])["values"] == {"lora_rank": "2", "learning_rate": "0.01"}


def test_an_interrupted_trial_goes_on_and_nothing_is_repeated(tmp_path, runs):
    first = sweep(tmp_path / "s", RATE, trials=4, seconds=25.0)
    runs.ends[2] = End.INTERRUPTED
    runs.ends[3] = End.INTERRUPTED
    record = first.run(resume=False)
    assert [each["state"] for each in record["trials"]] == ["complete", "interrupted"], "30 s were spent"
    record = sweep(tmp_path / "s", RATE, trials=4).run(resume=True)
    assert [each["state"] for each in record["trials"]] == ["complete"] * 4
    names = [options.output_dir.name for options in runs.options]
    assert names == ["0000", "0001", "0001", "0001", "0002", "0003"]
    rates = {options.output_dir.name: options.learning_rate for options in runs.options}
    assert len(set(rates.values())) == 4, "the sampler does not begin again"
    assert len({options.learning_rate for options in runs.options if options.output_dir.name == "0001"}) == 1
    assert record["trials"][1]["seconds"] == 30.0


def test_a_resumed_sweep_is_the_same_sweep(tmp_path, runs):
    sweep(tmp_path / "s", RATE, trials=1).run(resume=False)
    for words, options, resume, code in [
        ((RATE,), {}, False, "output_exists"),
        (("lora-rank=2,4",), {}, True, "what is searched"),
        ((RATE,), {"batch_size": 9}, True, "another batch-size"),
    ]:
        with pytest.raises(TrainingError, match=code):
            sweep(tmp_path / "s", *words, **options).run(resume=resume)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(TrainingError, match="holds something else"):
        sweep(tmp_path / "other", RATE).run(resume=False)
    assert len(runs.options) == 1


def test_failed_trials_are_kept_and_a_sweep_of_nothing_else_says_why(tmp_path, runs):
    runs.ends[1] = End.FAILED
    record = sweep(tmp_path / "a", RATE, trials=2).run(resume=False)
    assert [each["state"] for each in record["trials"]] == ["fail", "complete"]
    assert "it broke" in sweep_page(record, "a")
    runs.ends = dict.fromkeys(range(9), End.FAILED)
    with pytest.raises(TrainingError, match=r"every trial failed: it broke; .*\[step_failed\]"):
        sweep(tmp_path / "b", RATE, trials=2).run(resume=False)


@pytest.mark.parametrize("words", [(RATE,), ("lora-rank=2,4,8",)])
def test_what_failed_is_tried_again_after_the_cause_was_mended(tmp_path, runs, words):
    runs.ends = {2: End.FAILED, 3: End.FAILED}
    sweep(tmp_path / "s", *words, trials=3).run(resume=False)
    record = sweep(tmp_path / "s", *words, trials=3).run(resume=True)
    assert [each["state"] for each in record["trials"]] == ["complete", "fail", "fail", "complete", "complete"]
    values = [each["values"] for each in record["trials"]]
    assert values[1:3] == values[3:]
    sweep(tmp_path / "s", *words, trials=3).run(resume=True)
    assert len(runs.options) == 5, "nothing is left to do"


def test_a_sweep_of_which_every_trial_failed_goes_on_and_says_so_again_only_if_they_do(tmp_path, runs):
    runs.ends = dict.fromkeys(range(1, 5), End.FAILED)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"every trial failed: it broke; .*--resume"):
            sweep(tmp_path / "s", RATE, trials=2).run(resume=len(runs.options) > 0)
    record = sweep(tmp_path / "s", RATE, trials=2).run(resume=True)
    assert [each["state"] for each in record["trials"]] == ["fail"] * 4 + ["complete"] * 2


def test_trials_are_not_uploaded_one_over_the_other(tmp_path, runs, capsys):
    words = ["sweep", "--dataset-name", "d", "--out", str(tmp_path / "s"), "--search", RATE, "--device", "cpu"]
    assert main([*words, "--push-to-hub", "--hub-model-id", "team/x"]) == 2
    assert "every trial would upload its adapter" in capsys.readouterr().err
    assert not runs.options


def test_hopeless_trials_are_pruned(tmp_path, runs):
    record = sweep(tmp_path / "s", "learning-rate=0.01,0.011,0.012,0.013,0.5,0.8", trials=6).run(resume=False)
    states = {each["values"]["learning_rate"]: each["state"] for each in record["trials"]}
    assert [states[rate] for rate in ("0.01", "0.013", "0.5", "0.8")] == ["complete", "complete", "pruned", "pruned"]


def test_jobs_share_the_trials(tmp_path, runs):
    record = sweep(tmp_path / "s", "lora-rank=1,2,3,4,5,6", jobs=3).run(resume=False)
    assert sorted(options.lora_rank for options in runs.options) == [1, 2, 3, 4, 5, 6]
    assert len(record["trials"]) == 6


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"trainer-sweep.*\[package_missing\]"):
        sweep(tmp_path / "s", RATE).run(resume=False)


def test_jobs_keep_the_gpus_they_were_given(tmp_path, monkeypatch):
    """Three jobs on three GPUs: no two trials on one at a time, and each GPU has trials."""
    busy, used, clashes = set(), Counter(), []
    meet = threading.Barrier(3, timeout=120)

    def run(options, device, report, is_over):
        if device in busy:
            clashes.append(device)
        busy.add(device)
        if used.total() < 3:
            used[device] += 1
            meet.wait()  # the first three run at once
        else:
            used[device] += 1
        busy.discard(device)
        return TrialResult(End.COMPLETE, 0.1 * options.lora_rank, 1.0, "")

    monkeypatch.setattr(study_module, "run_trial", run)
    fixed = make_options({"dataset_name": "d"})
    budget = Budget(6, None, ("4", "5", "7"))
    space = parse_space(["lora-rank=1,2,3,4,5,6"])
    record = Sweep(tmp_path / "s", fixed, space, budget, io.StringIO()).run(resume=False)
    assert len(record["trials"]) == 6
    assert not clashes
    assert set(used) == {"4", "5", "7"}


@pytest.mark.parametrize(
    ("jobs", "device", "visible", "names"),
    [
        (1, "cuda", "4,5", (None,)),
        (2, "cpu", "", (None, None)),
        (2, "cuda", "", ("0", "1")),
        (2, "cuda", "4,5,7", ("4", "5")),
        (2, "cuda", "GPU-8f,GPU-a1", ("GPU-8f", "GPU-a1")),
    ],
)
def test_each_job_gets_a_gpu_of_those_that_are_visible(monkeypatch, jobs, device, visible, names):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices_of(jobs, device) == names


def test_more_jobs_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(TrainingError, match=r"3 jobs need as many GPUs; there are 2.*\[gpu_missing\]"):
        devices_of(3, "cuda")


def test_the_report_of_a_sweep_can_be_written_again(tmp_path, runs, capsys):
    sweep(tmp_path / "s", RATE, trials=3).run(resume=False)
    assert main(["report", str(tmp_path / "s")]) == 0
    assert "wrote" in capsys.readouterr().out
    page = (tmp_path / "s" / "report.html").read_text()
    assert "3 trials" in page
    assert "learning-rate" in page
    (tmp_path / "s" / "sweep.json").write_text("{")
    assert main(["report", str(tmp_path / "s")]) == 2
