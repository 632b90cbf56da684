from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.evaluation.folder import subset_names
from cggm_seg.evaluation.regions import REGIONS
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.training.validation import (
    COLUMNS,
    evaluate_cached,
    mean_of,
    missed_regions,
    missed_warnings,
    subset_means,
    unused_class_warnings,
    validation_metrics,
)
from tests.cggm_seg.nifti import case_file, write_case, write_volume
from tests.quantifiers import every

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors
CASES = ("case0", "case1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    for seed, case_id in enumerate(CASES):
        write_case(folder / "data", case_id, shape=(40, 44, 12), seed=seed)
    cases, _ = find_cases(folder / "data", labelled=True)
    return build_cache(cases, folder / "cache", workers=1, progress=False)[0]


@pytest.fixture(scope="module")
def network(cache):
    """Random weights with BatchNorm statistics of the data, so that it predicts every class."""
    torch.manual_seed(0)
    network = MultiEncoderDeepLabV3Plus(
        encoder_name="tu-lcnet_050", decoder_channels=16, low_level_channels=8
    )
    images, _ = volume(cache, "case0")
    for _ in range(30):
        network(padded(images))
    return network.eval()


def volume(cache, case_id):
    slices = [cache.read(case_id, z) for z in range(cache.depth(case_id))]
    images, labels = (np.stack(part) for part in zip(*slices, strict=True))
    return torch.from_numpy(images), labels


def padded(images):
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % 16, 0, -height % 16))


def brute_force_dice(network, images, labels, subset):
    """Dice of the whole volume at once, the absent modalities set to zero in the input."""
    images = images.clone()
    for channel, name in enumerate(MODALITIES):
        if name not in subset:
            images[:, channel] = 0
    height, width = labels.shape[1:]
    with torch.no_grad():
        classes = network(padded(images))[..., :height, :width].argmax(1).numpy()
    scores = {}
    for region, members in REGIONS.items():
        found, wanted = np.isin(classes, members), np.isin(labels, members)
        both = 2 * (found & wanted).sum()
        size = found.sum() + wanted.sum()
        scores[f"dice_{region}"] = both / size if size else 1.0
    return scores


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_dice_of_every_subset_is_that_of_the_whole_volume(cache, network, batch_size):
    subsets = subset_names(MODALITIES)
    results = evaluate_cached(network, cache, CASES, subsets=subsets, batch_size=batch_size)
    assert list(results) == subsets
    for subset, rows in results.items():
        assert [row["case"] for row in rows] == list(CASES)
        for row in rows:
            images, labels = volume(cache, row["case"])
            expected = brute_force_dice(network, images, labels, subset)
            for name, score in expected.items():
                assert row[name] == pytest.approx(score, abs=1e-3), (subset, name)
            assert row["dice_mean"] == pytest.approx(np.mean([row[n] for n in expected]))
    assert len({rows[0]["dice_WT"] for rows in results.values()}) > 5


def test_default_is_all_modalities(cache, network):
    [(subset, rows)] = evaluate_cached(network, cache, CASES).items()
    assert subset == MODALITIES
    explicit = evaluate_cached(network, cache, CASES, subsets=[MODALITIES])
    assert explicit[MODALITIES] == rows


@pytest.mark.parametrize(("winner", "score"), [(0, 1.0), (3, 0.0)])
def test_empty_regions_score_one_unless_something_is_found(tmp_path, network, winner, score):
    write_case(tmp_path / "data", "healthy", shape=(32, 32, 8))
    blank = np.zeros((32, 32, 8), np.uint8)
    write_volume(case_file(tmp_path / "data", "healthy", "seg"), blank)
    cases, _ = find_cases(tmp_path / "data", labelled=True)
    cache, _ = build_cache(cases, tmp_path / "cache", workers=1, progress=False)
    network = deepcopy(network)
    network.output_layer.bias.data[winner] += 1e4  # this class everywhere
    [row] = evaluate_cached(network, cache, ["healthy"])[MODALITIES]
    assert [row[f"dice_{region}"] for region in (*REGIONS, "mean")] == [score] * 4


@pytest.fixture(scope="module")
def partly_enhancing(tmp_path_factory):
    """A case of edema alone, one with NCR, one with NCR and ET; one without any lesion."""
    folder = tmp_path_factory.mktemp("partly")
    for name, present in {"ed": [2], "ncr": [1, 2], "et": [1, 2, 4], "none": []}.items():
        write_case(folder / "data", name, shape=(32, 32, 8))
        labels = np.zeros((32, 32, 8), np.uint8)
        for position, value in enumerate(present):
            labels[8 + 4 * position : 12 + 4 * position, 8:24, 2:6] = value
        write_volume(case_file(folder / "data", name, "seg"), labels)
    cases, _ = find_cases(folder / "data", labelled=True)
    return build_cache(cases, folder / "cache", workers=1, progress=False)[0]


def rows_of(**scores):
    """Rows with the Dice of WT, TC and ET of each case."""
    names = ("dice_WT", "dice_TC", "dice_ET")
    return [{"case": case, **dict(zip(names, own, strict=True))} for case, own in scores.items()]


@pytest.mark.parametrize(
    ("scores", "missed"),
    [
        # An empty region that was left empty has Dice 1, but no case that has ET or TC got any.
        ({"ed": (0.5, 1, 1), "ncr": (0.5, 0, 1), "et": (0.5, 0, 0)}, {"TC": 2, "ET": 1}),
        ({"ed": (0.5, 1, 1), "ncr": (0.5, 0.1, 1), "et": (0.5, 0, 0)}, {"ET": 1}),
        ({"ed": (0, 1, 1), "ncr": (0, 0, 0), "et": (0, 0, 0)}, {"WT": 3, "TC": 2, "ET": 1}),
        # No case has ET: predicting it or not, there is nothing to miss.
        ({"ed": (0.5, 0, 0), "ncr": (0.5, 0.2, 1)}, {}),
        ({"none": (0, 0, 0)}, {}),
    ],
)
def test_regions_of_which_no_voxel_was_found(partly_enhancing, scores, missed):
    assert missed_regions(rows_of(**scores), partly_enhancing) == missed


def test_warning_names_the_regions_and_what_to_do(partly_enhancing):
    scores = {"ed": (0.5, 1, 1), "ncr": (0.5, 0, 1), "et": (0.5, 0, 0)}
    (sentence,) = missed_warnings(rows_of(**scores), partly_enhancing)
    assert sentence.startswith("Not one voxel was found of TC and ET, although validation cases")
    assert "(TC 2, ET 1 of 3)" in sentence
    assert "--loss.dice regions" in sentence
    assert missed_warnings(rows_of(et=(0.5, 0.4, 0.3)), partly_enhancing) == []


def test_warning_names_the_classes_that_training_cannot_teach(partly_enhancing):
    (sentence,) = unused_class_warnings(partly_enhancing, ["ed", "ncr"])
    assert sentence.startswith("No label map of the 2 training cases holds ET: ")
    assert unused_class_warnings(partly_enhancing, ["ed", "ncr", "et"]) == []


@pytest.mark.parametrize(("winner", "missed"), [(0, "WT and TC and ET"), (2, "TC and ET")])
def test_validation_warns_of_a_network_that_never_predicts_a_region(
    partly_enhancing, network, winner, missed
):
    network = deepcopy(network)
    network.output_layer.bias.data[winner] += 1e4  # this class everywhere
    metrics = validation_metrics(network, partly_enhancing, ["et", "ncr"])
    assert f"found of {missed}, although" in metrics.pop("warnings")[0]
    assert list(metrics) == ["dice_ET", "dice_TC", "dice_WT", "dice_mean"]
    assert metrics["dice_TC"] == metrics["dice_ET"] - 0.5 == 0  # one case has no ET


def test_validation_without_a_missed_region_gives_metrics_alone(partly_enhancing, network):
    network = deepcopy(network)
    network.output_layer.bias.data[3] += 1e4  # ET everywhere: low, but nothing is missed
    assert "warnings" not in validation_metrics(network, partly_enhancing, ["et", "ncr"])


def test_network_is_evaluated_in_eval_mode_and_left_as_it_was(cache, network):
    expected = evaluate_cached(network, cache, CASES)
    network = deepcopy(network).train()
    before = deepcopy(network.state_dict())
    assert evaluate_cached(network, cache, CASES) == expected
    assert network.training
    assert every(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_mean_of_a_column():
    rows = [{"case": "a", "dice_WT": 0.25}, {"case": "b", "dice_WT": 0.75}]
    assert mean_of(rows, "dice_WT") == 0.5


class Lacking:
    """A cache of two cases, the second of which has no t1ce."""

    modalities = ("flair", "t1ce")

    def present(self, case_id):
        return (True, case_id == "whole")


def test_subsets_are_measured_on_the_cases_that_have_them():
    def rows(whole, part):
        return [
            {"case": case, **dict.fromkeys(COLUMNS, dice)}
            for case, dice in (("whole", whole), ("part", part))
        ]

    found = {
        ("flair", "t1ce"): rows(0.9, 0.3),
        ("flair",): rows(0.5, 0.3),
        ("t1ce",): rows(0.7, 0.0),
    }
    table = subset_means(found, Lacking())
    assert {name: row["dice_ET"] for name, row in table.items()} == {
        "flair+t1ce": 0.9,
        "flair": 0.4,
        "t1ce": 0.7,
    }
    assert [row["cases"] for row in table.values()] == [1, 2, 1]
    # Nothing is counted where every case has everything, and what no case has is no row.
    whole = subset_means({subset: own[:1] for subset, own in found.items()}, Lacking())
    assert every("cases" not in row for row in whole.values())
    part = subset_means({subset: own[1:] for subset, own in found.items()}, Lacking())
    assert list(part) == ["flair"]
