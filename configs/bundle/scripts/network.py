"""The network, from its graph."""

import torch


def exported_network(graph: str, weights: str) -> torch.nn.Module:
    """The network in evaluation mode; it cannot be trained.

    Args:
        graph: Graph of torch.export without weights.
        weights: State dict.
    """
    module = torch.export.load(graph).module()
    module.load_state_dict(torch.load(weights, "cpu", weights_only=True), assign=True)
    # They refuse to be called, as MONAI's engines do; the graph is one of evaluation anyway.
    del module.train, module.eval
    return module.eval()
