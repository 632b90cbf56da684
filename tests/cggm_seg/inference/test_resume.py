"""A folder of predictions knows what made it: what is done stays, what differs is refused."""

import csv
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from cggm.errors import UserError
from cggm.runs.storage.files import replacing
from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.inference.cohort import predict_cases
from cggm_seg.inference.folder import network_digest
from cggm_seg.inference.options import FileOptions
from cggm_seg.inference.slices import InferenceSettings
from tests.cggm_seg.nifti import case_file, write_case, write_volume
from tests.cggm_seg.predicting import PixelNetwork, small_network
from tests.quantifiers import every

SHAPE = (32, 32, 6)


class Counting(PixelNetwork):
    """Knows how often it was called; the seed makes the weights."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


@pytest.fixture
def data(tmp_path):
    for k, name in enumerate("abc"):
        write_case(tmp_path / "in", name, shape=SHAPE, seed=k)
    return tmp_path / "in"


@pytest.fixture
def predict(data, tmp_path):
    def predict(network, settings=None, absent=(), **written):
        cases, _ = find_cases(data, labelled=False, allow_missing=True)
        settings = settings or InferenceSettings(precision="float32")
        files = FileOptions(**{"previews": False, **written})
        output = tmp_path / "out"
        return predict_cases(network, cases, output, settings, absent=absent, files=files)

    return predict


def content(folder):
    """Bytes of all files but those that tell the time."""
    files = [*folder.rglob("*.nii.gz"), *folder.rglob("*.png")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def names(files):
    return [file.name.removesuffix(".nii.gz") for file in files]


def test_what_is_done_is_not_done_again(predict, tmp_path):
    network = Counting()
    assert names(predict(network).written) == ["a", "b", "c"]
    (tmp_path / "out" / "b.nii.gz").unlink()
    calls, before = int(network.calls), os.stat(tmp_path / "out" / "a.nii.gz").st_mtime_ns
    again = predict(network)
    assert (names(again.written), names(again.found)) == (["b"], ["a", "c"])
    assert names(again.files) == ["a", "b", "c"]
    assert int(network.calls) == calls + 1
    assert os.stat(tmp_path / "out" / "a.nii.gz").st_mtime_ns == before


def test_batch_size_does_not_matter(predict):
    predict(Counting())
    again = predict(Counting(), InferenceSettings(batch_size=2, precision="float32"))
    assert names(again.found) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("seed", "settings", "difference"),
    [
        (1, {"precision": "float32"}, "network"),
        (0, {"precision": "bf16", "flips": True}, "flips, precision"),
        (0, {"precision": "float32", "mode": "window", "window": 32}, "mode, window, overlap"),
    ],
)
def test_another_network_or_setting_is_refused(predict, tmp_path, seed, settings, difference):
    predict(Counting())
    (tmp_path / "out" / "b.nii.gz").unlink()
    before = content(tmp_path / "out")
    other = Counting(seed)
    message = f"that of a \\(and 1 more\\) was made with another {difference}"
    with pytest.raises(UserError, match=message):
        predict(other, InferenceSettings(**settings))
    assert content(tmp_path / "out") == before  # case b included, lest the folder be a mixture
    replaced = predict(other, InferenceSettings(**settings), overwrite=True)
    assert names(replaced.written) == ["a", "b", "c"]
    assert content(tmp_path / "out") != before
    assert names(predict(other, InferenceSettings(**settings), overwrite=True).found) == [*"abc"]


def test_other_images_are_refused(predict, data, tmp_path):
    predict(Counting())
    image = nib.load(case_file(data, "b", "t1"))
    write_volume(case_file(data, "b", "t1"), np.asarray(image.dataobj) * 2)
    case_file(data, "c", "t2").unlink()
    before = content(tmp_path / "out")
    again = predict(Counting())
    assert names(again.found) == ["a"]
    assert [error.case for error in again.errors] == ["b", "c"]
    assert every("made from other images" in str(error) for error in again.errors)
    assert content(tmp_path / "out") == before
    assert names(predict(Counting(), overwrite=True).written) == ["b", "c"]


def test_absent_modalities_are_other_images(predict):
    predict(Counting())
    assert len(predict(Counting(), absent=["t2"]).errors) == 3


def test_renamed_cases_get_the_labels_of_their_scheme(predict, data):
    predict(Counting())
    for modality in (*MODALITIES, "seg"):
        case_file(data, "a", modality).rename(case_file(data, "a", modality, "2023"))
    assert [error.case for error in predict(Counting()).errors] == ["a"]


def test_what_somebody_else_put_there_is_kept(predict, tmp_path):
    predict(Counting(), previews=True)
    label, preview = tmp_path / "out" / "a.nii.gz", tmp_path / "out" / "previews" / "b.png"
    shutil.copy(tmp_path / "out" / "c.nii.gz", label)
    preview.write_text("mine")
    errors = predict(Counting(), previews=True).errors
    assert [(error.case, error.file) for error in errors] == [("a", label), ("b", preview)]
    assert preview.read_text() == "mine"


def test_further_files_are_added_without_overwriting(predict, tmp_path):
    predict(Counting())
    before = content(tmp_path / "out")
    assert names(predict(Counting(), probabilities=True, previews=True).written) == [*"abc"]
    after = content(tmp_path / "out")
    assert before.items() <= after.items()
    assert len(after) == 9
    assert names(predict(Counting()).found) == [*"abc"]


def test_no_outdated_file_stays_beside_a_new_label_map(predict, tmp_path):
    predict(Counting(), probabilities=True, previews=True)
    before = content(tmp_path / "out")
    predict(Counting(1), overwrite=True)
    after = content(tmp_path / "out")
    assert before.keys() == after.keys()
    assert not [name for name in before if before[name] == after[name]]


def test_summary_tells_of_all_cases_in_the_folder(predict, data, tmp_path):
    case_file(data, "b", "t1").unlink()
    predict(Counting(), absent=["flair"])
    shutil.rmtree(data / "a")
    write_case(data, "d", shape=SHAPE, seed=4)
    (tmp_path / "out" / "c.nii.gz").write_text("mine")
    predict(Counting(), absent=["flair"])
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "b", "d"]
    assert [row["absent"] for row in rows] == ["flair", "flair t1", "flair"]
    for row in rows:
        labels = np.asarray(nib.load(tmp_path / "out" / row["file"]).dataobj)
        voxels = [np.isin(labels, classes).sum() for classes in ((1, 2, 4), (1, 4), (4,))]
        assert [float(row[f"{region}_ml"]) for region in ("WT", "TC", "ET")] == [
            round(count / 1000, 3) for count in voxels
        ]
        assert float(row["seconds"]) >= 0
        assert network_digest(Counting()).startswith(row["model"])


def test_drafts_of_a_killed_process_go_and_those_of_others_stay(predict, tmp_path):
    (tmp_path / "out").mkdir()
    own = tmp_path / "out" / ".tmp-12-0123abcd-.tmp-12-4567cdef-a.nii.gz"
    own.touch()
    with replacing(tmp_path / "out" / "a.nii.gz") as draft:
        predict(Counting())
        shutil.copy(tmp_path / "out" / "a.nii.gz", draft)
    assert not own.exists()


def test_digest_of_a_network_knows_weights_and_structure():
    class Ruled(nn.Module):
        def __init__(self, rule="mean", dilation=1):
            super().__init__()
            torch.manual_seed(0)
            self.rule, self.layer = rule, nn.Conv2d(1, 1, 3, dilation=dilation)

    digest = network_digest(Ruled())
    assert network_digest(Ruled().eval()) == digest
    assert network_digest(Ruled("sum")) != digest
    assert network_digest(Ruled(dilation=2)) != digest
    changed = Ruled()
    changed.layer.bias.data += 1e-7
    assert network_digest(changed) != digest


def test_no_name_of_a_case_is_a_formula_in_the_summary(predict, data, tmp_path):
    names = ["+2", "=1+1", "@SUM(1)"]
    for k, name in enumerate(names):
        write_case(data, name, shape=SHAPE, seed=k)
    predict(Counting())
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [*(f"'{name}" for name in names), "a", "b", "c"]
    assert [row["file"] for row in rows][:3] == [f"'{name}.nii.gz" for name in names]


def test_digest_of_a_network_is_of_what_it_computes():
    network = small_network()
    before = network_digest(network)
    for module in network.modules():
        module._of_another_torch = 3
    assert network_digest(network.train()) == network_digest(network.eval()) == before
    module = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    module.stride = (3, 3)
    assert network_digest(network) != before
    changed = small_network()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    assert network_digest(changed) != before
