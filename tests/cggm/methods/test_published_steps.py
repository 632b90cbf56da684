"""Three training steps of each published algorithm, transcribed from its equations, and ours.

A transcription is plain tensors and autograd: it knows nothing of this package. Coefficients, loss
and gradients of each step have to agree, and the losses are frozen beside, so that a transcription
and a method that change together are seen.
"""

import torch
from torch import nn

from cggm.methods import AGM, CGGM, OGM, OPM, Greedy, MMPareto, ReconBoost
from tests.cggm.methods.published import (
    CLASSES,
    Late,
    Net,
    agree,
    confidence,
    cosine,
    cross_entropy,
    features,
    gradients_of,
    head_step,
    heads,
    ours,
    published,
    scaled,
    sgd,
)
from tests.quantifiers import every


def test_ogm():
    def rule(net, _, x, y):  # Peng et al., CVPR 2022, equations 5 to 8; released main.py
        h = features(net, x)
        weight, bias = net.output_layer.weight, net.output_layer.bias
        parts = {"a": weight[:, :3], "v": weight[:, 3:]}
        s = [confidence(h[n] @ parts[n].T + bias / 2, y) * len(y) for n in "av"]
        k = [1.0, 1.0]
        ahead = int(s[1] > s[0])
        k[ahead] = 1 - torch.tanh(0.8 * torch.relu(s[ahead] / s[1 - ahead])).item()
        loss = cross_entropy(net.decode(h), y)
        return torch.tensor(k), loss, scaled(net, gradients_of(loss, net), k), None

    method = OGM(None, cross_entropy, alpha=0.8, logits="split").bind(net := Net("concat"))
    agree(ours(net, method), published(Net("concat"), rule), FROZEN["OGM"])


def test_opm(monkeypatch):
    kept = torch.arange(24).reshape(2, 12) % 3 > 0  # in place of draws

    def rule(net, own, x, y):  # Wei et al., TPAMI 2024; released main.py and fusion model
        h = features(net, x)
        s = [confidence(own[n](h[n]), y).detach() for n in "av"]
        q = torch.tensor([0.0, 0.0])
        ahead = int(s[1] > s[0])
        q[ahead] = 0.5 * (1 + 0.5 * torch.tanh(torch.relu(s[ahead] / s[1 - ahead] - 1)))
        theta = (3 * q[0] + 3 * q[1]) / (3 + 3)
        mask = {n: kept[k].float()[:, None] if q[k] > 0 else 1.0 for k, n in enumerate("av")}
        dropped = {n: h[n] * mask[n] / (1 - theta) for n in "av"}
        loss = cross_entropy(net.decode(dropped), y)
        return 1 - q, loss, gradients_of(loss, net), head_step(own, h, y)

    method = OPM(heads(), cross_entropy, p_exe=1.0, warmup_epochs=0, head_optimizer=sgd)
    monkeypatch.setattr(method, "_kept", lambda drops, size: kept | (drops == 0)[:, None])
    method.bind(net := Net())
    agree(ours(net, method), published(Net(), rule, heads()), FROZEN["OPM"])


def test_reconboost():
    stages = iter(range(3))  # a's turn, both, v's turn

    def rule(net, _, x, y):  # Hua et al., ICML 2024, equations 6 to 9; released train.py
        stage = next(stages)
        z = net.output_layer(features(net, x))
        if stage == 1:
            loss = cross_entropy(z["a"] + z["v"], y)
            return torch.ones(2), loss, gradients_of(loss, net), None
        active, other = ("a", "v") if stage == 0 else ("v", "a")
        target = nn.functional.one_hot(y, CLASSES).float()
        log_p = z[active].log_softmax(1)
        rest = z[other].detach().softmax(1)
        loss = (-5.0 * (target * log_p).mean(-1) + 1.0 * (target * rest * log_p).mean(-1)).mean()
        if stage:  # agreement with the turn before, whose gradient the released code detaches
            before = z[other].detach().softmax(1)
            loss = loss + 0.5 * (z[active].softmax(1) - before).square().mean()
        coefficients = torch.tensor([float(active == n) for n in "av"])
        return coefficients, loss, gradients_of(loss, net), None

    method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=1).bind(net := Late())
    agree(ours(net, method, epochs=(1, 2, 3)), published(Late(), rule), FROZEN["ReconBoost"])


def test_greedy():
    sums = {part: torch.zeros(2) for part in ("bypass", "main")}
    state = {"caring": None, "left": 0, "mean": torch.zeros(2, 3), "seen": 0}

    def mu(parameters, gradients):
        return sum(g.square().sum() for g in gradients) / sum(p.square().sum() for p in parameters)

    def rule(net, _, x, y):  # Wu et al., ICML 2022, equations 4 to 6; released callbacks.py, Q = 1
        h = features(net, x)
        joined = torch.cat([h["a"], h["v"]], 1)
        outputs = {n: net.units[n](joined) for n in "av"}
        caring = state["caring"] if state["left"] else None
        used = {
            n: state["mean"][k].expand_as(outputs[n]) if caring == k else outputs[n]
            for k, n in enumerate("av")
        }
        fused = torch.cat([h[n] * torch.sigmoid(used[n]) for n in "av"], 1)
        loss = cross_entropy(net.output_layer(fused), y)
        gradients = gradients_of(loss, net)
        of = {id(p): g for p, g in zip(net.parameters(), gradients, strict=True)}
        total = state["seen"] * state["mean"]
        total = total + torch.stack([outputs[n].detach().sum(0) for n in "av"])
        state["seen"] += len(y)
        state["mean"] = total / state["seen"]
        term = torch.tensor([float(caring != k) for k in range(2)])
        if state["left"]:
            state["left"] -= 1
            return term, loss, gradients, None
        for k, n in enumerate("av"):
            for part, module in (("bypass", net.units[n]), ("main", net.encoders[n])):
                own = list(module.parameters())
                sums[part][k] += mu(own, [of[id(p)] for p in own])
        speeds = (sums["bypass"] / sums["main"]).log10()
        if (speeds[0] - speeds[1]).abs() > 0.01:
            state["caring"], state["left"] = int(speeds[1] > speeds[0]), 1
        return term, loss, gradients, None

    net = Net("units")
    method = Greedy(cross_entropy, net.units, steps=1, first_epoch=1).bind(net)
    rows = ours(net, method)
    agree(rows, published(Net("units"), rule), FROZEN["Greedy"])
    replaced = rows[1][0].tolist().index(0.0)
    # both encoders learn while one unit is replaced
    assert every(g.abs().sum() > 0 for g in rows[1][2][:4])
    assert rows[1][2][-4 + 2 * replaced] is None or not rows[1][2][-4 + 2 * replaced].any()


def test_cggm_of_the_paper():
    last = torch.zeros(2)

    def rule(net, own, x, y):  # Guo et al., NeurIPS 2024, equations 7, 8, 12, 13
        nonlocal last
        h = features(net, x)
        score = torch.stack([confidence(own[n](h[n].detach()), y) for n in "av"]).detach()
        gain, last = score - last, score
        b = 1.2 * (gain.sum() - gain) / gain.sum()
        task = cross_entropy(net.decode(h), y)
        (fused,) = torch.autograd.grad(task, net.output_layer.weight, create_graph=True)
        steps = head_step(own, h, y)
        cosines = [cosine(fused.flatten(), steps[n][0].flatten(), 0) for n in "av"]
        direction = sum(b[k].abs() - b[k] * cosines[k] for k in range(2)) / 2
        loss = task + 0.2 * direction
        return b, loss, scaled(net, gradients_of(loss, net), b), steps

    settings = {"rho": 1.2, "lam": 0.2, "gain": "batch", "terms": "raw", "gate": None}
    method = CGGM(heads(), cross_entropy, confidence, head_optimizer=sgd, **settings)
    method.bind(net := Net())
    agree(ours(net, method), published(Net(), rule, heads()), FROZEN["CGGM paper"])


def test_cggm_of_the_released_code():
    last, late = torch.zeros(2), None

    def rule(net, own, x, y):  # released src/msatrain.py: weights, one step late, 1e-8
        nonlocal last, late
        h = features(net, x)
        score = torch.stack([confidence(own[n](h[n].detach()), y) for n in "av"]).detach()
        gain, last = score - last, score
        b = (gain.sum() + 1e-8 - gain) / (gain.sum() + 1e-8)
        task = cross_entropy(net.decode(h), y)
        gradients, loss = gradients_of(task, net), task
        names = [name for name, _ in net.named_parameters()]
        weight = names.index("output_layer.weight")
        if late is not None:
            loss = task + 0.2 * late[0]
            gradients[weight] = gradients[weight] + 0.2 * late[1]
        now = net.output_layer.weight.detach().clone().requires_grad_()
        own_weights = [own[n].output_layer.weight.detach().flatten() for n in "av"]
        cosines = [cosine(now.flatten(), w, 0) for w in own_weights]
        direction = sum(b[k].abs() - b[k] * cosines[k] for k in range(2)) / 2
        late = (direction.detach(), torch.autograd.grad(direction, now)[0])
        return 1.2 * b, loss, scaled(net, gradients, 1.2 * b), head_step(own, h, y)

    settings = {"rho": 1.2, "lam": 0.2, "gain": "batch", "terms": "released", "gate": None}
    method = CGGM(
        heads(), cross_entropy, confidence, head_optimizer=sgd, direction="weights", **settings
    )
    method.bind(net := Net())
    agree(ours(net, method), published(Net(), rule, heads()), FROZEN["CGGM released"])


def test_mmpareto():
    def rule(net, own, x, y):  # Wei and Hu, ICML 2024, algorithm 1
        h = features(net, x)
        fused = cross_entropy(net.decode(h), y)
        gradients, weights = gradients_of(fused, net, retain_graph=True), []
        places = {id(p): k for k, p in enumerate(net.parameters())}
        for n in "av":
            parameters = list(net.encoders[n].parameters())
            loss = cross_entropy(own[n](h[n]), y)
            alone = torch.autograd.grad(loss, parameters, retain_graph=True)
            mm = torch.cat([gradients[places[id(p)]].flatten() for p in parameters])
            uni = torch.cat([g.flatten() for g in alone])
            alpha = torch.tensor(0.5)
            if torch.dot(mm, uni) <= 0:
                alpha = (torch.dot(uni - mm, uni) / (mm - uni).square().sum()).clamp(0, 1)
            g = 2 * (alpha * mm + (1 - alpha) * uni)
            g = 1.5 * g * max(1.0, ((mm + uni).norm() / g.norm()).item())
            weights.append(alpha)
            for p, part in zip(parameters, g.split([p.numel() for p in parameters]), strict=True):
                gradients[places[id(p)]] = part.view_as(p)
        return torch.stack(weights), fused, gradients, head_step(own, h, y)

    method = MMPareto(heads(), cross_entropy, confidence, head_optimizer=sgd).bind(net := Net())
    agree(ours(net, method), published(Net(), rule, heads()), FROZEN["MMPareto"])


def test_agm():
    mean, seen = torch.zeros(2), 0

    def rule(net, _, x, y):  # Li et al., ICCV 2023, equations 3 to 9, M = 2
        nonlocal mean, seen
        h = features(net, x)
        nothing = {n: torch.zeros_like(part) for n, part in h.items()}
        shown = (h, h | {"v": nothing["v"]}, h | {"a": nothing["a"]})
        both, a, v = map(net.decode, shown)
        response = [(both - v + a) / 2, (both - a + v) / 2]
        s = torch.stack([cross_entropy(phi, y) for phi in response]).detach()
        now, before = torch.exp(s.flip(0) - s), torch.exp(mean.flip(0) - mean)
        kappa = torch.exp(1.0 * torch.clamp(before - now, max=10.0))
        seen += 1
        mean = mean * (seen - 1) / seen + s / seen
        for k, phi in enumerate(response):
            phi.register_hook(lambda g, k=k: g * kappa[k])
        loss = cross_entropy(response[0] + response[1], y)
        return kappa, loss, gradients_of(loss, net), None

    method = AGM(cross_entropy).bind(net := Net())
    agree(ours(net, method), published(Net(), rule), FROZEN["AGM"])


FROZEN = {
    "AGM": [1.60687, 1.4252, 1.35268],
    "CGGM paper": [1.74207, 1.88927, 1.84161],
    "CGGM released": [1.60687, 1.55341, 2.02258],
    "Greedy": [1.42316, 1.43373, 1.51264],
    "MMPareto": [1.60687, 1.41738, 1.3347],
    "OGM": [1.50792, 1.46279, 1.60237],
    "OPM": [1.60727, 1.40369, 1.3564],
    "ReconBoost": [1.7108, 1.67481, 1.7878],
}
