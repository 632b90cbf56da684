"""The rules of the house, see CONTRIBUTING.md: who may import whom, and how large a thing may be.

The allow-lists below name what does not follow a rule; they are to become shorter.
"""

import ast
import re
from collections import Counter, defaultdict

import pytest

from tests.house import (
    PACKAGES,
    ROOT,
    body_lines,
    circles,
    functions,
    imports,
    modules,
    packages_of,
    tree_of,
)

FOREIGN = {
    "cggm": {"cggm_seg", "cggm_cls", "cggm_nnunet", "pipelines", "monai",
             "segmentation_models_pytorch", "transformers", "nibabel", "albumentations", "nilearn",
             "nnunetv2"},
    "cggm_seg": {"cggm_cls", "cggm_nnunet", "pipelines", "transformers", "nnunetv2"},
    "cggm_cls": {"cggm_seg", "cggm_nnunet", "pipelines", "monai", "segmentation_models_pytorch",
                 "nnunetv2"},
    "cggm_nnunet": {"cggm_cls", "pipelines", "monai", "segmentation_models_pytorch",
                    "transformers"},
}  # fmt: skip
# What a module in cggm/hosts puts a balancer into; nothing else in cggm imports these modules.
HOSTS = {"cggm/hosts/transformers.py": "transformers"}
# A package may import those that stand before it in its line.
LEVELS = {
    "cggm": (
        "cggm.methods",
        "cggm.hosts",
        "cggm.display",
        "cggm.runs",
        "cggm.reports",
        "cggm.comparison",
    ),
    "cggm_seg": (
        "cggm_seg.data",
        "cggm_seg.verification",
        "cggm_seg.networks",
        "cggm_seg.simulation",
        "cggm_seg.evaluation",
        "cggm_seg.pictures",
        "cggm_seg.inference",
        "cggm_seg.training",
        "cggm_seg.reports",
        "cggm_seg.export",
    ),
    "cggm_cls": (
        "cggm_cls.data",
        "cggm_cls.networks",
        "cggm_cls.reports",
        "cggm_cls.training",
        "cggm_cls.export",
    ),
    "cggm_nnunet": (
        "cggm_nnunet.network",
        "cggm_nnunet.judging",
        "cggm_nnunet.balancing",
        "cggm_nnunet.trainer",
        "cggm_nnunet.trainers",
    ),
}
UPHILL = {
    ("cggm_seg.training.summary", "cggm_seg.reports"),
}
# What lies right below is a face, too: each data set is imported by its own name, and a new one
# needs no line in a list.
OF_DATA_SETS = "cggm_cls.data"
CIRCLES: list[list[str]] = []
BEHIND_FACES: set[tuple[str, str]] = set()
LONG: set[str] = set()
MANY_ARGUMENTS: set[str] = set()
SEVERAL_MEANINGS: set[str] = set()


def sources(package):
    return [file for name, file in modules().items() if name.split(".")[0] == package]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_no_foreign_ones(package):
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sources(package)
        for name in imports(file)
        if name.partition(".")[0] in FOREIGN[package]
        and name.partition(".")[0] != HOSTS.get(str(file.relative_to(ROOT)))
    }
    assert not found
    assert len(sources(package)) > 3


def test_the_method_names_no_task():
    found = [
        f"{file.relative_to(ROOT)}: {node.value[:60]!r}"
        for file in sources("cggm")
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"cggm_(seg|cls)", node.value)
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downhill(package):
    levels = LEVELS[package]
    found = set()
    for name, file in modules().items():
        here = [level for level in levels if name == level or name.startswith(f"{level}.")]
        for other in imports(file):
            there = [v for v in levels if other == v or other.startswith(f"{v}.")]
            if here and there and levels.index(there[0]) > levels.index(here[0]):
                found.add((name, there[0]))
            if not here and there and package == "cggm" and name.startswith("cggm."):
                found.add((name, there[0]))
    assert found == UPHILL & found
    assert {pair for pair in UPHILL if pair[0].startswith(f"{package}.")} <= found, "shorten it"


def test_packages_are_imported_by_their_face():
    files = {**modules(), **{f"pipelines.{f.stem}": f for f in (ROOT / "pipelines").glob("*.py")}}
    found = set()
    for name, file in files.items():
        for other in imports(file):
            if other not in modules():
                continue
            closed = [p for p in packages_of(other) if p not in PACKAGES]
            crossed = [p for p in closed if name != p and not name.startswith(f"{p}.")]
            if crossed and crossed[0] == OF_DATA_SETS and other.count(".") == 2:
                continue
            if crossed and other != crossed[0]:
                found.add((name, other))
    assert found - BEHIND_FACES == set()
    assert BEHIND_FACES - found == set(), "shorten the list"


def test_nothing_imports_in_a_circle():
    assert [group for group in circles() if group not in CIRCLES] == []


def test_methods_do_not_import_each_other():
    methods = {n for n in modules() if n.startswith("cggm.methods.") and "._parts" not in n}
    found = {
        f"{name} imports {other}"
        for name in methods
        for other in imports(modules()[name])
        if other in methods or other == "cggm.methods"
    }
    assert found == set()


def test_hooks_are_registered_in_one_file():
    users = [
        str(file.relative_to(ROOT))
        for file in sources("cggm")
        if re.search(r"register_\w*hook", file.read_text())
    ]
    assert users == ["cggm/binding.py"]


def test_networks_know_nothing_of_runs_and_inference_no_head():
    for name, file in modules().items():
        if name.startswith("cggm_seg.inference") or ".networks." in name:
            assert not [n for n in imports(file) if n.startswith("cggm.methods")], name
        if name.startswith("cggm_seg.inference"):
            assert not [n for n in imports(file) if "head" in n or "training" in n], name
        if ".networks." in name:
            assert not [n for n in imports(file) if n.startswith("cggm.runs")], name


def test_folders_are_small():
    folders = defaultdict(list)
    for name in modules():
        if modules()[name].name not in ("__init__.py", "__main__.py"):  # nobody imports the latter
            folders[name.rpartition(".")[0]].append(name.rpartition(".")[2])
    for folder, stems in folders.items():
        assert len(stems) <= (30 if folder == "cggm.methods" else 13), folder
        families = Counter(stem.split("_")[0] for stem in stems)
        assert not [prefix for prefix, count in families.items() if count >= 3], folder


def test_modules_are_of_a_readable_length():
    long = {n: f.read_text().count("\n") for n, f in modules().items()}
    assert not {name: lines for name, lines in long.items() if lines > 450}


def test_functions_are_short_and_take_few_arguments():
    long = {where for where, node in functions() if body_lines(node) > 40}
    many = {where for where, node in functions() if _arguments(node) > 8}
    many = {where for where in many if not _is_constructor(where)}
    assert long - LONG == set()
    assert LONG - long == set(), "shorten the list"
    assert many - MANY_ARGUMENTS == set()
    assert MANY_ARGUMENTS - many == set(), "shorten the list"


def _arguments(node):
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([argument for argument in named if argument.arg not in ("self", "cls")])


def _is_constructor(where):
    """Methods and networks are given their settings one by one."""
    return bool(re.match(r"(cggm/methods/|cggm_\w+/networks/)\w+\.py:__init__", where))


def test_public_names_have_one_meaning():
    homes = defaultdict(set)
    for name, file in modules().items():
        for node in tree_of(file).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(name)
    several = {name for name, places in homes.items() if len(places) > 1}
    assert several - SEVERAL_MEANINGS == set()
    assert SEVERAL_MEANINGS - several == set(), "shorten the list"


def test_pipelines_parse_assemble_and_run():
    for file in sorted((ROOT / "pipelines").glob("*.py")):
        tree = tree_of(file)
        assert len(file.read_text().splitlines()) <= 130, file
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        assert [*filter(_holds_options, classes)] == classes, file
        top = {n.partition(".")[0] for node in tree.body for n in _top_imports(node)}
        assert not top & {"torch", "monai", "numpy", "matplotlib"}, f"{file}: slow --help"


def _holds_options(node):
    """A dataclass that only the command line of its script fills."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return decorators[0].startswith("dataclass(")


def _top_imports(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_yaml_and_json_that_others_may_have_written_go_through_one_reader():
    readers = defaultdict(set)
    for name, file in modules().items():
        for node in ast.walk(tree_of(file)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("json", "yaml")
                and "load" in node.func.attr
            ):
                readers[name].add(node.func.attr)
    assert readers == {"cggm.runs.storage.reading": {"loads", "safe_load"}}


def test_nothing_does_not_satisfy_an_assertion():
    """``all([])`` is true, ``tests.quantifiers.every([])`` is not."""
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(tree_of(file))
        if (isinstance(node, ast.Call) and ast.unparse(node.func) == "all")
        or (isinstance(node, ast.Assert) and "not any(" in ast.unparse(node.test))
        if file.stem != "quantifiers"
    ]
    assert found == []
