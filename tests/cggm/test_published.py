"""One table of published numbers: their source, and what this code makes of the same inputs.

Expected numbers were worked out by hand from the published rule, as the comment of a row shows.
Where the published setting is not the default here, the row sets it. A "fault" is one of published
code that this code must not have.
"""

import inspect
from math import log
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.testing import assert_close

from cggm import methods
from cggm.functional import balancing_terms, direction_loss
from cggm.late_fusion import LateFusion
from cggm.methods import method_names
from cggm.methods._parts.confidence import confidence_ratios, ogm_factors
from cggm.methods._parts.shapley import shapley_weights
from cggm.methods.agm import agm_factors
from cggm.methods.gblending import blending_weights
from cggm.methods.mmpareto import pareto
from cggm.methods.opm import drop_probabilities
from cggm.trials import TrialLosses
from tests.cggm.test_published_newer import NEWER

cross_entropy, squared = nn.functional.cross_entropy, nn.functional.mse_loss
tensor, MEAN = torch.tensor, lambda prediction, target: prediction.mean()
ONE, FIRST = torch.ones(1, 1), tensor([0])
STRONG, EVEN, WEAK = [[log(3), 0.0]], [[0.0, 0.0]], [[0.0, log(3)]]  # p(first) = 3/4, 1/2, 1/4
APART = [[2.0, 2.0], [0.0, 0.0]]


class Layer(nn.Module):
    """A linear layer of given weights, as an encoder or as a head."""

    def __init__(self, *rows):
        super().__init__()
        self.output_layer = nn.Linear(len(rows[0]), len(rows), bias=False)
        self.output_layer.weight.data = tensor(rows)

    def forward(self, x):
        return self.output_layer(x)


class Network(nn.Module):
    """Modalities are numbers times a and b, and added or, for two columns, concatenated."""

    def __init__(self, a, b, *rows):
        super().__init__()
        self.encoders = nn.ModuleDict(layers(a, b))
        self.output_layer = Layer(*rows).output_layer

    def forward(self, rows=((1.0, 1.0),)):
        columns = zip(self.encoders.values(), tensor(rows).T, strict=True)
        parts = [encoder(x[:, None]) for encoder, x in columns]
        joined = self.output_layer.in_features > 1
        return self.output_layer(torch.cat(parts, 1) if joined else sum(parts))


class Late(nn.Module):
    """Each modality's logits are its input."""

    def __init__(self, rule, names="ab"):
        super().__init__()
        self.encoders = nn.ModuleDict({name: Layer([1.0, 0.0], [0.0, 1.0]) for name in names})
        self.output_layer = LateFusion({name: nn.Identity() for name in names}, rule)

    def forward(self, *logits):
        pairs = zip(self.encoders.items(), logits, strict=True)
        features = {name: encoder(tensor(z)) for (name, encoder), z in pairs}
        return self.output_layer.combine(self.output_layer(features))


def layers(a=1.0, b=1.0):
    return {"a": Layer([a]), "b": Layer([b])}


def loss_of(method, network, target, *inputs):
    return method.bind(network)(network(*inputs), target)


def step(network, loss, lr=0.0):
    loss.backward()
    torch.optim.SGD(network.parameters(), lr=lr).step()


def cggm_gradients(**settings):
    network, scores = Network(2.0, 1.0, [1.0]), iter([0.3, 0.1])
    method = methods.CGGM(layers(), MEAN, lambda z, y: tensor(next(scores)), **settings)
    step(network, loss_of(method, network, ONE))
    return [p.grad for p in network.parameters()]


def cggm_settings(name):
    file = Path(__file__).parents[2] / "configs" / "methods" / "cggm.yaml"
    content = yaml.safe_load(file.read_text())
    settings = content["balancer"]["settings"] | content["tasks"].get(name, {})
    return [settings["rho"], settings["lam"]]


def ogm_split(**settings):
    network = Network(1.0, 1.0, [log(3), 0.0], [0.0, 0.0])
    method = methods.OGM(None, cross_entropy, logits="split", **settings)
    loss_of(method, network, FIRST)
    return [*method.readings["score"], *method.readings["term"]]


def pmr(a, b, shown=(0.0, 0.0)):
    """Weights and added loss where classes 0, 1 have prototypes a, b; then a's of class 0."""
    network = Network(1.0, 1.0, [1.0, 0.0], [0.0, 1.0])
    method = methods.PMR(cross_entropy).bind(network)
    method.start_epoch(1)
    step(network, method(network(list(zip(a, b, strict=True))), tensor([0, 1])))
    method.start_epoch(2)
    prediction = network([shown])
    loss = method(prediction, FIRST)
    step(network, loss)
    method.start_epoch(3)
    added = loss - cross_entropy(prediction, FIRST)
    return [*method.readings["weight"], added, method.get_extra_state()["means"]["a"][0, 0]]


def qmf_ranks(kappa, *logits):
    """Rank terms of a pair of samples with these histories, beside samples of 0 and 1."""
    method = methods.QMF(cross_entropy, 4).bind(network := Late("energy", "abc"))
    method.counts.fill_(1.0)
    method.sums.copy_(tensor([[0.0, 1.0, *pair] for pair in kappa]))
    method.identify(tensor([2, 3]))
    method(network(*logits), tensor([0, 0]))
    return method.readings["rank"]


def reconboost(epoch):
    method = methods.ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=1)
    method.start_epoch(epoch)
    return loss_of(method, Late("sum"), FIRST, STRONG, WEAK)


def blend(train, valid):
    (a, b), (c, d) = tensor(train), tensor(valid)
    return blending_weights(TrialLosses(a, c), TrialLosses(b, d), 1e-4)


def greedy():
    """Speeds, and in which of eight steps a is used; units modulate a by b and b by a."""
    network = Network(2.0, 1.0, [1.0, 1.0])
    network.units = nn.ModuleDict(layers())
    method, used = methods.Greedy(MEAN, bypass=network.units).bind(network), []
    method.start_epoch(2)
    for _ in range(8):
        network.zero_grad()
        a, b = (encoder(ONE) for encoder in network.encoders.values())
        parts = [a * network.units["a"](b), b * network.units["b"](a)]
        step(network, method(network.output_layer(torch.cat(parts, 1)), ONE))
        used.append(method.readings["term"][0])
    return [*method.readings["speed"], *used]


def dropout(**settings):
    network = Network(1.0, 1.0, [1.0])
    methods.ModalityDropout(squared, **settings).bind(network)
    return [encoder(torch.ones(64, 1)).max() for encoder in network.encoders.values()]


def mslr_dynamic(*scores):
    method = methods.ModalityLearningRates(squared, layers(), squared, strategy="dynamic")
    method.bind(Network(1.0, 1.0, [1.0]))
    for epoch, score in enumerate(scores, 1):
        method.start_epoch(epoch)
        method.observe_validation({"a": score, "b": 0.5})
    method.start_epoch(len(scores) + 1)
    return method.factors


def mslr_moved(**settings):
    network = Network(1.0, 1.0, [1.0])
    step(network, loss_of(methods.ModalityLearningRates(MEAN, **settings), network, ONE), lr=0.1)
    return [1 - p for p in network.encoders.parameters()]


def default(method, source, **values):
    """A row of defaults that are the published settings."""
    known = inspect.signature(getattr(methods, method)).parameters
    return method, source, [*values.values()], lambda: [known[name].default for name in values]


# fmt: off
ROWS = [
    # 1.2 * (0.1 + 0.1) / 0.5 and 1.2 * (0.3 + 0.1) / 0.5; not by default: "raw"
    ("CGGM", "Guo et al., NeurIPS 2024, equation (7)", [0.48, 0.96, 0.96],
     lambda: balancing_terms(tensor([0.3, 0.1, 0.1]), 1.2, "raw")),
    # from 0 to 0.3 and 0.1: B = 1.2 * (0.1, 0.3) / 0.4; gradients 1, 1 and, not scaled, 2 + 1
    ("CGGM", "equations (3) and (8), algorithm 1; not by default: batch, raw", [0.3, 0.9, 3.0],
     lambda: cggm_gradients(rho=1.2, gain="batch", terms="raw", direction=None, gate=None)),
    # cosines 1 and 0.6: ((0.5 - 0.5 * 1) + (1 - 1 * 0.6)) / 2
    ("CGGM", "equation (12)", [0.2], lambda: [direction_loss(
        tensor([[5.0, 0.0]]), tensor([[[2.0, 0.0]], [[3.0, 4.0]]]), tensor([0.5, 1.0]))]),
    ("CGGM", "lambda of released run/*.py, BraTS", [0.1], lambda: cggm_settings("brats")[1:]),
    ("CGGM", "rho, lambda of the same, MOSI", [1.3, 0.2], lambda: cggm_settings("mosi")),
    ("CGGM", "the same, Food-101", [1.3, 0.05], lambda: cggm_settings("food101")),
    ("CGGM", "section 4.5, best rho, IEMOCAP", [1.2], lambda: cggm_settings("iemocap")[:1]),
    # 1 - tanh(0.5 * 0.8 / 0.4) = 1 - tanh(1); 1 for the ratio 1/2
    ("OGM", "Peng et al., CVPR 2022", [0.2384, 1.0],
     lambda: ogm_factors(confidence_ratios(tensor([0.8, 0.4])), 0.5, continuous=False)),
    # logits (log 3, 0) and (0, 0): scores 3/4 and 1/2, 1 - tanh(0.8 * 1.5)
    ("OGM", "the same, z_m = W_m h_m + b / 2; not by default: split", [0.75, 0.5, 0.1663, 1.0],
     lambda: ogm_split(alpha=0.8)),
    # 1 - tanh(0.3 * 1.2); relu(ratio) and not relu(ratio - 1), which gives 0.9401
    ("OGM", "released main.py, alpha 0.3 and ratio 1.2", [0.6548, 1.0],
     lambda: ogm_factors(confidence_ratios(tensor([0.6, 0.5])), 0.3, continuous=False)),
    ("OGM", "the same, ratio just above 1: 1 - tanh(0.1), (0.3), (0.8)", [0.9003, 0.7087, 0.3360],
     lambda: [ogm_factors(tensor([1.000001]), x, continuous=False) for x in (0.1, 0.3, 0.8)]),
    default("OGM", "released main.py: relu(ratio), epochs 0 to 50", continuous=False,
            first_epoch=1, last_epoch=51),
    # 0.5 * (1 + 0.5 * tanh(1)) = 0.5 * 1.38080; the modality behind is left alone
    ("OPM", "Wei et al., TPAMI 2024: q_base (1 + lambda tanh(relu(rho - 1)))", [0.6904, 0.0],
     lambda: drop_probabilities(tensor([2.0, 0.5]), 0.5, 0.5)),
    default("OPM", "released main.py, warm-up in epochs 0 to 5",
            q_base=0.5, lam=0.5, p_exe=0.7, warmup_epochs=6),
    # tau = 1 at equal means: exp(1 - exp(1 - 0.5)) and exp(1 - exp(0.5 - 1))
    ("AGM", "Li et al., ICCV 2023, r = exp(s_other - s)", [0.5227, 1.4821],
     lambda: agm_factors(tensor([0.5, 1.0]), torch.zeros(2), 1.0, 10.0)),
    # a, b, c, ab, ac, bc, abc: 1/3 alone and all minus a pair, 1/6 a pair minus one
    ("AGM", "response of the first of three", [1/3, -1/6, -1/6, 1/6, 1/6, -1/3, 1/3],
     lambda: shapley_weights("abc")[0]),
    # r = exp(1.5 (7/6 - s)) = e, e^-0.5: exp(0.4 (1 - e)) and exp(0.4 (1 - e^-0.5))
    ("AGM", "fault: toolkit's AGM_trainer.py:571, 1.28, 0.77, 0.77", [0.5029, 1.1704, 1.1704],
     lambda: agm_factors(tensor([0.5, 1.5, 1.5]), torch.zeros(3), 0.4, 10.0)),
    default("AGM", "released config; cap of the audio-visual sets", alpha=1.0, cap=10.0),
    # a: distances 0 and log 3, p = 3/4; b: 1 and 1, p = 1/2; clip(0, 1.5 - 1, 1) = 0.5 and
    # 0.5 log 2 - 0.01 * 0.5 * H(3/4, 1/4) = 0.34657 - 0.005 * 0.56234
    ("PMR", "Fan et al., CVPR 2023, beta, gamma and the loss", [0.0, 0.5, 0.3438],
     lambda: pmr([0.0, log(3)], [-1.0, 1.0])[:3]),
    # the same ratio, 1.5; then 3/4 over 1/4, 2 clipped to 1
    ("PMR", "fault: main_Prototype_grad.py:169-178 gives 1 for both", [0.5, 1.0],
     lambda: [pmr([0.0, log(3)], b)[1] for b in ([-1.0, 1.0], [log(3), 0.0])]),
    ("PMR", "released momentum, 0.2 * 3 + 0.8 * 7", [6.2],
     lambda: pmr([3.0, 0.0], [0.0, 1.0], (7.0, 0.0))[3:]),
    default("PMR", "released settings, alpha 1 to 2", alpha=1.0, mu=0.01, momentum=0.2),
    # sign(k_i - k_j) (w_i - w_j) + |k_i - k_j|; logits 2 apart are confidences 0.2 apart:
    # 0.2 + 0.3, 0.2 + 0.4, 0 + 0.4; the released code takes the margin off: max(0, 0.2 - 0.3)
    ("QMF", "Zhang et al., ICML 2023; fault: train_qmf.py:179-190 gives 0", [0.5, 0.6, 0.4],
     lambda: qmf_ranks([[0.6, 0.3], [0.9, 0.5], [0.4, 0.0]], APART, APART, 2 * EVEN)),
    # log(3 + 1) / 10 * log 3 = 0.13863 * 1.09861; logits of 0 add nothing
    ("QMF", "z = sum w z", [0.1523, 0.0], lambda: Late("energy")(STRONG, EVEN)[0]),
    default("QMF", "released text-image settings", unimodal=1.0, lam=1.0),
    # a's turn: -(5 - 1/4) log(3/4) / 2; both: the sum's p is 1/2; b's turn: -(5 - 3/4) log(1/4) / 2
    # and the agreement, which the released code detaches, 0.5 * (3/4 - 1/4)^2; both again
    ("ReconBoost", "Hua et al., ICML 2024, L_k and rectification after every turn",
     [0.6832, 0.6931, 3.0709, 0.6931], lambda: [reconboost(epoch) for epoch in (1, 2, 3, 4)]),
    default("ReconBoost", "released train.py:53-86, CREMA-D",
            epochs_per_stage=4, rectify_epochs=4, w1=5.0, w2=1.0, alpha=0.5),
    # a = (-3, 1).(-1, 1) / 10 = 0.4: 2 (0.8 - 0.6, 0.6) of norm sqrt(1.6), below the sum's sqrt(2)
    ("MMPareto", "Wei & Hu, ICML 2024, algorithm 1, conflict", [0.6708, 2.0125],
     lambda: pareto(tensor([2.0, 0.0]), tensor([-1.0, 1.0]), 1.5)[0]),
    ("MMPareto", "the same, agreement: 1.5 * ((1, 0) + (1, 1))", [3.0, 1.5],
     lambda: pareto(tensor([1.0, 0.0]), tensor([1.0, 1.0]), 1.5)[0]),
    default("MMPareto", "released default", gamma=1.5),
    # dG = 0.5, 0.2, 0.4 and dO = 0.2, 0.1, 0.4: 12.5, 20, 2.5 of 35
    ("GradientBlending", "Wang et al., CVPR 2020, dG / dO^2", [0.3571, 0.5714, 0.0714],
     lambda: blend([[1.0, 1.0, 1.0], [0.3, 0.7, 0.2]], [[1.0, 1.0, 1.0], [0.5, 0.8, 0.6]])),
    # dG = 0.5, 0.4, 0.1 and dO = 0.2 of each; final values, 0.5 / 0.2^2, are all alike
    ("GradientBlending", "fault: MultiBench gradient_blend.py gives 1/3 each", [0.5, 0.4, 0.1],
     lambda: blend([[1.0, 0.9, 0.6], [0.3, 0.3, 0.3]], [[1.0, 0.9, 0.6], [0.5, 0.5, 0.5]])),
    # mu is g^2 / w^2: 2^2 of the units, (2/2)^2 of a, 4^2 of b: log10(4/1), log10(4/16); further
    # apart than 0.01: a is left out for five steps and measured again
    ("Greedy", "Wu et al., ICML 2022", [0.6021, -0.6021, 1, 0, 0, 0, 0, 0, 1, 0], greedy),
    default("Greedy", "released training_guided.gin", epsilon=0.01, steps=5, first_epoch=2),
    # kept with 0.8 and 0.5, never neither: q = 0.8 / (1 - 0.1) = 8/9 and 5/9, and values over q
    ("ModalityDropout", "Neverova et al., TPAMI 2016; not by default: scale", [1.125, 1.8],
     lambda: dropout(p={"a": 0.2, "b": 0.5}, scale=True)),
    # 0.7 / mean(0.4, 0.6, 0.6, 0.7, 0.7) = 0.7 / 0.6, the first epoch is out of the window of 5
    ("ModalityLearningRates", "Yao & Mihalcea, ACL Findings 2022, dynamic", [1.1667, 1.0],
     lambda: mslr_dynamic(0.2, 0.4, 0.6, 0.6, 0.7, 0.7)),
    ("ModalityLearningRates", "the same, keep: 0.1 * 0.5 and 0.1 * 2", [0.05, 0.2],
     lambda: mslr_moved(rates={"a": 0.5, "b": 2.0})),
    default("ModalityLearningRates", "the same, dynamic", window=5),
    # -log(3/4) - log(1/2), then the means of 3/4 and 1/2 and of 1/4 and 1/2
    ("UnimodalEnsemble", "Du et al., ICML 2023, unimodal training", [0.9808], lambda: [loss_of(
        methods.UnimodalEnsemble(cross_entropy), Late("probabilities"), FIRST, STRONG, EVEN)]),
    ("UnimodalEnsemble", "the same, mean of softmax", [0.625, 0.375],
     lambda: Late("probabilities")(STRONG, EVEN).softmax(1)[0]),
    # features (1, 3) and (1, 1), the teachers' (1, 1): 10 * 4 / 2; the paper's weight is unknown
    ("UnimodalTeacher", "Du et al., ICML 2023; BalanceBenchmark's weight 10", [20.0],
     lambda: [loss_of(methods.UnimodalTeacher(lambda z, y: 0 * z.sum(), weight=10.0,
                      teachers=dict.fromkeys("ab", Layer([1.0, 0.0], [1.0, 0.0]))),
                      Late("sum"), FIRST, [[1.0, 3.0]], [[1.0, 1.0]])]),
    # 2 + 1 fused, 1 * 2 and -1 * 1 of the heads, all to be 1: 4 + 1 + 4
    ("UnimodalLosses", "Wei & Hu, ICML 2024, uniform baseline, the plain sum", [9.0],
     lambda: [loss_of(methods.UnimodalLosses(layers(1.0, -1.0), squared, squared),
                      Network(2.0, 1.0, [1.0]), ONE)]),
]
# fmt: on


@pytest.mark.parametrize(("method", "source", "expected", "compute"), ROWS)
def test_published_numbers(method, source, expected, compute):
    found = torch.stack([torch.as_tensor(x).detach().float().squeeze() for x in compute()])
    assert_close(found, tensor(expected).float(), atol=6e-5, rtol=0)


def test_every_method_has_a_row():
    # no paper: joint training, our own forms, and controls, whose factors know of no modality
    ours = {"Balancer", "ConstantFactors", "GreedyFeatures", "GuidedHeads", "RandomFactors"}
    newer = NEWER | {"MLA"}  # of which whole steps are compared, see methods/test_published_losses
    assert {row[0] for row in ROWS} | newer == set(method_names()) - ours
