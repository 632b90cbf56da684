"""Export of the best checkpoint of a run, and a comparison of what was written with the network."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from cggm.errors import UserError
from cggm.runs import RunFolder, file_digest, load_network_weights, new_folder, read_config
from cggm.tensors import evaluating
from cggm_seg.evaluation import CLASS_NAMES
from cggm_seg.export.bundle import write_bundle
from cggm_seg.export.card import Facts, color_table, model_card, read_facts
from cggm_seg.export.program import export_program, onnx_network, write_onnx, write_program
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.training import BratsConfig

Form = Literal["bundle", "onnx", "torch"]

FORMS: tuple[Form, ...] = ("bundle", "onnx", "torch")

_NEEDED: dict[Form, tuple[str, ...]] = {
    "bundle": ("fire",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch": (),
}
_TOLERANCE = 1e-3  # of logits, as a share of the largest one


def export_run(run: RunFolder, form: Form, output: Path, shared: Path) -> None:
    """Write the network of the best checkpoint, with a model card, label colors and digests.

    What was written is read again and has to give the network's logits on slices of two sizes;
    otherwise nothing is left.

    Args:
        run: The run.
        form: ``bundle``, ``onnx`` or ``torch``.
        output: Folder to be made.
        shared: Folder of what all bundles share.

    Raises:
        UserError: If there is no checkpoint, a package is missing, the folder exists or cannot be
            made, or the network cannot be exported.
    """
    _check_unused(output)
    _check_packages(form)
    config = read_config(BratsConfig, [run.config])
    network = config.network.build(config.used, pretrained=False)
    epoch = load_network_weights(run.checkpoints, network).epoch
    facts = read_facts(run, config, epoch)
    with new_folder(output) as draft:
        _write(network, form, draft, facts, shared)
        (draft / "MODEL_CARD.md").write_text(model_card(facts), "utf-8")
        (draft / "labels.ctbl").write_text(color_table(), "utf-8")
        _compare(network, form, draft)
        _write_digests(draft)


def _check_unused(folder: Path) -> None:
    if folder.exists():
        raise UserError(
            f"{folder}: expected no export there yet, but it exists.",
            "Remove it, or give another --output.",
        )


def _write_digests(folder: Path) -> None:
    """Digests of all files in the format of ``sha256sum``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines), "utf-8")


def _write(
    network: MultiEncoderDeepLabV3Plus, form: Form, draft: Path, facts: Facts, shared: Path
) -> None:
    notes = {
        "modalities": ",".join(network.modalities),
        "classes": ",".join(CLASS_NAMES),
        "model_card": model_card(facts),
    }
    if form == "bundle":
        write_bundle(network, draft, facts, shared)
    elif form == "onnx":
        write_onnx(export_program(network), draft / "model.onnx", notes)
    else:
        write_program(export_program(network), draft / "model.pt2", notes)


def _compare(network: MultiEncoderDeepLabV3Plus, form: Form, draft: Path) -> None:
    written = _read(form, draft)
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in ((1, 48, 32), (3, 64, 80)):
        shape = (batch, len(network.modalities), height, width)
        images = torch.randn(shape, generator=generator)
        with evaluating(network):
            expected, found = network(images), written(images)
        difference = (found - expected).abs().max()
        if not difference <= _TOLERANCE * expected.abs().max():
            raise RuntimeError(
                f"Expected the exported network to give the logits of the network, but for a batch "
                f"of shape {shape} they differ by {difference:.2g}."
            )


def _read(form: Form, draft: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    if form == "onnx":
        return onnx_network(draft / "model.onnx")
    file = draft / ("models/network.pt2" if form == "bundle" else "model.pt2")
    module = torch.export.load(file).module()
    if form == "bundle":
        weights = torch.load(draft / "models" / "model.pt", weights_only=True)
        module.load_state_dict(weights, assign=True)
    return module


def _check_packages(form: Form) -> None:
    missing = [name for name in _NEEDED[form] if find_spec(name) is None]
    if missing:
        raise UserError(
            f"Expected the packages that {form} needs, but {', '.join(missing)} cannot be found.",
            'Install them with pip install "cggm[seg,export]".',
        )
