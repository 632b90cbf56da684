"""What a comparison runs: names of the command line, and the trainings that they stand for."""

import json
from pathlib import Path

import pytest

from cggm.comparison.plan import SWEEP, Plan, PlannedRun, command_line
from cggm.errors import UserError
from cggm.reports.tasks import load_tasks
from cggm.runs.config import read_config
from pipelines.mosi_train import MosiConfig
from tests.quantifiers import every

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
METHODS = CONFIGS / "methods"
ALWAYS = ("--curves", "false", "--report", "false")
TASKS = load_tasks(CONFIGS / "tasks.yaml")


def tasks(*names):
    return tuple(TASKS[name] for name in names)


def test_runs_are_ordered_seed_by_seed_then_task_by_task():
    plan = Plan(tasks("mosi", "mfeat"), ("plain", "ogm"), (0, 1), ("--max_epochs", "2"))
    told = {name: (*ALWAYS, "--max_epochs", "2", "--method", name) for name in plan.methods}
    assert plan.runs(CONFIGS) == [
        PlannedRun(TASKS["mosi"], "plain", 0, told["plain"]),
        PlannedRun(TASKS["mosi"], "ogm", 0, told["ogm"]),
        PlannedRun(TASKS["mfeat"], "plain", 0, told["plain"]),
        PlannedRun(TASKS["mfeat"], "ogm", 0, told["ogm"]),
        PlannedRun(TASKS["mosi"], "plain", 1, told["plain"]),
        PlannedRun(TASKS["mosi"], "ogm", 1, told["ogm"]),
        PlannedRun(TASKS["mfeat"], "plain", 1, told["plain"]),
        PlannedRun(TASKS["mfeat"], "ogm", 1, told["ogm"]),
    ]


def test_unimodal_is_every_modality_alone():
    runs = Plan(tasks("food101", "mfeat"), ("unimodal",), (3,)).runs(CONFIGS)
    names = ["text", "image", "pix", "fou", "mor"]
    assert [run.method for run in runs] == [f"unimodal_{name}" for name in names]
    assert [run.arguments for run in runs] == [
        (*ALWAYS, "--method", "plain", "--modalities", f'["{name}"]') for name in names
    ]


def test_settings_are_laid_over_those_of_the_file():
    (run,) = Plan(tasks("mosi"), ("cggm:rho=0.5:lam=1e-3",), (0,)).runs(CONFIGS)
    assert run.arguments[:6] == (*ALWAYS, "--method", "cggm")
    files = [ROOT / "configs" / "mosi" / "train.yaml", METHODS / "cggm.yaml"]
    before = read_config(MosiConfig, files).balancer
    after = read_config(MosiConfig, files, run.arguments[6:]).balancer
    assert after.settings == {**before.settings, "rho": 0.5, "lam": 0.001}
    assert before.settings["rho"] == 1.3
    assert run.folder(Path("out")) == Path("out/runs/mosi/cggm-rho=0.5-lam=1e-3/seed-0")


def test_gradients_are_kept_of_the_joint_training_and_of_cggm():
    runs = Plan(tasks("mosi"), ("plain", "joint", "ogm", "cggm", "cggm:rho=2"), (0,)).runs(CONFIGS)
    assert [run.method for run in runs if "--gradients" in run.arguments] == ["joint", "cggm"]


def test_quick_gives_every_task_its_small_size():
    runs = Plan(tasks("mosi", "brats"), ("plain",), (0,), quick=True).runs(CONFIGS)
    sizes = [run.arguments[run.arguments.index("--config") + 1] for run in runs]
    assert sizes == [str(CONFIGS / task / "quick.yaml") for task in ("mosi", "brats")]
    assert every(Path(size).is_file() for size in sizes)


def test_where_modalities_are_missing_methods_that_can_draw_all_subsets_alike():
    methods = ("plain", "mrd", "passion:per=case", "redcore:subsets=independent")
    plan = Plan(tasks("brats"), methods, (0,), protocol="missing")
    told = [run.arguments for run in plan.runs(CONFIGS)]
    settings = [[a for a in arguments if a.startswith("--balancer")] for arguments in told]
    uniform, sample = "--balancer.settings.subsets=uniform", "--balancer.settings.per=sample"
    assert settings == [
        [],
        [uniform, sample],
        ["--balancer.settings.per=case", uniform],
        ["--balancer.settings.subsets=independent", sample],
    ]
    assert every(arguments[4:6] == ("--subsets", "true") for arguments in told)
    with pytest.raises(UserError, match=r"protocol of .*complete.*but got most"):
        Plan(tasks("brats"), methods, (0,), protocol="most").runs(CONFIGS)


def test_a_folder_of_one_protocol_takes_no_other(tmp_path):
    output = tmp_path / "a"
    Plan(tasks("mosi"), ("cggm",), (0,), protocol="missing").keep(output)
    with pytest.raises(UserError, match="were told --protocol missing, not nothing"):
        Plan(tasks("mosi"), ("cggm",), (0,)).keep(output)


def test_sweep_adds_settings_and_what_they_are_compared_with():
    names = [run.method for run in Plan(tasks("mosi"), ("cggm",), (0,), sweep=True).runs(CONFIGS)]
    assert names == ["cggm", "joint", *SWEEP]
    assert SWEEP[0] == "cggm:rho=0.5"
    assert SWEEP[-1] == "cggm:lam=0.4"


def test_command_starts_or_resumes():
    run = PlannedRun(TASKS["mosi"], "ogm", 4, ("--method", "ogm"))
    folder = str(Path("out/runs/mosi/ogm/seed-4"))
    fresh = command_line(run, Path("out"), resume=False)
    assert fresh == ["--output", folder, "--seed", "4", "--method", "ogm"]
    again = command_line(run, Path("out"), resume=True)
    assert again == ["--resume", folder]


@pytest.mark.parametrize(
    ("names", "methods", "expected"),
    [
        ("mosi,mosi", "cggm", "each once, but got mosi, mosi"),
        ("mosi", "cgm", "Unknown method 'cgm'. Available: unimodal, agm, "),
        ("mosi", "", "Unknown method ''"),
        ("mosi", "../mosi/train", "Unknown method '../mosi/train'"),
        ("mosi", "ogm,cggm,ogm", "Expected methods to name each once, but got ogm, cggm, ogm"),
        ("mosi", "unimodal:rho=1", "Unknown method 'unimodal'"),
        ("mosi", "cggm:rhoo=1", "Unknown setting 'rhoo' of cggm. Available: rho, lam, "),
        ("mosi", "plain:rho=1", "Unknown setting 'rho' of plain. Available: none."),
        ("mosi", "cggm:rho", "Expected a setting as in cggm:rho=0.5, but got 'rho'"),
        ("mosi", "cggm:rho=", "but got 'rho='"),
        ("mosi", "cggm:rho=../1", "but got 'rho=../1'"),
    ],
)
def test_wrong_names_are_refused(names, methods, expected):
    plan = Plan(tasks(*names.split(",")), tuple(methods.split(",")), (0,))
    with pytest.raises(UserError, match=expected) as caught:
        plan.runs(CONFIGS)
    assert "\n" not in str(caught.value)


def test_folder_takes_more_methods_but_no_other_options(tmp_path):
    output = tmp_path / "a" / "b"
    Plan(tasks("mosi"), ("cggm",), (0,), ("--max_epochs", "2")).keep(output)
    (output / "runs.jsonl").touch()
    Plan(tasks("mosi", "mfeat"), ("cggm", "ogm"), (0, 1), ("--max_epochs", "2")).keep(output)
    assert json.loads((output / "comparison.json").read_text()) == {
        "arguments": ["--max_epochs", "2"]
    }
    with pytest.raises(UserError, match="were told --max_epochs 2, not nothing"):
        Plan(tasks("mosi"), ("cggm",), (0,)).keep(output)


def test_folder_with_other_things_is_left_alone(tmp_path):
    plan = Plan(tasks("mosi"), ("cggm",), (0,))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="it holds other files"):
        plan.keep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "comparison.json").write_text("[]")
    with pytest.raises(UserError, match=r"comparison\.json: expected an object"):
        plan.keep(tmp_path)


def test_method_of_ones_own_is_named_again_where_its_run_is_resumed(tmp_path):
    (tmp_path / "methods").mkdir()
    text = "balancer: {name: toy.Halving, settings: {factor: 1}}"
    (tmp_path / "methods" / "mine.yaml").write_text(text)
    (run,) = Plan(tasks("mosi"), ("mine",), (0,)).runs(tmp_path)
    told = command_line(run, Path("out"), resume=True)
    assert told == ["--resume", "out/runs/mosi/mine/seed-0", "--balancer.name", "toy.Halving"]
    assert command_line(run, Path("out"), resume=False)[4:] == list(run.arguments)
