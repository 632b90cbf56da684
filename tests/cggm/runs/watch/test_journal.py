import time

import pytest
from ignite.engine import Engine, Events

from cggm.runs.watch.journal import Stopwatch


class Slow:
    def __len__(self):
        return 5

    def __iter__(self):
        for index in range(5):
            time.sleep(0.02)
            yield index


def test_loading_and_everything_else_are_told_apart():
    engine = Engine(lambda engine, batch: time.sleep(0.01))
    watch = Stopwatch()
    watch.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: time.sleep(0.05))
    start = time.monotonic()
    engine.run(Slow(), max_epochs=2)
    first, taken = watch.lap(), time.monotonic() - start
    assert first["seconds"] == pytest.approx(taken, abs=0.01)
    assert 10 * 0.02 <= first["loading_seconds"] <= taken - 10 * 0.01 - 2 * 0.05
    second = watch.lap()
    assert second["seconds"] < 0.1
    assert second["loading_seconds"] == 0
