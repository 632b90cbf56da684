from .lightning import BalanceCallback as BalanceCallback
from .transformers import BalancedTrainer as BalancedTrainer
from .transformers import balanced_loss as balanced_loss
