from .balancer import Balancer as Balancer
from .balancer import Step as Step
from .handlers import BalanceHandler as BalanceHandler
from .handlers import BalanceRecorder as BalanceRecorder
from .methods.cggm import CGGM as CGGM
