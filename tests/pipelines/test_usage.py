"""Wrong options and configurations: one message that says what to do, and no run folder."""

import shutil

import pytest
import torch
import yaml

from tests.cggm_seg.nifti import case_file
from tests.pipelines.commands import call, left_over, refused, start, tiny_config
from tests.pipelines.faults import write_bad_case, write_good_cases

FILES = {
    "max_epoch: 3": "unknown key `max_epoch`. Did you mean max_epochs?",
    "slices: {sizes: 32}": "unknown key `slices.sizes`. Did you mean slices.size?",
    "slices: {size: big}": "expected slices.size to be int, but got 'big'",
    "slices: 3": "expected `slices` to hold `key: value` lines, but got 3",
    "a: [": "line 2: expected plain YAML",
    "optimizer: {lr_peak: -1}": "Expected optimizer.lr_peak of at least 0, but got -1",
    "balancer: {settings: {rhoo: 1}}": "Unknown setting 'rhoo' of CGGM. Did you mean rho?",
    "balancer: {settings: {rho: -1}}": 'Expected `rho` to be positive, "unit" or None, but got -1',
    "balancer: {name: CGM}": "Unknown method 'CGM'. Available: AGM, Balancer, CGGM",
    "network: {encoder_name: resnet1}": "Encoder 'resnet1' cannot be built",
}
OPTIONS = {
    ("--max_epoch", "3"): "Unknown option --max_epoch. Did you mean --max_epochs?",
    ("--max_epochs", "abc"): "expected --max_epochs to be int, but got 'abc'",
    ("--max_epochs",): "expected one argument",
    ("--max_epochs", "0"): "max_epochs of at least 1",
    ("stray",): "unrecognized arguments: stray",
    ("--method", "cgm"): "Unknown method 'cgm'. Available: agm, cggm, ",
    ("--config", "nowhere.yaml"): "nowhere.yaml: No such file",
    ("--resume", "nowhere"): "nowhere: no such folder",
    ("--device", "tpu"): "--device",
    ("--batch_size", "1"): "Expected batch_size of at least 2, for BatchNorm, but got 1",
    ("--workers", "-1"): "Expected workers of at least 0, but got -1",
    ("--validate_every", "0"): "Expected validate_every of at least 1, but got 0",
    ("--keep_last", "0"): "Expected keep_last of at least 1, but got 0",
    ("--validation_fraction", "1"): "Expected validation_fraction between 0 and 1, but got 1.0",
    ("--slices.size", "40"): "Expected slices.size to be a multiple of 16 from 32 on, but got 40",
    ("--slices.per_case", "0"): "Expected slices.per_case to be at least 1, but got 0",
    ("--slices.lesion_fraction", "2"): "Expected slices.lesion_fraction from 0 to 1, but got 2.0",
    ("--optimizer.momentum", "1"): "Expected optimizer.momentum from 0 to below 1, but got 1.0",
    ("--optimizer.accumulation_steps", "0"): "accumulation_steps of at least 1, but got 0",
    ("--loss.class_weights", "[0,1,1,1]"): "Expected loss.class_weights to be positive",
    ("--loss.class_weights", "[1,1]"): "expected --loss.class_weights to be tuple",
    ("--loss.ce_weight", "-1"): "Expected loss.ce_weight of at least 0, but got -1.0",
    ("--network.decoder_channels", "0"): "Expected network.decoder_channels to be at least 1",
    ("--network.atrous_rates", "[0,1,2]"): "Expected network.atrous_rates to be at least 1",
    ("--network.aspp_dropout", "1"): "Expected network.aspp_dropout from 0 to below 1",
    ("--balancer.record_every", "0"): "Expected balancer.record_every of at least 1, but got 0",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_good_cases(folder, 2)
    return folder


@pytest.mark.parametrize("text", FILES)
def test_wrong_configuration_file(text, cohort, tmp_path, capsys):
    config = tiny_config(tmp_path)
    if text == "a: [":
        config.write_text(f"{text}\n")
    else:
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | yaml.safe_load(text)))
    argv = ("--data", cohort, "--config", config, "--output", tmp_path / "run")
    assert FILES[text] in refused(capsys, "train", *argv)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_wrong_option(options, cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert OPTIONS[options] in refused(capsys, "train", "--data", cohort, *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_device_that_is_not_there(cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "train", "--data", cohort, "--device", "cuda")
    assert message.startswith("error: Expected a CUDA device, but PyTorch finds none.")
    assert list(tmp_path.iterdir()) == []


def test_a_single_training_slice_is_too_few(cohort, tmp_path, capsys):
    argv = ("--data", cohort, "--config", tiny_config(tmp_path), "--output", tmp_path / "run")
    message = refused(capsys, "train", *argv, "--slices.per_case", 1)
    assert "Expected at least 2 training slices in an epoch, for BatchNorm, but got 1" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "argv", "expected"),
    [
        ("infer", (), "Missing --model"),
        ("infer", ("--modle", "a"), "Unknown option --modle. Did you mean --mode?"),
        ("infer", ("--precision", "half"), "--precision"),
        ("evaluate", (), "Missing --predictions"),
        ("evaluate", ("--strict", "maybe"), "--strict"),
        ("evaluate", ("--predictions", "nowhere", "--reference", "{cohort}"), "nowhere"),
        ("evaluate", ("--predictions", "{cohort}", "--reference", "{cohort}"), "can be scored"),
        ("evaluate", ("--predictions=a", "--reference=b", "--output=a.html"), "of another name"),
        ("evaluate", ("--predictions=a", "--reference=b", "--output", "{map}"), "JSON or no file"),
        ("verify", ("--data", "{cohort}", "--json", "{map}"), "expected JSON or no file yet"),
    ],
)
def test_wrong_options_of_inference_and_evaluation(script, argv, expected, cohort, capsys):
    label_map = case_file(cohort, "good0", "seg")
    content = label_map.read_bytes()
    argv = [argument.format(cohort=cohort, map=label_map) for argument in argv]
    assert expected in refused(capsys, script, *argv)
    assert label_map.read_bytes() == content


def test_result_that_cannot_be_written(cohort, tmp_path, capsys):
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for k in range(2):
        shutil.copy(case_file(cohort, f"good{k}", "seg"), predictions / f"good{k}.nii.gz")
    argv = ("--predictions", predictions, "--reference", cohort, "--output", predictions)
    assert f"error: {predictions}: Is a directory." in refused(capsys, "evaluate", *argv)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("script", ["train", "infer"])
def test_process_ends_with_exit_code_2(script, tmp_path):
    write_good_cases(tmp_path / "data", 2)
    file = write_bad_case(tmp_path / "data", "missing")
    argv = {
        "train": ("--data", tmp_path / "data", "--strict", "--output", tmp_path / "run"),
        "infer": ("--model", tmp_path / "nowhere", "--input", file.parent, "--output", tmp_path),
    }
    expected = {
        "train": f"error: missing, {file}: Expected the t1 image of this case, but there is no "
        "such file. Add the file, or take the case out of the folder.\n",
        "infer": f"error: {tmp_path / 'nowhere'}: no such folder. Give the folder of a run.\n",
    }
    process = start(script, *argv[script])
    out, err = process.communicate()
    assert (process.returncode, out, err) == (2, "", expected[script])
    assert not (tmp_path / "run").exists()
    assert call(script, "--nonsense") == 2
