"""Data that are not what they were, under names that are: in a shared cache, and on resume.

Two cohorts have the same identifiers and share a cache: what is read of each must be its own. A
training is resumed on data of which one value was changed: it has to be refused.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.faults.caches.bench import Bench
from benchmarks.faults.processes.child import in_child
from cggm_seg.data.cache import SliceCache, build_cache
from cggm_seg.data.cases import find_cases

_PEER = "MONAI's PersistentDataset"


def measure(quick: bool) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        bench = Bench(Path(name), 2 if quick else 6)
        shared = _share(bench)
        peer = {} if quick else {_PEER: _share_with_monai(bench)}
    resumed = in_child(_resume, 1 if quick else 3)
    return {
        "bar": "every entry of a shared cache that of its own cohort; a training on edited data "
        "refused on resume",
        "holds": shared["own"] == shared["entries"] and resumed["refused"] == resumed["edits"],
        "figures": {"shared cache": shared, "resumed on edited data": resumed, **peer},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    shared, resumed = figures["shared cache"], figures["resumed on edited data"]
    peer = figures.get(_PEER, {"entries": 0, "others": 0})
    return (
        "a cache shared by two cohorts of the same names; a training resumed on edited data",
        f"{shared['own']} of {shared['entries']} entries the own ones; {resumed['refused']} of "
        f"{resumed['edits']} refused",
        f"{_PEER} gives {peer['others']} of {peer['entries']} other cases as before",
    )


def _share(bench: Bench) -> dict[str, int]:
    cache = bench.folder / "shared"
    opened = []
    for cohort in (*bench.cohorts, bench.cohorts[0]):
        cases = find_cases(cohort, labelled=True)[0]
        opened.append(build_cache(cases, cache, workers=1, progress=False)[0])
    wanted = (bench.before, bench.after, bench.before)
    own = [
        _holds(read, case_id, entry)
        for read, entries in zip(opened, wanted, strict=True)
        for case_id, entry in entries.items()
    ]
    return {"entries": len(own), "own": sum(own)}


def _holds(cache: SliceCache, case_id: str, entry: Mapping[str, np.ndarray]) -> bool:
    labels = [cache.read(case_id, z)[1] for z in range(cache.depth(case_id))]
    return np.array_equal(labels, entry["label"])


def _share_with_monai(bench: Bench) -> dict[str, int]:
    """Cases that are read again after another cohort took their place."""
    from monai.data import PersistentDataset
    from monai.transforms import LoadImaged

    place = bench.folder / "place"
    found: list[list[np.ndarray]] = []
    for cohort in bench.cohorts:
        place.unlink(missing_ok=True)
        place.symlink_to(cohort)
        items = [{"t1": str(file)} for file in sorted(place.glob("*/*_t1.nii.gz"))]
        data = PersistentDataset(items, LoadImaged("t1"), cache_dir=bench.folder / "monai")
        found.append([np.asarray(data[k]["t1"]) for k in range(len(items))])
    same = [np.array_equal(before, after) for before, after in zip(*found, strict=True)]
    return {"entries": len(same), "others": sum(same)}


def _resume(edits: int) -> dict[str, int]:
    import pickle

    from benchmarks.faults.processes.forked import forked
    from benchmarks.faults.training.small_training import SmallTraining
    from cggm.runs.cli import run
    from pipelines import mosi_train

    refused = 0
    with TemporaryDirectory() as name:
        training = SmallTraining(Path(name))
        content = pickle.loads(training.data.read_bytes())
        for number in range(edits):
            split = content["train"]
            split["vision"][number, -1, 0] += 1
            training.data.write_bytes(pickle.dumps(content))
            resume = ["--resume", str(training.whole), "--max_epochs", "3"]
            said = []
            for anew in (False, True):  # the converted copy is another file's, then the content
                if anew:
                    shutil.rmtree(training.data.with_name("mosi.pkl.converted"))
                code = forked(lambda resume=resume: run(mosi_train.main, resume), training.log)  # type: ignore[misc]
                said.append(training.log.read_text() if code == 2 else "")
            refused += "made from another file" in said[0] and "differs in its data" in said[1]
    return {"edits": edits, "refused": refused}
