"""Heads, their loss at the level that they predict, and their Dice, by hand."""

import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")

from cggm_nnunet.judging import CoarseHead, LevelLoss, PooledDice, at_one_level


def logits_of(labels, classes=3):
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).float().movedim(-1, 1)


def test_dice_of_classes_pools_the_batch_and_says_what_the_target_holds():
    found = logits_of([[[0, 1], [1, 2]], [[1, 1], [0, 0]]])
    wanted = torch.tensor([[[[0, 1], [2, 2]]], [[[1, 0], [0, 0]]]], dtype=torch.int16)
    both, either, held = PooledDice(regions=False, ignored=None)(found, wanted)
    # class 1: found 4, wanted 2, both 2; class 2: found 1, wanted 2, both 1
    assert (both.tolist(), either.tolist(), held.tolist()) == ([4, 2], [6, 3], [2, 2])


def test_dice_leaves_out_the_ignored_label():
    found = logits_of([[[0, 1], [1, 2]]])
    wanted = torch.tensor([[[[0, 1], [3, 2]]]])
    both, either, held = PooledDice(regions=False, ignored=3)(found, wanted)
    assert (both.tolist(), either.tolist(), held.tolist()) == ([2, 2], [2, 2], [1, 1])


def test_dice_of_regions_takes_each_channel_by_itself():
    found = torch.tensor([[[[1.0, 2.0, -1.0]], [[-1.0, 3.0, -1.0]]]])
    wanted = torch.tensor([[[[True, True, True]], [[False, True, False]], [[False, False, True]]]])
    both, either, held = PooledDice(regions=True, ignored=3)(found, wanted)  # last voxel ignored
    assert (both.tolist(), either.tolist(), held.tolist()) == ([4, 2], [4, 2], [2, 1])


def test_a_head_meets_the_target_of_its_own_level():
    levels = tuple(torch.zeros(2, 1, *size) for size in ((8, 8), (4, 4)))  # as many as samples
    prediction, target = at_one_level(torch.zeros(2, 3, 4, 4), levels)
    assert target is levels[1]
    assert prediction.shape == (2, 3, 4, 4)
    resampled, target = at_one_level(torch.zeros(2, 3, 2, 2), levels)
    assert target is levels[0]
    assert resampled.shape == (2, 3, 8, 8)


def test_loss_tells_the_network_from_a_head():
    loss = LevelLoss(lambda p, t: f"whole {len(p)}", lambda p, t: f"single {tuple(t.shape)}")
    levels = (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 4, 4))
    assert loss([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)], levels) == "whole 2"
    assert loss(torch.zeros(2, 3, 4, 4), levels) == "single (2, 1, 4, 4)"


@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.Conv3d])
def test_heads_predict_at_a_quarter_of_the_resolution(kind):
    axes = 2 if kind is torch.nn.Conv2d else 3
    output = kind(8, 3, 1)
    head = CoarseHead([2, 4, 6, 8], output)
    features = [torch.randn(2, w, *[32 // 2**i] * axes) for i, w in enumerate([2, 4, 6, 8])]
    assert head(features).shape == (2, 3, *[8] * axes)
    assert head.output_layer.weight.shape == output.weight.shape
    assert head.stage == 2
