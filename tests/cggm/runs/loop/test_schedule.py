"""The learning rate against numbers worked out by hand."""

import math

import torch
from ignite.engine import Engine

from cggm.runs.loop.schedule import WarmupCosine, warmup_cosine
from tests.quantifiers import every


def test_the_papers_rates():
    # 75 epochs of 2 steps, 10 of warm-up: the peak is step 20, the last step 149
    rates = {"warmup": 20, "total": 150, "start": 4e-4, "peak": 1e-2, "final": 1e-3}
    assert warmup_cosine(0, **rates) == 4e-4
    assert math.isclose(warmup_cosine(10, **rates), 4e-4 + 9.6e-3 / 2)
    assert math.isclose(warmup_cosine(20, **rates), 1e-2)
    middle = 20 + 129 / 3  # a third of the decay: cos 60 degrees is 1/2
    assert math.isclose(warmup_cosine(int(middle), **rates), 1e-3 + 9e-3 * 0.75)
    assert math.isclose(warmup_cosine(149, **rates), 1e-3)
    assert math.isclose(warmup_cosine(1000, **rates), 1e-3)


def test_without_warmup_the_first_step_has_the_peak():
    rates = {"warmup": 0, "total": 1, "start": 1.0, "peak": 2.0, "final": 3.0}
    assert warmup_cosine(0, **rates) == 2.0


def test_every_group_of_the_optimizer_follows():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [w], "lr": 9.0} for w in weights])
    seen = []
    engine = Engine(lambda engine, batch: seen.append([g["lr"] for g in optimizer.param_groups]))
    WarmupCosine(optimizer, warmup_epochs=1, start=0.0, peak=1.0, final=0.0).attach(engine)
    engine.run([0, 1], max_epochs=3)
    assert every(a == b for a, b in seen)
    assert [round(a, 12) for a, _ in seen] == [0.0, 0.5, 1.0, 0.75, 0.25, 0.0]
