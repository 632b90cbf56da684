"""CGGM in Hugging Face's Trainer: BERT and ViT with LoRA, random weights; data are SIMULATED."""

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel, TrainingArguments, ViTConfig, ViTModel

from cggm import CGGM
from cggm.hosts import BalancedTrainer

CLASSES, WIDTH = 3, 32
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 64}


class TextAndImage(nn.Module):
    """BERT and ViT, whose first tokens are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        text = BertModel(BertConfig(vocab_size=64, **SIZES), add_pooling_layer=False)
        image = ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES), add_pooling_layer=False)
        lora = LoraConfig(r=4, target_modules=["query", "value", "q_proj", "v_proj"])
        parts = {"text": get_peft_model(text, lora), "image": get_peft_model(image, lora)}
        self.encoders = nn.ModuleDict(parts)
        self.output_layer = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, words: Tensor, picture: Tensor, labels: Tensor | None = None) -> dict:
        """Logits; the labels are the trainer's affair."""
        text = self.encoders["text"](input_ids=words).last_hidden_state[:, 0]
        image = self.encoders["image"](pixel_values=picture).last_hidden_state[:, 0]
        return {"logits": self.output_layer(torch.cat([text, image], 1))}


class Head(nn.Module):
    """Judges one modality by the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.output_layer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, features: object) -> Tensor:  # noqa: D102
        return self.output_layer(self.widen(features.last_hidden_state[:, 0]).relu())


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of right classes, the score of a head."""
    return (prediction.argmax(1) == target).float().mean()


def simulated_samples(count: int) -> list[dict[str, Tensor]]:
    """Words that tell the class plainly, and pictures that hint at it."""
    torch.manual_seed(1)
    labels = torch.randint(CLASSES, (count,))
    pictures = 4 * torch.randn(count, 3, 16, 16) + labels[:, None, None, None]
    rows = zip(labels[:, None].expand(-1, 6) + 8, pictures, labels, strict=True)
    return [{"words": w, "picture": p, "labels": y} for w, p, y in rows]


def balanced_trainer(folder: str, samples: list, **arguments: object) -> BalancedTrainer:
    """A trainer that binds the balancer to its model."""
    torch.manual_seed(0)
    model = TextAndImage()
    balancer = CGGM({n: Head() for n in model.encoders}, nn.CrossEntropyLoss(), accuracy)
    options = TrainingArguments(folder, report_to="none", use_cpu=True, **arguments)
    return BalancedTrainer(model, options, train_dataset=samples, balancer=balancer)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": 20, "learning_rate": 0.002, "gradient_accumulation_steps": 2}
        trainer = balanced_trainer(folder, simulated_samples(128), **settings)
        trainer.train()
    for name, read in trainer.balancer.readings_by_modality.items():
        print(f"{name:<5}  score {read['score']:.2f}  B {read['term']:.2f}")
