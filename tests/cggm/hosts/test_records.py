"""The recorder of bare loops around other hosts: the same lines, to the last digit."""

import json

import pytest

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
pytest.importorskip("transformers", reason="needs transformers: pip install 'cggm[features]'")

from cggm.reports import report_training
from cggm.runs import RunRecorder
from tests.cggm import contract_hosts
from tests.cggm.contract_hosts import EPOCHS, Session, bare_loop
from tests.cggm.hosts import trainers

HOSTS = [
    trainers.lightning_automatic,
    trainers.lightning_manual,
    trainers.accelerate_loop,
    trainers.hugging_face,
]


def recorded(patch, module, host, folder, accumulation):
    """Lines of balance.jsonl of a training whose recorder was opened before it began."""
    open_now = []

    def session(name):
        made = Session(name)
        open_now.append(RunRecorder(made.balancer, folder, curves=False).__enter__())
        return made

    with patch.context() as own:
        own.setattr(module, "Session", session)
        host("CGGM", accumulation)
    (record,) = open_now
    record.__exit__(None, None, None)
    return [json.loads(line) for line in (folder / "balance.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.__name__)
def test_a_record_around_a_host_is_that_of_a_bare_loop(tmp_path, monkeypatch, host):
    wanted = recorded(monkeypatch, contract_hosts, bare_loop, tmp_path / "bare", 2)
    found = recorded(monkeypatch, trainers, host, tmp_path / "host", 2)
    assert [line["iteration"] for line in found] == [*range(1, EPOCHS + 1)]
    for line, other in zip(found, wanted, strict=True):
        assert line == other
    assert "CGGM()" in report_training(tmp_path / "host").read_text()
