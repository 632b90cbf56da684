"""Per-modality heads of CGGM for the segmentation network; they exist in training only."""

from cggm_seg.decoders import UnimodalDecoder
from cggm_seg.networks import MultiEncoderDeepLabV3Plus


def unimodal_heads(
    network: MultiEncoderDeepLabV3Plus, *, light: bool = True
) -> dict[str, UnimodalDecoder]:
    """One head per encoder of a network, in the order of its encoders.

    Args:
        network: The network whose features the heads read.
        light: Whether to use the light decoder.

    Returns:
        Heads by modality, on the device of the network.
    """
    device = next(network.parameters()).device
    return {
        name: UnimodalDecoder(
            network.decoder_channels, network.low_level_channels, network.classes, light=light
        ).to(device)
        for name in network.encoders
    }
