"""Export of a training on sequences as an ONNX model that takes what the arrays hold."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from cggm.errors import UserError
from cggm.runs import (
    NUMBER,
    RunFolder,
    check_form,
    file_digest,
    load_network_weights,
    new_folder,
    read_json,
    read_yaml,
    write_json,
)
from cggm.tensors import evaluating
from cggm_cls.data import MaskedSequence
from cggm_cls.networks import SequenceNetwork
from cggm_cls.training import SequenceNetworkConfig

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_TOLERANCE = 1e-4  # of predictions, as a share of the largest one
_INPUT = {"features": int, "mean?": [object], "deviation?": [object]}
_RESULTS = {"inputs": {"*": _INPUT}, "test": {"*": object}, "classes?": [str], "*": object}


class ScaledNetwork(nn.Module):
    """A network behind the scaling of its training data, so that it takes them as they were.

    Args:
        network: The network.
        scaling: Mean and deviation of features by modality, ``(D,)`` or ``(T, D)``; features of a
            modality without one are taken as they are.
    """

    def __init__(
        self, network: SequenceNetwork, scaling: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.network = network
        for name, (mean, deviation) in scaling.items():
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_deviation", deviation)
        self.scaled = frozenset(scaling)

    def forward(self, *arrays: Tensor) -> Tensor:
        """Prediction, as the network's.

        Args:
            arrays: Values ``(B, T, D)`` and mask ``(B, T)`` of each modality in turn.
        """
        names = self.network.modalities
        pairs = zip(names, arrays[::2], arrays[1::2], strict=True)
        prediction: Tensor = self.network(
            {name: MaskedSequence(self._scale(name, values), mask) for name, values, mask in pairs}
        )
        return prediction

    def _scale(self, name: str, values: Tensor) -> Tensor:
        if name not in self.scaled:
            return values
        # In double precision, as the features were, before they became single numbers.
        mean, deviation = getattr(self, f"{name}_mean"), getattr(self, f"{name}_deviation")
        return ((values.double() - mean) / deviation).float()


def export_sequences(run: RunFolder, form: str, output: Path) -> None:
    """Write ``model.onnx`` of the best checkpoint, and ``model.json`` that says what it takes.

    The model takes two inputs of each modality, the features as they were in the data, ``(B, T,
    D)``, and a mask of the real steps, ``<modality>.mask``, ``(B, T)``; a mask without a true one
    is a modality that is absent. It gives ``logits`` ``(B, C)``, or ``values`` ``(B,)``. It is
    compared with the network before it is kept; no head of a balancing method is in it.

    Args:
        run: A finished run.
        form: ``onnx``.
        output: Folder to be made.

    Raises:
        UserError: If the form is another one, the run is not finished or from before results said
            what is taken, a package is missing, or the folder exists.
    """
    if form != "onnx":
        what = f"Expected --to onnx for a training on sequences, but got --to {form}."
        raise UserError(what, "Other forms are those of images.")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        what = f"Expected the packages that onnx needs, but {', '.join(missing)} cannot be found."
        raise UserError(what, 'Install them with pip install "cggm[cls,export]".')
    if output.exists():
        what = f"{output}: expected no export there yet, but it exists."
        raise UserError(what, "Remove it, or give another --output.")
    results = read_json(run.results, missing_ok=True)
    if "inputs" not in results:
        what = f"{run.path}: expected a finished run whose results say what the network takes."
        raise UserError(what, "Finish it with --resume, or train anew.")
    check_form(results, _RESULTS, run.results)
    network = _network(run, results)
    model = ScaledNetwork(network, _scaling(results["inputs"]))
    with new_folder(output) as draft:
        _write(model, draft / "model.onnx", results)
        _compare(model, draft / "model.onnx", results)
        write_json(draft / "model.json", _card(run, network, results))
        digests = [f"{file_digest(f)}  {f.name}\n" for f in sorted(draft.iterdir())]
        (draft / "SHA256SUMS").write_text("".join(digests))


def _network(run: RunFolder, results: Mapping[str, Any]) -> SequenceNetwork:
    config = read_yaml(run.config)
    check_form(config, {"network": {"*": object}, "*": object}, run.config)
    try:
        own = SequenceNetworkConfig(**config["network"])
    except TypeError as error:
        what = f"{run.config}: expected the network of a training on sequences, but {error}."
        raise UserError(what, "Give the folder of such a run.") from error
    confusion = results["test"].get("confusion")
    widths = {name: entry["features"] for name, entry in results["inputs"].items()}
    network = own.build(widths, None if confusion is None else len(confusion))
    load_network_weights(run.checkpoints, network)
    return network


def _scaling(inputs: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (torch.tensor(own["mean"]).double(), torch.tensor(own["deviation"]).double())
        for name, own in inputs.items()
        if "mean" in own
    }


def _example(results: Mapping[str, Any], batch: int, steps: int, seed: int) -> list[Tensor]:
    """Random values and masks of each modality; every sample has some steps of one modality."""
    generator = torch.Generator().manual_seed(seed)
    arrays: list[Tensor] = []
    for own in results["inputs"].values():
        mean = torch.tensor(own.get("mean", 0.0)).double()
        deviation = torch.tensor(own.get("deviation", 1.0)).double()
        fixed = len(mean) if mean.ndim == 2 else steps
        noise = torch.randn(batch, fixed, own["features"], generator=generator).double()
        mask = torch.rand(batch, fixed, generator=generator) < 0.7
        if not arrays:
            mask[:, 0] = True
        arrays += [(mean + deviation * noise).float(), mask]
    return arrays


def _names(results: Mapping[str, Any]) -> tuple[list[str], str]:
    inputs = [text for name in results["inputs"] for text in (name, f"{name}.mask")]
    return inputs, "logits" if "confusion" in results["test"] else "values"


def _write(model: ScaledNetwork, file: Path, results: Mapping[str, Any]) -> None:
    inputs, output = _names(results)
    arrays = _example(results, batch=3, steps=5, seed=0)
    free = []
    for own in results["inputs"].values():
        cut = isinstance(own.get("mean", [0])[0], list)
        sizes = {0: Dim.DYNAMIC} if cut else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
        free += [sizes, sizes]
    with evaluating(model):
        program = torch.onnx.export(
            model,
            tuple(arrays),
            dynamo=True,
            input_names=inputs,
            output_names=[output],
            dynamic_shapes=(tuple(free),),
            verbose=False,
        )
    assert program is not None
    program.save(file, external_data=False)


def _compare(model: ScaledNetwork, file: Path, results: Mapping[str, Any]) -> None:
    import onnxruntime

    inputs, output = _names(results)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch, steps in ((1, 1), (4, 9)):
        arrays = _example(results, batch, steps, seed=batch)
        with evaluating(model), torch.no_grad():
            expected = model(*arrays)
        given = {name: array.numpy() for name, array in zip(inputs, arrays, strict=True)}
        found = torch.from_numpy(session.run([output], given)[0])
        difference = (found - expected).abs().max()
        if found.shape != expected.shape or not difference <= _TOLERANCE * expected.abs().max():
            raise RuntimeError(
                f"Expected the exported network to predict as the network, but for {batch} samples "
                f"of {steps} steps they differ by {difference:.2g}."
            )


def _card(run: RunFolder, network: SequenceNetwork, results: Mapping[str, Any]) -> dict[str, Any]:
    names, output = _names(results)
    numbers = {k: v for k, v in results["test"].items() if isinstance(v, NUMBER[:2])}
    return {
        "inputs": {
            name: {
                "values": f"{name}: float32 (B, T, {network.widths[name]}), as in the data",
                "mask": f"{name}.mask: bool (B, T), true where a step is real",
                "scaled inside": "mean" in results["inputs"][name],
            }
            for name in network.modalities
        },
        "order": names,
        "output": output,
        "classes": results.get("classes", []),
        "simulated": results.get("simulated"),
        "test": numbers,
        "run": run.path.name,
    }
