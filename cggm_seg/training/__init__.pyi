from .assembly import build_trainer as build_trainer
from .balancing import build_balancer as build_balancer
from .config import BratsConfig as BratsConfig
from .config import NetworkConfig as NetworkConfig
from .summary import describe as describe
from .summary import finish as finish
