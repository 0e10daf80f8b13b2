"""What fits on a card: the size of the cache next to weights and scratch memory, and the budget of a step.

Pure functions over bytes and tokens, so they can be tested for any card. Free of torch.

Everything is reserved at the start and checked at admission, so that a loaded engine never asks for more: the cache
takes what weights, adapters' slots, the scratch of the largest step, captured graphs and a reserve leave of the share
that was granted.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import EngineError

GIB = 1 << 30
RESERVE_BYTES = GIB // 4
"""Compiled kernels, workspaces of matrix products, pieces too small to use. Full batches on a card acting as one of 12,
16 or 24 GiB never ran out of memory, with this reserve or none; kernels and libraries took up to 112 MiB on
top of torch's tensors (H200, de9a6fa, see `kernels.launch`)."""
PATCH_BYTES = 13_000
"""Scratch of one patch in the encoder at public dimensions, see `vision.runner`."""
VIEW_BYTES = 3 * 1280 * 1280
"""Of the largest view of the public checkpoints, mode large. Views made on the device wait there for the encoder."""
PREPARATION_BYTES = 112 << 20
"""Of the page whose views are being made: its image (27 MB at most, see `forms`), its rows or columns between the two
passes (39 MB with the 32 tiles of Unlimited-OCR), and those of its views that wait for a later step (42 MB)."""
GRAPH_PATCHES = 16_384
"""Patches of the largest encoder batch whose graph, and so its scratch, is kept; see `vision.runner`."""
GRAPH_TOKENS = 4_096
"""Tokens of the largest captured prefill; see `gpu.graphs`."""
LEAST_SEQUENCE_TOKENS = 2_048
"""A cache that cannot hold a full page of gundam mode and a thousand tokens about it is not worth starting."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The decoder's dimensions, as far as they cost memory."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    dense_width: int
    """Of the first layers' MLPs."""
    expert_width: int
    num_chosen: int
    """Experts that a token passes, shared ones included."""
    value_bytes: int
    """Of one weight, key or activation."""
    adapter_rank: int = 0
    """Of adapters that may change routed experts; 0: none may."""

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.hidden_size * self.value_bytes

    @property
    def scratch_token_bytes(self) -> int:
        """Activations of one token in a layer: stream, norm, query, key, value, result, and what its experts hold."""
        experts = self.expert_width + self.hidden_size
        if self.adapter_rank:
            # What adapters add to gates and ups, and what they multiply it from.
            experts += 2 * self.expert_width + 3 * self.adapter_rank
        mlp = max(3 * self.dense_width, self.num_chosen * experts)
        return (8 * self.hidden_size + mlp) * self.value_bytes

    @property
    def row_bytes(self) -> int:
        """A row of a decode step: its logits, twice as float32 at most, and its activations."""
        return self.vocab_size * (self.value_bytes + 8) + self.scratch_token_bytes


@dataclass(frozen=True, slots=True)
class StepBounds:
    """How much one step may do; what `scheduler.Limits` takes."""

    views: int
    prefill_tokens: int
    idle_multiplier: int
    chunk_patches: int
    """Patches that the encoder takes at once."""


BOUNDS = (
    StepBounds(views=16, prefill_tokens=4096, idle_multiplier=4, chunk_patches=65_536),
    StepBounds(views=16, prefill_tokens=4096, idle_multiplier=2, chunk_patches=32_768),
    StepBounds(views=16, prefill_tokens=4096, idle_multiplier=1, chunk_patches=16_384),
    StepBounds(views=8, prefill_tokens=2048, idle_multiplier=1, chunk_patches=16_384),
)
"""Generous ones first. On an H100 16 views of 1024 px take 67 ms (4.2 ms each among 256, prefill included) and 3864
prompt tokens 11 ms, so that no running page waits longer than some 80 ms for its next token; smaller views take a third
of that. 64 views of 1024 px have 17 700 prompt tokens, so that an idle engine's two bounds agree.

Measured on a H200 (de9a6fa, see `kernels.launch`): 16 views and 4096 tokens read 51 PAGE a second with 256 tokens, the
longest step with running pages takes 37 ms. 4 or 8 views: 42 and 47 a second, 20 ms; 32 views: 52 to 54, 58 ms; 64
views: 55, 113 ms. Idle factors of 1, 2, 4 and 8 read 77, 84, 84 and 90 PAGE a second with one token; the last would
take twice the scratch."""
SCRATCH_SHARE = 0.25
"""Bounds are taken if their scratch leaves at least the rest of the room to the cache."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the card holds in addition to the weights."""

    num_blocks: int
    bounds: StepBounds
    cache_bytes: int
    scratch_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.num_blocks} cache blocks ({self.cache_bytes / GIB:.2f} GiB), "
            f"{self.scratch_bytes / GIB:.2f} GiB for a step of {self.bounds}"
        )


def plan_memory(
    *,
    total_bytes: int,
    used_bytes: int,
    fraction: float,
    shape: DecoderShape,
    slots: int,
    max_sequence_tokens: int,
    block_tokens: int,
    adapter_bytes: int = 0,
) -> MemoryPlan:
    """Share out a card.

    Args:
        total_bytes: What the card has.
        used_bytes: Memory in use: the weights and other processes on the card.
        fraction: Share of the card that may be used, by us and all others.
        shape: Of the decoder.
        slots: Sequences at once.
        max_sequence_tokens: Tokens of one at most.
        block_tokens: Tokens of a block of the cache.
        adapter_bytes: Of all adapters' slots, which are still to be reserved.

    Returns:
        The plan; never more blocks than all slots can fill.

    Raises:
        EngineError: Not even one page fits; says what is missing.
    """
    # Steps and prefills share their graphs' memory, with adapters or without; the encoder has its own.
    graphs = max(slots * shape.row_bytes, GRAPH_TOKENS * shape.scratch_token_bytes) + GRAPH_PATCHES * PATCH_BYTES
    room = int(total_bytes * fraction) - used_bytes - adapter_bytes - graphs - RESERVE_BYTES
    scratch, bounds = next(
        (scratch, bounds)
        for bounds in BOUNDS
        if (scratch := scratch_bytes(bounds, shape, max_sequence_tokens)) <= SCRATCH_SHARE * room
        or bounds is BOUNDS[-1]
    )
    block_bytes = block_tokens * shape.kv_token_bytes
    most = slots * _blocks(max_sequence_tokens, block_tokens)
    num_blocks = min(most, (room - scratch) // block_bytes)
    least = _blocks(min(max_sequence_tokens, LEAST_SEQUENCE_TOKENS), block_tokens)
    if num_blocks < least:
        missing = least * block_bytes + scratch - room
        raise EngineError(
            f"the device is too small: {total_bytes / GIB:.1f} GiB, of which {used_bytes / GIB:.1f} GiB are used and "
            f"{fraction:.0%} may be; {missing / GIB:.2f} GiB are missing for one page"
        )
    return MemoryPlan(num_blocks, bounds, num_blocks * block_bytes, scratch + graphs)


def scratch_bytes(bounds: StepBounds, shape: DecoderShape, max_sequence_tokens: int) -> int:
    """Memory that a step needs for a while: its larger part, views to encode, and encoded ones before their prefill."""
    # One prompt always may, however long it is.
    prefill_tokens = max(bounds.prefill_tokens * bounds.idle_multiplier, max_sequence_tokens)
    waiting = 3 * prefill_tokens * shape.hidden_size * shape.value_bytes
    views = bounds.views * bounds.idle_multiplier * VIEW_BYTES + PREPARATION_BYTES
    return waiting + views + max(prefill_tokens * shape.scratch_token_bytes, bounds.chunk_patches * PATCH_BYTES)


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
