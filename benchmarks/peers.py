"""The other engines that `benchmarks/engine.py --peers` measures: vLLM and transformers' `generate`.

    python benchmarks/peers.py vllm CASES_AS_JSON

`run_peer` starts this program for each peer, so that a peer owns the device while it runs and frees all of it
afterwards. The program prints a JSON line for each case.

vLLM serves DeepSeek-OCR (v1) with random weights of the public dimensions in bfloat16. Its start (compilation and graph
capture) takes about 3 minutes on an H100 and is not part of any row.

transformers runs `generate` over this project's model, with random weights and transformers' dynamic cache. Images are
prepared one after another on the calling thread, as its users' programs do. A step takes about the same time whatever
the batch, and so long that a large case is cut to `MAX_PAGES` requests and `MAX_TOKENS` new tokens; its row says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, row_of
from shared.contract.prompts import Task, prompt_for

if TYPE_CHECKING:
    from shared.deepseek_ocr.loading import LoadedCheckpoint
    from shared.deepseek_ocr.protocol import OcrModel

TIMEOUT_S = 1200.0
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
IMAGE = "<image>"
PROMPT = f"{IMAGE}\nFree OCR."
UNKNOWN = "t5"
UNSAID = (
    "attention_bias",
    "ep_size",
    "hidden_act",
    "moe_layer_freq",
    "norm_topk_prob",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "routed_scaling_factor",
    "router_aux_loss_coef",
    "scoring_func",
    "tie_word_embeddings",
)
"""Values of the decoder that the public file leaves to its reader."""
MAX_PAGES = 16
MAX_TOKENS = 64
"""New tokens of a case with several requests."""


def run_peer(name: str, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Rows of a peer, each as soon as it is measured.

    None if the peer is not installed, fewer if it fails; standard error says why.
    """
    if importlib.util.find_spec(name) is None:
        print(f"{name} is not installed here: left out", file=sys.stderr)
        return
    order = json.dumps([asdict(case) for case in cases])
    arguments = [sys.executable, __file__, name, order]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        # Ends the reading below as well, which has no time limit of its own.
        watch = threading.Timer(TIMEOUT_S, process.kill)
        watch.start()
        try:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            status = process.wait()
        finally:
            watch.cancel()
            process.kill()
    if status:
        print(f"{name} failed or took more than {TIMEOUT_S:.0f} s: exit status {status}", file=sys.stderr)


def cases_from(order: str) -> list[Case]:
    """Cases as `run_peer` sends them."""
    return [Case(**values | {"size_px": tuple(values["size_px"])}) for values in json.loads(order)]


def read_with_vllm(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Rows of vLLM."""
    os.environ |= {name: value for name, value in QUIET.items() if name not in os.environ}  # noqa: TID251 - of a child
    import vllm  # type: ignore[import-not-found] # only where it is measured

    with tempfile.TemporaryDirectory() as folder:
        _write_vllm_checkpoint(Path(folder))
        llm = vllm.LLM(
            model=folder,
            load_format="dummy",
            dtype="bfloat16",
            max_model_len=8192,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            gpu_memory_utilization=0.85,
            limit_mm_per_prompt={"image": 1},
            max_num_seqs=256,
        )
        # The files stay: what reads images opens them at the first request.
        for case in cases:
            requests = [{"prompt": PROMPT, "multi_modal_data": {"image": image}} for image in case.images]
            sampling = vllm.SamplingParams(temperature=0, max_tokens=case.new_tokens, ignore_eos=True, detokenize=False)
            began_s = time.perf_counter()
            outputs = llm.generate(requests, sampling, use_tqdm=False)
            wall_s = time.perf_counter() - began_s
            row = row_of(
                "vllm",
                case,
                prompt_tokens=len(outputs[0].prompt_token_ids),
                generated_tokens=sum(len(output.outputs[0].token_ids) for output in outputs),
                wall_s=wall_s,
                peer_version=vllm.__version__,
            )
            yield row


def _write_vllm_checkpoint(folder: Path) -> None:
    """A configuration and a tokenizer whose words mean nothing; vLLM makes the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from shared.deepseek_ocr.configuration import DeepseekOcrConfig
    from shared.deepseek_ocr.public_config import config_to_public

    config = DeepseekOcrConfig()
    public: dict[str, Any] = config_to_public(config)
    public |= {"candidate_resolutions": [[1024, 1024]], "torch_dtype": "bfloat16"}
    public.pop("image_token_id", None)  # the public file has none
    language = public["language_config"] | {"torch_dtype": "bfloat16"}
    public["language_config"] = {name: value for name, value in language.items() if name not in UNSAID}
    public["vision_config"]["mlp_ratio"] = 3.7362
    # As the public file has them: the encoders' sizes that it does not say are fixed in its readers.
    widths = public["vision_config"]["width"]
    widths["clip-l-14-224"] = {"heads": 16, "image_size": 224, "layers": 24, "patch_size": 14, "width": 1024}
    kept = ("downsample_channels", "global_attn_indexes", "heads", "layers", "width")
    widths["sam_vit_b"] = {name: widths["sam_vit_b"][name] for name in kept}
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    special = dict(enumerate(names.values())) | {config.image_token_id: IMAGE}
    words = {special.get(index, f"t{index}"): index for index in range(config.text_config.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **names, unk_token=UNKNOWN, extra_special_tokens={"image_token": IMAGE}
    )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(public), encoding="utf-8")


def read_with_transformers(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Rows of transformers."""
    import torch

    from benchmarks.random_model import random_checkpoint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = random_checkpoint(device, torch.bfloat16)
    for asked in cases:
        many = asked.requests > 1
        case = replace(
            asked,
            requests=min(asked.requests, MAX_PAGES),
            new_tokens=min(asked.new_tokens, MAX_TOKENS) if many else asked.new_tokens,
        )
        began_s = time.perf_counter()
        with torch.inference_mode():
            prompt_tokens, generated = _generate(checkpoint, case, device)
        wall_s = time.perf_counter() - began_s
        yield row_of("transformers", case, prompt_tokens=prompt_tokens, generated_tokens=generated, wall_s=wall_s)


def _generate(checkpoint: LoadedCheckpoint, case: Case, device: str) -> tuple[int, int]:
    """Read a case's pages in one batch; tokens of one prompt and of all answers."""
    import torch

    from benchmarks.preparation import InlinePreparation, plan_of

    plan = plan_of(case.size_px, checkpoint.geometry)
    preparation = InlinePreparation({case.size_px: case.images}, checkpoint.geometry)
    pages = list(preparation.pages(case.size_px, case.requests))
    ids = checkpoint.tokenizer.encode_prompt(plan, prompt_for(Task.FREE))
    tiles = [torch.from_numpy(page.tiles_THWC) for page in pages] if plan.num_tiles else []
    model: OcrModel = checkpoint.model
    written = model.generate(
        torch.tensor([ids] * len(pages), device=device),
        attention_mask=torch.ones(len(pages), len(ids), dtype=torch.long, device=device),
        global_views_BHWC=torch.stack([torch.from_numpy(page.global_view_HWC) for page in pages]).to(device),
        tiles_THWC=torch.cat(tiles).to(device) if tiles else None,
        tile_grids_B2=[(plan.tile_columns, plan.tile_rows)] * len(pages),
        max_new_tokens=case.new_tokens,
        min_new_tokens=case.new_tokens,
        do_sample=False,
        pad_token_id=2,
    )
    # The copy waits for the device.
    answers = written[:, len(ids) :].cpu()
    return len(ids), answers.numel()


PEERS = {"transformers": read_with_transformers, "vllm": read_with_vllm}
"""By the package that must be installed."""


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("cases", type=cases_from, help="JSON, as `run_peer` sends it")
    arguments = parser.parse_args()
    if importlib.util.find_spec(arguments.peer) is None:
        parser.error(f"{arguments.peer} is not installed here")
    for row in PEERS[arguments.peer](arguments.cases):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
