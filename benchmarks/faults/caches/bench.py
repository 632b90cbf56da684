"""Two cohorts with the same identifiers, and what their slice cache must hold.

An entry is right if it is that of the second cohort, stale if that of the first, and torn if
neither.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cggm_seg.data.cache import build_cache, entries, pack
from cggm_seg.data.cases import find_cases
from cggm_seg.simulation.cohort import simulate_cohort

Entry = Mapping[str, np.ndarray]


class Bench:
    """Two cohorts and the entries that are right for them.

    Args:
        folder: For all files.
        cases: Number of cases of each cohort.
    """

    def __init__(self, folder: Path, cases: int) -> None:
        self.folder = folder
        self.cohorts = [folder / "before", folder / "after"]
        for seed, cohort in enumerate(self.cohorts):
            simulate_cohort(cohort, cases=cases, seed=seed, shape=(60, 60, 39), progress=False)
        self.before, self.after = map(packed, self.cohorts)
        self.kept = folder / "kept"
        build(self.cohorts[0], self.kept)

    def cache(self) -> Path:
        """A cache of the first cohort."""
        target = self.folder / "cache"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.kept, target)
        return target

    def judge(self, cache: Path) -> Counter[str]:
        """How many entries are those of the second cohort, of the first, and of neither."""
        return Counter(
            verdict(current_file(cache, name), self.before[name], self.after[name])
            for name in self.after
        )


def current_file(cache: Path, case_id: str) -> Path:
    """The newest of the files that a case is cached in."""
    return max(entries(cache)[case_id], key=lambda file: file.stat().st_mtime_ns)


def build(cohort: Path, cache: Path) -> None:
    build_cache(find_cases(cohort, labelled=True)[0], cache, workers=1, progress=False)


def packed(cohort: Path) -> dict[str, Entry]:
    return {case.id: pack(case) for case in find_cases(cohort, labelled=True)[0]}


def verdict(file: Path, before: Entry, after: Entry) -> str:
    try:
        found = load_file(file)
    except (SafetensorError, OSError):
        return "torn"
    return "right" if equal(found, after) else "stale" if equal(found, before) else "torn"


def equal(found: Entry, wanted: Entry) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[key], wanted[key]) for key in wanted
    )
