"""CGGM in a loop under Accelerate, with accumulation and a saved state; data are SIMULATED."""

import tempfile

import torch
from accelerate import Accelerator

# The network, heads and data of the example for Lightning, which is not needed here otherwise.
from lightning_module import NAMES, Head, Network, accuracy, simulated_samples
from torch import nn
from torch.utils.data import DataLoader

from cggm import CGGM

torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
network, criterion = Network(), nn.CrossEntropyLoss()
balancer = CGGM({name: Head() for name in NAMES}, criterion, accuracy)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
batches = DataLoader(simulated_samples(512), batch_size=32)
network, optimizer, batches = accelerator.prepare(network, optimizer, batches)

balancer.bind(network)
accelerator.register_for_checkpointing(balancer)

for epoch in range(1, 6):
    balancer.start_epoch(epoch)
    for inputs, target in batches:
        with accelerator.accumulate(network):
            loss = balancer(network(inputs), target)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    balancer.end_epoch(epoch)

with tempfile.TemporaryDirectory() as folder:
    accelerator.save_state(folder)
    accelerator.load_state(folder)
for name, read in balancer.readings_by_modality.items():
    print(f"{name:<5}  score {read['score']:.2f}  B {read['term']:.2f}")
