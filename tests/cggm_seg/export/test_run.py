import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from cggm.errors import UserError
from cggm_seg.data.cases import find_cases
from cggm_seg.export.card import color_table
from cggm_seg.export.program import export_program, onnx_network, write_onnx, write_program
from cggm_seg.export.run import export_run
from cggm_seg.inference.cohort import predict_cases
from cggm_seg.inference.slices import InferenceSettings
from cggm_seg.inference.volume import predict_volume
from tests.cggm_seg.exporting import finished_run
from tests.cggm_seg.nifti import case_file, write_case, write_volume
from tests.quantifiers import every

SHARED = Path(__file__).parents[3] / "configs" / "bundle"
USED = ("flair", "t1ce")
FLOAT32 = InferenceSettings(precision="float32", batch_size=5)

torch.set_num_threads(1)

needs_onnx = pytest.mark.skipif(
    not every(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="extra `export`"
)
needs_fire = pytest.mark.skipif(
    not every(map(find_spec, ("fire", "jsonschema"))), reason="extra `export`"
)


class Written(nn.Module):
    """An exported network in the place of the network."""

    modalities = USED

    def __init__(self, function):
        super().__init__()
        self.function, self.place = function, nn.Parameter(torch.zeros(0))

    def forward(self, images):
        return self.function(images)


class Smallest(nn.Module):
    """Two convolutions at two resolutions, exported in a second."""

    modalities = USED

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 4, 1)

    def forward(self, images):
        feature = nn.functional.interpolate(self.first(images), scale_factor=2.0, mode="bilinear")
        return self.second(feature)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bundle(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "new" / "bundle"
    export_run(finished[0], "bundle", folder, SHARED)
    return folder


@pytest.fixture
def images(tmp_path):
    """The intensities of a case that is on no grid of 16."""
    write_case(tmp_path / "images", "a", shape=(75, 58, 7))
    files = [case_file(tmp_path / "images", "a", name) for name in USED]
    return np.stack([np.asarray(nib.load(file).dataobj) for file in files])


def run_bundle(bundle, *options, without):
    """Runs a bundle in a process that cannot import the packages `without`."""
    blocked = bundle.parent / "blocked"
    for name in without:
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(blocked)}
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", "configs/inference.json", "--device", "cpu", *map(str, options)]
    return subprocess.run(
        command, cwd=bundle, env=environment, capture_output=True, text=True, check=False
    )


def _turn(file, codes):
    """Store an image in another orientation."""
    image = nib.load(file)
    now = nib.orientations.io_orientation(image.affine)
    turn = nib.orientations.ornt_transform(now, nib.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    write_volume(file, np.asarray(turned.dataobj), turned.affine)


def _shift(file, offset):
    """Store an image with another value of the background."""
    image = nib.load(file)
    write_volume(file, np.asarray(image.dataobj, np.float32) + np.float32(offset), image.affine)


@needs_fire
def test_bundle_gives_the_label_maps_of_this_project_without_it(finished, bundle, tmp_path):
    shapes = {"a": (75, 58, 7), "b": (64, 48, 9), "sagittal": (64, 48, 9), "offset": (64, 48, 9)}
    for name, shape in shapes.items():
        write_case(tmp_path / "cases", name, shape=shape, seed=len(name))
    for modality in USED:
        _turn(case_file(tmp_path / "cases", "sagittal", modality), "PIR")
        _shift(case_file(tmp_path / "cases", "offset", modality), -3.5)
    done = run_bundle(
        bundle,
        *("--dataset_dir", tmp_path / "cases", "--output_dir", tmp_path / "theirs"),
        without=("cggm", "cggm_seg", "segmentation_models_pytorch", "timm"),
    )
    assert done.returncode == 0, done.stderr
    cases, _ = find_cases(tmp_path / "cases", labelled=False)
    predict_cases(finished[1], cases, tmp_path / "ours", FLOAT32)
    assert {file.name for file in (tmp_path / "theirs").iterdir()} == {
        f"{n}.nii.gz" for n in shapes
    }
    for name in shapes:
        ours, theirs = (nib.load(tmp_path / side / f"{name}.nii.gz") for side in ("ours", "theirs"))
        image = nib.load(case_file(tmp_path / "cases", name, "flair"))
        np.testing.assert_array_equal(theirs.affine, image.affine)
        assert theirs.shape == image.shape
        assert theirs.get_data_dtype() == np.uint8
        found, expected = np.asarray(theirs.dataobj), np.asarray(ours.dataobj)
        assert (found == expected).mean() >= 0.9999
        assert {0, 4} < set(np.unique(found).tolist()) <= {0, 1, 2, 4}


@pytest.mark.parametrize("naming", ["2021", "2023"])
def test_bundle_finds_cases_and_names_what_is_missing(naming, tmp_path):
    cases = runpy.run_path(str(SHARED / "scripts" / "cases.py"))
    write_case(tmp_path, "a_t1", naming=naming, suffix=".nii")
    files = [case_file(tmp_path, "a_t1", name, naming, suffix=".nii") for name in USED]
    suffixes = [file.name.removeprefix("a_t1").removesuffix(".nii") for file in files]
    assert cases["find_cases"](str(tmp_path), suffixes) == [{"image": [str(f) for f in files]}]
    assert cases["case_name"]({"filename_or_obj": str(files[0])}, None) == {"subject": "a_t1"}
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match="write an image of zeros") as raised:
        cases["find_cases"](str(tmp_path), suffixes)
    assert str(files[1]) in str(raised.value)
    with pytest.raises(FileNotFoundError, match="expected files <case>-adc"):
        cases["find_cases"](str(tmp_path), ["-adc"])


@needs_fire
def test_metadata_passes_the_check_offline(bundle, tmp_path):
    from monai.bundle import verify_metadata

    schema, file = (bundle / "configs" / f"metadata{end}.json" for end in ("_schema", ""))
    verify_metadata(str(file), str(schema))
    metadata = json.loads(file.read_text())
    del metadata["network_data_format"]["outputs"]
    (tmp_path / "bad.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="'outputs' is a required property"):
        verify_metadata(str(tmp_path / "bad.json"), str(schema))


def test_metadata_describes_the_network(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    tensors = metadata["network_data_format"]
    assert tensors["inputs"]["image"]["channel_def"] == {"0": "flair", "1": "t1ce"}
    assert tensors["outputs"]["pred"]["num_channels"] == 4
    assert metadata["eval_metrics"] == {
        "mean_dice_ET": 0.25,
        "mean_dice_TC": 0.5,
        "mean_dice_WT": 0.75,
    }
    inference = json.loads((bundle / "configs" / "inference.json").read_text())
    assert inference["suffixes"] == ["_flair", "_t1ce"]


def test_no_head_is_in_the_bundle(finished, bundle):
    run, network = finished
    [training] = run.checkpoints.glob("*/training.pt")
    assert torch.load(training, weights_only=True)["parts"]["balancer"]  # there are heads to leave
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert weights.keys() == network.state_dict().keys()
    assert every(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    graph = torch.export.load(bundle / "models" / "network.pt2")
    assert set(graph.state_dict) == set(weights)
    assert {value.device.type for value in graph.state_dict.values()} == {"meta"}


def test_digests_name_every_file(bundle):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    listed = {line.split("  ")[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert {file for file in files if "__pycache__" not in file} == listed | {"SHA256SUMS"}
    assert {"MODEL_CARD.md", "labels.ctbl", "models/model.pt", "scripts/inferer.py"} <= listed


def test_model_card_says_what_one_has_to_know(bundle):
    card = (bundle / "MODEL_CARD.md").read_text()
    for text in (
        "SIMULATED",
        "no medical device",
        "3 cases, 2 more for validation",
        "flair, t1ce",
        "tu-test_byobnet",
        "| ET | 0.2500 |",
        "a missing modality is a channel of zeros",
        "Apache-2.0",
    ):
        assert text in card


def test_model_card_without_results(finished, tmp_path):
    from cggm.runs.config import read_config
    from cggm.runs.folder import RunFolder
    from cggm_seg.export.card import model_card, read_facts
    from cggm_seg.training.config import BratsConfig

    config = read_config(BratsConfig, [finished[0].config])
    card = model_card(read_facts(RunFolder(tmp_path), config, 3))
    assert "Not evaluated." in card
    assert "Whether they are simulated is not on record." in card
    assert "SIMULATED" not in card


def test_program_gives_the_labels_of_the_network(finished, images, tmp_path):
    _, network = finished
    write_program(export_program(network), tmp_path / "model.pt2", {"classes": "four"})
    notes = {"classes": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=notes)
    assert notes == {"classes": "four"}
    assert program.state_dict.keys() == network.state_dict().keys()
    module = program.module()
    labels = predict_volume(Written(lambda batch: module(batch)), images, FLOAT32)
    expected = predict_volume(network, images, FLOAT32)
    assert len(np.unique(expected)) > 2
    assert (labels == expected).mean() >= 0.9999
    for shape in ((1, 2, 32, 32), (7, 2, 112, 48)):
        assert module(torch.zeros(shape)).shape == (shape[0], 4, *shape[2:])
    with pytest.raises(AssertionError, match="16"):
        module(torch.zeros(1, 2, 40, 32))


@needs_onnx
def test_onnx_gives_the_labels_of_the_network(finished, images, tmp_path):
    import onnx

    _, network = finished
    file = tmp_path / "model.onnx"
    write_onnx(export_program(network), file, {"modalities": "flair,t1ce"})
    assert [path.name for path in tmp_path.glob("model*")] == ["model.onnx"]
    read = onnx_network(file)
    labels = predict_volume(Written(read), images, FLOAT32)
    expected = predict_volume(network, images, FLOAT32)
    assert (labels == expected).mean() >= 0.9999
    for shape in ((1, 2, 32, 32), (3, 2, 64, 240)):
        batch = torch.randn(shape)
        with torch.inference_mode():
            np.testing.assert_allclose(read(batch), network(batch), atol=1e-4)
    model = onnx.load(file)
    assert {entry.key: entry.value for entry in model.metadata_props}["modalities"] == "flair,t1ce"
    weights = {tensor.name for tensor in model.graph.initializer}
    assert any(name.startswith("encoders.flair.") for name in weights)
    assert not [name for name in weights if "head" in name or "fusion." in name]


@needs_onnx
def test_documented_recipe_gives_the_label_map_in_any_orientation(finished, tmp_path, monkeypatch):
    import onnxruntime

    from tests.documents import PAGES, blocks

    run, network = finished
    export_run(run, "onnx", tmp_path / "export", SHARED)
    write_case(tmp_path / "in", "a", shape=(75, 58, 7), seed=3)
    for modality in USED:
        _turn(case_file(tmp_path / "in", "a", modality), "PIR")
        _shift(case_file(tmp_path / "in", "a", modality), 12)
    cases, _ = find_cases(tmp_path / "in", labelled=False, allow_missing=True)
    predict_cases(network, cases, tmp_path / "out", FLOAT32)
    [recipe] = [code for _, code in blocks(PAGES["docs/export.md"], "python") if "as_reori" in code]
    monkeypatch.chdir(tmp_path)
    session = onnxruntime.InferenceSession("export/model.onnx")
    exec(recipe, {"session": session, "case": "in/a/a"})
    found, expected = (nib.load(file) for file in ("labels.nii.gz", "out/a.nii.gz"))
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert (np.asarray(found.dataobj) == np.asarray(expected.dataobj)).mean() >= 0.9999
    assert len(np.unique(np.asarray(expected.dataobj))) > 2


def test_network_stays_as_it_is():
    network = Smallest().train()
    for weights in (True, False):
        program = export_program(network, weights=weights)
        assert network.training
        assert {value.device.type for value in network.state_dict().values()} == {"cpu"}
        kinds = {value.device.type for value in program.state_dict.values()}
        assert kinds == {"cpu" if weights else "meta"}


def test_network_that_cannot_be_traced_is_refused():
    class Impossible(Smallest):
        def forward(self, images):
            return super().forward(images) * float(images.sum())

    with pytest.raises(UserError, match=r"torch\.export can express"):
        export_program(Impossible())


def test_export_that_differs_leaves_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("cggm_seg.export.run.export_program", lambda n: export_program(Smallest()))
    with pytest.raises(RuntimeError, match="logits"):
        export_run(finished[0], "torch", tmp_path / "out", SHARED)
    assert list(tmp_path.iterdir()) == []


def test_colors_are_those_of_the_overlays():
    from matplotlib.colors import to_hex

    from cggm_seg.pictures import COLORS

    rows = [line.split() for line in color_table().splitlines() if line[0] != "#"]
    colors = {int(row[0]): to_hex([int(v) / 255 for v in row[2:5]]) for row in rows}
    expected = {1: COLORS["NCR"], 2: COLORS["ED"], 3: COLORS["ET"], 4: COLORS["ET"]}
    assert {value: colors[value] for value in expected} == expected
    assert every(len(row) == 6 for row in rows)


def test_folder_that_is_there_is_refused_and_stays(bundle, finished):
    before = sorted(bundle.rglob("*"))
    with pytest.raises(UserError, match="expected no export there yet"):
        export_run(finished[0], "bundle", bundle, SHARED)
    assert sorted(bundle.rglob("*")) == before
