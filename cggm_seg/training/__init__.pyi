from .assembly import segmentation_session as segmentation_session
from .balancing import segmentation_balancer as segmentation_balancer
from .config import BratsConfig as BratsConfig
from .summary import announce_segmentation as announce_segmentation
from .summary import conclude_segmentation as conclude_segmentation
