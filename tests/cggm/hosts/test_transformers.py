"""Hugging Face's Trainer: BERT and ViT from tiny random configurations, LoRA, accumulation."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: pip install 'cggm[features]'")
pytest.importorskip("peft", reason="needs peft: pip install peft")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")

from cggm.errors import UserError
from examples.hugging_face_trainer import balanced_trainer, simulated_samples
from tests.cggm.contract_hosts import EPOCHS, Session, bare_loop
from tests.cggm.hosts.trainers import torch_state, trainer_of
from tests.quantifiers import every

SETTINGS = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "save_strategy": "no",
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trains_like_a_bare_loop(tmp_path, accumulation):
    folder = str(tmp_path)
    # samples are all alike, because the trainer shuffles them
    settings = SETTINGS | {"max_steps": 3, "gradient_accumulation_steps": accumulation}
    settings |= {"per_device_train_batch_size": 8 // accumulation}
    samples = simulated_samples(1) * 8
    trainer = balanced_trainer(folder, samples, **settings)
    batches = [*trainer.get_train_dataloader()]
    trainer.train()
    twin = balanced_trainer(folder, samples, **settings)
    model, expected = twin.model, twin.balancer
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        for batch in batches[:accumulation]:
            loss = expected(model(**batch)["logits"], batch["labels"])
            (loss / accumulation).backward()
        optimizer.step()
    balancer = trainer.balancer
    assert balancer.clock.steps == expected.clock.steps == 3
    for key, value in model.state_dict().items():
        assert torch.allclose(trainer.model.state_dict()[key], value, atol=1e-6), key
    assert torch.equal(balancer.readings["term"], expected.readings["term"])


def test_only_adapters_and_the_last_layer_learn(tmp_path):
    trainer = balanced_trainer(str(tmp_path), simulated_samples(8), **SETTINGS)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert every("lora_" in name or name.startswith("output_layer") for name in trained)
    for name in ("text", "image"):
        assert any(key.startswith(f"encoders.{name}.") for key in trained)
    assert trainer.balancer.bound
    assert not [key for key in trainer.model.state_dict() if "widen" in key]


def test_evaluation_is_the_loss_alone(tmp_path):
    samples = simulated_samples(8)
    trainer = balanced_trainer(str(tmp_path), samples, **SETTINGS)
    found = trainer.evaluate(samples)["eval_loss"]
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(trainer.model.eval()(**b)["logits"], b["labels"])
            for b in trainer.get_eval_dataloader(samples)
        ]
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert trainer.balancer.calls == 0


def test_a_training_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    straight = bare_loop("CGGM", 1)
    first, second = Session("CGGM"), Session("CGGM")
    trainer_of(first, tmp_path, num_train_epochs=2, save_strategy="epoch").train()
    (last,) = tmp_path.glob(f"checkpoint-{2 * len(first.batches)}")
    assert not [key for key in _weights(last) if "head" in key]
    trainer_of(second, tmp_path / "elsewhere").train(resume_from_checkpoint=str(last))
    found, wanted = torch_state(second), torch_state(straight)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    assert second.balancer.clock.epoch == EPOCHS
    assert second.balancer.clock.steps == straight.balancer.clock.steps


def _weights(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def test_a_checkpoint_without_the_balancer_is_refused(tmp_path):
    trainer_of(Session("CGGM"), tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-1" / "balancer.pt").unlink()
    trainer = trainer_of(Session("CGGM"), tmp_path / "b")
    with pytest.raises(UserError, match=r"state of CGGM in .*balancer.pt, but there is no"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_samples_without_a_modality_are_left_out(tmp_path):
    session = Session("CGGM")
    session.balancer.bind(session.network)
    name = next(iter(session.network.encoders))
    trainer = trainer_of(session, tmp_path, max_steps=1)
    trainer.present = lambda inputs: {name: False}
    trainer.train()
    assert torch.isnan(session.balancer.readings["term"]).tolist() == [True, False, False]
