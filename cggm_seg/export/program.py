"""Graph of the network by torch.export, for any batch and any size, and as an ONNX model."""

import copy
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from cggm.errors import UserError
from cggm_seg.networks import OUTPUT_STRIDE, MultiEncoderDeepLabV3Plus

SMALLEST = 2 * OUTPUT_STRIDE
"""Least height and width that a graph accepts; it differs for a feature map of one pixel."""


def export_program(network: MultiEncoderDeepLabV3Plus, *, weights: bool = True) -> ExportedProgram:
    """The network in evaluation mode, as a graph that needs neither this project nor smp.

    The input ``images`` and the result are those of the network; batch, height and width are free,
    the latter two multiples of 16 from 32 on. Heads of a balancing method are no part of it.

    Args:
        network: The network; it stays as it is.
        weights: Whether the graph holds the weights; without them its module has to load the
            network's state dict, with ``assign=True``.

    Raises:
        UserError: If the encoder is not made for torch.export.
    """
    fixed = copy.deepcopy(network).to("cpu" if weights else "meta").eval()
    images = torch.zeros(2, len(network.modalities), 64, 96, device="cpu" if weights else "meta")
    sizes = {axis: OUTPUT_STRIDE * Dim(name, min=2) for axis, name in ((2, "rows"), (3, "columns"))}
    try:
        program = torch.export.export(
            fixed, (images,), dynamic_shapes={"images": {0: Dim("batch"), **sizes}}
        )
    except Exception as error:  # torch.export refuses with errors of every kind
        raise _unfit(error) from error
    # They hold the graph to the device that it was made on.
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def write_program(program: ExportedProgram, file: Path, notes: Mapping[str, str]) -> None:
    """Writes a graph as ``.pt2``.

    Args:
        program: The graph.
        file: Where to.
        notes: Texts that are stored beside, see ``extra_files`` of ``torch.export.load``.

    Raises:
        UserError: If the graph has an operation that cannot be stored.
    """
    buffer = BytesIO()  # PyTorch aborts the process where a disk is full
    try:
        torch.export.save(program, buffer, extra_files=dict(notes))
    except Exception as error:
        raise _unfit(error) from error
    file.write_bytes(buffer.getbuffer())


def _unfit(error: Exception) -> UserError:
    return UserError(
        f"Expected a network that torch.export can express, but got: {shorten(str(error), 200)}",
        "Export a run with another network.encoder_name, such as resnet18 or tu-regnetx_002.",
    )


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
