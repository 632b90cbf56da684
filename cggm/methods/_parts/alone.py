"""One modality alone: what a fusion is given of it, and gradients where the others rest."""

from cggm.binding import Binding
from cggm.passes import Step
from cggm.tensors import Features, zeros_of


def features_of(name: str, step: Step, names: list[str]) -> dict[str, Features]:
    """Features of one modality, and zeros in the place of the others, for ``binding.decode``.

    Args:
        name: The modality.
        step: The forward pass.
        names: All modalities, in order.

    Raises:
        ValueError: If an encoder did not run, so that the shape of its zeros is unknown.
    """
    skipped = [other for other in names if other not in step.features]
    if skipped:
        raise ValueError(
            f"Expected what every encoder returns, to put zeros of its shape in place of it, but "
            f"the network skipped {skipped}. Run encoders on zeros where a batch lacks a modality, "
            "and say so by `present`."
        )
    return {n: step.features[n] if n == name else zeros_of(step.features[n]) for n in names}


def rest_but(name: str, binding: Binding) -> None:
    """Leave the optimizer no gradient, zeros included, of other modalities' encoders and heads.

    Args:
        name: The modality that learns; a last layer that all heads share does, too.
        binding: Of a late-fusion network.
    """
    heads = binding.output_layer
    branches = {
        n: [*encoder.parameters(), *heads.get_submodule(n).parameters()]
        for n, encoder in binding.encoders.items()
    }
    moving = {id(p) for p in branches.pop(name)}
    for parameter in (p for branch in branches.values() for p in branch):
        if id(parameter) not in moving:
            parameter.grad = None
