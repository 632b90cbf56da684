import shutil
from itertools import pairwise

import numpy as np
import pytest

from cggm.errors import UserError
from cggm_cls.data.simulated import SimulatedModality, simulate_sequences, simulated_folder
from tests.quantifiers import every

CLASSES = 4


def classes(size=2000):
    return np.random.default_rng(5).integers(CLASSES, size=size)


def values(size=2000):
    return np.random.default_rng(5).normal(0, 1.5, size)


def simulate(target, *, split=0, seed=0, aligned=False, **changes):
    given = {"width": 12, "steps": (2, 6), "information": 1.0, "strength": 4.0} | changes
    modality = {"only": SimulatedModality(**given)}
    return simulate_sequences(modality, target, seed=seed, split=split, aligned=aligned)["only"]


def sample_means(sequences):
    return np.array([steps.mean(axis=0) for steps in sequences])


def directions(target, **options):
    """Mean step of each class, estimated from a split where every sample shows its target."""
    means = sample_means(simulate(target, **options))
    return np.array([means[target == label].mean(axis=0) for label in range(CLASSES)])


def nearest_accuracy(means, target, centers):
    distance = ((means[:, None] - centers) ** 2).sum(axis=2)
    return (distance.argmin(axis=1) == target).mean()


def test_fully_informative_and_strong_modality_gives_every_class_away():
    target = classes()
    assert nearest_accuracy(sample_means(simulate(target)), target, directions(target)) > 0.99


@pytest.mark.parametrize("information", [0.0, 0.5, 0.8])
def test_accuracy_is_bounded_by_the_information(information):
    target = classes()
    means = sample_means(simulate(target, information=information))
    by_chance = (1 - information) / CLASSES
    accuracy = nearest_accuracy(means, target, directions(target))
    assert accuracy == pytest.approx(information + by_chance, abs=0.03)


def test_greater_strength_is_easier_to_tell_apart():
    target = classes()
    accuracy = [
        nearest_accuracy(
            sample_means(simulate(target, strength=strength, steps=(1, 1))),
            target,
            directions(target, strength=strength),
        )
        for strength in (0.0, 1.0, 2.0, 4.0)
    ]
    assert accuracy[0] == pytest.approx(1 / CLASSES, abs=0.1)
    assert every(more - less > 0.08 for less, more in pairwise(accuracy))


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_steps_are_unit_noise_around_a_shift_of_the_given_length(strength):
    steps = np.concatenate(simulate(np.ones(3000, np.int64), strength=strength))
    assert np.linalg.norm(steps.mean(axis=0)) == pytest.approx(strength, abs=0.07)
    np.testing.assert_allclose(steps.std(axis=0), 1, atol=0.04)


@pytest.mark.parametrize("information", [0.0, 0.6, 1.0])
def test_value_shifts_one_direction_in_proportion(information):
    target = values(4000)
    direction = simulate(np.array([1e6]), strength=1.0)[0].mean(axis=0) / 1e6
    assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-4)
    projected = sample_means(simulate(target, information=information, strength=2.0)) @ direction
    slope = np.polyfit(target, projected, 1)[0]
    assert slope == pytest.approx(2 * information, abs=0.12)


def test_all_splits_share_directions_and_nothing_else():
    target = classes()
    train, test = directions(target, split=0), directions(target, split=1)
    np.testing.assert_allclose(train, test, atol=0.15)
    first, other = simulate(target, split=0), simulate(target, split=1)
    assert [len(steps) for steps in first] != [len(steps) for steps in other]


def test_split_without_the_last_class_keeps_the_directions():
    target = classes()
    few = np.minimum(target, CLASSES - 2)
    means = sample_means(simulate(few, split=3))
    assert nearest_accuracy(means, few, directions(target)) > 0.99


def test_seed_alone_changes_directions():
    target = classes()
    distance = np.linalg.norm(directions(target) - directions(target, seed=1), axis=1)
    assert (distance > 1).all()


def test_same_seed_and_split_give_the_same_steps():
    target = classes(50)
    for one, other in zip(simulate(target), simulate(target), strict=True):
        np.testing.assert_array_equal(one, other)


def two_modalities(aligned):
    modality = SimulatedModality(3, (2, 6), 1.0, 1.0)
    given = {"first": modality, "second": SimulatedModality(5, (2, 6), 0.0, 1.0)}
    sequences = simulate_sequences(given, classes(300), seed=0, split=0, aligned=aligned)
    return {name: [len(steps) for steps in found] for name, found in sequences.items()}, sequences


def test_lengths_and_widths_are_as_declared():
    lengths, sequences = two_modalities(aligned=False)
    assert {*lengths["first"]} == {*lengths["second"]} == {2, 3, 4, 5, 6}
    assert lengths["first"] != lengths["second"]
    for name, width in (("first", 3), ("second", 5)):
        assert {steps.shape[1] for steps in sequences[name]} == {width}
        assert {steps.dtype for steps in sequences[name]} == {np.dtype(np.float32)}


def test_aligned_modalities_are_equally_long():
    lengths, _ = two_modalities(aligned=True)
    assert lengths["first"] == lengths["second"]
    assert {*lengths["first"]} == {2, 3, 4, 5, 6}


def test_modalities_show_the_target_independently_of_each_other():
    target = classes(4000)
    modality = SimulatedModality(12, (4, 4), 0.5, 6.0)
    sequences = simulate_sequences({"a": modality, "b": modality}, target, seed=0, split=0)
    sure = SimulatedModality(12, (4, 4), 1.0, 6.0)
    reference = simulate_sequences({"a": sure, "b": sure}, target, seed=0, split=1)
    right = {}
    for name, found in sequences.items():
        means = sample_means(reference[name])
        centers = np.array([means[target == label].mean(axis=0) for label in range(CLASSES)])
        nearest = ((sample_means(found)[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
        right[name] = nearest == target
    expected = right["a"].mean() * right["b"].mean()
    assert (right["a"] & right["b"]).mean() == pytest.approx(expected, abs=0.03)


def test_a_folder_that_another_process_simulated_meanwhile_is_taken(tmp_path):
    def write(settings, meanwhile=None):
        with simulated_folder(tmp_path / "demo", settings) as draft:
            (draft / "a").write_text(str(settings))
            if meanwhile:
                write(meanwhile)

    write({"seed": 1}, meanwhile={"seed": 1})
    assert (tmp_path / "demo" / "a").read_text() == "{'seed': 1}"
    shutil.rmtree(tmp_path / "demo")
    with pytest.raises(UserError, match="simulated from the same settings"):
        write({"seed": 1}, meanwhile={"seed": 2})
