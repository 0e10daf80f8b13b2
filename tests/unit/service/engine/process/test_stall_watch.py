from service.engine.process.stall_watch import StallWatch


def test_time_without_progress_adds_up_and_pauses_of_the_service_do_not():
    now_s = [0.0]
    watch = StallWatch(1.0, lambda: now_s[0])

    def look(at_s, mark):
        now_s[0] = at_s
        return watch.look(mark)

    assert look(0.5, 1) == 0.0
    assert look(1.0, 1) == 0.5
    assert look(1.5, 1) == 1.0
    # The container was frozen for an hour.
    assert look(3601.5, 1) == 2.0
    assert look(3602.0, 2) == 0.0
