"""Scores of heads that go with each Dice term, by hand, and what copies are trained on."""

import pytest
import torch
from torch.nn import functional as F

from cggm.scores import ratio_score, score_counts
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.data.split import Split
from cggm_seg.training.balancing import head_score, segmentation_balancer
from cggm_seg.training.config import (
    BratsBalancerConfig,
    BratsConfig,
    NetworkConfig,
    SgdConfig,
    SliceConfig,
)
from tests.cggm_seg.nifti import write_case
from tests.quantifiers import every

# 4 NCR, 3 ED and no ET in the target; of these 3 NCR and 1 ED are found, 1 ED is taken for ET
TARGET = torch.tensor([[[1, 1, 1, 1], [2, 2, 2, 0]]])
FOUND = torch.tensor([[[1, 1, 1, 0], [2, 3, 0, 0]]])


def counts(dice, found=FOUND, target=TARGET):
    logits = F.one_hot(found, 4).movedim(-1, 1).float()
    return score_counts(head_score(dice), logits, target)


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        # ET, TC, WT: nothing of ET to find, 1 found; TC 3 of 4 and the 1; WT 5 of 7
        ("foreground", [[0, 6, 10], [1, 8, 12]]),
        ("regions", [[0, 6, 10], [1, 8, 12], [0, 4, 7]]),
        # NCR 3 of 4, ED 1 of 3, ET
        ("classes", [[6, 2, 0], [7, 4, 1], [4, 3, 0]]),
    ],
)
def test_counts_by_hand(dice, expected):
    assert counts(dice).tolist() == expected


@pytest.mark.parametrize(
    ("dice", "score"),
    [
        ("foreground", (0 + 6 / 8 + 10 / 12) / 3),
        ("regions", (6 / 8 + 10 / 12) / 2),
        ("classes", (6 / 7 + 2 / 4) / 2),
    ],
)
def test_a_region_that_is_not_in_the_batch_is_left_out_but_for_the_papers(dice, score):
    assert ratio_score(counts(dice)[None]).item() == pytest.approx(score)


@pytest.mark.parametrize(("dice", "defined"), [("foreground", True), ("regions", False)])
def test_batches_without_lesion_have_no_score_but_the_papers(dice, defined):
    healthy = torch.zeros_like(TARGET)
    score = ratio_score(counts(dice, healthy, healthy)[None])
    assert score.isfinite().item() is defined


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    for seed in range(4):
        write_case(folder / "data", f"case{seed}", shape=(64, 60, 8), seed=seed)
    cases, _ = find_cases(folder / "data", labelled=True)
    return build_cache(cases, folder / "cache", workers=1, progress=False)[0]


def balancer_of(cache, name, **settings):
    torch.manual_seed(0)
    config = BratsConfig(
        max_epochs=4,
        batch_size=2,
        network=NetworkConfig(
            encoder_name="tu-lcnet_050", decoder_channels=16, low_level_channels=8
        ),
        slices=SliceConfig(size=32, per_case=2),
        optimizer=SgdConfig(warmup_epochs=1),
        balancer=BratsBalancerConfig(name=name, settings=settings),
    )
    network = config.network.build()
    split = Split(cache.case_ids[:3], cache.case_ids[3:])
    return segmentation_balancer(config, network, cache, split)


def test_copies_train_as_long_as_the_network_at_its_rates(cache):
    trials = balancer_of(cache, "UnimodalTeacher").trials
    assert trials.course.epochs == 4
    optimizer = trials.optimizer([torch.nn.Parameter(torch.zeros(1))])
    schedule, rates = trials.course.schedule(optimizer, trials.course.epochs), []
    for _ in range(4 * len(list(trials.train(1)))):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # three batches of warm-up from 4e-4 to 1e-2, then half a cosine to 1e-3
    assert len(rates) == 12
    assert rates[:4] == pytest.approx([4e-4, 3.6e-3, 6.8e-3, 1e-2])
    assert rates[7] == pytest.approx(5.5e-3)
    assert rates[11] == pytest.approx(1e-3)


@pytest.mark.parametrize("data", ["judged", "valid"])
def test_networks_are_judged_on_whole_slices_that_stay(cache, data):
    batches = getattr(balancer_of(cache, "UnimodalTeacher").trials, data)
    cases = cache.case_ids[:3] if data == "judged" else cache.case_ids[3:]
    slices = [cache.read(case, z) for case in cases for z in range(cache.depth(case))]
    found = [pair for batch in batches(1) for pair in zip(*batch, strict=True)]
    assert len(found) == 2 * len(cases)
    for image, label in found:
        assert image.shape[1:] == label.shape == (64, 64)  # not 32, as crops to train on
        own = [(i, y) for i, y in slices if abs(float(i.sum()) - float(image.sum())) < 1e-2]
        assert any(int((y > 0).sum()) == int((label > 0).sum()) for _, y in own)
    again = [pair for batch in batches(1) for pair in zip(*batch, strict=True)]
    assert every(torch.equal(a[0], b[0]) for a, b in zip(found, again, strict=True))


def test_heads_are_scored_on_complete_cases_that_are_held_out(cache, monkeypatch):
    def dynamic():
        return balancer_of(cache, "ModalityLearningRates", strategy="dynamic").held_out

    assert len(list(dynamic().valid(1))) == 1
    monkeypatch.setattr(cache, "present", lambda case: (case != cache.case_ids[3],) * 4)
    assert dynamic() is None
