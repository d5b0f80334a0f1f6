from deployments.channel_wire import ReplicaStats
from deployments.prefill_speed import PrefillSpeed


def stats(*, waiting: int, read: int, cached: int = 0) -> ReplicaStats:
    return ReplicaStats(
        num_waiting_prefill_tokens=waiting,
        prompt_tokens_total=read + cached,
        cached_prompt_tokens_total=cached,
    )


def test_nothing_is_known_before_prompts_have_waited() -> None:
    speed = PrefillSpeed()
    assert speed.update(stats(waiting=0, read=0), 0.0) == 0
    assert speed.update(stats(waiting=0, read=900), 1.0) == 0


def test_a_stretch_of_waiting_prompts_is_measured_as_a_whole() -> None:
    speed = PrefillSpeed()
    speed.update(stats(waiting=5000, read=100, cached=50), 10.0)
    assert speed.update(stats(waiting=4000, read=100, cached=50), 11.0) == 0
    assert speed.update(stats(waiting=2000, read=3100, cached=80), 12.0) == 1500
    assert speed.update(stats(waiting=0, read=6100, cached=80), 14.0) == 1500
    assert speed.update(stats(waiting=0, read=9999, cached=80), 15.0) == 1500, "no pause counts"
