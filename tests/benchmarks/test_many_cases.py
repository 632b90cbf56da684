"""Cost of a case as others come to it, by number of calls, which no load of a machine changes."""

from cProfile import Profile
from pathlib import Path

import pytest

from benchmarks.data.many_cases import stages, write_cohort
from tests.quantifiers import every


def measured(folder, count):
    """Calls of functions, those in C as well, that each stage makes, and its mapped cases."""
    write_cohort(folder, count)
    calls, maps = {}, {}
    for stage, run in stages(folder):
        profile = Profile()
        kept = profile.runcall(run)
        calls[stage] = sum(called.callcount for called in profile.getstats())
        maps[stage] = Path("/proc/self/maps").read_text().count(f"{folder}/data/.slices/")
        del kept
    return calls, maps


@pytest.mark.slow
def test_every_stage_is_linear_in_the_number_of_cases(tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few, _ = measured(tmp_path / "few", 40)
    many, maps = measured(tmp_path / "many", 200)
    assert [*few] == ["find", "verify", "cache", "start", "evaluate"]
    assert every(many[stage] < 5.2 * few[stage] for stage in few)
    assert maps["start"] == 200  # one for a case, of the 65,530 that a system allows
