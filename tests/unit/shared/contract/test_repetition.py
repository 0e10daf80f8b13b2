from hypothesis import given
from hypothesis import strategies as st

from shared.contract.repetition import LoopDetector, LoopRule, RepetitionGuard, is_better, is_hopeless

RULE = LoopRule()
SMALL = LoopRule(max_period=8, min_tokens=12, min_repeats=3, suspicion=2)


def first_loop(tokens: list[int], rule: LoopRule = RULE) -> tuple[int, int] | None:
    """Tokens pushed when the loop was certain, and the tokens to keep."""
    detector = LoopDetector(rule)
    for count, token in enumerate(tokens, start=1):
        keep = detector.push(token)
        if keep is not None:
            return count, keep
    return None


def as_tokens(text: str) -> list[int]:
    """One token a character: the least favourable tokenizer, every repeat in full length."""
    return [ord(char) for char in text]


def slow_first_loop(tokens: list[int], rule: LoopRule) -> tuple[int, int] | None:
    """The rule by its words, quadratic."""
    for count in range(1, len(tokens) + 1):
        keeps = []
        for period in range(1, rule.max_period + 1):
            run = 0
            while run < count - period and tokens[count - 1 - run] == tokens[count - 1 - run - period]:
                run += 1
            if run + period >= max(rule.min_tokens, rule.min_repeats * period):
                keeps.append(count - run)
        if keeps:
            return count, min(keeps)
    return None


def test_one_token_for_ever_is_a_loop_that_keeps_one():
    assert first_loop([1, 2, 3] + [7] * 400) == (3 + 256, 4)


def test_a_long_period_needs_its_repeats():
    period = list(range(100, 160))
    count, keep = first_loop([1, 2] + period * 20)
    assert count == 2 + 6 * 60
    assert keep == 2 + 60


def test_a_period_longer_than_the_rule_is_no_loop():
    assert first_loop(list(range(65)) * 20) is None


def test_a_numbered_list_is_no_loop():
    assert first_loop(as_tokens("\n".join(str(n) for n in range(1, 366)))) is None


def test_dotted_leaders_and_rules_of_a_page_are_no_loop():
    contents = "\n".join(f"Chapter {n} {'.' * 110} {n * 7}" for n in range(1, 30))
    table = "\n".join("|" + "---|" * 12 + f"\n| {n} |" for n in range(1, 20))
    assert first_loop(as_tokens(contents)) is None
    assert first_loop(as_tokens(table)) is None
    assert first_loop(as_tokens("=" * 200 + "\nText")) is None


@given(st.lists(st.integers(0, 2), max_size=60))
def test_detector_agrees_with_the_rule_by_its_words(tokens):
    assert first_loop(tokens, SMALL) == slow_first_loop(tokens, SMALL)


@given(st.lists(st.integers(0, 2), max_size=60))
def test_settled_tokens_are_never_taken_back_by_more_than_the_suspicion(tokens):
    detector = LoopDetector(SMALL)
    settled = 0
    for token in tokens:
        keep = detector.push(token)
        if keep is not None:
            assert keep >= settled - SMALL.suspicion
            return
        settled = max(settled, detector.num_settled)


def test_a_broken_run_releases_what_was_held_back():
    detector = LoopDetector(SMALL)
    for token in [1, 2, 2, 2, 2, 2]:
        detector.push(token)
    assert detector.num_settled == 2
    detector.push(9)
    assert detector.num_settled == 7


def test_guard_forbids_the_way_into_the_loop_once():
    guard = RepetitionGuard([1, 2, 3], forbidden_first=3, ngram=4)
    assert guard.banned() == [3]
    guard.push(5)
    assert guard.banned() == []


def test_guard_forbids_completing_an_ngram_again():
    guard = RepetitionGuard([1, 2, 3, 4, 1], forbidden_first=0, ngram=3)
    guard.push(2)
    assert guard.banned() == [3]


def test_guard_forgets_ngrams_outside_its_window():
    guard = RepetitionGuard([1, 2, 3], forbidden_first=0, ngram=3, window=4)
    for token in [4, 5, 6, 7, 8, 1, 2]:
        guard.push(token)
    assert guard.banned() == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_guarded_tokens_hold_no_ngram_twice_within_the_window(choices):
    guard = RepetitionGuard([], forbidden_first=-1, ngram=3, window=1000)
    tokens: list[int] = []
    for choice in choices:
        if choice not in guard.banned():
            guard.push(choice)
            tokens.append(choice)
    ngrams = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    assert len(ngrams) == len(set(ngrams))


def test_a_second_attempt_counts_if_it_ends_or_is_believable():
    assert is_better(ended_by_itself=True, confidence=0.1)
    assert is_better(ended_by_itself=False, confidence=0.9)
    assert not is_better(ended_by_itself=False, confidence=0.3)


def test_a_second_attempt_gets_a_fair_trial():
    assert not is_hopeless(63, confidence=0.1)
    assert is_hopeless(64, confidence=0.1)
    assert not is_hopeless(1000, confidence=0.7)
