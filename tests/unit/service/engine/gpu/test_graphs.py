import torch

from service.engine.gpu.graphs import StepGraphs, buckets_for


def test_buckets_end_with_all_rows():
    assert buckets_for(256)[-3:] == (192, 224, 256)
    assert buckets_for(1) == (1,)
    assert buckets_for(5) == (1, 2, 4, 5)


def test_rows_are_padded_with_the_scratch_slot_and_cut_off_again():
    seen = []

    def step(slots_B):
        seen.append(slots_B.tolist())
        return slots_B.unsqueeze(1) * 10

    steps = StepGraphs(step, max_rows=12, scratch_slot=12, device=torch.device("cpu"), is_captured=True)
    steps.warm_up(None)
    for slots in ([3], [5, 1, 0], [5, 1, 0], list(range(9)), [5, 1, 0]):
        assert steps.run(slots).flatten().tolist() == [10 * slot for slot in slots]
    padded = [5, 1, 0, 12]
    assert seen == [[3], padded, padded, [*range(9), 12, 12, 12], padded]
