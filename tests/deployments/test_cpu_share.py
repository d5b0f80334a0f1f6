from deployments.cpu_share import CPUShare


def test_it_is_the_part_of_the_time_since_the_last_look() -> None:
    times_s = iter([0.0, 10.0, 12.0, 12.0])
    used_s = iter([5.0, 7.5, 9.5, 9.6])
    share = CPUShare(clock=lambda: next(times_s), cpu_clock=lambda: next(used_s))
    assert share.update() == 0.25
    assert share.update() == 1.0
    assert share.update() == 0.0, "no time has passed"
