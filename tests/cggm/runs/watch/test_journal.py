import pytest
from ignite.engine import Engine, Events

from cggm.runs.watch.journal import Stopwatch


class Clock:
    """Time that passes only where somebody sleeps."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Slow:
    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 5

    def __iter__(self):
        for index in range(5):
            self.clock.sleep(0.02)
            yield index


def test_loading_and_everything_else_are_told_apart(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("cggm.runs.watch.journal.time", clock)
    engine = Engine(lambda engine, batch: clock.sleep(0.01))
    watch = Stopwatch()
    watch.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: clock.sleep(0.05))
    engine.run(Slow(clock), max_epochs=2)
    first = watch.lap()
    assert first["seconds"] == pytest.approx(10 * (0.02 + 0.01) + 2 * 0.05)
    assert first["loading_seconds"] == pytest.approx(10 * 0.02)
    assert watch.lap() == {"seconds": 0, "loading_seconds": 0}
