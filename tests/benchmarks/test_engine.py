"""Many seeds at once equal the plain training of each, to rounding."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from benchmarks.known import training
from benchmarks.known.engine import GUIDED, JOINT, UNIMODAL, Engine, Setting

SEEDS = (5, 6)
ROWS = {
    "joint": (JOINT, "Balancer", {}),
    "unimodal": (UNIMODAL, "UnimodalLosses", {}),
    "guided": (GUIDED, "GuidedHeads", {}),
    "unswitched": (replace(GUIDED, switch=False), "GuidedHeads", {"switch": None}),
    "shuffled": (Setting(1.0, 0.25, "shuffled"), "GuidedHeads", {"shares": "shuffled"}),
}


def train_plainly(case, method, settings, epochs):
    if method == "GuidedHeads":
        settings = settings | {"seed": case.seed}
    data, network, history, _ = training.train(case, training.Row(method, settings), epochs)
    return network, history, training.judge(case, network, data)


def assert_equal_to_rounding(found, index, network):
    gaps = [(found[key][index] - p).abs() for key, p in network.state_dict().items()]
    gaps = torch.cat([gap.flatten() for gap in gaps])
    # Adam moves a parameter whose gradient is nothing but rounding by its full rate
    assert gaps.max() < 2e-3
    assert (gaps < 1e-5).float().mean() > 0.99


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("task", "scenario", "optimizer"),
    [("classification", "c", "sgd"), ("regression", "c", "adam"), ("classification", "e", "adam")],
)
def test_equals_plain_training(task, scenario, optimizer, row):
    setting, method, settings = ROWS[row]
    engine = Engine(task, scenario, optimizer, SEEDS)
    found, record = engine.train(setting, 1)
    scores = engine.judge(found)
    for index, case in enumerate(engine.cases):
        network, history, judged = train_plainly(case, method, settings, 1)
        assert_equal_to_rounding(found, index, network)
        assert scores["score"][index] == pytest.approx(judged["score"], abs=0.11)
        assert scores["without A"][index] == pytest.approx(judged["without"]["A"], abs=0.11)
        if method == "GuidedHeads":
            weights = torch.stack([readings["weight"] for readings in history])
            assert_close(record[index], weights, rtol=1e-3, atol=1e-4)


def test_constant_and_recorded_weights_equal_plain_training():
    engine = Engine("classification", "a", "sgd", SEEDS)
    constant = torch.tensor([[0.6, 0.9], [0.7, 0.8]])
    rows = torch.stack([constant, constant.flip(1)], 1)
    for factors, shares in ((constant, None), (rows, "shuffled")):
        found, _ = engine.train(Setting(1.0, 0.25, shares, factors=factors), 1)
        for index, case in enumerate(engine.cases):
            own = factors[index].movedim(-1, 0).tolist()
            settings = {"shares": shares, "factors": dict(zip("AB", own, strict=True))}
            network, _, _ = train_plainly(case, "GuidedHeads", settings, 1)
            assert_equal_to_rounding(found, index, network)
