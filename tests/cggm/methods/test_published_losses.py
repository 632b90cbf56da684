"""Three training steps of methods that act on the loss, on features or in turns, as published.

See :mod:`tests.cggm.methods.published`; a transcription knows nothing of this package.
"""

import copy

import pytest
import torch
from torch.testing import assert_close

from cggm.methods import (
    MLA,
    PMR,
    QMF,
    GradientBlending,
    ModalityDropout,
    ModalityLearningRates,
    UnimodalEnsemble,
    UnimodalLosses,
    UnimodalTeacher,
)
from cggm.trials import Course, Trials
from tests.cggm.methods.published import (
    CLASSES,
    RATE,
    Late,
    Net,
    agree,
    batches,
    cross_entropy,
    features,
    gradients_of,
    head_step,
    heads,
    ours,
    published,
    sgd,
)

HELD_OUT = [(x + 0.5 * x.flip(1), y) for x, y in batches()[:2]]
HARD = [(x + 1.5 * x.flip(1), y) for x, y in batches()]


def plain(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def accuracy(prediction, target):
    return (prediction.argmax(1) == target).float().mean()


def trials(net, **more):
    """Copies learn from the three batches; two others are held out."""
    return Trials(net, cross_entropy, lambda e: batches(), lambda e: HELD_OUT, plain, **more)


def test_pmr():
    state = {"number": 0, "means": None}

    def prototypes(net):  # of a tenth of the training set, momentum 0.2
        x, y = HELD_OUT[0]
        h = features(net, x)
        found = {n: torch.stack([h[n][y == k].mean(0) for k in range(CLASSES)]) for n in "av"}
        old = state["means"]
        mixed = found if old is None else {n: 0.2 * old[n] + 0.8 * found[n] for n in "av"}
        state["means"] = {n: value.detach() for n, value in mixed.items()}

    def rule(net, _, x, y):  # Fan et al., CVPR 2023, equations 5 to 10
        if state["number"] in (0, 2):  # before epochs 1 and 2
            prototypes(net)
        first = state["number"] < 2  # the entropy term stops with epoch 1
        state["number"] += 1
        h = features(net, x)
        distances = {n: (h[n][:, None] - state["means"][n]).square().sum(2).sqrt() for n in "av"}
        p = {n: (-d).softmax(1) for n, d in distances.items()}
        true = {n: p[n][torch.arange(len(y)), y] for n in "av"}
        rho = (true["a"].sum() / true["v"].sum()).item()
        beta = min(max(1 / rho - 1, 0), 1) if rho < 1 else 0.0
        gamma = min(max(rho - 1, 0), 1) if rho >= 1 else 0.0
        loss = cross_entropy(net.decode(h), y)
        loss = loss - 1.5 * (beta * true["a"].log().mean() + gamma * true["v"].log().mean())
        entropy = {n: -(p[n] * p[n].log()).sum(1).mean() for n in "av"}
        loss = loss - first * 0.01 * (gamma * entropy["a"] + beta * entropy["v"])
        return torch.tensor([beta, gamma]), loss, gradients_of(loss, net), None

    assert set(HELD_OUT[0][1].tolist()) == set(range(CLASSES))
    net = Net()
    # the first of two batches is the tenth; no sample of it is its class's prototype in a step
    tenth = Trials(net, cross_entropy, lambda e: HELD_OUT, list, plain)
    method = PMR(cross_entropy, tenth, alpha=1.5, entropy_epochs=1).bind(net)
    found = ours(net, method, epochs=(1, 1, 2), reading="weight")
    agree(found, published(Net(), rule), FROZEN["PMR"])


def test_qmf():
    sums, visits = torch.zeros(2, 12), 0

    def rule(net, _, x, y):  # Zhang et al., ICML 2023, equations 8 to 12; energies over 10
        nonlocal sums, visits
        z = net.output_layer(features(net, x))
        omega = {n: z[n].exp().sum(1).log() / 10 for n in "av"}
        fused = sum(omega[n].detach()[:, None] * z[n] for n in "av")
        own = torch.stack([cross_entropy(z[n], y, reduction="none") for n in "av"])
        loss, ranks = cross_entropy(fused, y) + own.mean(1).sum(), []
        for m, n in enumerate("av"):
            kappa = torch.zeros(12)
            if visits:
                mean = sums[m] / visits
                kappa = (mean - mean.min()) / (mean.max() - mean.min())
            gap = kappa - kappa.roll(-1)
            apart = omega[n] - omega[n].roll(-1)
            ranks.append(torch.clamp(gap.sign() * apart + gap.abs(), min=0).mean())
        sums, visits = sums + own.detach(), visits + 1
        loss = loss + 0.1 * sum(ranks)
        return torch.stack(ranks).detach(), loss, gradients_of(loss, net), None

    net = Late("energy")
    method = QMF(cross_entropy, 12, lam=0.1).bind(net)
    agree(ours(net, method, reading="rank"), published(Late("energy"), rule), FROZEN["QMF"])


def means_of(net, own, data):
    """Mean loss of each head and of the network, sample by sample."""
    rows = []
    for x, y in data:
        h = features(net, x)
        logits = [*(own[n](h[n]) for n in "av"), net.decode(h)]
        rows.append(torch.stack([cross_entropy(z, y, reduction="none") for z in logits]))
    return torch.cat(rows, 1).mean(1).detach()


def descend(net, own, branches, epochs):
    """Copies of network and heads, trained by plain SGD on the sum of some branches' losses."""
    net, own = copy.deepcopy(net), copy.deepcopy(own)
    modules = [net, *own.values()]
    for _ in range(epochs):
        for x, y in batches():
            h = features(net, x)
            losses = [
                *(cross_entropy(own[n](h[n]), y) for n in "av"),
                cross_entropy(net.decode(h), y),
            ]
            for module in modules:
                module.zero_grad()
            sum(losses[k] for k in branches).backward()
            with torch.no_grad():
                for p in (p for module in modules for p in module.parameters()):
                    if p.grad is not None:
                        p -= RATE * p.grad
    return net, own


def test_gradient_blending():
    weights = None

    def estimate(net, own):  # Wang et al., CVPR 2020, algorithm 1
        before = [means_of(net, own, data) for data in (batches(), HELD_OUT)]
        alone = [means_of(*descend(net, own, (0, 1), 2), data) for data in (batches(), HELD_OUT)]
        fused = [means_of(*descend(net, own, (2,), 2), data) for data in (batches(), HELD_OUT)]
        train, valid = (torch.stack([a[0], a[1], f[2]]) for a, f in zip(alone, fused, strict=True))
        gained = before[1] - valid
        overfitted = (valid - train) - (before[1] - before[0])
        assert gained.min() > 0  # else the paper's weights are negative, and ours 0
        raw = gained / overfitted.square()
        return raw / raw.sum()

    def rule(net, own, x, y):  # the blend of the losses, equation 2
        nonlocal weights
        weights = estimate(net, own) if weights is None else weights
        h = features(net, x)
        losses = [*(cross_entropy(own[n](h[n]), y) for n in "av"), cross_entropy(net.decode(h), y)]
        loss = sum(w * own_loss for w, own_loss in zip(weights, losses, strict=True))
        return weights[:-1], loss, gradients_of(loss, net), head_step(own, h, y)

    net = Net()
    method = GradientBlending(
        heads(), cross_entropy, accuracy, trials(net), mode="offline", epochs=2, floor=1e-12,
        head_optimizer=sgd,
    ).bind(net)  # fmt: skip
    agree(ours(net, method), published(Net(), rule, heads()), FROZEN["G-Blending"])


def test_umt():
    taught = None

    def rule(net, _, x, y):  # Du et al., ICML 2023: unimodal teachers, their features kept
        nonlocal taught
        if taught is None:
            taught, _ = descend(net, heads(), (0, 1), 2)
        h, wanted = features(net, x), features(taught, x)
        apart = torch.stack([(h[n] - wanted[n].detach()).square().mean() for n in "av"])
        loss = cross_entropy(net.decode(h), y) + 1.0 * apart.sum()
        return apart.detach(), loss, gradients_of(loss, net), None

    net = Net()
    method = UnimodalTeacher(cross_entropy, heads(), trials(net, course=Course(2)), weight=1.0)
    found = ours(net, method.bind(net), reading="distance")
    agree(found, published(Net(), rule), FROZEN["UMT"])


@pytest.mark.parametrize("elementwise", [False, True])
def test_mla(elementwise):
    state = {"number": 0, "P": torch.eye(3)}

    def rule(net, _, x, y):  # Zhang et al., CVPR 2024, equations 3 to 6; released utils.py
        number = state["number"]
        state["number"] += 1
        active = "av"[number % 2]
        h = features(net, x)[active]
        weight, bias = net.output_layer.shared_weight, net.output_layer.shared_bias
        loss = cross_entropy(h @ weight.T + bias, y)
        gradients = gradients_of(loss, net)
        if number:  # train_exp_counter is not 0
            alpha = 1.0 * 0.1 ** (number / 3 + 1)  # batch_index / len_dataloader
            r = h.detach().mean(0, keepdim=True)
            k = state["P"] @ r.T
            below = k @ r if elementwise else r @ k
            state["P"] = state["P"] - k @ k.T / (alpha + below)
            state["P"] = state["P"] / state["P"].norm()
            for index, parameter in enumerate(net.parameters()):
                if parameter is weight:
                    gradients[index] = gradients[index] @ state["P"].T
        return torch.tensor([float(n == active) for n in "av"]), loss, gradients, None

    net = Late("entropy")
    method = MLA(cross_entropy, samples=36, elementwise=elementwise).bind(net)
    key = "MLA released" if elementwise else "MLA"
    agree(ours(net, method), published(Late("entropy"), rule), FROZEN[key])
    # at inference: calculate_gating_weights of main.py, for each sample
    x, _ = batches()[0]
    z = net.output_layer(features(net, x))
    for b in range(12):
        p = [z[n][b].softmax(0) for n in "av"]
        entropies = [-(q * q.log()).sum() for q in p]
        gates = [torch.exp(max(entropies) - own) for own in entropies]
        expected = (gates[0] * z["a"][b] + gates[1] * z["v"][b]) / sum(gates)
        assert_close(net(x)[b], expected)


def test_mslr_dynamic():
    """Yao & Mihalcea, ACL Findings 2022: rates by validation accuracies, in groups."""
    net, twin, own = Net(), Net(), heads()
    held_out = Trials(net, cross_entropy, list, lambda e: HARD, plain)
    settings = {"strategy": "dynamic", "rates": {"a": 0.5, "v": 2.0}, "window": 2}
    method = ModalityLearningRates(
        cross_entropy, heads(), accuracy, held_out, **settings, head_optimizer=sgd
    ).bind(net)
    optimizer = plain(net.parameters())
    history, factors = [], torch.ones(2)
    for epoch, (x, y) in enumerate(batches(), 1):
        method.start_epoch(epoch)
        optimizer.zero_grad()
        loss = method(net(x), y)
        loss.backward()
        assert_close(method.readings["term"], factors * torch.tensor([0.5, 2.0]))
        optimizer.step()
        method.end_epoch(epoch)
        h = features(twin, x)
        expected = cross_entropy(twin.decode(h), y)
        gradients = gradients_of(expected, twin)
        stepped = head_step(own, h, y)
        assert_close(loss, expected)
        for p, g in zip(net.parameters(), gradients, strict=True):
            assert (p.grad is None and g is None) or torch.allclose(p.grad, g, atol=1e-6)
        rates = {"a": RATE * 0.5 * factors[0], "v": RATE * 2.0 * factors[1]}
        with torch.no_grad():
            for (name, p), g in zip(twin.named_parameters(), gradients, strict=True):
                modality = name.split(".")[1] if name.startswith("encoders") else ""
                if g is not None:
                    p -= rates.get(modality, RATE) * g
            for n, head in own.items():
                for p, g in zip(head.parameters(), stepped[n], strict=True):
                    p -= 0.3 * g
        hits = [
            sum((own[n](features(twin, x)[n]).argmax(1) == y).sum() for x, y in HARD) for n in "av"
        ]
        history.append(torch.stack(hits) / 36)
        factors = (history[-1] / torch.stack(history[-2:]).mean(0)).clamp(0.5, 2.0)
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            assert_close(p, q, atol=1e-6, rtol=1e-4)
    assert factors.tolist() != [1.0, 1.0]


def test_unimodal_ensemble():
    def rule(net, _, x, y):  # Du et al., ICML 2023: M trainings at once
        z = net.output_layer(features(net, x))
        losses = torch.stack([cross_entropy(z[n], y) for n in "av"])
        return losses.detach(), losses.sum(), gradients_of(losses.sum(), net), None

    net = Late("probabilities")
    found = ours(net, UnimodalEnsemble(cross_entropy).bind(net), reading="head_loss")
    agree(found, published(Late("probabilities"), rule), FROZEN["UME"])


def test_unimodal_losses():
    def rule(net, own, x, y):  # uniform baseline of Wei & Hu, ICML 2024
        h = features(net, x)
        alone = torch.stack([cross_entropy(own[n](h[n]), y) for n in "av"])
        loss = cross_entropy(net.decode(h), y) + alone.sum()
        return alone.detach(), loss, gradients_of(loss, net), head_step(own, h, y)

    net = Net()
    method = UnimodalLosses(heads(), cross_entropy, accuracy, head_optimizer=sgd).bind(net)
    found = ours(net, method, reading="head_loss")
    agree(found, published(Net(), rule, heads()), FROZEN["unimodal losses"])


def test_modality_dropout(monkeypatch):
    kept = torch.arange(24).reshape(12, 2) % 3 > 0  # in place of draws

    def rule(net, _, x, y):  # Neverova et al., TPAMI 2016: modalities of samples are zeros
        h = features(net, x)
        dropped = {n: h[n] * kept[:, m : m + 1] for m, n in enumerate("av")}
        loss = cross_entropy(net.decode(dropped), y)
        return kept.float().mean(0), loss, gradients_of(loss, net), None

    method = ModalityDropout(cross_entropy).bind(net := Net())
    monkeypatch.setattr(method.draws, "kept", lambda balancer, size: kept)
    agree(ours(net, method), published(Net(), rule), FROZEN["MRD"])


FROZEN = {
    "G-Blending": [1.47286, 1.6174, 1.48164],
    "MLA": [1.432, 1.32386, 1.57671],
    "MLA released": [1.432, 1.32386, 1.58022],
    "MRD": [1.55312, 1.46554, 1.35775],
    "PMR": [1.75475, 1.56547, 1.57328],
    "QMF": [4.45767, 4.44987, 4.48727],
    "UME": [3.04625, 2.98877, 2.98403],
    "UMT": [2.29588, 1.64287, 1.45662],
    "unimodal losses": [4.65312, 4.42853, 4.32402],
}
