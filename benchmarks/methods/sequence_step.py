"""Time of a training step on sequences: ours, plain attention, and CGGM, of one network.

    python -m benchmarks.methods.sequence_step [--batch 64] [--steps 50] [--repeats 7] [--json FILE]

The network is the paper's for CMU-MOSI. Plain attention is what published code writes: batched
matrix products, softmax and, ``plain`` alone, dropout of the attention weights at the released
code's rate; every layer attends for every step. All other modules are ours on every side. Sides
take turns within one process on the same weights and optimizer.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm import CGGM, Balancer
from cggm_cls.data.sequences import MaskedSequence
from cggm_cls.networks.layers import AttentionLayer
from cggm_cls.networks.transformer import MultimodalTransformer, sequence_heads
from cggm_cls.training.balancing import negative_mae

WIDTHS = {"text": 300, "audio": 5, "vision": 20}
ATTENTION_DROPOUT = 0.15
SIDES = ("joint", "CGGM", "CGGM, two-layer heads", "plain", "plain, no attention dropout")
TARGETS = {"CGGM": ("at most", 1.20), "plain": ("at least", 2.0)}

Inputs = dict[str, MaskedSequence]


class PlainLayer(AttentionLayer):
    """The same layer with attention written out.

    Args:
        layer: Whose modules it shares.
        attention_dropout: Probability of dropping an attention weight.
    """

    def __init__(self, layer: AttentionLayer, attention_dropout: float) -> None:
        nn.Module.__init__(self)
        self._modules.update(layer._modules)
        self.attention_dropout = attention_dropout

    def forward(self, values: Tensor, mask: Tensor, queries: Tensor | None = None) -> Tensor:
        """As :class:`AttentionLayer`; attends for all steps, whichever are read."""
        steps = super().forward(values, mask)
        return steps if queries is None else steps[:, -queries.shape[1] :]

    def attend(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """As :class:`AttentionLayer`, where all keys ask."""
        attention = self.self_attn
        projected = F.linear(keys, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        query, key, value = (self.split_heads(part).flatten(0, 1) for part in projected)
        query = query / math.sqrt(query.shape[-1])
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
        bias = bias.repeat_interleave(attention.num_heads, dim=0)[:, None]
        weights = torch.baddbmm(bias, query, key.transpose(1, 2)).softmax(dim=-1)
        weights = F.dropout(weights, self.attention_dropout, self.training)
        heads = torch.bmm(weights, value).unflatten(0, (-1, attention.num_heads))
        return attention.out_proj(heads.transpose(1, 2).flatten(2))


def with_plain_attention(network: nn.Module, attention_dropout: float) -> None:
    """Replace every attention layer by a plain one on the same weights."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AttentionLayer):
                setattr(module, name, PlainLayer(child, attention_dropout))


def make_network(dropout: float) -> MultimodalTransformer:
    """The network of CMU-MOSI, always the same."""
    torch.manual_seed(0)
    return MultimodalTransformer(WIDTHS, None, dropout=dropout)


def make_batch(options: argparse.Namespace) -> tuple[Inputs, Tensor]:
    """Random sequences, each 60 to 100 % real steps, and values to predict."""
    torch.manual_seed(1)
    least = math.ceil(0.6 * options.steps)
    lengths = torch.randint(least, options.steps + 1, (options.batch, 1))
    mask = torch.arange(options.steps) < lengths
    inputs = {
        name: MaskedSequence(torch.randn(*mask.shape, width), mask)
        for name, width in WIDTHS.items()
    }
    return inputs, torch.randn(options.batch)


def make_sides(dropout: float) -> dict[str, tuple[nn.Module, Balancer]]:
    """Network and criterion of each side; all networks share their weights."""
    network = make_network(dropout)
    sides = {
        "joint": (network, Balancer(nn.L1Loss())),
        "CGGM": (network, CGGM(sequence_heads(network), nn.L1Loss(), negative_mae)),
        "CGGM, two-layer heads": (
            network,
            CGGM(sequence_heads(network, layers=2), nn.L1Loss(), negative_mae),
        ),
    }
    for side, rate in (("plain", ATTENTION_DROPOUT), ("plain, no attention dropout", 0.0)):
        plain = make_network(dropout)
        for name, parameter in network.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(owner), leaf, parameter)
        with_plain_attention(plain, rate)
        sides[side] = (plain, Balancer(nn.L1Loss()))
    return sides


def greatest_difference(batch: tuple[Inputs, Tensor]) -> float:
    """Greatest relative difference of loss and gradients to plain attention, without dropout."""
    results = []
    for plain in (False, True):
        network = make_network(dropout=0.0)
        if plain:
            with_plain_attention(network, 0.0)
        loss = nn.functional.l1_loss(network(batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        results.append(torch.cat([loss.detach().view(1), *(g.flatten() for g in gradients)]))
    ours, theirs = results
    return float((ours - theirs).abs().max() / theirs.abs().max())


def timed_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    balancer: Balancer,
    batch: tuple[Inputs, Tensor],
) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    balancer(network(batch[0]), batch[1]).backward()
    optimizer.step()
    return time.perf_counter() - start


def times(options: argparse.Namespace, batch: tuple[Inputs, Tensor]) -> dict[str, list[float]]:
    """Seconds of the steps of each side, taking turns."""
    sides = make_sides(dropout=0.1)
    optimizer = torch.optim.Adam(sides["joint"][0].parameters(), lr=1e-4)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side, (network, balancer) in sides.items():
            balancer.bind(network)
            timed_step(network, optimizer, balancer, batch)  # memory is left as another side had it
            seconds[side].append(timed_step(network, optimizer, balancer, batch))
            balancer.unbind()
    return seconds


def ratio(side: list[float], joint: list[float]) -> float:
    """Median of the ratios within a turn, where both sides meet the same load."""
    return statistics.median(a / b for a, b in zip(side, joint, strict=True))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    batch = make_batch(options)
    difference = greatest_difference(batch)
    seconds = times(options, batch)
    rows = {
        side: {
            "seconds": statistics.median(seconds[side]),
            "time_ratio": ratio(seconds[side], seconds["joint"]),
        }
        for side in SIDES
    }
    for side, row in rows.items():
        target = "({} {:.2f})".format(*TARGETS[side]) if side in TARGETS else ""
        print(f"{side:28} {row['seconds']:7.3f} s  x{row['time_ratio']:.3f} {target}")
    print(f"greatest relative difference of loss and gradients, no dropout: {difference:.1e}")
    if options.json:
        record = {
            "benchmark": "sequences",
            "settings": {k: v for k, v in vars(options).items() if k != "json"},
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "greatest_difference": difference,
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
