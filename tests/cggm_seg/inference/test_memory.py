import logging

import pytest
import torch
from torch import nn

from cggm.errors import UserError
from cggm_seg.data.cases import find_cases
from cggm_seg.inference.cohort import predict_cases
from cggm_seg.inference.slices import InferenceSettings
from cggm_seg.inference.volume import predict_volume
from tests.cggm_seg.nifti import write_case
from tests.cggm_seg.predicting import PixelNetwork, brain_volume

SEVEN = InferenceSettings(batch_size=7, precision="float32")


def gpu_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def processor_is_full():
    torch.empty(2**60, dtype=torch.uint8)  # which its allocator refuses


class Small(nn.Module):
    """Has room for a few slices at a time."""

    def __init__(self, room, fail):
        super().__init__()
        torch.manual_seed(0)
        self.network = PixelNetwork()
        self.modalities, self.tried = self.network.modalities, []
        self.room, self.fail = room, fail

    def forward(self, images):
        self.tried.append(len(images))
        if len(images) > self.room:
            self.fail()
        return self.network(images)


@pytest.mark.parametrize("fail", [gpu_is_full, processor_is_full])
def test_size_is_halved_until_it_fits_and_stays_so(fail, caplog):
    images, _ = brain_volume((32, 32, 20))
    small = Small(3, fail)
    with caplog.at_level(logging.WARNING):
        labels = predict_volume(small, images, SEVEN)
    assert (labels == predict_volume(small.network, images, SEVEN)).all()
    slices = int(images.any(axis=(0, 1, 2)).sum())
    assert small.tried == [7, *[3] * (slices // 3), *([slices % 3] if slices % 3 else [])]
    assert caplog.messages == ["Memory is short: 3 slices at once from here on."]


def test_later_cases_begin_with_the_size_that_fitted(tmp_path):
    for name in ("a", "b"):
        write_case(tmp_path / "in", name, shape=(32, 32, 20))
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    small = Small(3, gpu_is_full)
    predictions = predict_cases(small, cases, tmp_path / "out", SEVEN)
    assert len(predictions.written) == 2
    assert [tried for tried in small.tried if tried > 3] == [7]


def test_a_last_batch_that_is_short_is_halved_as_well():
    images, _ = brain_volume((32, 32, 20))
    settings = InferenceSettings(batch_size=1000, precision="float32")
    small = Small(5, gpu_is_full)
    predict_volume(small, images, settings)
    slices = int(images.any(axis=(0, 1, 2)).sum())
    assert small.tried[:3] == [slices, slices // 2, slices // 4]


@pytest.mark.parametrize("fail", [gpu_is_full, processor_is_full])
def test_too_little_for_one_slice_is_said(fail):
    with pytest.raises(UserError, match="Expected memory for one slice at a time"):
        predict_volume(Small(0, fail), brain_volume((32, 32, 4))[0], SEVEN)


def test_other_errors_of_torch_pass():
    def broken():
        torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="size"):
        predict_volume(Small(0, broken), brain_volume((32, 32, 4))[0], SEVEN)
