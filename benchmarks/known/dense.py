"""Forms of guided heads for dense prediction, with what they are compared with, all seeds at once.

    python -m benchmarks.known.dense [--seeds 5] [--first 500] [--forms NAME ...] [--json FILE]

Networks of all seeds are groups of the same convolutions; data, initial weights, batches and draws
are those of ``benchmarks.known.training`` seed by seed, and results equal its to rounding
(``tests/benchmarks/test_dense.py``). "even pass" has heads' losses of equal weights and a pass with
one modality that is drawn evenly; it is the control of every form below. "by level" weighs
modalities by who is behind, as guided heads do elsewhere, but with a gate of the heads' losses in
place of their Dice and without trust (``gate="loss"``). Its controls replay the weights that it
recorded with the same seed: "uniform" their mean over time and modalities, "constant" their mean
over time, "random" rows of them drawn anew. The others add shares: of images by the loss of their
shapes, of regions (the pixels of a class in an image), of pixels; "shuffled" deals them out to
other images. "truth" has the shares that nobody knows: all for the modality that shows this image,
none for one that shows another. Dice in hundredths; rows that a file has are kept.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.known.answer import EPOCHS
from benchmarks.known.data import OUTPUTS, SCENARIOS, SLOW_SCALES, dice, make_data, shown_truly
from benchmarks.known.networks import Head, Network
from benchmarks.known.training import Case, make_optimizer, positions
from benchmarks.machine import machine
from cggm.methods.guided import guided_weights
from cggm.scores import ratio_score

TASK, CLASSES = "segmentation", OUTPUTS["segmentation"]
EVEN, LEVEL = "even pass", "by level"
CONTROLS = ("uniform", "constant", "random")
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """What is added to the task loss; the default is joint training.

    Args:
        mu: Weight of the heads' losses.
        nu: Weight of the extra pass, times the number of modalities.
        weights: ``"level"`` by the gates, a name of :data:`CONTROLS`, or ``None`` for 1.
        level: Of what there are shares: ``"shapes"``, ``"regions"``, ``"pixels"`` or ``"truth"``;
            ``None`` for none.
        by_shares: Whether the modality of the extra pass is drawn by shares instead of evenly.
        shuffled: Whether shares are dealt out to other images.
    """

    mu: float = 0.0
    nu: float = 0.0
    weights: str | None = None
    level: str | None = None
    by_shares: bool = False
    shuffled: bool = False


FORMS = {
    "joint": Form(),
    "unimodal losses": Form(1.0),
    EVEN: Form(1.0, 0.25),
    LEVEL: Form(1.0, 0.25, "level"),
    **{name: Form(1.0, 0.25, name) for name in CONTROLS},
    "shapes": Form(1.0, 0.25, level="shapes"),
    "regions": Form(1.0, 0.25, level="regions"),
    "regions, pass too": Form(1.0, 0.25, level="regions", by_shares=True),
    "regions shuffled": Form(1.0, 0.25, level="regions", shuffled=True),
    "pixels": Form(1.0, 0.25, level="pixels"),
    "truth": Form(1.0, 0.25, level="truth"),
    "truth, pass too": Form(1.0, 0.25, level="truth", by_shares=True),
}


@dataclass(frozen=True)
class Batch:
    """A step's images by modality ``(B, S, ...)``, targets, and which modality shows them truly."""

    step: int
    images: Mapping[str, Tensor]
    target: Tensor
    truly: Tensor


class DenseEngine:
    """Trainings of one scenario with many seeds.

    Args:
        scenario: See :data:`benchmarks.known.data.SCENARIOS`.
        seeds: Of data, weights, batches and draws.
    """

    def __init__(self, scenario: str, seeds: Sequence[int]) -> None:
        self.cases = [Case(TASK, scenario, "sgd", seed) for seed in seeds]
        self.names, self.scenario = SCENARIOS[scenario].names, SCENARIOS[scenario]
        scale = SLOW_SCALES[TASK, "sgd"]
        self.data = [make_data(TASK, self.scenario, scale, seed) for seed in seeds]

    def train(
        self, form: Form, epochs: int, recorded: Tensor | None = None
    ) -> tuple[Weights, Tensor]:
        """Train all networks.

        Args:
            form: See :data:`FORMS`.
            epochs: Of each training.
            recorded: For a control, what "by level" returned.

        Returns:
            Weights of all networks, and those of the modalities at each step, ``(steps, S, M)``.
        """
        network, heads = self._initial()
        optimizer = make_optimizer(self.cases[0], list(network.values()))
        head_optimizer = torch.optim.Adam(list(heads.values()), lr=5e-4)
        signal = torch.zeros(len(self.cases), len(self.names))
        record = []
        for batch in self._batches(epochs):
            features = {n: self._encode(network, n, batch.images[n]) for n in self.names}
            total = _mean(_losses(self._fuse(network, features), batch.target)).sum()
            taught = None
            if form.mu > 0:
                said = [self._judge(heads, n, features[n].detach()) for n in self.names]
                taught = sum(_mean(_losses(z, batch.target)).sum() for z in said)
                signal = torch.lerp(_signal(said, batch.target), signal, 0.9)
                weights = self._weights(form, signal, batch.step, recorded)
                record.append(weights)
                total = total + self._added(form, batch, network, heads, features, weights)
            own = torch.autograd.grad(taught, list(heads.values())) if form.mu > 0 else ()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if form.mu > 0:
                for parameter, gradient in zip(heads.values(), own, strict=True):
                    parameter.grad = gradient
                head_optimizer.step()
        return network, torch.stack(record) if record else torch.ones_like(signal)[None]

    @torch.no_grad()
    def judge(self, network: Weights) -> dict[str, list[float]]:
        """Dice with all modalities and without each, in hundredths, one for each seed."""
        images, target = self._stack("test")
        features = {n: self._encode(network, n, images[n]) for n in self.names}
        found = {"score": _dice(self._fuse(network, features), target)}
        for name in self.names:
            left = features | {name: torch.zeros_like(features[name])}
            found[f"without {name}"] = _dice(self._fuse(network, left), target)
        return found

    def _added(
        self,
        form: Form,
        batch: Batch,
        network: Weights,
        heads: Weights,
        features: Mapping[str, Tensor],
        weights: Tensor,
    ) -> Tensor:
        """The heads' losses and that of the extra pass, the sum over seeds."""
        constant = {key: value.detach() for key, value in heads.items()}
        said = [self._judge(constant, n, features[n]) for n in self.names]
        losses = torch.stack([_losses(z, batch.target) for z in said], -1)
        shares, of_images = shares_of(form.level, losses.detach(), batch)
        if form.shuffled:
            order = torch.stack([self._uniform("order", c, batch) for c in self.cases], 1).argsort(
                0
            )
            rows = torch.arange(len(self.cases))
            shares, of_images = shares[order, rows], of_images[order, rows]
        of_each = (weights[:, None, None] * shares * losses).sum(-1)
        total = form.mu * _mean(of_each).sum()
        if form.nu > 0:
            chances = weights * (of_images if form.by_shares else torch.ones_like(of_images))
            drawn = torch.stack([self._uniform("kept", c, batch) for c in self.cases], 1)
            below = chances.cumsum(-1) / chances.sum(-1, keepdim=True)
            kept = F.one_hot((below[..., :-1] <= drawn[..., None]).sum(-1), len(self.names))
            left = {
                n: features[n] * kept[..., i, None, None, None] for i, n in enumerate(self.names)
            }
            alone = _mean(_losses(self._fuse(network, left), batch.target))
            total = total + form.nu * (weights.sum(1) * alone).sum()
        return total

    def _weights(self, form: Form, signal: Tensor, step: int, recorded: Tensor | None) -> Tensor:
        """Weights of the modalities, ``(S, M)``."""
        if form.weights == "level":
            return torch.stack([weights_of(own) for own in signal])
        if form.weights is None:
            return torch.ones_like(signal)
        if recorded is None:
            raise ValueError(f"Expected the weights that {LEVEL!r} recorded. Train that before.")
        if form.weights == "random":
            rows = [Random(f"{c.seed} {step}").randrange(len(recorded)) for c in self.cases]
            return recorded[rows, range(len(rows))]
        means = recorded.mean(0)
        return means if form.weights == "constant" else means.mean(1, keepdim=True).expand_as(means)

    def _uniform(self, what: str, case: Case, batch: Batch) -> Tensor:
        key = Random(f"{what} {case.seed} {batch.step} 1 0").getrandbits(63)
        return torch.rand(len(batch.target), generator=torch.Generator().manual_seed(key))

    def _encode(self, network: Weights, name: str, images: Tensor) -> Tensor:
        hidden = self._convolved(network, f"encoders.{name}.0", images, padding=1).relu()
        return self._convolved(network, f"encoders.{name}.2", hidden, padding=1).relu()

    def _fuse(self, network: Weights, features: Mapping[str, Tensor]) -> Tensor:
        joined = torch.cat([features[name] for name in self.names], 2)
        return self._read(network, "body.0", "output_layer", joined)

    def _judge(self, heads: Weights, name: str, features: Tensor) -> Tensor:
        return self._read(heads, f"{name}.body.0", f"{name}.output_layer", features)

    def _read(self, weights: Weights, body: str, last: str, features: Tensor) -> Tensor:
        return self._convolved(weights, last, self._convolved(weights, body, features).relu())

    def _convolved(self, weights: Weights, name: str, x: Tensor, padding: int = 0) -> Tensor:
        """A convolution of ``(B, S, C, H, W)``, with the weights of each seed."""
        seeds, bias = len(self.cases), weights[f"{name}.bias"]
        flat = F.conv2d(x.flatten(1, 2), weights[f"{name}.weight"], bias, 1, padding, 1, seeds)
        return flat.unflatten(1, (seeds, -1))

    def _batches(self, epochs: int) -> Iterator[Batch]:
        images, target = self._stack("train")
        truly = torch.stack([shown_truly(self.scenario, c.seed) for c in self.cases], 1).float()
        rows, step = torch.arange(len(self.cases)), 0
        for epoch in range(1, epochs + 1):
            pairs = zip(self.data, self.cases, strict=True)
            order = [positions(data["train"], case, epoch) for data, case in pairs]
            for own in zip(*order, strict=True):
                index = torch.stack(own, 1)
                chosen = {n: x[index, rows] for n, x in images.items()}
                yield Batch(step, chosen, target[index, rows], truly[index, rows])
                step += 1

    def _stack(self, split: str) -> tuple[dict[str, Tensor], Tensor]:
        parts = [data[split] for data in self.data]
        images = {n: torch.stack([own[n] for own, _ in parts], 1) for n in self.names}
        return images, torch.stack([target for _, target in parts], 1)

    def _initial(self) -> tuple[Weights, Weights]:
        """Weights of all networks and heads as the plain training begins with them."""
        networks, heads = [], []
        for case in self.cases:
            torch.manual_seed(case.seed)
            networks.append(Network(TASK, self.names))
            torch.manual_seed(case.seed + 1000)
            heads.append(nn.ModuleDict({n: Head(TASK) for n in self.names}))
        return _joined(networks), _joined(heads)


def weights_of(signal: Tensor) -> Tensor:
    """Weights by who is behind, from the signals of one seed, ``(M,)``."""
    above = signal.clamp_min(0)
    gates = above / above.amax().clamp_min(1e-12)
    return guided_weights(gates, torch.ones_like(gates))


def shares_of(level: str | None, losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Shares of pixels, to be multiplied with the losses, and of images, 1 on average.

    Args:
        level: See :class:`Form`.
        losses: Of each pixel by each modality alone, ``(B, S, H, W, M)``.
        batch: The step.

    Returns:
        ``(B, S, H, W, M)`` or what is broadcast to it, and ``(B, S, M)``.
    """
    most = losses.shape[-1]
    if level is None:
        return torch.ones(1), torch.ones_like(losses[:, :, 0, 0])
    if level == "truth":
        found = batch.truly / batch.truly.mean(0).clamp_min(1e-3)
        return found[:, :, None, None], found
    inside = F.one_hot(batch.target, CLASSES).float()
    pixels = inside.sum((2, 3))
    of_regions = torch.einsum("bshwm,bshwk->bskm", losses, inside)
    of_regions = of_regions / pixels.clamp_min(1)[..., None]
    there = (pixels > 0).float()[..., None]
    shapes = torch.cat([torch.zeros_like(there[:, :, :1]), there[:, :, 1:]], 2)
    if level == "shapes":
        of_shapes = (of_regions * shapes).sum(2) / shapes.sum(2).clamp_min(1)
        parts = (-of_shapes).softmax(-1)
        found = (parts / parts.mean(0)).clamp_max(most)
        return found[:, :, None, None], found
    if level == "regions":
        parts = (-of_regions).softmax(-1)
        typical = (parts * there).sum(0) / there.sum(0).clamp_min(1)
        found = (parts / typical.clamp_min(1e-6)).clamp_max(most)
        of_images = (found * shapes).sum(2) / shapes.sum(2).clamp_min(1)
        return torch.einsum("bskm,bshwk->bshwm", found, inside), of_images.clamp_min(1e-3)
    parts = (-losses).softmax(-1)
    typical = torch.einsum("bshwm,bshwk->skm", parts, inside)
    typical = typical / pixels.sum(0).clamp_min(1)[..., None]
    found = (parts / torch.einsum("bshwk,skm->bshwm", inside, typical)).clamp_max(most)
    return found, found.mean((2, 3))


def _losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Of each pixel, ``(B, S, H, W)``."""
    flat = F.cross_entropy(prediction.flatten(0, 1), target.flatten(0, 1), reduction="none")
    return flat.view(target.shape)


def _mean(losses: Tensor) -> Tensor:
    return losses.mean((0, 2, 3))


def _signal(said: Sequence[Tensor], target: Tensor) -> Tensor:
    """Loss on the targets of other images less that on the right ones, ``(S, M)``."""
    with torch.no_grad():
        other = target.roll(1, 0)
        return torch.stack([_mean(_losses(z, other) - _losses(z, target)) for z in said], 1)


def _dice(prediction: Tensor, target: Tensor) -> list[float]:
    pairs = zip(prediction.unbind(1), target.unbind(1), strict=True)
    counts = [torch.stack(dice(z, y))[None] for z, y in pairs]
    return [100 * float(ratio_score(count)) for count in counts]


def _joined(modules: Sequence[nn.Module]) -> Weights:
    """Parameters of all modules as those of one with as many groups."""
    states = [dict(module.named_parameters()) for module in modules]
    return {k: torch.cat([s[k].detach() for s in states]).requires_grad_() for k in states[0]}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    seeds = range(options.first, options.first + options.seeds)
    ends = [seeds[0], seeds[-1]]
    record = {"machine": machine("torch"), "seeds": ends, "epochs": EPOCHS[TASK], "rows": []}
    if options.json.exists():
        record = json.loads(options.json.read_text())
    if record["seeds"] != ends:
        sys.exit(f"{options.json} holds seeds {record['seeds']}, not {ends}: name another.")
    rows = record["rows"]
    for scenario in options.scenarios:
        have = {row["form"] for row in rows if row["scenario"] == scenario}
        wanted = [form for form in options.forms if form not in have]
        for row in measure(scenario, wanted, seeds):
            rows.append(row)
            options.json.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=500, help="the first one")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list("abcd"))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    return parser.parse_args()


def measure(scenario: str, forms: Sequence[str], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One row per form; what its controls replay is trained before them."""
    engine, recorded = DenseEngine(scenario, seeds), None
    for form in forms:
        start = time.process_time()
        if form in CONTROLS and recorded is None:
            recorded = engine.train(FORMS[LEVEL], EPOCHS[TASK])[1]
        network, weights = engine.train(FORMS[form], EPOCHS[TASK], recorded)
        recorded = weights if form == LEVEL else recorded
        scores = engine.judge(network)
        seconds = round(time.process_time() - start, 1)
        means = {key: round(statistics.mean(value), 1) for key, value in scores.items()}
        print(f"({scenario}) {form}: {means}, {seconds} s", flush=True)
        yield {
            "scenario": scenario,
            "form": form,
            "scores": {key: [round(x, 3) for x in value] for key, value in scores.items()},
            "weights": weights.mean((0, 1)).tolist(),
            "seconds": seconds,
        }


if __name__ == "__main__":
    main()
