"""Many seeds at once equal the plain training of each, to rounding."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks.known import training
from benchmarks.known.engine import GUIDED, JOINT, UNIMODAL, Engine, Setting

SEEDS = (3, 4)
ROWS = {
    "joint": (JOINT, "Balancer", {}),
    "unimodal": (UNIMODAL, "UnimodalLosses", {}),
    "guided": (GUIDED, "GuidedHeads", {}),
    "shuffled": (Setting(1.0, 0.25, "shuffled"), "GuidedHeads", {"shares": "shuffled"}),
}


def train_plainly(case, method, settings, epochs):
    if method == "GuidedHeads":
        settings = settings | {"seed": case.seed}
    data, network, history, _ = training.train(case, training.Row(method, settings), epochs)
    return network, history, training.judge(case, network, data)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("task", "scenario", "optimizer"),
    [("classification", "a", "sgd"), ("regression", "c", "adam"), ("classification", "e", "adam")],
)
def test_equals_plain_training(task, scenario, optimizer, row):
    setting, method, settings = ROWS[row]
    engine = Engine(task, scenario, optimizer, SEEDS)
    found, record = engine.train(setting, 1)
    scores = engine.judge(found)
    for index, case in enumerate(engine.cases):
        network, history, judged = train_plainly(case, method, settings, 1)
        for key, value in network.state_dict().items():
            assert_close(found[key][index], value, rtol=1e-3, atol=1e-5, msg=key)
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
            for key, value in network.state_dict().items():
                assert_close(found[key][index], value, rtol=1e-3, atol=1e-5, msg=key)
