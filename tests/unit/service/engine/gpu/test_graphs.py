import torch

from service.engine.gpu.graphs import StepGraphs, buckets_for


def test_buckets_end_with_all_rows():
    assert buckets_for(256)[-3:] == (224, 240, 256)
    assert buckets_for(1) == (1,)
    assert buckets_for(11) == (*range(1, 9), 10, 11)


def test_rows_are_padded_with_the_scratch_slot_and_cut_off_again():
    seen = []

    def step(slots_B):
        seen.append(slots_B.tolist())
        return slots_B.unsqueeze(1) * 10, slots_B.unsqueeze(1) * 0.5

    steps = StepGraphs(step, max_rows=17, scratch_slot=17, device=torch.device("cpu"), is_captured=True)
    steps.warm_up(None)
    for slots in ([3], list(range(9)), list(range(9)), list(range(13)), [*range(1, 10)]):
        report_BC, logits_BV = steps.run(slots, wants_logits=True)
        assert logits_BV is not None
        assert report_BC.flatten().tolist() == [10 * slot for slot in slots]
        assert logits_BV.flatten().tolist() == [slot / 2 for slot in slots]
    padded = [*range(9), 17]
    assert seen == [[3], padded, padded, [*range(13), 17], [*range(1, 10), 17]]
