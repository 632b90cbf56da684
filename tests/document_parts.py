"""What the code blocks of each document take for granted: networks, heads, data, files."""

from collections import OrderedDict
from pathlib import Path

import torch
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cggm import CGGM
from cggm_seg.export.run import export_run
from tests.cggm.contract import CONTRACTS, Contract
from tests.cggm.networks import (
    Convolutional,
    ConvolutionalHead,
    accuracy,
    late_batch,
    make_late,
)
from tests.cggm_seg.exporting import finished_run
from tests.cggm_seg.nifti import write_case
from tests.cggm_seg.predicting import brain_volume, small_network
from tests.documents import ROOT


def late_parts() -> dict[str, object]:
    """A small network with heads, data and a MONAI trainer, by the names that documents use."""
    network, heads = make_late()
    loader = DataLoader(TensorDataset(*late_batch(32)), batch_size=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(),
        prepare_batch=lambda batch, device, non_blocking, **_: batch,
        decollate=False,
    )
    return {
        "network": network,
        "heads": heads,
        "score": accuracy,
        "loss": nn.CrossEntropyLoss(),
        "loader": loader,
        "optimizer": optimizer,
        "trainer": trainer,
    }


def volumes() -> dict[str, object]:
    """A 3-D network whose parts have names of their own, too, and a MONAI trainer for it."""
    names = ("flair", "t1ce")
    network = Convolutional(names, dims=3)
    network.a, network.b = network.encoders.values()
    network.last = nn.Sequential(OrderedDict(conv=network.output_layer))
    heads = {name: ConvolutionalHead(dims=3) for name in names}
    cases = [{"image": torch.randn(2, 8, 8, 8), "label": torch.ones(1, 8, 8, 8)} for _ in range(4)]
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(cases, batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss,
    )
    balancer = CGGM(dict(heads), loss, lambda prediction, target: prediction.mean())
    return {"network": network, "heads": heads, "trainer": trainer, "balancer": balancer}


def slices() -> dict[str, object]:
    """Two slices of two channels, as a loader."""
    case = {"image": torch.randn(2, 64, 64), "label": torch.ones(1, 64, 64).long()}
    return {"loader": DataLoader([case, case], batch_size=2), "device": torch.device("cpu")}


def exported() -> dict[str, object]:
    """What export.py leaves, and a case, in the working folder."""
    write_case(Path(), "case", shape=(32, 32, 8))
    run_folder, _ = finished_run(Path("run"))
    for form, name in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        export_run(run_folder, form, Path(form), ROOT / "configs" / "bundle")
        for file in Path(form).glob(f"{name}*"):
            file.rename(file.name)
    images = torch.zeros(2, 2, 32, 32)
    return {"slices": images, "array": images.numpy(), "case": "case/case"}


def cases() -> dict[str, object]:
    """A cohort of one case, its images, and a network for them."""
    write_case(Path("CASES"), "case", shape=(32, 32, 8))
    images, _ = brain_volume(shape=(32, 32, 8))
    return {"network": small_network().eval(), "images": images}


SETUPS = {
    "docs/arrays.md": dict,
    "docs/export.md": exported,
    "docs/howto/bare_loop.md": lambda: {**late_parts(), "device": "cpu"},
    "docs/howto/ignite_engine.md": late_parts,
    "docs/howto/resume.md": late_parts,
    "docs/howto/monai_trainer.md": volumes,
    "docs/howto/new_method.md": lambda: {
        **late_parts(),
        "CONTRACTS": dict(CONTRACTS),
        "Contract": Contract,
    },
    "docs/howto/new_metric.md": dict,
    "docs/howto/other_data.md": lambda: {**slices(), "__file__": "pipelines/ecg_train.py"},
    "docs/inference.md": cases,
    "docs/method.md": dict,
    "docs/methods.md": late_parts,
}
