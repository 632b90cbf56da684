"""Tuning of every method of a comparison by equally many trials, on the validation split."""

import hashlib
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any

from cggm.comparison.plan import PlannedRun
from cggm.comparison.records import RecordStore
from cggm.display import Cell, Table, number
from cggm.errors import UserError
from cggm.runs import (
    NUMBER,
    RunFolder,
    check_form,
    find_metric,
    read_json,
    read_jsonl,
    write_json,
)

Settings = dict[str, Any]
Pair = tuple[str, str]  # names of a task and of a method
Train = Callable[[RecordStore, Sequence[PlannedRun]], object]
FILE = "tuning.json"
_FORM = {
    **dict.fromkeys(("task", "method", "metric", "engine"), str),
    **dict.fromkeys(("trials", "finished"), int),
    "settings": {"*": object},
    "score?": NUMBER,
}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class Space:
    """Values that a setting may take: some to choose from, or a range.

    Args:
        key: Option of the training scripts, such as ``optimizer.lr``.
        method: The only method that has it; all do where ``None``.
        choices: What to choose from; empty for a range.
        low: The least value of a range.
        high: The largest one.
        log: Whether a range is drawn from by its logarithm.
    """

    key: str
    method: str | None = None
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def parse(cls, text: str) -> "Space":
        """Read ``optimizer.lr=1e-4..1e-2:log``, ``batch_size=32|64`` or ``cggm:rho=0.5..2``.

        Raises:
            UserError: If it is none of these.
        """
        name, _, values = text.strip().partition("=")
        method, colon, key = name.rpartition(":")
        found = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})(:log)?", values, re.IGNORECASE)
        words = tuple(values.split("|"))
        if not key or not values or (found is None and not all(words)):
            raise UserError(
                f"Expected a range or a choice, but got {text!r}.",
                "Write --sweep as in optimizer.lr=1e-4..1e-2:log,batch_size=32|64,cggm:rho=0.5..2",
            )
        key = f"balancer.settings.{key}" if colon else key
        if found is None:
            return cls(key, method or None, words)
        low, high, log = float(found[1]), float(found[2]), found[3] is not None
        if not low < high or (log and low <= 0):
            raise UserError(
                f"Expected a range that rises, from above 0 for a logarithm, but got {text!r}.",
                "Correct --sweep.",
            )
        return cls(key, method or None, (), low, high, log)

    def draw(self, trial: int) -> Any:  # noqa: ANN401
        """The value of a trial, the same for every method that has the setting."""
        digest = hashlib.sha256(f"{self.key}:{trial}".encode()).digest()
        source = random.Random(int.from_bytes(digest[:8], "big"))
        if self.choices:
            return source.choice(self.choices)
        if self.log:
            return math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        return source.uniform(self.low, self.high)


@dataclass(frozen=True)
class Sweep:
    """What is tried for every method of a comparison before it is trained with all seeds.

    The first trial has a method's own settings, those of its file; all have one seed, which is none
    of the comparison's. The validation split chooses; the test split is not looked at. A trial that
    fails, because its learning rate is too large, say, counts as one.

    Args:
        spaces: Settings and their values.
        trials: Of each method on each task.
        engine: ``"random"``, the same draws for all methods, or ``"optuna"``: each method's own
            search by TPE, which is kept in ``trials/optuna.log``.

    Raises:
        UserError: If Optuna is asked for and not installed.
    """

    spaces: tuple[Space, ...]
    trials: int
    engine: str = "random"

    @classmethod
    def parse(cls, text: str, trials: int, engine: str) -> "Sweep":
        """Read the spaces of a command line, separated by commas."""
        return cls(tuple(Space.parse(part) for part in text.split(",")), trials, engine)

    def tuned(self, runs: Sequence[PlannedRun], output: Path, train: Train) -> list[PlannedRun]:
        """Runs with the settings that were best, as arguments.

        Args:
            runs: All trainings of the comparison.
            output: Its folder.
            train: Trains what a store lacks.
        """
        store = RecordStore(output / "trials")
        store.output.mkdir(parents=True, exist_ok=True)
        firsts: dict[Pair, PlannedRun] = {}
        for run in runs:
            firsts.setdefault((run.task.name, run.method), run)
        self._check(firsts)
        seed = max(run.seed for run in runs) + 1
        engine = _Optuna(store.output) if self.engine == "optuna" else _Random()
        trials: dict[Pair, list[tuple[Settings, float | None]]] = {pair: [] for pair in firsts}
        for index in range(self.trials):
            told = {p: engine.ask(p, index, self._of(p[1])) for p in firsts}
            batch = {p: _trial(firsts[p], index, seed, own) for p, own in told.items()}
            if store.pending([*batch.values()]):
                print(f"tuning, trial {index + 1} of {self.trials}", flush=True)
                train(store, [*batch.values()])
            for pair, run in batch.items():
                score = _score(store, run)
                engine.tell(pair, index, firsts[pair], score)
                trials[pair].append((told[pair], score))
        best = {pair: _best(firsts[pair], own) for pair, own in trials.items()}
        rows = [self._row(firsts[pair], trials[pair], best[pair]) for pair in firsts]
        write_json(output / FILE, {"methods": rows})
        return [
            replace(run, arguments=(*run.arguments, *_arguments(best[run.task.name, run.method])))
            for run in runs
        ]

    def _of(self, method: str) -> tuple[Space, ...]:
        name = method.partition(":")[0]
        return tuple(space for space in self.spaces if space.method in (None, name))

    def _check(self, firsts: Mapping[Pair, PlannedRun]) -> None:
        known = {method.partition(":")[0] for _, method in firsts}
        for space in self.spaces:
            if space.method is not None and space.method not in known:
                raise UserError(
                    f"--sweep: {space.method} is none of the methods that are compared.",
                    f"They are {', '.join(sorted(known))}.",
                )

    def _row(
        self,
        run: PlannedRun,
        trials: Sequence[tuple[Settings, float | None]],
        best: Settings,
    ) -> dict[str, Any]:
        scores = [score for _, score in trials if score is not None]
        found = [score for own, score in trials if own == best and score is not None]
        return {
            "task": run.task.name,
            "method": run.method,
            "metric": run.task.metrics[0],
            "engine": self.engine,
            "trials": len(trials),
            "finished": len(scores),
            "settings": best,
            "score": found[0] if found else None,
        }


class _Random:
    """Draws that are the same for every method."""

    def ask(self, pair: Pair, trial: int, spaces: Sequence[Space]) -> Settings:
        return {space.key: space.draw(trial) for space in spaces} if trial else {}

    def tell(self, pair: Pair, trial: int, run: PlannedRun, score: float | None) -> None:
        pass


class _Optuna:
    """A study for each task and method, in a journal that later commands go on with."""

    def __init__(self, folder: Path) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ModuleNotFoundError as error:
            raise UserError(
                "--sweep_engine optuna needs the package optuna.", 'pip install "cggm[tune]"'
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = JournalFileBackend(str(folder / "optuna.log"))
        self._optuna, self._storage = optuna, optuna.storages.JournalStorage(backend)

    def ask(self, pair: Pair, trial: int, spaces: Sequence[Space]) -> Settings:
        study = self._study(pair, trial)
        asked = study.get_trials(deepcopy=False)
        if trial < len(asked):  # by an earlier command
            return dict(asked[trial].params)
        return dict(study.ask(self._distributions(spaces) if trial else {}).params)

    def tell(self, pair: Pair, trial: int, run: PlannedRun, score: float | None) -> None:
        study = self._study(pair, trial)
        state = self._optuna.trial.TrialState.FAIL if score is None else None
        value = None if score is None else find_metric(run.task.metrics[0]).score(score)
        study.tell(trial, value, state=state, skip_if_finished=True)

    def _study(self, pair: Pair, trial: int) -> Any:  # noqa: ANN401
        return self._optuna.create_study(
            storage=self._storage,
            study_name=" ".join(pair),
            sampler=self._optuna.samplers.TPESampler(seed=trial),
            direction="maximize",  # of a score, which is higher where the metric is better
            load_if_exists=True,
        )

    def _distributions(self, spaces: Sequence[Space]) -> dict[str, Any]:
        known = self._optuna.distributions
        return {
            space.key: known.CategoricalDistribution(space.choices)
            if space.choices
            else known.FloatDistribution(space.low, space.high, log=space.log)
            for space in spaces
        }


def tuning_table(output: Path) -> Table | None:
    """What each method was tuned by, from the folder of a comparison; ``None`` where none was.

    Raises:
        UserError: If the file is damaged.
    """
    file = output / FILE
    if not file.exists():
        return None
    rows = []
    for row in read_json(file).get("methods", []):
        check_form(row, _FORM, file)
        metric = find_metric(row["metric"])
        score = number(row["score"], metric.digits)
        settings = " ".join(starmap(_shown, row["settings"].items()))
        counts = f"{row['trials']} ({row['finished']} finished)"
        cells = (row["task"], row["method"], counts, settings or "its own", score)
        rows.append(tuple(map(Cell, cells)))
    heads = ("task", "method", "trials", "settings", "validation")
    notes = (
        "The test split was not looked at. The first trial has a method's own settings.",
        f"Numbers to four digits; {FILE} has all of them.",
    )
    return Table("Tuning: equally many trials for each method, one seed", heads, tuple(rows), notes)


def _shown(key: str, value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else value
    return f"{key.removeprefix('balancer.settings.')}={text}"


def _trial(run: PlannedRun, index: int, seed: int, settings: Settings) -> PlannedRun:
    arguments = (*run.arguments, *_arguments(settings))
    return PlannedRun(run.task, f"{run.method}@{index}", seed, arguments)


def _arguments(settings: Settings) -> tuple[str, ...]:
    return tuple(word for key, value in settings.items() for word in (f"--{key}", str(value)))


def _score(store: RecordStore, run: PlannedRun) -> float | None:
    """The trial's validation metric; ``None`` where it failed, or is not finite.

    Raises:
        UserError: If the training finished and has no such metric.
    """
    done = {(record.task, record.method) for record in store.records()}
    if (run.task.name, run.method) not in done:
        return None
    folder, metric = RunFolder(run.folder(store.output)), run.task.metrics[0]
    results = read_json(folder.results)
    log = read_jsonl(folder.metrics) if folder.metrics.exists() else []
    kept, told = results.get("epoch"), results.get("validation", {})
    key = f"val_{metric}"  # of the epoch whose weights were tested
    logged = [row[key] for row in log if key in row and kept in (None, row["epoch"])]
    found = [told[metric]] if metric in told else logged
    if not found:
        raise UserError(
            f"{folder.path}: nothing to tune by, the training validated no {metric}.",
            f"It has to log {key} in {folder.metrics.name}.",
        )
    value = found[-1]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _best(run: PlannedRun, trials: Sequence[tuple[Settings, float | None]]) -> Settings:
    """Settings of the best trial, the first of equal ones; its own where all failed."""
    found = [(score, own) for own, score in trials if score is not None]
    if not found:
        return {}
    metric = find_metric(run.task.metrics[0])
    return max(found, key=lambda one: metric.score(one[0]))[1]
