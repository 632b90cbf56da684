"""Slice caches whose sources or code change, with two builders at once, and with a killed one.

Cohorts take turns, see bench.py: what was built last must be in the cache.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file

import cggm_seg
from benchmarks.faults.caches.bench import Bench, build, current_file, equal, verdict
from cggm_seg.data.cache import FORMAT, build_cache, pack
from cggm_seg.data.cases import Case, find_cases

_ROOT = Path(cggm_seg.__path__[0]).parent
_OTHER_CODE = '''

def brain_box(images: np.ndarray) -> tuple[slice, slice, slice]:
    """The whole volume."""
    return slice(0, images.shape[1]), slice(0, images.shape[2]), slice(0, images.shape[3])
'''
_DISGUISED = "changed source, same size and time"
_BUILD = """import sys; from pathlib import Path; from benchmarks.faults.caches import bench
print("ready", flush=True)
bench.build(Path(sys.argv[1]), Path(sys.argv[2]))"""


def measure(quick: bool) -> dict[str, Any]:
    cases, rounds, kills = (2, 1, 2) if quick else (6, 20, 30)
    with TemporaryDirectory() as name:
        bench = Bench(Path(name), cases)
        figures = {
            "changed source": changed_source(bench),
            _DISGUISED: _disguised_source(bench),
            "changed transform": _changed_transform(bench),
            "two builders": _two_builders(bench, rounds),
            "killed builder": _killed_builder(bench, kills),
        }
    counts = [value for key, value in figures.items() if key != _DISGUISED]
    return {
        "bar": "never stale, never torn; a source of the same size and time is known to pass",
        "holds": not any(found["stale"] or found["torn"] for found in counts)
        and all(found["right"] for found in counts),
        "figures": {"cases": cases, **figures},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    counts = [found for name, found in figures.items() if name not in ("cases", _DISGUISED)]
    stale, torn = (sum(found[kind] for found in counts) for kind in ("stale", "torn"))
    return (
        "changed source, transform, two builders, killed builder",
        f"{stale} stale, {torn} torn entries",
        "",
    )


def _summed(counts: Counter[str]) -> dict[str, int]:
    return {kind: counts[kind] for kind in ("right", "stale", "torn")}


def _plain_copy(bench: Bench) -> list[Case]:
    """The first cohort without compression, so that new voxels take the same room."""
    target = bench.folder / "plain"
    shutil.rmtree(target, ignore_errors=True)
    for file in bench.cohorts[0].glob("*/*.nii.gz"):
        copy = target / file.parent.name / file.stem
        copy.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.load(file), copy)
    return find_cases(target, labelled=True)[0]


def _edit_sources(bench: Bench, cases: list[Case], keep_time: bool) -> dict[str, int]:
    """Change one voxel of one image of every case after a build, and build again."""
    cache = bench.folder / f"edited-{keep_time}"
    build_cache(cases, cache, workers=1, progress=False)
    counts: Counter[str] = Counter()
    for case in cases:
        old, file = pack(case), case.images["t1"]
        stat = file.stat()
        _brighten(file)
        assert file.stat().st_size == stat.st_size
        if keep_time:
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        build_cache([case], cache, workers=1, progress=False)
        counts[verdict(current_file(cache, case.id), old, pack(case))] += 1
    return _summed(counts)


def _brighten(file: Path) -> None:
    image = nib.Nifti1Image.from_filename(file)
    voxels = np.asarray(image.dataobj).copy()
    voxels[voxels > 0] += 1
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), file)


def changed_source(bench: Bench) -> dict[str, int]:
    """Voxels change; size stays, as the files are not compressed."""
    return _edit_sources(bench, _plain_copy(bench), keep_time=False)


def _disguised_source(bench: Bench) -> dict[str, int]:
    return _edit_sources(bench, _plain_copy(bench), keep_time=True)


def _changed_transform(bench: Bench) -> dict[str, int]:
    """Entries after code of another format, run from a copy of the packages, wrote the cache."""
    code = bench.folder / "code"
    for package in ("cggm", "cggm_seg"):
        shutil.copytree(_ROOT / package, code / package)
    with (code / "cggm_seg" / "data" / "preprocessing.py").open("a") as stream:
        stream.write(_OTHER_CODE)
    module = code / "cggm_seg" / "data" / "cache" / "entries.py"
    module.write_text(module.read_text().replace(f"FORMAT = {FORMAT}", f"FORMAT = {FORMAT - 1}"))
    cache, cohort = bench.cache(), bench.cohorts[0]
    with _builder(cohort, cache, code) as builder:
        assert builder.wait() == 0
    volume = next(iter(bench.before.values()))["box"]
    counts: Counter[str] = Counter()
    for name, old in bench.before.items():
        whole = load_file(current_file(cache, name))["box"]
        counts["stale"] += np.array_equal(whole, volume)
        counts["right"] += whole[:, 1].tolist() == [60, 60, 39]
        build_cache(_case(cohort, name), cache, workers=1, progress=False)
        counts["right" if equal(load_file(current_file(cache, name)), old) else "stale"] += 1
    return _summed(counts)


def _case(cohort: Path, name: str) -> list[Case]:
    return [case for case in find_cases(cohort, labelled=True)[0] if case.id == name]


def _two_builders(bench: Bench, rounds: int) -> dict[str, int]:
    """Both replace the entries of the first cohort while this process reads them."""
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for _ in range(rounds):
            cache = bench.cache()
            builders = [pool.submit(build, bench.cohorts[1], cache) for _ in range(2)]
            counts["torn"] += _watch(bench, cache, builders)
            counts += bench.judge(cache)
    return _summed(counts)


def _watch(bench: Bench, cache: Path, builders: list[Future[None]]) -> int:
    torn = 0
    while not all(builder.done() for builder in builders):
        torn += bench.judge(cache)["torn"]
    for builder in builders:
        builder.result()
    return torn


def _killed_builder(bench: Bench, kills: int) -> dict[str, int]:
    """Entries after SIGKILL must be whole, and right after one more build."""
    rng = np.random.default_rng(0)
    duration = _seconds(lambda: build(bench.cohorts[1], bench.cache()))
    counts: Counter[str] = Counter()
    for _ in range(kills):
        cache = bench.cache()
        _kill_after(float(rng.uniform(0, duration)), bench.cohorts[1], cache)
        left = bench.judge(cache)
        counts["torn"] += left["torn"]
        counts["killed with entries left to do"] += left["stale"] > 0
        build(bench.cohorts[1], cache)
        counts += bench.judge(cache)
    killed = "killed with entries left to do"
    return {"kills": kills, killed: counts[killed], **_summed(counts)}


def _kill_after(seconds: float, cohort: Path, cache: Path) -> None:
    with _builder(cohort, cache, _ROOT) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        sleep(seconds)
        builder.kill()


def _builder(cohort: Path, cache: Path, code: Path) -> subprocess.Popen[bytes]:
    """A process that builds with the packages in a folder, once it has printed a line."""
    paths = os.pathsep.join([str(code), str(_ROOT)])
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, str(cohort), str(cache)],
        cwd=code,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _seconds(work: Callable[[], None]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start
