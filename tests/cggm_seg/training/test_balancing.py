"""Scores of heads that go with each Dice term, by hand."""

import pytest
import torch
from torch.nn import functional as F

from cggm.scores import ratio_score, score_counts
from cggm_seg.training.balancing import head_score

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
