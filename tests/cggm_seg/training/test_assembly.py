from dataclasses import replace
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
import torch
from ignite.engine import Events
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cggm.errors import UserError
from cggm.runs.config import read_config
from cggm.runs.folder import RunFolder
from cggm.runs.watch.logs import read_jsonl
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.data.cohort import Cohort, split_cases
from cggm_seg.training.assembly import segmentation_session
from cggm_seg.training.balancing import segmentation_balancer
from cggm_seg.training.config import BratsConfig
from cggm_seg.training.validation import ValidationSlice
from tests.cggm.synchronization import Waits
from tests.cggm_seg.nifti import write_case
from tests.quantifiers import every, none

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors
CPU = torch.device("cpu")
CONFIG = """
max_epochs: 2
batch_size: 4
workers: 0
validate_every: 1
network: {encoder_name: tu-lcnet_050, decoder_channels: 16, low_level_channels: 8}
slices: {size: 32, per_case: 2}
optimizer: {warmup_epochs: 1}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    for seed in range(4):
        write_case(folder / "data", f"case{seed}", shape=(40, 36, 12), seed=seed)
    cases, _ = find_cases(folder / "data", labelled=True)
    return build_cache(cases, folder / "cache", workers=1, progress=False)[0]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(CONFIG)
    return read_config(BratsConfig, [file])


class Training:
    """One training and its parts."""

    def __init__(self, config, cache, folder):
        torch.manual_seed(0)
        self.run, self.cache = RunFolder(folder), cache
        self.network = config.network.build()
        split = split_cases(cache.case_ids, 0.25, 0)
        balancer = segmentation_balancer(config, self.network, cache, split)
        cohort = Cohort(folder, {}, cache, split, [])
        self.session = segmentation_session(config, self.run, self.network, balancer, cohort, CPU)
        self.trainer = self.session.trainer


@pytest.fixture
def build(config, cache, tmp_path):
    return lambda **options: Training(config, cache, tmp_path / "run", **options)


def test_optimizer_holds_the_network_and_no_head(build):
    training = build()
    [group] = training.trainer.optimizer.param_groups
    held = {id(parameter) for parameter in group["params"]}
    assert held == {id(parameter) for parameter in training.network.parameters()}
    assert none("head" in name for name, _ in training.network.named_modules())


def test_building_writes_nothing_and_draws_no_number_for_heads(build, config, cache, tmp_path):
    build()
    drawn = torch.rand(1)
    plain = replace(config, balancer=replace(config.balancer, name="Balancer", settings={}))
    Training(plain, cache, tmp_path / "run")
    assert torch.equal(torch.rand(1), drawn)
    assert list(tmp_path.iterdir()) == []


def test_loader_draws_nothing_from_the_global_generator(build):
    loader = build().trainer.data_loader
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    batches = list(islice(loader, 3))
    assert torch.equal(torch.rand(1), expected)
    assert [batch["image"].shape for batch in batches] == [(4, 4, 32, 32)] * 3


def test_rates_follow_the_schedule_through_accumulated_steps(build, config, cache, tmp_path):
    accumulating = replace(config.optimizer, accumulation_steps=2)
    config = replace(config, batch_size=3, optimizer=accumulating)
    training = Training(config, cache, tmp_path / "run")
    weights = [parameter.clone() for parameter in training.network.parameters()]
    training.session.run()
    rates = [line["lr"] for line in read_jsonl(training.run.metrics)]
    assert rates == pytest.approx([(4e-4 + 1e-2) / 2, 1e-3])
    changed = [
        not torch.equal(a, b) for a, b in zip(weights, training.network.parameters(), strict=True)
    ]
    assert sum(changed) > 0.9 * len(changed)


def test_restore_returns_to_the_last_checkpoint_and_cuts_the_logs(build):
    first = build()
    first.session.run()
    state = first.trainer.optimizer.state_dict()["state"][0]["momentum_buffer"]
    for log in (first.run.metrics, first.run.balance):
        with log.open("a") as file:
            file.write('{"iteration": 99, "epoch": 50}\n{"iteration": 100, "ep')

    again = build()
    expected = first.network.state_dict()
    assert every(torch.equal(v, expected[k]) for k, v in again.network.state_dict().items())
    assert torch.equal(again.trainer.optimizer.state_dict()["state"][0]["momentum_buffer"], state)
    assert (again.trainer.state.epoch, again.trainer.state.iteration) == (2, 2)
    assert [line["epoch"] for line in read_jsonl(again.run.metrics)] == [1, 2]
    balance = read_jsonl(again.run.balance)
    assert [line["iteration"] for line in balance] == [1, 2]
    assert tuple(balance[-1]["term"]) == MODALITIES


def test_every_validation_shows_the_same_slice_in_tensorboard(build):
    first = build()
    first.session.run()
    events = EventAccumulator(str(first.run.tensorboard))
    events.Reload()
    (name,) = events.Tags()["images"]
    shown = events.Images(name)
    assert [image.step for image in shown] == [1, 2]
    pixels = np.asarray(Image.open(BytesIO(shown[-1].encoded_image_string)))
    split = split_cases(first.cache.case_ids, 0.25, 0)
    picture = ValidationSlice(first.network, first.cache, split.validation[0])()
    assert name == picture.name
    assert np.array_equal(pixels, picture.pixels)
    curves = {
        f"{key}/{m}" for key in ("score", "term", "cosine", "gradient_norm") for m in MODALITIES
    }
    scalars = set(events.Tags()["scalars"])
    assert curves | {"train_loss", "lr", "val_dice_WT", "val_dice_mean"} <= scalars


def test_a_region_that_is_never_found_is_told_and_logged(build, capsys):
    training = build()
    training.network.output_layer.bias.data[0] += 1e4  # background everywhere
    training.session.run()
    lines = read_jsonl(training.run.metrics)
    assert [len(line["warnings"]) for line in lines] == [1, 1]
    assert lines[0]["warnings"][0].startswith("Not one voxel was found of WT and TC and ET")
    assert none("warnings" in key for line in lines for key in line if key.startswith("val_"))
    said = capsys.readouterr().err
    assert said.count("warning, epoch 1: Not one voxel was found of WT and TC and ET") == 1
    assert said.count("warning, epoch 2: ") == 1


def test_run_without_a_checkpoint_begins_anew(build):
    first = build()
    first.run.make()
    first.run.balance.write_text('{"iteration": 1, "epoch": 1}\n')
    again = build()
    assert again.trainer.state.epoch == 0
    assert first.run.balance.read_text() == ""
    expected = first.network.state_dict()
    assert every(torch.equal(v, expected[k]) for k, v in again.network.state_dict().items())


def test_checkpoint_of_another_method_is_refused(build, config, cache, tmp_path):
    training = build()
    training.session.run()
    plain = replace(config, balancer=replace(config.balancer, name="Balancer", settings={}))
    with pytest.raises(UserError, match=r"but got --balancer\.name Balancer \(it has CGGM\)"):
        Training(
            plain,
            cache,
            tmp_path / "run",
        )


def test_encoder_weights_are_loaded_unless_a_checkpoint_follows(config, tmp_path):
    weights = config.network.build().encoders["t1"].encoder.state_dict()
    file = tmp_path / "encoder.safetensors"
    save_file(weights, file)
    settings = replace(config.network, encoder_weights=file)
    for encoder in settings.build().encoders.values():
        state = encoder.encoder.state_dict()
        assert every(torch.equal(state[key], value) for key, value in weights.items())
    file.unlink()
    settings.build(pretrained=False)
    with pytest.raises(UserError, match=r"encoder\.safetensors: .* cannot be read"):
        settings.build()


def test_processes_are_no_more_than_cores(config):
    assert replace(config, workers=0).processes == 0
    assert replace(config, workers=1).processes == 1
    assert 1 <= replace(config, workers=10_000).processes < 10_000


@pytest.fixture
def processor(monkeypatch):
    """Says whether the processor has instructions for bfloat16."""

    def has(bf16):
        monkeypatch.setattr("cggm_seg.training.assembly.computes_bf16", lambda device: bf16)

    return has


def test_processor_trains_in_bfloat16_where_it_is_told_to(config, cache, tmp_path, processor):
    processor(True)
    losses = {}
    for amp in (True, "cpu"):
        training = Training(replace(config, amp=amp), cache, tmp_path / str(amp))
        types = set()
        stem = next(m for m in training.network.modules() if isinstance(m, torch.nn.Conv2d))
        stem.register_forward_hook(lambda module, given, out, types=types: types.add(out.dtype))
        training.session.run()
        assert types >= {torch.bfloat16 if amp == "cpu" else torch.float32}
        assert {p.dtype for p in training.network.parameters()} == {torch.float32}
        losses[amp] = [row["train_loss"] for row in read_jsonl(training.run.metrics)]
    assert losses["cpu"] != losses[True]
    assert losses["cpu"] == pytest.approx(losses[True], rel=0.05)


def test_iteration_in_bfloat16_is_monais_but_for_its_precision(
    config, cache, tmp_path, processor, monkeypatch
):
    processor(True)
    monkeypatch.setattr("cggm_seg.training.assembly.torch.bfloat16", torch.float32)
    optimizer = replace(config.optimizer, accumulation_steps=2)
    states = []
    for amp in (False, "cpu"):  # autocast to float32 changes nothing
        options = replace(config, amp=amp, optimizer=optimizer, batch_size=2)
        training = Training(options, cache, tmp_path / str(amp))
        training.session.run()
        states.append(training.network.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_bfloat16_is_refused_where_it_would_be_slower(config, cache, tmp_path, processor):
    processor(False)
    with pytest.raises(UserError, match="no instructions for bfloat16"):
        Training(replace(config, amp="cpu"), cache, tmp_path / "run")


@pytest.mark.parametrize(("amp", "every"), [(False, 100), ("cpu", 100), (False, 1)])
def test_steps_of_a_session_wait_for_the_device_where_each_is_looked_at(
    config, cache, tmp_path, processor, amp, every
):
    """Those of a GPU are counted on a processor, whose optimizer and looks are the same."""
    processor(True)
    options = replace(config, amp=amp, check_every=every, batch_size=2)
    training = Training(options, cache, tmp_path / "run")
    waits = []
    with Waits() as counted:
        for event in (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
            training.trainer.add_event_handler(event, lambda: waits.append(counted.count))
        training.session.run()
    within = [after - before for before, after in zip(waits[::2], waits[1::2], strict=True)]
    assert len(within) == 6
    # The first step looks at the modules, the last one of an epoch at what was put off.
    assert [within[1], *within[3:5]] == [1 if every == 1 else 0] * 3


def test_number_that_is_not_finite_leaves_the_checkpoint_from_before_the_looks(
    config, cache, tmp_path
):
    options = replace(config, check_every=2, batch_size=2, max_epochs=3)
    training = Training(options, cache, tmp_path / "run")

    def spoil(engine):
        if engine.state.iteration == 4:
            next(training.network.parameters()).data[0] = torch.nan

    training.trainer.add_event_handler(Events.ITERATION_STARTED, spoil)
    with pytest.raises(UserError, match=r"Epoch 2, iteration 4: the loss is nan .* after step 3,"):
        training.session.run()
    [kept] = training.run.checkpoints.iterdir()
    assert kept.name.startswith("epoch-0001")
    states = []
    for name in ("run", "whole"):
        one = Training(options, cache, tmp_path / name)
        one.session.run()
        states.append(one.network.state_dict())
    assert every(torch.equal(value, states[1][key]) for key, value in states[0].items())
