"""The inference command as people use it."""

import csv
import time

import nibabel as nib
import numpy as np
import pytest

from tests.cggm_seg.nifti import case_file, write_case
from tests.pipelines.commands import call, left_over, refused, start, untrained_run

CASES = [f"case{k:02}" for k in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for k, name in enumerate(CASES):
        write_case(folder, name, shape=(32, 32, 8), seed=k)
    return folder


def labels(file):
    return np.asarray(nib.load(file).dataobj)


def rows(output):
    with (output / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_cohort_that_was_killed_goes_on_where_it_stopped(model, cohort, tmp_path, capsys):
    output, whole = tmp_path / "out", tmp_path / "whole"
    argv = ("--model", model, "--input", cohort, "--probabilities", "--device", "cpu", "--output")
    process = start("infer", *argv, output)
    while process.poll() is None and len(list(output.glob("[!.]*.nii.gz"))) < 3:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    for file in output.rglob("[!.]*.nii.gz"):
        nib.load(file).get_fdata()  # none is half-written
    assert not (output / "summary.csv").exists()
    stamps = {file.name: file.stat().st_mtime_ns for file in output.glob("[!.]*.nii.gz")}
    assert 3 <= len(stamps) < len(CASES)

    assert call("infer", *argv, output) == 0
    said = capsys.readouterr().out
    earlier = int(said.rpartition(", ")[2].split()[0])
    assert said.startswith(f"{len(CASES)} label maps in {output}, ")
    assert earlier == len(stamps)  # a label map is the last file of its case to appear
    kept = [file for file, stamp in stamps.items() if (output / file).stat().st_mtime_ns == stamp]
    assert len(kept) == earlier
    assert left_over(output) == []
    assert call("infer", *argv, whole) == 0
    assert [row["case"] for row in rows(output)] == [row["case"] for row in rows(whole)] == CASES
    for folder, suffix in ((".", "nii.gz"), ("probabilities", "nii.gz"), ("previews", "png")):
        for name in CASES:
            one, other = (out / folder / f"{name}.{suffix}" for out in (output, whole))
            assert one.read_bytes() == other.read_bytes(), one
    capsys.readouterr()
    assert call("infer", *argv, output) == 0
    assert capsys.readouterr().out.endswith(f", {len(CASES)} of them made earlier\n")


def test_table_and_folder_of_one_case_give_the_same(model, cohort, tmp_path, capsys):
    write_case(tmp_path, "one", shape=(40, 36, 10))
    case_file(tmp_path, "one", "t1").unlink()
    columns = ("flair", "t1ce", "t1", "t2")
    cells = [f"one/one_{m}.nii.gz" if m != "t1" else "" for m in columns]
    table = tmp_path / "cases.csv"
    table.write_text(f"case,{','.join(columns)}\nmine,{','.join(cells)}\nlost,gone.nii,,,\n")
    for source, out in ((tmp_path / "one", "a"), (table, "b")):
        argv = ("--model", model, "--input", source, "--output", tmp_path / out)
        assert call("infer", *argv, "--previews", "false") == 0
        assert not (tmp_path / out / "previews").exists()
    printed = capsys.readouterr()
    assert "1 case was skipped:\n  lost, " in printed.err
    assert "line 3, column flair: expected an image, but there is no file" in printed.err
    one, mine = tmp_path / "a" / "one.nii.gz", tmp_path / "b" / "mine.nii.gz"
    np.testing.assert_array_equal(labels(one), labels(mine))
    assert [row["absent"] for out in "ab" for row in rows(tmp_path / out)] == ["t1", "t1"]
    message = refused(capsys, "infer", *argv, "--strict")
    assert message.startswith(f"error: lost, {table}: line 3, column flair: ")


def test_absent_modalities_are_zeros_in_every_case(model, cohort, tmp_path, capsys):
    write_case(tmp_path / "in", "a", shape=(40, 36, 10))
    argv = ("--model", model, "--input", tmp_path / "in", "--output")
    assert call("infer", *argv, tmp_path / "absent", "--absent", "t1, t2") == 0
    for modality in ("t1", "t2"):
        case_file(tmp_path / "in", "a", modality).unlink()
    assert call("infer", *argv, tmp_path / "missing") == 0
    one, other = (tmp_path / out / "a.nii.gz" for out in ("absent", "missing"))
    np.testing.assert_array_equal(labels(one), labels(other))
    assert rows(tmp_path / "absent")[0]["absent"] == "t1 t2"
    message = refused(capsys, "infer", *argv, tmp_path / "new", "--absent", "t1gd")
    assert "Expected `absent` to name modalities of the network, but got t1gd." in message
    assert "Choose among flair, t1ce, t1, t2." in message


def test_flips_and_another_model_are_told_apart(model, cohort, tmp_path, capsys):
    source = cohort / CASES[0]
    argv = ("--model", model, "--input", source, "--output", tmp_path, "--probabilities")
    shares = tmp_path / "probabilities" / f"{CASES[0]}.nii.gz"
    assert call("infer", *argv) == 0
    first = labels(shares)
    message = refused(capsys, "infer", *argv, "--flips")
    assert f"error: {tmp_path}: expected predictions by this network" in message
    assert f"that of {CASES[0]} was made with another flips." in message
    assert call("infer", *argv, "--flips", "--overwrite") == 0
    assert (labels(shares) != first).any()
    other = ("--model", untrained_run(tmp_path / "other"), *argv[2:])
    assert "another network, flips" in refused(capsys, "infer", *other)


def test_help_groups_the_options(capsys):
    with pytest.raises(SystemExit):
        call("infer", "--help")
    text = capsys.readouterr().out
    titles = [
        "What to segment and where to:",
        "What to write besides label maps:",
        "How to compute:",
    ]
    order = [titles[0], "--absent", titles[1], "--probabilities", titles[2], "--flips"]
    places = [text.index(name) for name in order]
    assert places == sorted(places)


def test_several_runs_are_an_ensemble_and_say_what_they_learned_from(
    model, cohort, tmp_path, capsys, caplog
):
    other = untrained_run(tmp_path / "other")
    config = other / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("data:")]
    config.write_text("\n".join([*lines, f"data: {cohort}", ""]))
    (other / "split.json").write_text(
        '{"training": ["case01", "case02"], "validation": ["case03"]}'
    )
    output = tmp_path / "out"
    argv = ("--input", cohort, "--previews", "false", "--device", "cpu", "--output", output)
    assert call("infer", "--model", f"{model},{other}", *argv) == 0
    assert f"ensemble of 2: {model}, {other}" in capsys.readouterr().out
    assert "other: 2 of these 8 cases were in its training" in caplog.text
    told = {row["case"]: row["learned_from"] for row in rows(output)}
    assert told == {**dict.fromkeys(CASES, ""), "case01": "other", "case02": "other"}
    message = refused(capsys, "infer", "--model", model, *argv)
    assert "was made with another network" in message
