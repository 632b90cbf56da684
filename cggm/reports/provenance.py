"""What a run was: configuration, data, versions, machine, time, and what to be wary of."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from shlex import join
from typing import Any

import yaml
from markupsafe import Markup

from cggm.reports.page import Section
from cggm.reports.run import RunRecord

_LONGEST = 1e9  # seconds


def provenance_section(record: RunRecord, warnings: Sequence[str] = ()) -> Section:
    """Facts on the run, the warnings first and the whole configuration last.

    Args:
        record: The run.
        warnings: What the task has to warn of, a sentence each.
    """
    sentences = [*warnings, *_warnings(record)]
    listed = Markup().join(Markup("<li>{}</li>").format(text) for text in sentences)
    facts = Markup().join(
        Markup("<dt>{}</dt><dd>{}</dd>").format(name, value)
        for name, value in _facts(record).items()
        if value
    )
    versions = ", ".join(f"{n} {v}" for n, v in record.environment.get("packages", {}).items())
    body = Markup(
        '{}<dl class="facts">{}<dt>Versions</dt><dd>{}</dd></dl>'
        '<details><summary>Whole configuration</summary><pre tabindex="0">{}</pre></details>'
    ).format(
        Markup('<ul class="warnings">{}</ul>').format(listed) if sentences else "",
        facts,
        versions,
        yaml.safe_dump(dict(record.config), sort_keys=False),
    )
    return Section("The run", body)


def _facts(record: RunRecord) -> Mapping[str, str]:
    environment, results, config = record.environment, record.results, record.config
    cuda = environment.get("cuda")
    device = environment.get("device", "")
    processor = f"{environment.get('cpus', '?')} cores of {environment.get('cpu', '?')}"
    epoch = results.get("epoch")
    return {
        "Method": record.method,
        "Data": str(config["data"] or "demo data") if "data" in config else "",
        "Data digest": str(record.progress.get("fingerprint", {}).get("data", "")),
        "Seed": str(config.get("seed", "")),
        "Epochs": f"{results.get('max_epochs', len(record.metrics))}"
        + (f", weights of epoch {epoch} selected on validation" if epoch else ""),
        "Started": environment.get("started", "").replace("T", " "),
        "Resumed": _resumptions(environment),
        "Duration": _duration(record),
        "Loading data": _loading(record),
        "Device": f"{device}, CUDA {cuda}" if cuda else device,
        "Machine": f"{processor}, {environment.get('system', '')}",
        "Source": f"commit {environment['commit']}" if environment.get("commit") else "",
        "Python": environment.get("python", ""),
        "Command": join(environment.get("command", [])),
        "Folder": str(record.folder.path),
    }


def _resumptions(environment: Mapping[str, Any]) -> str:
    """After which steps the run went on, and which options it was given anew."""
    starts = [*environment.get("earlier_starts", []), environment]
    said = []
    for start in starts:
        changed = start.get("changed") or {}
        options = ", ".join(f"{name} {' to '.join(map(str, v))}" for name, v in changed.items())
        if "resumed_at" in start:
            said.append(f"after step {start['resumed_at']}" + (f" with {options}" * bool(options)))
    return "; ".join(said)


def _duration(record: RunRecord) -> str:
    """Training time of all starts; what a killed one did after its last checkpoint is unknown."""
    if not record.timing:
        return ""
    seconds = sum(row["seconds"] for row in record.timing)
    if not 0 <= seconds < _LONGEST:  # no duration, whoever wrote it
        return ""
    return f"{timedelta(seconds=round(seconds))} (h:mm:ss of training, validation included)"


def _loading(record: RunRecord) -> str:
    seconds = sum(row["seconds"] for row in record.timing)
    if not 0 < seconds < _LONGEST:
        return ""
    share = sum(row["loading_seconds"] for row in record.timing) / seconds
    return f"{share:.1%} of the training's time".replace("%", " %")


def _warnings(record: RunRecord) -> Iterator[str]:
    epoch, last = record.results.get("epoch"), record.results.get("max_epochs")
    if not record.results:
        yield "The run is not finished: it has no results."
    if epoch and epoch == last and len(record.validated) > 1:
        yield "The last epoch was the best one: the network might still improve with more epochs."
    last_validation = record.validated[-1] if record.validated else {}
    told = [*record.results.get("warnings", []), *last_validation.get("warnings", [])]
    yield from dict.fromkeys(told)
    starts = len(record.environment.get("earlier_starts", []))
    if starts:
        yield f"The run was interrupted and resumed {starts} time{'s' if starts > 1 else ''}."
    if str(record.environment.get("commit", "")).endswith("+"):
        yield "The source had changes that are in no commit."
    skipped = sum(row.get("skipped_steps") or 0 for row in record.metrics)
    if skipped:
        yield f"{skipped} steps were skipped because a loss or a gradient was not finite."
    broken = sum(row.get("loss", 0.0) is None for row in record.balance)
    if broken:
        yield f"{broken} of the recorded losses were not finite."
