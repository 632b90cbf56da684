"""Scores against chance, by hand."""

import torch
from torch.testing import assert_close

from cggm.scores import (
    ScoreTracker,
    SignalTracker,
    Window,
    ratio_score,
    score_counts,
    with_chance,
)
from tests.cggm.networks import accuracy

LOGITS = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])  # classes 0 1 0 1


def test_chance_is_the_score_against_the_next_samples_target():
    counts = score_counts(with_chance(accuracy), LOGITS, torch.tensor([0, 1, 1, 1]))
    # three of four right; of the targets moved on, 1 0 1 1, the last alone
    assert_close(counts, torch.tensor([[3.0, 1.0], [4.0, 4.0]]))


def test_targets_in_containers_move_together():
    def score(prediction, target):
        classes, weight = target["classes"], target["rest"][0]
        right = (prediction.argmax(1) == classes).float() * weight
        return torch.stack([right.sum(), right.max()]), torch.stack([weight.sum(), weight.max()])

    target = {"classes": torch.tensor([0, 1, 1, 1]), "rest": [torch.tensor([1.0, 2, 3, 4])]}
    counts = score_counts(with_chance(score), LOGITS, target)
    # weights of right ones 1 2 4, then 3 alone: the fourth meets the third's target
    assert_close(counts, torch.tensor([[7.0, 4, 3, 3], [10.0, 4, 10, 4]]))


def test_a_single_sample_is_its_own_chance():
    counts = score_counts(with_chance(accuracy), LOGITS[:1], torch.tensor([0]))
    window = Window()
    add(window, counts[None])
    assert SignalTracker(1).gates(window).tolist() == [0.0]


def test_a_single_image_meets_its_mirrored_target():
    def hits(prediction, target):
        return (prediction * target).sum()[None], target.sum()[None]

    image = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])
    counts = score_counts(with_chance(hits), image, target)
    # mirrored up-down and left-right, the target is 0 1 0, 0 1 1
    assert_close(counts, torch.tensor([[5.0, 2.0], [3.0, 3.0]]))


def counts_of(*scores):
    """Counts of heads by their score and chance, in hundredths."""
    return torch.tensor([[[score, chance], [100.0, 100.0]] for score, chance in scores])


def add(window, counts):
    window.gather(counts=counts, seen=torch.ones(len(counts)))


def test_signal_is_averaged_and_gates_look_ahead():
    tracker, window = SignalTracker(2, betas=(0.5, 0.9)), Window()
    add(window, counts_of((50, 10), (20, 10)))
    assert_close(tracker.gates(window), torch.tensor([1.0, 0.25]))
    tracker.commit(window)
    window.clear()
    add(window, counts_of((30, 10), (50, 10)))
    # averages .25 * .4 + .5 * .2 = .2 and .25 * .1 + .5 * .4 = .225
    assert_close(tracker.gates(window), torch.tensor([0.2 / 0.225, 1.0]))
    window.keep(torch.tensor(False))
    add(window, counts_of((50, 10), (20, 10)))
    assert_close(tracker.gates(window), torch.tensor([1.0, 0.25]))
    assert_close(tracker.scores(window), torch.tensor([0.5, 0.2]))


def test_ratios_of_what_the_target_does_not_hold_are_left_out():
    above = torch.tensor([6.0, 0.0, 0.0])
    below = torch.tensor([8.0, 5.0, 0.0])
    held = torch.tensor([4.0, 0.0, 0.0])
    assert_close(ratio_score(torch.stack([above, below])[None]), torch.tensor([(0.75 + 0 + 1) / 3]))
    assert_close(ratio_score(torch.stack([above, below, held])[None]), torch.tensor([0.75]))


def test_a_window_holds_what_any_of_its_micro_batches_holds():
    tracker, window = ScoreTracker(1, gain="batch"), Window()
    add(window, torch.tensor([[[4.0, 0.0], [8.0, 2.0], [4.0, 0.0]]]))
    assert_close(tracker.scores(window), torch.tensor([0.5]))  # no target of the second ratio yet
    add(window, torch.tensor([[[0.0, 2.0], [0.0, 6.0], [0.0, 4.0]]]))
    assert_close(tracker.scores(window), torch.tensor([(0.5 + 0.25) / 2]))


def test_a_window_without_anything_to_find_keeps_the_last_score():
    tracker, window = ScoreTracker(1, gain="batch"), Window()
    add(window, torch.tensor([[[4.0], [8.0], [4.0]]]))
    tracker.commit(window)
    window.clear()
    add(window, torch.tensor([[[0.0], [7.0], [0.0]]]))
    assert_close(tracker.scores(window), torch.tensor([0.5]))
    assert_close(tracker.gains(window), torch.tensor([0.0]))


def test_chance_comes_with_what_the_moved_target_holds():
    def score(prediction, target):
        found, held = prediction.argmax(1) == 1, target == 1
        counts = (2 * (found & held).sum(), found.sum() + held.sum(), held.sum())
        return tuple(count[None].float() for count in counts)

    counts = score_counts(with_chance(score), LOGITS, torch.tensor([0, 1, 1, 1]))
    assert_close(counts, torch.tensor([[4.0, 2.0], [5.0, 5.0], [3.0, 3.0]]))
