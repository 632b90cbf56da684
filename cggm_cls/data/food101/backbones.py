"""BERT and ViT from local folders, frozen, as extractors of features.

Nothing is ever fetched, and no pickle is read: weights are safetensors.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cggm.errors import UserError
from cggm.runs import file_digest, parse_json
from cggm_cls.data.food101.images import Pixels
from cggm_cls.data.simulated import is_simulated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Patches = Literal["pooled", "full"]

_FILES = ("*.json", "*.safetensors", "vocab.txt")  # all that shapes the features
_FIX = (
    "Give two local folders: a BERT with config.json, model.safetensors and tokenizer.json or "
    "vocab.txt, and a ViT with config.json, model.safetensors and preprocessor_config.json."
)


class TextBackbone:
    """A BERT that gives one vector per token.

    Args:
        folder: A BERT as saved by transformers, with its tokenizer.
        device: Where to compute.
        max_tokens: Tokens that a text is cut to, the two special ones included.

    Attributes:
        digest: Sha256 of the model's files.
        width: Features of a token.
        simulated: Whether the folder declares itself simulated.
        transform: What is done to a text, JSON values.

    Raises:
        UserError: If the folder holds no such model.
    """

    def __init__(
        self, folder: Path, *, device: str | torch.device = "cpu", max_tokens: int = 50
    ) -> None:
        config = _config(folder, "bert", [("tokenizer.json", "vocab.txt")])
        most = config.get("max_position_embeddings", 0)
        if not 2 <= max_tokens <= most:
            what = f"Expected max_tokens from 2 to the {most} positions of {folder}, "
            raise UserError(f"{what}but got {max_tokens}.", "Choose fewer tokens.")
        _stay_offline()
        from transformers import BertModel, BertTokenizer

        self._tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = _load(BertModel, folder, device)
        self.digest = _digest(folder)
        self.width = int(self._model.config.hidden_size)
        self.simulated = is_simulated(folder)
        self.transform = {"max_tokens": max_tokens}

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Features of each text.

        Returns:
            For each text float32 of shape ``(T_i, width)``, without padding. An empty text has two
            tokens, the special ones.
        """
        limit = self.transform["max_tokens"]
        tokens = self._tokenizer(
            list(texts), truncation=True, max_length=limit, padding=True, return_tensors="pt"
        ).to(self._model.device)
        states = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].bool()
        return [state[real].cpu() for state, real in zip(states, mask, strict=True)]


class ImageBackbone:
    """A ViT that gives the class token and one vector per patch.

    Args:
        folder: A ViT as saved by transformers, with its image processor's configuration.
        device: Where to compute.
        patches: ``"pooled"`` averages two by two neighboring patches, ``"full"`` keeps them all:
            50 or 197 steps for ViT-B/16.

    Attributes:
        digest: Sha256 of the model's files.
        width: Features of a step.
        size: Pixels of each side of an image.
        resample: Filter to scale images with, as numbered by Pillow.
        simulated: Whether the folder declares itself simulated.
        transform: What is done to an image, JSON values.

    Raises:
        UserError: If the folder holds no such model.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str | torch.device = "cpu",
        patches: Patches = "pooled",
    ) -> None:
        _config(folder, "vit", [("preprocessor_config.json",)])
        processor = _read_json(folder / "preprocessor_config.json")
        normalizes = processor.get("do_normalize", True)
        mean, std = (
            processor.get(key, [0.5] * 3) if normalizes else [neutral] * 3
            for key, neutral in (("image_mean", 0.0), ("image_std", 1.0))
        )
        _stay_offline()
        from transformers import ViTModel

        self._model = _load(ViTModel, folder, device)
        self._mean, self._std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
        self._patches = patches
        self.digest = _digest(folder)
        self.width = int(self._model.config.hidden_size)
        self.size = int(self._model.config.image_size)
        self.resample = int(processor.get("resample", 2))
        self.simulated = is_simulated(folder)
        self.transform = {
            "size": self.size,
            "resample": self.resample,
            "mean": mean,
            "std": std,
            "patches": patches,
        }

    @torch.inference_mode()
    def encode(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Features of some images.

        Args:
            images: RGB, each of shape ``(size, size, 3)``.

        Returns:
            For each image float32 of shape ``(T, width)``: the class token, then the patches row
            by row.
        """
        pixels = torch.from_numpy(np.stack(images)).to(self._model.device).permute(0, 3, 1, 2) / 255
        states = self._model(pixel_values=(pixels - self._mean) / self._std).last_hidden_state
        return [*(_pooled(states) if self._patches == "pooled" else states).cpu()]


def _pooled(states: Tensor) -> Tensor:
    token, patches = states[:, :1], states[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    grid = patches.transpose(1, 2).unflatten(2, (side, side))  # (B, T, D) -> (B, D, side, side)
    return torch.cat([token, avg_pool2d(grid, 2, ceil_mode=True).flatten(2).transpose(1, 2)], 1)


def _config(folder: Path, kind: str, needed: Sequence[tuple[str, ...]]) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise UserError(f"Expected the folder of a {kind} model, but {folder} is none.", _FIX)
    weights = ("model.safetensors", "model.safetensors.index.json")
    for names in (("config.json",), weights, *needed):
        if not any((folder / name).is_file() for name in names):
            pickles = "; pickled weights are not read" if list(folder.glob("*.bin")) else ""
            what = f"Expected {' or '.join(names)} in {folder}, but found no such file{pickles}."
            raise UserError(what, _FIX)
    config = _read_json(folder / "config.json")
    if config.get("model_type") != kind:
        found = config.get("model_type")
        raise UserError(f"Expected a {kind} model in {folder}, but found {found!r}.", _FIX)
    return config


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(file.read_bytes())
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        what = f"Expected a JSON object in {file}, but it cannot be read ({error})."
        raise UserError(what, _FIX) from error


def _stay_offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
    from transformers.utils import logging

    logging.disable_progress_bar()


def _load(
    kind: "type[PreTrainedModel]", folder: Path, device: str | torch.device
) -> "PreTrainedModel":
    """The model without its pooler, which such checkpoints often lack, frozen."""
    try:
        loaded: Any = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            add_pooling_layer=False,
            dtype=torch.float32,
        )
    except Exception as error:  # of safetensors, transformers and torch, each with its own
        what = f"Expected weights of a {kind.__name__} in {folder}, but got: {error}."
        raise UserError(what, _FIX) from error
    model, report = loaded
    absent = sorted(report["missing_keys"])
    if absent:
        what = f"Expected all weights of a {kind.__name__} in {folder}, but {len(absent)} are "
        raise UserError(f"{what}missing, the first of them {absent[0]}.", _FIX)
    frozen: PreTrainedModel = model.eval().requires_grad_(False).to(device)
    return frozen


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _FILES for file in folder.glob(pattern)}):
        digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return digest.hexdigest()
