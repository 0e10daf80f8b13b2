"""The order of samples: the same batches for any number of processes, and most samples at the same process."""

from trainer.training.order import LengthGroupedOrder

LENGTHS = [10 + 7 * number % 90 for number in range(320)]


def epoch(number, step_size, num_steps=1, world=1):
    order = LengthGroupedOrder(LENGTHS, 3, step_size, num_steps, world)
    order.set_epoch(number)
    return list(order)


def cut(indices, size):
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def readers(indices, step_size, world):
    """Process by sample: steps go to processes in turn."""
    steps = cut(indices, step_size)
    return {index: place % world for place, step in enumerate(steps) for index in step}


def test_processes_share_the_batches_of_one():
    alone = [set(batch) for batch in cut(epoch(1, 16), 16)]
    assert alone != [set(batch) for batch in cut(epoch(0, 16), 16)]
    assert [set(batch) for batch in cut(epoch(1, 8, world=2), 16)] == alone
    assert [set(batch) for batch in cut(epoch(1, 2, num_steps=2, world=4), 16)] == alone


def test_most_samples_meet_the_process_that_has_their_features():
    for step_size, num_steps, world in ((8, 1, 2), (4, 2, 2), (8, 1, 4)):
        first, second = (readers(epoch(number, step_size, num_steps, world), step_size, world) for number in (0, 1))
        at_home = sum(first[index] == second[index] for index in first) / len(first)
        assert at_home > 0.7, (step_size, num_steps, world)


def test_every_sample_comes_once_in_a_pass_and_passes_differ():
    first = epoch(0, 4, world=2)
    assert sorted(first) == list(range(len(LENGTHS)))
    assert first == epoch(0, 4, world=2) != epoch(1, 4, world=2)


def test_a_partial_batch_comes_last():
    order, alone = (list(LengthGroupedOrder(LENGTHS[:19], 3, size, world=8 // size)) for size in (4, 8))
    assert sorted(order) == list(range(19))
    assert [set(batch) for batch in cut(order, 8)] == [set(batch) for batch in cut(alone, 8)]


def test_batches_hold_rows_of_like_length_but_come_by_chance():
    lengths = [(index * 7919) % 1000 for index in range(400)]
    batches = [[lengths[index] for index in batch] for batch in cut(list(LengthGroupedOrder(lengths, 0, 8)), 8)]
    assert max(max(batch) - min(batch) for batch in batches) <= 30
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts)
