from dataclasses import replace
from hashlib import sha256
from itertools import chain

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cggm.runs.loop.sampling import EpochSampler
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.data.slices import SliceDataset, random_crop
from tests.cggm_seg.nifti import case_file, write_case, write_volume
from tests.quantifiers import every

ANY = ((1, 2, 3),)
REGIONS = ((3,), (1, 3), (1, 2, 3))  # ET, TC, WT


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    for seed in range(3):
        write_case(folder / "data", f"case{seed}", seed=seed)
    cases, _ = find_cases(folder / "data", labelled=True)
    return build_cache(cases, folder / "cache", workers=1, progress=False)[0]


def batches(dataset, workers, epoch, seed=0):
    sampler = EpochSampler(len(dataset), seed=seed)
    sampler.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers)
    return list(loader)


def check_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one["case"] == other["case"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_item_has_the_announced_types(cache):
    item = SliceDataset(cache, cache.case_ids, size=24)[0, 0]
    assert (item["image"].dtype, item["image"].shape) == (torch.float32, (4, 24, 24))
    assert (item["label"].dtype, item["label"].shape) == (torch.int64, (24, 24))
    assert item["case"] == "case0"
    assert item["present"].tolist() == [True] * 4
    assert set(item["label"].unique().tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("augment", "regions"), [(False, ANY), (True, ANY), (True, REGIONS)])
def test_workers_do_not_change_batches(cache, augment, regions):
    dataset = SliceDataset(
        cache, cache.case_ids, size=24, slices_per_case=4, augment=augment, regions=regions
    )
    check_equal(batches(dataset, 0, epoch=1), batches(dataset, 2, epoch=1))


def test_epochs_and_seeds_differ_and_repeat(cache):
    dataset = SliceDataset(cache, cache.case_ids, size=24)
    other_seed = SliceDataset(cache, cache.case_ids, size=24, seed=1)
    assert torch.equal(dataset[3, 1]["image"], dataset[3, 1]["image"])
    assert not torch.equal(dataset[3, 1]["image"], dataset[4, 1]["image"])
    assert not torch.equal(dataset[3, 1]["image"], other_seed[3, 1]["image"])


def test_items_do_not_depend_on_what_was_read_before(cache):
    dataset = SliceDataset(cache, cache.case_ids, size=24, slices_per_case=2)
    forward = [dataset[0, k] for k in range(6)]
    backward = [dataset[0, k] for k in reversed(range(6))]
    check_equal(forward, backward[::-1])


def test_every_case_is_drawn_equally_often(cache):
    dataset = SliceDataset(cache, cache.case_ids, slices_per_case=3)
    drawn = list(chain.from_iterable(batch["case"] for batch in batches(dataset, 0, epoch=0)))
    assert sorted(drawn) == sorted(cache.case_ids * 3)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_lesion_fraction_decides_how_many_crops_meet_a_lesion(cache, fraction):
    dataset = SliceDataset(
        cache, ["case0"], size=16, slices_per_case=300, lesion_fraction=fraction, augment=False
    )
    met = np.mean([bool(dataset[0, k]["label"].any()) for k in range(300)])
    by_chance = np.mean(
        [
            bool(
                SliceDataset(cache, ["case0"], size=16, lesion_fraction=0, augment=False)[epoch, 0][
                    "label"
                ].any()
            )
            for epoch in range(300)
        ]
    )
    assert by_chance < 0.75
    assert met == pytest.approx(fraction + (1 - fraction) * by_chance, abs=0.1)
    assert fraction < 1 or met == 1


def test_draws_for_any_lesion_are_those_of_earlier_versions(cache):
    dataset = SliceDataset(cache, cache.case_ids, size=16, slices_per_case=20, augment=False)
    drawn = np.stack([dataset[2, k]["label"].numpy() for k in range(60)]).astype(np.uint8)
    assert sha256(drawn.tobytes()).hexdigest()[:16] == "4b0cd651dcb37661"


@pytest.fixture(scope="module")
def thin_core(tmp_path_factory):
    """Twelve slices with edema, of which one has a core of 2 NCR and 1 ET voxels."""
    folder = tmp_path_factory.mktemp("thin")
    write_case(folder / "data", "thin", shape=(40, 40, 24))
    labels = np.zeros((40, 40, 24), np.uint8)
    labels[10:30, 10:30, 6:18] = 2
    labels[20, 18:21, 12] = 1, 1, 4
    write_volume(case_file(folder / "data", "thin", "seg"), labels)
    cases, _ = find_cases(folder / "data", labelled=True)
    return build_cache(cases, folder / "cache", workers=1, progress=False)[0]


@pytest.mark.parametrize(("regions", "share"), [(ANY, 0.9 / 12), (REGIONS, 0.9 * (2 + 1 / 12) / 3)])
def test_small_regions_are_drawn_as_often_as_large_ones(thin_core, regions, share):
    dataset = SliceDataset(
        thin_core, ["thin"], size=40, slices_per_case=600, regions=regions, augment=False
    )
    labels = [dataset[0, k]["label"] for k in range(600)]
    # Free slices, a tenth of all, show it by chance as well: one in 22 of the brain's.
    found = np.mean([bool((label == 3).any()) for label in labels])
    assert found == pytest.approx(share + 0.1 / 22, abs=0.05)


def test_crops_drawn_for_a_region_meet_it(thin_core):
    dataset = SliceDataset(
        thin_core,
        ["thin"],
        size=8,
        slices_per_case=200,
        lesion_fraction=1,
        regions=((3,),),
        augment=False,
    )
    labels = [dataset[0, k]["label"] for k in range(200)]
    assert every((label == 3).sum() == 1 for label in labels)
    places = {tuple(np.argwhere(label.numpy() == 3)[0]) for label in labels}
    assert len(places) > 30  # anywhere in the crop


def test_regions_that_a_case_lacks_leave_their_share_to_the_others(tmp_path):
    write_case(tmp_path / "data", "edema", shape=(40, 40, 24))
    labels = np.zeros((40, 40, 24), np.uint8)
    labels[10:30, 10:30, 6:18] = 2
    write_volume(case_file(tmp_path / "data", "edema", "seg"), labels)
    cases, _ = find_cases(tmp_path / "data", labelled=True)
    cache, _ = build_cache(cases, tmp_path / "cache", workers=1, progress=False)
    options = {"size": 24, "slices_per_case": 10, "augment": False, "lesion_fraction": 1}
    dataset = SliceDataset(cache, cache.case_ids, regions=REGIONS, **options)
    check_equal(
        [dataset[0, k] for k in range(10)],
        [SliceDataset(cache, cache.case_ids, **options)[0, k] for k in range(10)],
    )


def test_case_without_lesion_gives_brain_slices(tmp_path):
    write_case(tmp_path / "data", "healthy")
    [case], _ = find_cases(tmp_path / "data", labelled=True)
    label = nib.load(case.label)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), case.label)
    cache, _ = build_cache([case], tmp_path / "cache", workers=1, progress=False)
    item = SliceDataset(cache, cache.case_ids, lesion_fraction=1)[0, 0]
    assert item["image"].any()
    assert not item["label"].any()


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"slices_per_case": 0}, {"lesion_fraction": 1.1}, {"case_ids": []}]
)
def test_senseless_options_are_refused(cache, options):
    with pytest.raises(ValueError, match="Expected"):
        SliceDataset(cache, **{"case_ids": cache.case_ids, **options})


def test_position_outside_the_epoch_is_an_error(cache):
    with pytest.raises(IndexError, match=r"`position` in \[0, 3\)"):
        SliceDataset(cache, cache.case_ids)[0, 3]


@pytest.mark.parametrize("size", [5, 9, 30])
def test_crop_contains_its_point_and_keeps_pixels_in_place(size):
    rng = np.random.default_rng(0)
    label = np.arange(1, 12 * 20 + 1).reshape(12, 20)
    image = np.stack([label, -label])
    for _ in range(100):
        point = (int(rng.integers(12)), int(rng.integers(20)))
        crop, crop_label = random_crop(image, label, size, rng, point)
        assert crop.shape == (2, size, size)
        assert label[point] in crop_label
        np.testing.assert_array_equal(crop, [crop_label, -crop_label])
        assert np.count_nonzero(crop_label) == min(size, 12) * min(size, 20)


def test_free_crops_reach_every_place():
    label = np.arange(6)[:, None] * np.ones((1, 6), int)
    rng = np.random.default_rng(0)
    tops = {int(random_crop(label[None], label, 4, rng)[1][0, 0]) for _ in range(50)}
    assert tops == {0, 1, 2}


def test_absent_modality_stays_zero_under_augmentation_and_is_told_by_the_item(tmp_path):
    for seed in range(2):
        write_case(tmp_path / "data", f"case{seed}", seed=seed)
    cases, _ = find_cases(tmp_path / "data", labelled=True)
    images = {name: file for name, file in cases[0].images.items() if name != "t1ce"}
    cases[0] = replace(cases[0], images=images)
    cache, _ = build_cache(cases, tmp_path / "cache", workers=1, progress=False)
    dataset = SliceDataset(cache, cache.case_ids, size=24, slices_per_case=8)
    [batch] = list(DataLoader(dataset, 16, sampler=[(0, k) for k in range(16)]))
    assert batch["present"].tolist() == [[True, False, True, True]] * 8 + [[True] * 4] * 8
    shown = batch["image"].flatten(2).any(-1)
    assert shown.tolist() == batch["present"].tolist()
