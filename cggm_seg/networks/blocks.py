"""Building blocks from segmentation-models-pytorch, which imports a torchvision that must fit.

torchvision is compiled against one build of PyTorch. Where it is another one, its import fails in
words that name neither; here they become what to install.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version

from cggm.errors import UserError

try:
    import torchvision  # noqa: F401
except (ImportError, OSError, RuntimeError) as error:
    torch = version("torch")
    try:
        found = f"found torchvision {version('torchvision')}, which does not load"
    except PackageNotFoundError:
        found = "found none"
    build = torch.partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    raise UserError(
        f"Expected the torchvision that was built for torch {torch}, but {found} ({error}).",
        f"Run: pip uninstall -y torchvision; pip install torch=={torch} torchvision{index}",
    ) from error

with warnings.catch_warnings():
    # timm 1.0.22, which nnU-Net's networks hold back, imports what PyTorch is about to drop
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP, SeparableConv2d
    from segmentation_models_pytorch.encoders import get_encoder

__all__ = ["ASPP", "SeparableConv2d", "get_encoder"]
