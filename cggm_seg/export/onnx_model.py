"""The network as an ONNX model."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

INPUT, OUTPUT = "images", "logits"


def write_onnx(program: ExportedProgram, file: Path, notes: Mapping[str, str]) -> None:
    """Writes a graph as one ``.onnx`` file, weights included.

    Input ``images`` and output ``logits`` keep the free sizes of the graph. An ONNX file ends at
    2 GiB.

    Args:
        program: The graph, with its weights.
        file: Where to.
        notes: Entries of the model's metadata.
    """
    model = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    assert model is not None
    model.model.metadata_props.update(notes)
    model.save(file, external_data=False)


def onnx_network(file: Path) -> Callable[[Tensor], Tensor]:
    """An ONNX model on the processor, by onnxruntime: slices ``(B, M, H, W)`` to logits.

    Args:
        file: The model.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        [logits] = session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(logits)

    return run
