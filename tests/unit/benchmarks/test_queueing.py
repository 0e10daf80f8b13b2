"""The simulated service agrees with what is known of queues."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

from benchmarks.queueing import Plan, measures, moments, simulate

ONE_SERVER = Plan(batch=1, step_s=0.0, intake_workers=1, intake_s=0.01)


def at_rest(**changes) -> Plan:
    return replace(Plan(batch=4, step_s=0.1, intake_workers=1, intake_s=0.0), **changes)


def test_a_request_alone_takes_the_sum_of_its_stages():
    plan = Plan(batch=4, step_s=0.1, intake_workers=1, intake_s=0.05, front_s=0.01, overhead_s=0.002)
    (alone,) = simulate([5.0], [7], plan)
    assert alone == pytest.approx(0.01 + 0.05 + 6 * 0.1 + 0.002)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_waits_as_pollaczek_and_khinchin_say(load):
    arrivals_s = moments(load / ONE_SERVER.intake_s, 400.0, seed=1)
    waited_s = [each - ONE_SERVER.intake_s for each in simulate(arrivals_s, [1] * len(arrivals_s), ONE_SERVER)]
    # M/D/1: half of what exponential service would make of it.
    assert statistics.fmean(waited_s) == pytest.approx(ONE_SERVER.intake_s * load / (2 * (1 - load)), rel=0.1)


def test_a_full_engine_is_as_fast_as_its_limit():
    for count in (1, 3):
        plan = at_rest(replicas=count)
        ended_s = simulate([0.0] * 1200, [5] * 1200, plan)
        assert 1200 / max(ended_s) == pytest.approx(plan.limits(5)["engine"], rel=0.05)


def test_requests_share_a_batch_and_the_next_waits_for_a_place():
    # The first has its token at once; three join it for its second, and the last when it has ended.
    ended_s = simulate([0.0] + [0.05] * 4, [3] * 5, at_rest())
    assert ended_s == pytest.approx([0.2, 0.25, 0.25, 0.25, 0.45])


def test_what_the_service_has_no_place_for_is_refused():
    ended_s = simulate([0.0, 0.0, 0.0, 10.0], [1] * 4, at_rest(capacity=2))
    assert [math.isnan(each) for each in ended_s] == [False, False, True, False]
    assert measures([0.0, 0.0, 0.0, 10.0], ended_s)["refused_share"] == 0.25


@pytest.mark.parametrize(("stage", "times"), [("front", 8), ("shared", 1)])
def test_each_replica_has_a_front_and_what_is_before_them_is_one(stage, times):
    plan = at_rest(replicas=8, **{f"{stage}_s": 0.05})
    assert plan.limits(1)[stage] == pytest.approx(times / 0.05)
    ended_s = simulate([0.0] * 800, [1] * 800, plan)
    assert 800 / max(ended_s) == pytest.approx(times / 0.05, rel=0.15)
