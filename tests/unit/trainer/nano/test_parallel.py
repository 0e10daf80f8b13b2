"""Processes that train one model: gradients, start and time."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainer.nano.training.parallel import Peers


def one_of_two(rank: int, meeting: str, results: mp.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    peers = Peers(rank, 2, rank)
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(float(rank))
    peers.start_alike(model)
    started = model.weight.tolist()
    model.weight.grad = torch.full_like(model.weight, 1.0 + rank)
    if rank == 0:
        assert model.bias is not None
        model.bias.grad = torch.full_like(model.bias, 4.0)
    peers.average_gradients(model.parameters())
    assert model.weight.grad is not None
    results.put((started, model.weight.grad.tolist(), model.bias.grad.tolist(), peers.agree(0.25 + rank)))  # type: ignore[union-attr]
    peers.leave()


def test_two_processes_share_start_gradients_and_time(tmp_path):
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(  # type: ignore[attr-defined]
        one_of_two, (str(tmp_path / "meeting"), results), nprocs=2
    )
    assert [results.get() for _ in range(2)] == [([[0.0, 0.0]], [[1.5, 1.5]], [2.0], 0.25)] * 2


def test_alone_nothing_is_changed():
    peers = Peers.join()
    weight = torch.nn.Parameter(torch.ones(2))
    peers.average_gradients([weight])
    assert peers == Peers()
    assert peers.is_first
    assert weight.grad is None
    assert peers.agree(0.75) == 0.75
