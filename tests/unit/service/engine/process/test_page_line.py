from dataclasses import replace

from service.engine.process.page_line import OpenPage, PageLine
from service.engine.protocol import SequenceDelta
from tests.unit.service.engine.standin import standin_request, standin_result


def page(name, *, is_suspect=False):
    return OpenPage(standin_request(name), is_suspect=is_suspect)


def send(line):
    names = []
    while due := line.next_due():
        names.append(due.request.sequence_id)
    return names


def line_of(*pages):
    line = PageLine()
    for each in pages:
        line.add(each)
    return line


def test_pages_go_in_order_of_arrival():
    assert send(line_of(page("a"), page("b"), page("c"))) == ["a", "b", "c"]


def test_a_suspect_waits_until_the_engine_is_empty_and_holds_back_all_others():
    early, suspect, late = page("early"), page("suspect", is_suspect=True), page("late")
    line = line_of(early)
    assert send(line) == ["early"]
    line.add(suspect)
    line.add(late)
    assert send(line) == []
    assert line.remove(early)
    assert send(line) == ["suspect"]
    assert send(line) == []
    assert line.remove(suspect)
    assert send(line) == ["late"]


def test_a_loss_puts_pages_back_in_front_and_suspects_run_one_by_one():
    first, second, third = page("1"), page("2"), page("3")
    line = line_of(first, second)
    send(line)
    line.add(third)
    first.is_suspect = second.is_suspect = True
    send(line)
    assert line.take_back() == [first, second]
    assert not line.sent
    for suspect in (first, second):
        assert send(line) == [suspect.request.sequence_id]
        line.remove(suspect)
    assert send(line) == ["3"]
    line.remove(third)
    assert len(line) == 0


def test_a_held_page_that_is_removed_was_not_with_the_engine():
    line = line_of(page("a"))
    assert not line.remove(next(iter(line)))
    assert len(line) == 0


def events_of(open_page):
    return [open_page.inbox.get_nowait() for _ in range(open_page.inbox.qsize())]


def test_a_page_read_again_gives_only_what_its_reader_lacks():
    each = page("a")
    for text in ("one ", "two "):
        assert each.take(SequenceDelta("a", text))
    each.begin_again()
    for text in ("on", "e tw", "o three"):
        assert each.take(SequenceDelta("a", text))
    assert each.take(standin_result(each.request))
    assert [getattr(event, "text", None) for event in events_of(each)[:-1]] == ["one ", "two ", " three"[1:]]


def test_a_page_that_reads_differently_is_not_mixed():
    each = page("a")
    assert each.take(SequenceDelta("a", "one "))
    each.begin_again()
    assert not each.take(SequenceDelta("a", "other"))
    assert [event.text for event in events_of(each)] == ["one "]


def test_a_page_that_ends_sooner_than_before_is_not_mixed():
    each = page("a")
    assert each.take(SequenceDelta("a", "one two"))
    each.begin_again()
    assert each.take(SequenceDelta("a", "one "))
    assert not each.take(standin_result(each.request))


def test_a_page_that_is_not_streamed_may_begin_otherwise_when_it_is_read_again():
    each = OpenPage(replace(standin_request("a"), is_streamed=False))
    assert each.take(SequenceDelta("a", "one two"))
    each.begin_again()
    assert each.take(SequenceDelta("a", "one"))
    assert each.take(standin_result(each.request))
    assert events_of(each)[-1].kind == "result"
