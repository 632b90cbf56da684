"""Diagnosing and re-learning: purity and clusters of known points, and what is mixed in when."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods import Relearning
from cggm.methods.relearning import _scaled, cluster, cluster_purity
from cggm.trials import Trials
from tests.cggm.networks import NAMES, late_batch, make_late
from tests.quantifiers import every

cross_entropy = nn.functional.cross_entropy
TRAIN, VALID = late_batch(64, seed=3), late_batch(48, seed=4)


def make(**settings):
    network, _ = make_late()
    sgd = torch.optim.SGD
    trials = Trials(network, cross_entropy, lambda e: [TRAIN], lambda e: [VALID], sgd)
    return network, Relearning(cross_entropy, trials, **settings).bind(network)


def test_clusters_far_apart_are_found():
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]).repeat_interleave(20, 0)
    vectors = centers + torch.randn(60, 2, generator=generator)
    for seed in range(5):
        found = cluster(vectors, 3, seed).reshape(3, 20)
        assert (found == found[:, :1]).all()
        assert len(found[:, 0].unique()) == 3


def test_purity_counts_the_most_frequent_class_of_each_cluster():
    # cluster 0: classes 2, 2, 1; cluster 1: 0, 0; cluster 3: 1, 2: (2 + 2 + 1) / 7
    clusters, classes = torch.tensor([0, 0, 0, 1, 1, 3, 3]), torch.tensor([2, 2, 1, 0, 0, 1, 2])
    assert cluster_purity(clusters, classes).item() == pytest.approx(5 / 7)


def test_columns_are_scaled_from_minus_one_to_one():
    found = _scaled(torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0]]))
    assert_close(found, torch.tensor([[-1.0, -1.0], [-0.5, -1.0], [1.0, -1.0]]))


def test_equal_vectors_are_one_cluster():
    assert cluster(torch.ones(6, 2), 3, 0).tolist() == [0] * 6


def test_encoders_go_back_by_their_gap_in_the_published_epochs():
    network, method = make()
    start = copy.deepcopy(network.encoders)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.5
    moved = copy.deepcopy(network)
    gaps = {"text": (0.9, 0.5), "audio": (0.6, 0.6), "video": (0.5, 0.7)}
    rows = [torch.tensor([pair[k] for pair in gaps.values()]) for k in (0, 1)]
    method.purity = lambda *, valid: rows[valid]
    changed = []
    for epoch in range(1, 100):
        before = copy.deepcopy(network.state_dict())
        method.start_epoch(epoch)
        method.start_epoch(epoch)  # as after a resume
        if any(not torch.equal(v, before[k]) for k, v in network.state_dict().items()):
            changed.append(epoch)
        if epoch == 22:
            for name, (train, valid) in gaps.items():
                alpha = math.tanh(3 * abs(train - valid))
                own, old = network.encoders[name], moved.encoders[name]
                for p, q, r in zip(
                    own.parameters(), start[name].parameters(), old.parameters(), strict=True
                ):
                    assert_close(p, alpha * q + (1 - alpha) * r)
    assert changed == [22, 42, 62]
    assert torch.equal(network.output_layer.weight, moved.output_layer.weight)


def test_purity_of_features_that_tell_the_class_and_of_such_that_do_not():
    network, method = make()

    class Known(nn.Linear):
        def forward(self, x):
            return 4.0 * nn.functional.one_hot(x[:, 4].long(), 6) + 0 * super().forward(x)

    network.encoders["text"] = Known(5, 6)
    target = torch.arange(40) % 4
    inputs = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0))
    inputs[:, 0, 4] = target.float()
    method.trials.train = lambda epoch: [(inputs[:20], target[:20]), (inputs[20:], target[20:])]
    method.binding.encoders["text"] = network.encoders["text"]
    found = method.purity(valid=False)
    assert found[0] == 1
    assert 0.25 <= found[1] < 0.9


def test_diagnosis_leaves_network_and_random_numbers_alone():
    network, method = make(strength=0.001)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    method.purity(valid=True)
    assert every(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training


@pytest.mark.parametrize("settings", [{"strength": -1.0}, {"every": 0}, {"times": -1}])
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        make(**settings)


def test_data_are_needed():
    with pytest.raises(ValueError, match="Expected `trials`"):
        Relearning(cross_entropy)


def test_modalities_keep_their_order():
    _, method = make()
    assert list(method.initial) == list(NAMES)
