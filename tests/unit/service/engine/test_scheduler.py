from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduler import ActivePage, Budget, Decision, Limits, PageCost, company_wait_s, decide

limits_st = st.builds(
    Limits,
    slots=st.integers(1, 6),
    kv_tokens=st.integers(50, 400),
    views_per_step=st.integers(1, 5),
    prefill_tokens_per_step=st.integers(1, 300),
)
shapes_st = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 120), st.integers(1, 120)), min_size=1, max_size=20)


def pages(shapes: list[tuple[int, int, int]]) -> list[PageCost]:
    return [PageCost(f"s{i}", *shape) for i, shape in enumerate(shapes)]


def page(name: str = "a", views: int = 1, prompt: int = 10, new: int = 10) -> PageCost:
    return PageCost(name, views, prompt, new)


class World:
    """Executes decisions over counts alone; each decoding page ends after `max_new_tokens` steps."""

    def __init__(self, waiting: list[PageCost], limits: Limits) -> None:
        self.waiting = list(waiting)
        self.active: list[ActivePage] = []
        self.left: dict[str, int] = {}
        self.limits = limits
        self.admitted: list[str] = []
        self.refused: list[str] = []
        self.finished: list[str] = []

    def step(self) -> Decision:
        decision = decide(self.waiting, self.active, self.limits)
        self.refused += decision.refuse
        self.admitted += decision.admit
        by_id = {cost.sequence_id: cost for cost in self.waiting}
        gone = {*decision.refuse, *decision.admit}
        self.waiting = [cost for cost in self.waiting if cost.sequence_id not in gone]
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
        for name in decision.decode:
            p = next(p for p in self.active if p.cost.sequence_id == name)
            assert p.views_encoded == p.cost.num_views
            self.left[name] = self.left.get(name, p.cost.max_new_tokens) - 1
            if not self.left[name]:
                self.finished.append(name)
                self.active.remove(p)
        return decision


@given(shapes_st, limits_st)
def test_never_over_budget(shapes, limits):
    world = World(pages(shapes), limits)
    prompts = {c.sequence_id: c.prompt_tokens for c in pages(shapes)}
    for _ in range(60):
        decision = world.step()
        assert len(world.active) <= limits.slots
        assert sum(p.cost.kv_tokens for p in world.active) <= limits.kv_tokens
        assert sum(count for _, count in decision.encode) <= limits.views_per_step
        if len(decision.prefill) > 1:
            assert sum(prompts[name] for name in decision.prefill) <= limits.prefill_tokens_per_step


@given(shapes_st, limits_st)
def test_every_page_is_finished_or_refused_in_bounded_steps(shapes, limits):
    costs = pages(shapes)
    world = World(costs, limits)
    bound = sum(c.num_views + c.max_new_tokens + 2 for c in costs)
    steps = 0
    while world.waiting or world.active:
        world.step()
        steps += 1
        assert steps <= bound
    assert sorted(world.finished + world.refused) == sorted(c.sequence_id for c in costs)
    assert set(world.refused) == {c.sequence_id for c in costs if c.kv_tokens > limits.kv_tokens}


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
    assert decision.admit == ()
    assert decision.decode == ("r",)


def test_a_page_that_never_fits_does_not_block_those_behind_it():
    decision = decide([page("huge", prompt=90, new=90), page("b")], [], Limits(slots=2, kv_tokens=100))
    assert decision.refuse == ("huge",)
    assert decision.admit == ("b",)


def test_views_of_one_page_spread_over_steps_and_prefill_waits_for_the_last():
    limits = Limits(slots=2, kv_tokens=100, views_per_step=2)
    first = decide([page("a", views=3)], [], limits)
    assert first.encode == (("a", 2),)
    assert first.prefill == ()
    second = decide([], [ActivePage(page("a", views=3), views_encoded=2)], limits)
    assert second.encode == (("a", 1),)
    assert second.prefill == second.decode == ("a",)


def test_prefill_beyond_the_bound_waits_but_one_page_always_goes():
    limits = Limits(slots=4, kv_tokens=1000, prefill_tokens_per_step=5)
    active = [ActivePage(page("a"), views_encoded=1), ActivePage(page("b"), views_encoded=1)]
    assert decide([], active, limits).prefill == ("a",)


def test_an_idle_engine_waits_for_company_only_up_to_the_bound():
    assert company_wait_s(1, 0, waited_s=0.002, slots=4, max_wait_s=0.01) == 0.008
    assert company_wait_s(1, 0, waited_s=0.02, slots=4, max_wait_s=0.01) == 0.0


def test_a_busy_or_full_engine_never_waits():
    assert company_wait_s(1, 1, waited_s=0.0, slots=4, max_wait_s=0.01) == 0.0
    assert company_wait_s(4, 0, waited_s=0.0, slots=4, max_wait_s=0.01) == 0.0
    assert company_wait_s(0, 0, waited_s=0.0, slots=4, max_wait_s=0.01) == 0.0
