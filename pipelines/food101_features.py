r"""Run BERT and ViT once over UPMC Food-101, so that training never runs them again.

    python pipelines/food101_features.py --data food101 --text_model bert-base-uncased \
        --image_model vit-base-patch16-224 --output features

Both models are local folders; nothing is downloaded. An interrupted extraction is continued by the
same command. Without --data it extracts from simulated records with tiny random models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.errors import UserError
from cggm.runs import DEVICES, choose_device, parse_options, run

DEMO = Path("demo/food101")


@dataclass(frozen=True)
class FeatureOptions:
    """Where features come from and how they are made.

    Args:
        data: Folder of the data set; simulated records where not given.
        text_model: Folder of a BERT with its tokenizer.
        image_model: Folder of a ViT with its image processor.
        output: Folder of the features.
        views: Views of each training image, itself and random variations.
        max_tokens: Tokens that a text is cut to.
        patches: Whether two by two neighboring patches are averaged.
        validation: Samples of the validation split, at most a tenth of the training samples.
        seed: Of the validation split and the variations.
        batch_size: Texts or images per forward pass.
        workers: Threads that decode images.
        skip_bad: Whether samples with a bad image are left out.
        device: Where to compute; CUDA if there is one, where not given.
    """

    data: Path | None = field(default=None, metadata={"metavar": "DIR"})
    text_model: Path | None = field(default=None, metadata={"metavar": "DIR"})
    image_model: Path | None = field(default=None, metadata={"metavar": "DIR"})
    output: Path | None = field(default=None, metadata={"metavar": "DIR"})
    views: int = 1
    max_tokens: int = 50
    patches: Literal["pooled", "full"] = "pooled"
    validation: int = 5000
    seed: int = 0
    batch_size: int = 32
    workers: int = 2
    skip_bad: bool = False
    device: str | None = field(default=None, metadata={"metavar": DEVICES})


def main(argv: Sequence[str]) -> None:
    """Parse, assemble, run."""
    options = parse_options(FeatureOptions, __doc__, argv)
    if options.data is None:
        from cggm_cls.data.food101 import simulate_features

        print("No --data given: SIMULATED records, RANDOM backbones.", flush=True)
        print(f"features {simulate_features(DEMO, views=options.views)}")
        return
    if not (options.text_model and options.image_model and options.output):
        raise UserError(
            "Expected --text_model, --image_model and --output along with --data.",
            "Give the local folders of a BERT and a ViT, and where the features go.",
        )

    from cggm_cls.data.food101 import (
        ExtractionOptions,
        ImageBackbone,
        TextBackbone,
        extract_features,
        read_food101,
    )

    device = choose_device(options.device)
    store = extract_features(
        read_food101(options.data, validation=options.validation, seed=options.seed),
        TextBackbone(options.text_model, device=device, max_tokens=options.max_tokens),
        ImageBackbone(options.image_model, device=device, patches=options.patches),
        options.output,
        ExtractionOptions(
            views=options.views,
            seed=options.seed,
            batch_size=options.batch_size,
            workers=options.workers,
            skip_bad=options.skip_bad,
        ),
    )
    for note in store.task_data(seed=options.seed).notes:
        print(f"note     {note}")
    print(f"features {options.output}")


if __name__ == "__main__":
    raise SystemExit(run(main))
