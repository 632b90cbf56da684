from .balancer import Balancer as Balancer
from .handlers import BalanceHandler as BalanceHandler
from .handlers import BalanceRecorder as BalanceRecorder
from .methods._parts.chain import Chain as Chain
from .methods.cggm import CGGM as CGGM
from .passes import Step as Step

__version__: str
