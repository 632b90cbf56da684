"""What a fusion is given where it is to predict from one modality alone."""

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
