"""Every code block of the documents runs; commands, options, links and messages exist."""

import ast
import contextlib
import io
import re
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from cggm.runs.cli import run
from cggm.runs.config import read_config
from cggm_seg.simulation.cohort import simulate_cohort
from cggm_seg.training.config import BratsConfig
from tests.cggm_seg.simulated import SHAPE
from tests.document_parts import SETUPS
from tests.documents import PAGES, ROOT, blocks, commands
from tests.pipelines.commands import tiny_config
from tests.quantifiers import every

TORCHRUN = {"--nproc_per_node", "--nnodes", "--standalone"}
OTHERS = {
    *("--only", "--size", "--residual"),  # of benchmarks
    "--c",  # of nnUNetv2_train
    "--shm-size",  # of docker run
    "--logdir",
    "--backend-store-uri",
    "--help",
    "--no-deps",
    "--require-hashes",
    "--check",
    "--suffixes",
    "--enhancing_label",
}


# Files that a how-to has its reader write.
OF_READERS = r"[/_](ecg|loss_share)[._/]"


def python_pages() -> list[str]:
    own_tests = {"README.md", "docs/tutorial.md"}
    return [
        name for name, text in PAGES.items() if blocks(text, "python") and name not in own_tests
    ]


def printed(code: str, names: dict[str, object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, names)
    return output.getvalue()


@pytest.mark.parametrize("page", python_pages())
def test_python_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"torch": torch, "nn": nn, **SETUPS[page]()}
    output = ""
    for language, content in blocks(PAGES[page], "python", "text"):
        if language == "python":
            output = printed(content, names)
        elif output:
            assert output == content


@pytest.fixture
def small_cohorts(monkeypatch):
    """Cohorts of small cases in place of full ones."""
    small = partial(simulate_cohort, shape=SHAPE, workers=1, progress=False)
    monkeypatch.setattr("cggm_seg.simulation.cohort.simulate_cohort", small)


def test_tutorial_leads_to_a_prediction(tmp_path, monkeypatch, capsys, small_cohorts):
    monkeypatch.chdir(tmp_path)
    [(_, cohort)] = blocks(PAGES["docs/tutorial.md"], "python")
    exec(cohort.replace("cases=16", "cases=3").replace("cases=4", "cases=1"), {})
    demo = tiny_config(tmp_path, max_epochs=2)
    for script, arguments in commands(PAGES["docs/tutorial.md"]):
        main = import_module(script.removesuffix(".py").replace("/", ".")).main
        given = [str(demo) if a == "configs/brats/demo.yaml" else a for a in arguments]
        assert run(main, given) == 0, capsys.readouterr().err
    made = ("run/report.html", "predictions/HELD_00000.nii.gz", "scores.json", "joint/results.json")
    assert every((tmp_path / "demo" / name).is_file() for name in made)
    assert "SIMULATED" in (tmp_path / "demo/run/export/bundle/MODEL_CARD.md").read_text()


@cache
def help_of(script: str) -> str:
    main = import_module(script.removesuffix(".py").replace("/", ".")).main
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        run(main, ["--help"])
    return output.getvalue()


SHOWN = [(page, *command) for page, text in PAGES.items() for command in commands(text)]


@pytest.mark.parametrize(("page", "script", "arguments"), SHOWN)
def test_commands_name_scripts_and_options_that_exist(page, script, arguments):
    options = {a.partition("=")[0] for a in arguments if a.startswith("--")}
    known = help_of(script)
    if script == "pipelines/ranks.py":  # behind its own options stands a command
        behind = [f"{a}_{b}" for a, b in pairwise(arguments) if a == "brats"]
        known += " ".join(help_of(f"pipelines/{words}.py") for words in behind)
    assert not {option for option in options if f"{option} " not in known}


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    words = " ".join(re.findall(r"`([^`]+)`", text))
    known = " ".join(help_of(f"pipelines/{p.name}") for p in (ROOT / "pipelines").glob("*.py"))
    known += " --completion "  # of cggm itself
    options = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", words)) - TORCHRUN - OTHERS
    assert not {option for option in options if f"{option} " not in known}


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:`|^    )make ([\w-]+)", PAGES[page], re.MULTILINE)
    assert not [target for target in targets if f"\n{target}:" not in makefile]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGES[page]):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        assert not anchor or anchor in slugs, anchor


@pytest.mark.parametrize("page", PAGES)
def test_pages_read_well_outside_of_the_site(page):
    assert not re.findall(r"\{[a-z:]+\}`", PAGES[page]), "roles show as raw text"


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_text_exist(page):
    named = r"`((?:cggm\w*|pipelines|configs|tests|benchmarks|docs|examples)/[\w./-]+)`"
    bundle = ROOT / "configs" / "bundle"
    names = [n for n in re.findall(named, PAGES[page]) if not re.search(OF_READERS, n)]
    assert not [n for n in names if not (ROOT / n).exists() and not (bundle / n).exists()]


def test_every_page_is_in_the_index():
    index = PAGES["docs/index.md"]
    pages = {name for name in PAGES if name.startswith("docs/") and name != "docs/index.md"}
    names = {str(Path(name).relative_to("docs").with_suffix("")) for name in pages}
    assert not {name for name in names if f"\n{name}\n" not in index}


@pytest.mark.parametrize("number", range(len(blocks(PAGES["docs/howto/brats_data.md"], "yaml"))))
def test_configurations_are_read(number, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(blocks(PAGES["docs/howto/brats_data.md"], "yaml")[number][1])
    assert read_config(BratsConfig, [ROOT / "configs" / "brats" / "train.yaml", file])


@cache
def source_texts() -> str:
    """All string constants of the source; what is filled in is replaced by dots."""
    files = (
        f for p in ("cggm", "cggm_seg", "cggm_cls", "cggm_nnunet") for f in (ROOT / p).rglob("*.py")
    )
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return "\n".join(
        _text(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)
    )


def _text(node: ast.JoinedStr | ast.Constant) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in parts)


MESSAGES = [
    message
    for line in re.findall(r"^- (`.*)$", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    for message in re.findall(r"`([^`]+)`", line)
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_exist(message):
    known = message in source_texts()
    assert known
