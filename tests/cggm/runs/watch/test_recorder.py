"""The record of a bare loop: its lines, its files and page, and a training that goes on."""

import json

import pytest
import torch

from cggm.errors import UserError
from cggm.reports import report_training
from cggm.runs import Metric, RunRecorder, register_metrics
from tests.cggm.contract_hosts import Session

register_metrics(Metric("accuracy", "accuracy", "higher"))


def lines(folder, name="balance"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def session():
    made = Session("CGGM")
    made.balancer.bind(made.network)
    return made


def train(made, epochs, accumulation=1, seen=None):
    """Epochs of a loop that knows nothing of a recorder; `seen` is told of each step."""
    for epoch in epochs:
        made.balancer.start_epoch(epoch)
        for i, batch in enumerate(made.batches, 1):
            loss = made.step(batch, i, accumulation)
            if seen is not None and i % accumulation == 0:
                norms = [
                    torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in e.parameters()]))
                    for e in made.network.encoders.values()
                ]
                seen.append((epoch, loss.item(), made.balancer.readings_by_modality, norms))
        made.balancer.end_epoch(epoch)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_optimizer_step_leaves_the_line_that_was_measured(tmp_path, accumulation):
    made, seen = session(), []
    names = list(made.network.encoders)
    with RunRecorder(made.balancer, tmp_path):
        train(made, [1, 2], accumulation, seen)
    found = lines(tmp_path)
    assert [line["iteration"] for line in found] == [*range(1, len(seen) + 1)]
    for line, (epoch, loss, readings, norms) in zip(found, seen, strict=True):
        assert line["epoch"] == epoch
        assert line["loss"] == pytest.approx(loss)
        assert line["gradient_norm"] == pytest.approx(
            dict(zip(names, map(float, norms), strict=True))
        )
        for reading in ("score", "term", "cosine"):
            assert line[reading] == {name: readings[name][reading] for name in names}


def test_evaluations_and_lines_that_are_not_due_are_passed_over(tmp_path):
    made = session()
    with RunRecorder(made.balancer, tmp_path, every=2):
        train(made, [1])
        made.network.eval()
        inputs, target = made.batches[0]
        made.balancer(made.network(inputs), target)
        made.network.train()
        train(made, [2])
    steps = 2 * len(made.batches)
    assert [line["iteration"] for line in lines(tmp_path)] == [*range(2, steps + 1, 2)]


def test_files_curves_and_a_page_come_of_it(tmp_path):
    made = session()
    with RunRecorder(made.balancer, tmp_path, simulated=True) as record:
        for epoch in (1, 2):
            train(made, [epoch])
            record.end_epoch(epoch, {"accuracy": 0.25 * epoch})
    rows, steps = lines(tmp_path, "metrics"), len(made.batches)
    assert [row["iteration"] for row in rows] == [steps, 2 * steps]
    losses = [line["loss"] for line in lines(tmp_path)]
    assert rows[1]["train_loss"] == pytest.approx(sum(losses[steps:]) / steps)
    assert (tmp_path / "curves" / "curves.png").stat().st_size > 1000
    page = report_training(tmp_path).read_text()
    assert "CGGM()" in page
    assert "0.500" in page
    assert "simulated" in page.lower()
    assert "not finished" not in page
    assert not made.balancer._forward_hooks
    assert not made.balancer._state_dict_pre_hooks


def test_a_training_that_was_killed_goes_on_in_its_log(tmp_path):
    straight = session()
    with RunRecorder(straight.balancer, tmp_path / "straight"):
        train(straight, [1, 2, 3])
    killed = session()
    record = RunRecorder(killed.balancer, tmp_path / "killed").__enter__()
    train(killed, [1, 2])
    objects = (killed.network, killed.optimizer, killed.balancer)
    state = [{**o.state_dict()} for o in objects]
    state = torch.load(_saved(tmp_path / "state.pt", state), weights_only=True)
    assert len(lines(tmp_path / "killed")) == 2 * len(killed.batches)  # complete as it is saved
    train(killed, [3])  # steps that are lost
    record.flush()
    resumed = session()
    for o, kept in zip((resumed.network, resumed.optimizer, resumed.balancer), state, strict=True):
        o.load_state_dict(kept)
    with RunRecorder(resumed.balancer, tmp_path / "killed"):
        train(resumed, [3])
    assert lines(tmp_path / "killed") == lines(tmp_path / "straight")


def _saved(file, state):
    torch.save(state, file)
    return file


def test_the_log_of_another_training_is_not_mixed_with_a_new_one(tmp_path):
    first, second = session(), session()
    with RunRecorder(first.balancer, tmp_path):
        train(first, [1])
    before = (tmp_path / "balance.jsonl").read_bytes()
    with (
        pytest.raises(UserError, match="folder of a new run, but it holds the log of one"),
        RunRecorder(second.balancer, tmp_path),
    ):
        train(second, [1])
    assert (tmp_path / "balance.jsonl").read_bytes() == before


def test_an_unknown_metric_is_refused(tmp_path):
    made = session()
    with RunRecorder(made.balancer, tmp_path, curves=False) as record:
        train(made, [1])
        with pytest.raises(UserError, match="Unknown metric 'brier'"):
            record.end_epoch(1, {"brier": 0.1})
    assert not (tmp_path / "curves").exists()


def test_readings_have_the_names_of_modalities():
    made = session()
    train(made, [1])
    found = made.balancer.readings_by_modality
    assert [*found] == list(made.network.encoders)
    for i, own in enumerate(found.values()):
        assert own == {name: float(v[i]) for name, v in made.balancer.readings.items()}
