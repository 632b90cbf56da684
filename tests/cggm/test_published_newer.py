"""Methods from 2024 on against the published algorithms, transcribed here from scratch.

A transcription is plain tensor arithmetic on the weights of a small network, as its paper has it
and, where the paper leaves something open, as its published code does, whose commit is named. Loss
and gradients of three steps have to agree.
"""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm import methods
from cggm.trials import Trials

cross_entropy = nn.functional.cross_entropy
NEWER = {"DGL", "G2D", "PASSION", "RedCore", "Relearning"}
NAMES = ("audio", "video")
WIDTH, CLASSES, LR = 5, 3, 0.1


def plain_sgd(parameters):
    """Optimizer of teachers."""
    return torch.optim.SGD(parameters, lr=LR)


class Concatenated(nn.Module):
    """Two linear encoders, and a linear layer on both of their features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.encoders = nn.ModuleDict({name: nn.Linear(4, WIDTH) for name in NAMES})
        self.output_layer = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, inputs):
        return self.decode({name: self.encoders[name](inputs[name]) for name in NAMES})

    def decode(self, features):
        return self.output_layer(torch.cat([features[name] for name in NAMES], 1))


class Head(nn.Module):
    """A linear head with as many inputs as the network's output layer."""

    def __init__(self):
        super().__init__()
        self.output_layer = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, features):
        weight, bias = self.output_layer.weight, self.output_layer.bias
        return features @ weight[:, :WIDTH].T + bias


def score(prediction, target):
    """Share of right classes."""
    return (prediction.argmax(1) == target).float().mean()


def batches(count=3, size=8):
    """Inputs by modality and classes of each batch."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        inputs = {name: torch.randn(size, 4, generator=generator) for name in NAMES}
        yield inputs, torch.randint(CLASSES, (size,), generator=generator)


def weights_of(network):
    """Copies of a network's parameters, by name, as leaves."""
    return {k: p.detach().clone().requires_grad_() for k, p in network.named_parameters()}


def encoded(weights, inputs):
    """Features by modality."""
    return [
        inputs[n] @ weights[f"encoders.{n}.weight"].T + weights[f"encoders.{n}.bias"] for n in NAMES
    ]


def linear(weights, features):
    """Logits of concatenated features."""
    joined = torch.cat(features, 1)
    return joined @ weights["output_layer.weight"].T + weights["output_layer.bias"]


def agree(method, network, published, given=None):
    """Hold loss and gradients of steps of SGD to those of a transcription.

    Args:
        method: Bound to the network.
        network: Trained along.
        published: Weights, inputs, target and number of the step to the loss; leaves gradients in
            the weights.
        given: Batches; three of feature vectors by default.
    """
    weights = weights_of(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    for number, (inputs, target) in enumerate(given or batches()):
        optimizer.zero_grad()
        method.identify(torch.arange(len(target)))
        loss = method(network(inputs), target)
        loss.backward()
        expected = published(weights, inputs, target, number)
        assert_close(loss, expected, msg=f"loss of step {number}")
        optimizer.step()
        for name, parameter in network.named_parameters():
            assert_close(parameter.grad, weights[name].grad, msg=f"{name}, step {number}")
        with torch.no_grad():
            for value in weights.values():
                value -= LR * value.grad
                value.grad = None


def test_redcore():
    """Sun et al., AAAI 2024; redcore_mmin_model.py, b2c6a2d, on the losses of fixed heads."""
    torch.manual_seed(5)
    heads = {name: Head() for name in NAMES}
    parts = {
        name: (h.output_layer.weight.detach(), h.output_layer.bias.detach())
        for name, h in heads.items()
    }
    state = {"means": [0.0, 0.0], "beta": torch.ones(2), "eta": 0.1}

    def published(weights, inputs, target, number):
        features = encoded(weights, inputs)
        losses = [
            cross_entropy(h @ parts[name][0][:, :WIDTH].T + parts[name][1], target)
            for name, h in zip(NAMES, features, strict=True)
        ]
        state["means"] = [
            (1 - 0.7) * old + 0.7 * new.item()
            for old, new in zip(state["means"], losses, strict=True)
        ]
        average = sum(state["means"]) / 2
        advantages = torch.tensor([(average - mean) / average for mean in state["means"]])
        if number % 500 == 0:
            state["eta"] *= 1.5
        if number % 2 == 0:
            beta = torch.tensor([max(0.1, x) for x in state["beta"] - state["eta"] * advantages])
            state["beta"] = beta / beta.square().sum().sqrt()
        loss = cross_entropy(linear(weights, features), target)
        loss = loss + sum(b * own for b, own in zip(state["beta"], losses, strict=True))
        loss.backward()
        return loss.detach()

    network = Concatenated()
    method = methods.RedCore(
        heads, cross_entropy, score, head_optimizer=lambda p: torch.optim.SGD(p, lr=0.0)
    )
    agree(method.bind(network), network, published)
    assert_close(method.beta, state["beta"])


def test_g2d():
    """Rakib & Bagavathi, ICCV 2025; student.py and utils.py of G2D, 95969d8, all parameters."""
    torch.manual_seed(5)
    heads = {name: Head() for name in NAMES}
    network = Concatenated()
    trials = Trials(network, cross_entropy, lambda e: list(batches()), list, plain_sgd)
    method = methods.G2D(cross_entropy, heads, trials, epochs=1).bind(network)
    method.start_epoch(1)
    taught = {k: v.clone() for k, v in method.state_dict().items() if torch.is_tensor(v)}

    def teacher(name, inputs):
        features = inputs[name] @ taught[f"teachers.{name}.weight"].T
        features = features + taught[f"teachers.{name}.bias"]
        matrix = taught[f"judges.{name}.output_layer.weight"][:, :WIDTH]
        return features, features @ matrix.T + taught[f"judges.{name}.output_layer.bias"]

    def published(weights, inputs, target, number):
        features = encoded(weights, inputs)
        logits = linear(weights, features)
        loss, scores = cross_entropy(logits, target), []
        for name, own in zip(NAMES, features, strict=True):
            wanted, said = teacher(name, inputs)
            divergence = nn.functional.kl_div(
                logits.log_softmax(1), said.softmax(1), reduction="batchmean"
            )
            loss = loss + divergence + nn.functional.mse_loss(own, wanted)
            scores.append(sum(said.softmax(1)[b, target[b]] for b in range(len(target))))
        loss.backward()
        still = NAMES[0] if scores[0] > scores[1] else NAMES[1]
        for part in ("weight", "bias"):
            weights[f"encoders.{still}.{part}"].grad *= 0
        return loss.detach()

    agree(method, network, published)


def test_relearning():
    """Wei et al., ECCV 2024; ours.py, 59b5787: K-means by scikit-learn, and the mixture."""
    cluster_module = pytest.importorskip("sklearn.cluster")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    generator = torch.Generator().manual_seed(4)
    target = torch.arange(60) % CLASSES
    centers = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]])
    blurred = {"audio": 0.3, "video": 0.3}
    inputs = {
        name: centers[target] + spread * torch.randn(60, 4, generator=generator)
        for name, spread in blurred.items()
    }
    mixed = target.clone()
    mixed[:20] = mixed[:20].flip(0)  # held-out classes that the clusters do not tell
    network = Concatenated()
    trials = Trials(
        network, cross_entropy, lambda e: [(inputs, target)], lambda e: [(inputs, mixed)], plain_sgd
    )
    method = methods.Relearning(cross_entropy, trials).bind(network)
    start = {k: p.detach().clone() for k, p in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)

    def purity(features, classes):
        scaled = preprocessing.MinMaxScaler((-1, 1)).fit_transform(features.numpy())
        found = cluster_module.KMeans(CLASSES, random_state=0, n_init=10).fit_predict(scaled)
        rows = [classes[torch.from_numpy(found) == k] for k in range(CLASSES)]
        return sum(int(row.bincount().max()) for row in rows if len(row)) / len(classes)

    expected = {}
    for name in NAMES:
        features = network.encoders[name](inputs[name]).detach()
        gap = abs(purity(features, target) - purity(features, mixed))
        alpha = torch.tanh(torch.tensor(3 * gap))
        for part in ("weight", "bias"):
            key = f"encoders.{name}.{part}"
            expected[key] = alpha * start[key] + (1 - alpha) * 1.5 * start[key]
        assert 0.2 < alpha < 1
    method.start_epoch(22)
    found = dict(network.named_parameters())
    for key, value in expected.items():
        assert_close(found[key].detach(), value)
    assert_close(network.output_layer.weight.detach(), 1.5 * start["output_layer.weight"])


class Maps(nn.Module):
    """Two encoders of images, a fusion and an output layer, all of 1x1 convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.encoders = nn.ModuleDict({name: nn.Conv2d(1, WIDTH, 1) for name in NAMES})
        self.mixer = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.output_layer = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, inputs):
        return self.decode({name: self.encoders[name](inputs[name]) for name in NAMES})

    def decode(self, features):
        joined = torch.cat([features[name] for name in NAMES], 1)
        return self.output_layer(self.mixer(joined).tanh())


class MapHead(nn.Module):
    """A 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.output_layer = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, features):
        return self.output_layer(features)


def convolved(weights, name, image):
    """A 1x1 convolution of one image, ``(D, H, W)``."""
    matrix = weights[f"{name}.weight"][:, :, 0, 0]
    return torch.einsum("dc,chw->dhw", matrix, image) + weights[f"{name}.bias"][:, None, None]


def test_passion():
    """Shi et al., ACM MM 2024; train.py, criterions.py, rfnet_passion.py, without region losses.

    Sample by sample, as there; audio is missing in every other sample for good.
    """
    torch.manual_seed(5)
    heads = {name: MapHead() for name in NAMES}
    parts = {
        name: {f"head.{k[13:]}": p.detach() for k, p in h.named_parameters()}
        for name, h in heads.items()
    }
    masks = torch.tensor([[b % 2 == 1, True] for b in range(8)])
    sums = {"distance": torch.zeros(2), "count": torch.zeros(2)}
    generator = torch.Generator().manual_seed(2)
    images = [
        (
            {name: torch.randn(8, 1, 4, 4, generator=generator) for name in NAMES},
            torch.randint(CLASSES, (8, 4, 4), generator=generator),
        )
        for _ in range(3)
    ]

    def fused(weights, features):
        taken = convolved(weights, "mixer", torch.cat(features)).tanh()
        return convolved(weights, "output_layer", taken), taken

    def maps(taken, label):
        found = []
        for index in range(CLASSES):
            region = (label == index).float()
            if region.sum() > 0:
                prototype = (taken * region).sum((1, 2)) / (region.sum() + 1e-5)
                found.append(
                    nn.functional.cosine_similarity(
                        taken, prototype[:, None, None], dim=0, eps=1e-5
                    )
                )
        return torch.stack(found)

    def published(weights, inputs, target, number, beta):
        weight = len(masks) / masks.sum(0)
        total, kl, sep, proto, behind = 0.0, [0.0] * 2, [0.0] * 2, [0.0] * 2, torch.zeros(2)
        for b, mask in enumerate(masks):
            encodings = [convolved(weights, f"encoders.{n}", inputs[n][b]) for n in NAMES]
            zeros = [torch.zeros_like(h) for h in encodings]
            given = [h if there else z for h, z, there in zip(encodings, zeros, mask, strict=True)]
            logits, taken = fused(weights, given)
            label = target[b]
            total = total + cross_entropy(logits[None], label[None])
            distance = torch.zeros(2)
            for m, name in enumerate(NAMES):
                if not mask[m]:
                    continue
                alone, own = fused(
                    weights, [encodings[k] if k == m else zeros[k] for k in range(2)]
                )
                p_s = (alone / 4).softmax(0).clamp(0.005, 1)
                p_t = (logits.detach() / 4).softmax(0).clamp(0.005, 1)
                kl[m] = kl[m] + 16 * (p_t * (p_t.log() - p_s.log())).mean()
                sep[m] = sep[m] + cross_entropy(
                    convolved(parts[name], "head", encodings[m])[None], label[None]
                )
                difference = maps(own, label) - maps(taken.detach(), label)
                proto[m] = proto[m] + (difference**2).mean()
                distance[m] = difference.detach().abs().mean()
            if distance.sum() > 0:  # 0 / 0 of a single modality is no number there, batches of one
                behind += mask * (distance / (distance.sum() / mask.sum()) - 1)
            sums["distance"] += distance
        sums["count"] += masks.sum(0)
        for m in range(2):
            ahead = float(behind[m] > 0)
            total = total + weight[m] * (
                ahead * beta[m] * sep[m] + 0.5 * beta[m] * kl[m] + 0.1 * ahead * proto[m]
            )
        total = total / len(masks)
        total.backward()
        return total.detach()

    network = Maps()
    method = methods.PASSION(
        heads,
        cross_entropy,
        score,
        eta=0.5,
        p={"audio": 0.5, "video": 0.0},
        samples=8,
        head_optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
    ).bind(network)
    method.draws._by_case = masks
    method.start_epoch(1)
    ones = torch.ones(2)
    agree(method, network, lambda *given: published(*given, ones), images[:2])
    # after the epoch: beta' = clip(beta - eta (mean - d) / mean, .1, 4), 2 beta' / ||beta'|| for 4
    mean = sums["distance"] / sums["count"]
    beta = (ones - 0.5 * 1.5 * (mean.mean() - mean) / mean.mean()).clamp(0.1, 4)
    beta = 2**0.5 * beta / beta.square().sum().sqrt()
    method.start_epoch(2)
    assert_close(method.beta, beta)
    agree(method, network, lambda *given: published(*given, beta), images[2:])


def test_dgl():
    """Wei et al., ICCV 2025; main_dgl.py and ConcatFusion_DGL of ICCV2025-GDL, b72a55f."""
    alpha = 4.0

    def published(weights, inputs, target, number):
        features = encoded(weights, inputs)
        alone = [
            cross_entropy(
                linear(weights, [h if k == m else 0 * h for k, h in enumerate(features)]), target
            )
            for m in range(2)
        ]
        unimodal = alpha * sum(alone)
        unimodal.backward()
        for name, value in weights.items():
            if name.startswith("output_layer"):
                value.grad = None
        fused = cross_entropy(linear(weights, [h.detach() for h in features]), target)
        fused.backward()
        return (unimodal + fused).detach()

    network = Concatenated()
    agree(methods.DGL(cross_entropy, alpha=alpha).bind(network), network, published)
