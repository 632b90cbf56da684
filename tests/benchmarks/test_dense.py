"""Dense forms trained for many seeds at once: equal to the plain training, and shares by hand."""

from math import exp

import pytest
import torch
from torch.testing import assert_close

from benchmarks.known.dense import FORMS, Batch, DenseEngine, shares_of, weights_of
from benchmarks.known.training import Case, Row, train
from benchmarks.result_tables import dense_gains, dense_table, gains_table

SEEDS = (3, 4)
PLAIN = {
    "joint": ("Balancer", {}),
    "unimodal losses": ("UnimodalLosses", {}),
    "even pass": ("GuidedHeads", {}),
    "by level": ("GuidedHeads", {"gate": "loss"}),
}


@pytest.mark.filterwarnings("ignore:GuidedHeads is bound to a dense task")
@pytest.mark.parametrize("form", PLAIN)
def test_all_seeds_at_once_equal_the_plain_training(form):
    found, _ = DenseEngine("c", SEEDS).train(FORMS[form], epochs=1)
    method, settings = PLAIN[form]
    for position, seed in enumerate(SEEDS):
        own = settings | ({"seed": seed} if method == "GuidedHeads" else {})
        network = train(Case("segmentation", "c", "sgd", seed), Row(method, own), 1)[1]
        assert_equal_to_rounding(found, position, network)


def assert_equal_to_rounding(found, position, network):
    for name, wanted in network.named_parameters():
        values = found[name].chunk(len(SEEDS))[position]
        assert_close(values, wanted, rtol=1e-4, atol=1e-5, msg=f"{name} {position}")


RECORDED = torch.tensor([[[0.6, 1.0], [0.8, 0.8]], [[1.0, 1.4], [0.4, 0.6]]])  # (steps, S, M)


@pytest.mark.filterwarnings("ignore:GuidedHeads is bound to a dense task")
@pytest.mark.parametrize(
    ("form", "factors"),
    [
        ("uniform", [1.0, 0.65]),
        ("constant", [{"A": 0.8, "B": 1.2}, {"A": 0.6, "B": 0.7}]),
        ("random", [{"A": [0.6, 1.0], "B": [1.0, 1.4]}, {"A": [0.8, 0.4], "B": [0.8, 0.6]}]),
    ],
)
def test_controls_replay_what_was_recorded(form, factors):
    found, _ = DenseEngine("c", SEEDS).train(FORMS[form], 1, RECORDED)
    for position, seed in enumerate(SEEDS):
        own = {"factors": factors[position], "seed": seed}
        network = train(Case("segmentation", "c", "sgd", seed), Row("GuidedHeads", own), 1)[1]
        assert_equal_to_rounding(found, position, network)
    with pytest.raises(ValueError, match="'by level' recorded"):
        DenseEngine("c", SEEDS).train(FORMS[form], 1)


# one seed, two images of one row of four pixels: a disk of two, a square of one, two modalities
TARGET = torch.tensor([[[[0, 0, 1, 1]]], [[[0, 0, 0, 2]]]])
BATCH = Batch(0, {}, TARGET, torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))


def test_shares_of_regions_by_hand():
    losses = torch.zeros(2, 1, 1, 4, 2)
    losses[0, 0, 0, 2:, 0] = torch.tensor([0.0, 2.0])  # a mean of 1 on the disk by the first
    shares, images = shares_of("regions", losses, BATCH)
    # the disk is in one image alone: its part there is the mean part of its class
    assert_close(shares, torch.ones(2, 1, 1, 4, 2))
    assert_close(images, torch.ones(2, 1, 2))
    losses[1, 0, 0, :3, 0] = 1.0
    shares, _ = shares_of("regions", losses, BATCH)
    first, second = 1 / 2, exp(-1) / (exp(-1) + 1)
    typical = (first + second) / 2  # of the background, in both images
    assert_close(shares[0, 0, 0, 0, 0].item(), first / typical)
    assert_close(shares[1, 0, 0, 2, 0].item(), second / typical)


def test_shares_of_images_and_of_what_is_shown_by_hand():
    losses = torch.zeros(2, 1, 1, 4, 2)
    losses[1, 0, 0, 3, 0] = 4.0  # the square: 4 of the only shape
    shares, images = shares_of("shapes", losses, BATCH)
    first, second = 1 / 2, exp(-4) / (exp(-4) + 1)
    assert_close(images[:, 0, 0], torch.tensor([first, second]) * 2 / (first + second))
    assert_close(shares[:, 0, 0, 0], images[:, 0])
    shares, images = shares_of("truth", losses, BATCH)
    assert images[:, 0].tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_a_table_has_differences_to_joint_training():
    scores = {"score": [80.0, 82.0], "without A": [10.0, 10.0], "without B": [30.0, 50.0]}
    more = scores | {"score": [81.0, 83.0]}
    pairs = (("joint", scores), ("pixels", more))
    text = dense_table([{"scenario": "a", "form": form, "scores": own} for form, own in pairs])
    assert "| joint | 81.0 | 25.0 |" in text
    assert "| pixels | **+1.0 ± 0.0** | +0.0 ± 0.0 |" in text
    text = dense_table([{"scenario": "d", "form": "joint", "scores": scores}])
    assert text.startswith("| Dice | (d) all | (d) without A |")
    assert "| joint | 81.0 | 10.0 |" in text


def test_what_a_form_gains_over_its_controls():
    def row(form, scores, alone):
        scores = {"score": scores, "without A": alone, "without B": [0.0, 0.0]}
        return {"scenario": "d", "form": form, "scores": scores}

    gains = dense_gains(
        [
            row("by level", [9, 8], [5, 6]),
            row("joint", [8, 6], [1, 1]),
            row("random", [9, 9], [5, 7]),
        ],
        "by level",
    )
    assert [gain["judged"] for gain in gains] == ["all", "without A"]
    assert gains[0]["differences"] == {"joint": [1, 2], "random": [0, -1]}
    assert gains[1]["differences"] == {"joint": [4, 5], "random": [0, -1]}
    head, _, first, second = gains_table(gains, "by level").splitlines()
    assert head == "| by level less | joint | random |"
    assert first.startswith("| (d) all | +1.50 ± 6.35 | -0.50 ± 6.35 |")
    assert second.startswith("| (d) without A | +4.50 ± 6.35 |")


def test_weights_of_who_is_behind_by_hand():
    # gates 1 and 1/4: B = 2 (1 - 4/5) and 2 (1 - 1/5), of which (1 + B) / 2
    assert_close(weights_of(torch.tensor([0.8, 0.2])), torch.tensor([0.7, 1.3]))
    assert_close(weights_of(torch.tensor([-0.1, -0.2])), torch.ones(2))
