"""Training by rewards on the tiny model: probabilities, learning, resuming, what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from statistics import mean

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import CPU, events, small_options, write_checkpoint, write_words
from trainer.backends.peft import adapt
from trainer.cli import main
from trainer.evaluation.seen import SEEN_FILE
from trainer.training.data import load_data
from trainer.training.dataset import ImageStore
from trainer.training.errors import TrainingCode, TrainingError, TrainingStopped
from trainer.training.options import make_options
from trainer.training.reward_options import DEFAULT_WEIGHTS, RewardOptions, parse_weights
from trainer.training.run import train
from trainer.training.setup import adapter_request, sample_reader, set_up


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write_checkpoint(folder / "model")
    write_words(folder / "words", 16)
    return folder


@pytest.fixture(autouse=True)
def clean(place):
    yield
    shutil.rmtree(place / "run", ignore_errors=True)


def reinforce(place, *, resume=False, progress=None, rewards=None, **changes):
    options = small_options(place, **{"batch_size": 2, "learning_rate": 0.02, "max_new_tokens": 6, **changes})
    chosen = rewards or RewardOptions(num_answers=4)
    return train(make_options(options), adapt, CPU, resume=resume, rewards=chosen, progress=progress)


def weights(run, name="best"):
    return load_file(run / name / "adapter_model.safetensors")


@pytest.fixture
def loop(place):
    """The loop of a run, ready to start."""
    options = make_options(small_options(place, batch_size=2, max_new_tokens=6))
    with ExitStack() as stack:
        (place / "run" / "cache").mkdir(parents=True)
        adapted = adapt(adapter_request(options, CPU))
        for name, each in adapted.model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(each.data, std=0.3)
        reader = sample_reader(options, adapted, stack.enter_context(ImageStore(place / "run" / "cache" / "pages")))
        pages = load_data(options, reader)
        yield set_up(options, adapted, reader, pages, CPU, stack, None, RewardOptions(num_answers=4)).trainer


def test_probabilities_are_those_of_the_supervised_loss(loop):
    """Of answers whose prompts have other lengths, an image token among those that the model wrote."""
    rows = [0, 5]
    image_id = loop._reward_parts.tokenizer.image_id
    answers = [[40, image_id, 41, 1], [50, 51, 1, 2]]
    numbered = torch.tensor([[row, *answer] for row, answer in zip(rows, answers, strict=True)])
    found, entropies, aux = loop._get_per_token_logps_and_entropies(
        loop.model, numbered, torch.ones_like(numbered), 4, batch_size=1, compute_entropy=True
    )
    assert aux is None
    base = loop.adapter_model.get_base_model()
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        prompt = loop._parts.collator.prompt_ids(loop._parts.samples[row])
        embeds = torch.cat(
            (
                base.embed_inputs(torch.tensor([prompt]), loop._encoder.features([row], CPU)),
                base.embed_inputs(torch.tensor([answer]), []),
            ),
            dim=1,
        )
        with torch.no_grad():
            logs = base(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(found[place].detach(), logs.gather(1, torch.tensor(answer)[:, None])[:, 0])
        torch.testing.assert_close(entropies[place].detach(), -(logs.exp() * logs).sum(-1))
    assert found.requires_grad


def test_rewards_rise_and_the_log_says_each(place):
    """An adapter that has begun to end its answers learns to end all of them."""
    begun = place / "begun"
    train(make_options(small_options(place, learning_rate=0.03, max_steps=15, output_dir=begun)), adapt, CPU)
    rewards = RewardOptions(weights={"loop": 1.0, "invented": 0.1}, num_answers=8)
    reinforce(place, rewards=rewards, init_from=str(begun), max_steps=10, eval_steps=10, batch_size=4, logging_steps=1)
    logged = [event for event in events(place / "run", "log") if "reward" in event]
    assert len(logged) == 10
    assert {"reward_loop", "reward_invented", "answer_tokens", "loss", "entropy"} <= logged[0].keys()
    first, last = (mean(event["reward_loop"] for event in part) for part in (logged[:3], logged[-3:]))
    assert -0.95 < first < -0.1
    assert last > first + 0.1
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["rewards"]["weights"] == {"loop": 1.0, "invented": 0.1}
    assert not list((place / "run").rglob("README.md"))


def test_a_run_says_that_its_answers_earned_the_same(place):
    """No page has HTML, so each answer earns the same for its form."""
    summary = str(
        reinforce(place, rewards=RewardOptions(weights={"format": 1.0}, num_answers=4), max_steps=2, logging_steps=1)
    )
    assert "nothing was learned in 2 updates" in summary
    assert "--temperature" in summary


def test_an_interrupted_run_ends_with_the_same_weights(place):
    reinforce(place, max_steps=4, eval_steps=2, output_dir=place / "whole")

    def stop(event):
        if event["event"] == "log" and event["step"] == 2:
            import signal

            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingStopped):
        reinforce(place, max_steps=4, eval_steps=2, progress=stop)
    reinforce(place, max_steps=4, eval_steps=2, resume=True)
    whole, resumed = (weights(place / name / "checkpoints", "step-4") for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(TrainingError, match="choice of rewards") as refused:
        reinforce(place, max_steps=4, eval_steps=2, resume=True, rewards=RewardOptions(num_answers=2))
    assert refused.value.code is TrainingCode.RESUME_MISMATCH


def test_the_reference_adapter_stays_as_it_was(place):
    """With a weight on the distance from it, TRL keeps a copy; only the trained one changes and is written."""
    reinforce(place, max_steps=2, eval_steps=2, rewards=RewardOptions(num_answers=4, kl_weight=0.1))
    logged = [event for event in events(place / "run", "log") if "kl" in event]
    assert logged
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(".ref." not in key for key in weights(place / "run"))


def test_the_command_goes_on_from_an_adapter_and_keeps_what_it_has_seen(place, capsys):
    words = ["--model", str(place / "model"), "--device", "cpu", "--max-new-tokens", "4", "--max-eval-samples", "3"]
    words += ["--no-use-tensorboard", "--batch-size", "2"]
    first, second = place / "first", place / "second"
    data = ["--dataset-name", str(place / "words")]
    shape = ["--lora-rank", "3", "--target-modules", "q_proj"]
    assert main(["train", *words, *data, *shape, "--max-steps", "2", "--output-dir", str(first)]) == 0
    other = write_words(place / "others", 5)
    given = ["reinforce", "--init-from", str(first), "--dataset-name", str(other), "--num-answers", "2", *words]
    assert main([*given, "--max-steps", "1", "--output-dir", str(second), "--validation-share", "0"]) == 0
    config = json.loads((second / "best" / "adapter_config.json").read_text())
    assert config["r"] == 3
    assert all(name.endswith("q_proj") for name in config["target_modules"])
    seen = (second / SEEN_FILE).read_text().splitlines()
    assert set((first / SEEN_FILE).read_text().splitlines()) < set(seen)
    assert len(events(second, "evaluate")) >= 1
    assert events(second, "evaluate")[0]["step"] == 0
    capsys.readouterr()
    assert main([*given, "--max-steps", "1", "--output-dir", str(place / "third"), "--batch-size", "99"]) == 2
    assert "[no_samples]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["cerr=1"], "option_unknown"),
        (["cer=x"], "option_invalid"),
        (["cer=-1"], "option_invalid"),
    ],
)
def test_a_reward_that_cannot_be_is_named(words, code):
    with pytest.raises(TrainingError) as refused:
        parse_weights(words)
    assert refused.value.code == code


def test_weights_are_words_with_or_without_commas():
    assert parse_weights(["cer=2,loop", "tests=0.5"]) == {"cer": 2.0, "loop": 1.0, "tests": 0.5}
    assert parse_weights([]) == {}
    assert DEFAULT_WEIGHTS["cer"] == 1


@pytest.mark.parametrize(
    "changes", [{"weights": {"cer": 0.0}}, {"num_answers": 1}, {"temperature": 0.0}, {"kl_weight": -1.0}]
)
def test_options_without_sense_are_refused(changes):
    with pytest.raises(TrainingError) as refused:
        RewardOptions(**changes)
    assert refused.value.code is TrainingCode.OPTION_INVALID


def test_tests_of_other_pages_are_refused(place):
    path = place / "tests.jsonl"
    path.write_text('{"page": "elsewhere.png", "type": "present", "text": "a"}\n')
    with pytest.raises(TrainingError, match="names a page"):
        reinforce(place, rewards=RewardOptions(num_answers=2, page_tests=path))
