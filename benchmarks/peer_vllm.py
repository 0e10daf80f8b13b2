"""Peer measurement: vLLM serving DeepSeek-OCR (v1) with random weights of the public dimensions, bfloat16.

    python benchmarks/peer_vllm.py CASES_AS_JSON

Called by `benchmarks/engine.py --peers vllm`. Start-up (compilation and graph capture) takes about 3 minutes on an H100
and is not part of any row.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import row_of
from benchmarks.peers import cases_from
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.public_config import config_to_public

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
"""Values of the decoder that the public file leaves to whoever reads it."""


def write_checkpoint(folder: Path) -> None:
    """A configuration and a tokenizer whose words mean nothing; weights are made by vLLM.

    Args:
        folder: Where to.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = DeepseekOcrConfig()
    public: dict[str, Any] = config_to_public(config)
    public |= {"candidate_resolutions": [[1024, 1024]], "torch_dtype": "bfloat16"}
    public.pop("image_token_id", None)  # the public file has none
    language = public["language_config"] | {"torch_dtype": "bfloat16"}
    public["language_config"] = {name: value for name, value in language.items() if name not in UNSAID}
    public["vision_config"]["mlp_ratio"] = 3.7362
    # As the public file has them: the encoders' sizes that it does not say are fixed in whoever reads it.
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


def main() -> None:
    """Measure the cases of the command line."""
    os.environ |= {name: value for name, value in QUIET.items() if name not in os.environ}  # noqa: TID251 - of a child
    import vllm  # type: ignore[import-not-found] # only where it is measured

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
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
        for case in cases_from(sys.argv[1]):
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
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
