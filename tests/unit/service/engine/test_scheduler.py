from dataclasses import replace
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduler import (
    ENCODED_AHEAD,
    ActivePage,
    Budget,
    Decision,
    Limits,
    PageCost,
    batching_window_s,
    decide,
    decode_order,
    queue_index,
)

limits_st = st.builds(
    Limits,
    slots=st.integers(1, 6),
    kv_tokens=st.integers(50, 400),
    views_per_step=st.integers(1, 5),
    prefill_tokens_per_step=st.integers(1, 300),
    idle_multiplier=st.integers(1, 4),
)
shapes_st = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 120), st.integers(1, 120), st.sampled_from([1, 16])),
    min_size=1,
    max_size=20,
)


def pages(shapes: list[tuple[int, int, int, int]]) -> list[PageCost]:
    return [PageCost(f"s{i}", *shape) for i, shape in enumerate(shapes)]


def page(name: str = "a", views: int = 1, prompt: int = 10, new: int = 10) -> PageCost:
    return PageCost(name, views, prompt, new)


class World:
    """Executes decisions over counts alone; each decoding page ends after `max_new_tokens` steps."""

    def __init__(self, waiting: list[PageCost], limits: Limits) -> None:
        self.waiting = [cost for cost in waiting if limits.can_hold(cost)]
        self.active: list[ActivePage] = []
        self.left: dict[str, int] = {}
        self.limits = limits
        self.admitted: list[str] = []
        self.finished: list[str] = []

    def step(self) -> Decision:
        decision = decide(self.waiting, self.active, self.limits)
        self.admitted += decision.admit
        by_id = {cost.sequence_id: cost for cost in self.waiting}
        self.waiting = [cost for cost in self.waiting if cost.sequence_id not in decision.admit]
        self.active += [ActivePage(by_id[name]) for name in decision.admit]
        encoded = dict(decision.encode)
        self.active = [
            replace(
                p,
                views_encoded=p.views_encoded + encoded.get(p.cost.sequence_id, 0),
                is_decoding=p.is_decoding or p.cost.sequence_id in decision.prefill,
            )
            for p in self.active
        ]
        for p in [p for p in self.active if p.is_decoding]:
            name = p.cost.sequence_id
            assert p.views_encoded == p.cost.num_views
            self.left[name] = self.left.get(name, p.cost.max_new_tokens) - 1
            if not self.left[name]:
                self.finished.append(name)
                self.active.remove(p)
        return decision


@given(shapes_st, limits_st)
def test_never_over_budget(shapes, limits):
    world = World(pages(shapes), limits)
    for _ in range(60):
        world.step()
        assert len(world.active) <= limits.slots
        assert sum(p.cost.kv_tokens for p in world.active) <= limits.kv_tokens


@given(shapes_st, limits_st)
def test_work_between_two_tokens_of_a_running_page_is_bounded(shapes, limits):
    world = World(pages(shapes), limits)
    prompts = {c.sequence_id: c.prompt_tokens for c in pages(shapes)}
    while world.waiting or world.active:
        is_decoding = any(p.is_decoding for p in world.active)
        decision = world.step()
        factor = 1 if is_decoding else limits.idle_multiplier
        assert sum(count for _, count in decision.encode) <= limits.views_per_step * factor
        if len(decision.prefill) > 1:
            assert sum(prompts[name] for name in decision.prefill) <= limits.prefill_tokens_per_step * factor


@given(shapes_st, limits_st)
def test_encoded_pages_that_wait_for_their_prefill_are_bounded(shapes, limits):
    world = World(pages(shapes), limits)
    longest = max(shape[1] for shape in shapes)
    bound = ENCODED_AHEAD * limits.prefill_tokens_per_step * limits.idle_multiplier + longest
    while world.waiting or world.active:
        world.step()
        ahead = [p.cost.prompt_tokens for p in world.active if p.views_encoded and not p.is_decoding]
        assert sum(ahead) < bound


@given(shapes_st, limits_st)
def test_every_page_that_fits_is_finished_in_bounded_steps(shapes, limits):
    costs = pages(shapes)
    world = World(costs, limits)
    bound = sum(c.num_views + c.max_new_tokens + 2 for c in costs)
    # The first that is not done makes progress in every step, so no page waits longer than all before it need.
    steps = 0
    while world.waiting or world.active:
        world.step()
        steps += 1
        assert steps <= bound
    assert sorted(world.finished) == sorted(c.sequence_id for c in costs if c.kv_tokens <= limits.kv_tokens)


@given(shapes_st, limits_st)
def test_admission_follows_arrival(shapes, limits):
    world = World(pages(shapes), limits)
    while world.waiting or world.active:
        world.step()
    order = [c.sequence_id for c in pages(shapes) if c.kv_tokens <= limits.kv_tokens]
    assert world.admitted == order


@given(shapes_st, limits_st)
def test_equal_arguments_give_equal_decisions(shapes, limits):
    first, second = World(pages(shapes), limits), World(pages(shapes), limits)
    for _ in range(20):
        assert first.step() == second.step()


@given(shapes_st, limits_st)
def test_admission_leaves_no_room_for_the_next_page(shapes, limits):
    world = World(pages(shapes), limits)
    while world.waiting or world.active:
        before = [p.cost for p in world.active]
        decision = world.step()
        if world.waiting:
            admitted = [c for c in pages(shapes) if c.sequence_id in decision.admit]
            assert not Budget(limits, [*before, *admitted]).take(world.waiting[0])


def test_a_large_page_at_the_head_is_not_overtaken():
    limits = Limits(slots=4, kv_tokens=100)
    running = [ActivePage(page("r", prompt=30, new=30), views_encoded=1, is_decoding=True)]
    decision = decide([page("big", prompt=50, new=40), page("small", prompt=1, new=1)], running, limits)
    assert decision == Decision()


def test_a_page_that_an_empty_engine_cannot_hold_is_told_apart():
    limits = Limits(slots=2, kv_tokens=100)
    assert limits.can_hold(page(prompt=50, new=50))
    assert not limits.can_hold(page(prompt=50, new=51))


def test_a_page_with_priority_queues_behind_others_with_priority_alone():
    canary = PageCost("canary", 0, 10, 16, has_priority=True)
    assert queue_index([canary, canary, page(), page()], canary) == 2
    assert queue_index([page()], canary) == 0
    assert queue_index([canary, page()], page()) is None


def test_rows_of_an_adapter_are_adjacent_and_keep_their_order():
    rows = [SimpleNamespace(adapter=adapter, name=name) for adapter, name in ((1, "a"), (-1, "b"), (1, "c"), (-1, "d"))]
    assert [row.name for row in decode_order(rows)] == ["b", "d", "a", "c"]


def test_views_of_one_page_spread_over_steps_and_prefill_waits_for_the_last():
    limits = Limits(slots=2, kv_tokens=100, views_per_step=2)
    first = decide([page("a", views=3)], [], limits)
    assert first.encode == (("a", 2),)
    assert first.prefill == ()
    second = decide([], [ActivePage(page("a", views=3), views_encoded=2)], limits)
    assert second.encode == (("a", 1),)
    assert second.prefill == ("a",)


def test_prefill_beyond_the_bound_waits_but_one_page_always_goes():
    limits = Limits(slots=4, kv_tokens=1000, prefill_tokens_per_step=5)
    active = [ActivePage(page("a"), views_encoded=1), ActivePage(page("b"), views_encoded=1)]
    assert decide([], active, limits).prefill == ("a",)


def test_an_idle_engine_does_more_in_a_step():
    limits = Limits(slots=9, kv_tokens=1000, views_per_step=2, prefill_tokens_per_step=20, idle_multiplier=3)
    waiting = [page(name) for name in "abcdefgh"]
    assert len(decide(waiting, [], limits).prefill) == 6
    running = [ActivePage(page("r"), views_encoded=1, is_decoding=True)]
    assert len(decide(waiting, running, limits).prefill) == 2


def test_a_page_that_has_priority_is_prefilled_before_pages_that_were_admitted_before_it():
    limits = Limits(slots=9, kv_tokens=1000, views_per_step=1, prefill_tokens_per_step=10)
    started = [ActivePage(page(name), views_encoded=1) for name in "ab"]
    canary = PageCost("canary", 0, 10, 16, has_priority=True)
    decision = decide([canary, page("c")], started, limits)
    assert decision.admit == ("canary", "c")
    assert decision.prefill == ("canary",)
    assert "canary" not in dict(decision.encode)


def test_a_page_that_has_priority_has_its_views_encoded_first():
    limits = Limits(slots=9, kv_tokens=1000, views_per_step=1)
    canary = PageCost("canary", 1, 10, 16, has_priority=True)
    decision = decide([canary], [ActivePage(page("a"))], limits)
    assert decision.encode == (("canary", 1),)
    assert decision.prefill == ("canary",)


def test_going_first_needs_a_slot_all_the_same():
    running = [ActivePage(page("r"), views_encoded=1, is_decoding=True)]
    decision = decide([PageCost("canary", 0, 10, 16, has_priority=True)], running, Limits(slots=1, kv_tokens=1000))
    assert decision == Decision()


@given(shapes_st, limits_st, st.data())
def test_pages_that_go_first_keep_no_other_from_its_end(shapes, limits, data):
    costs = [replace(cost, has_priority=data.draw(st.booleans())) for cost in pages(shapes)]
    world = World(sorted(costs, key=lambda cost: not cost.has_priority), limits)
    for _ in range(sum(cost.num_views + cost.max_new_tokens + 2 for cost in costs)):
        world.step()
    assert sorted(world.finished) == sorted(cost.sequence_id for cost in costs if cost.kv_tokens <= limits.kv_tokens)


def test_waiting_pages_behind_the_first_that_must_wait_are_not_looked_at():
    def endless():
        yield page("a", new=90)
        yield page("b")
        raise AssertionError

    assert decide(endless(), [], Limits(slots=9, kv_tokens=100)).admit == ("a",)


def test_a_page_costs_whole_blocks():
    assert PageCost("a", 1, 60, 5, block_tokens=64).kv_tokens == 128
    assert PageCost("a", 1, 60, 4, block_tokens=64).kv_tokens == 64


def test_an_idle_engine_waits_for_company_only_up_to_the_bound():
    assert batching_window_s(1, 0, waited_s=0.002, slots=4, max_wait_s=0.01) == 0.008
    assert batching_window_s(1, 0, waited_s=0.02, slots=4, max_wait_s=0.01) == 0.0


def test_a_busy_or_full_engine_never_waits():
    assert batching_window_s(1, 1, waited_s=0.0, slots=4, max_wait_s=0.01) == 0.0
    assert batching_window_s(4, 0, waited_s=0.0, slots=4, max_wait_s=0.01) == 0.0
    assert batching_window_s(0, 0, waited_s=0.0, slots=4, max_wait_s=0.01) == 0.0
