from .folder import evaluate_folder as evaluate_folder
from .folder import mean_dice as mean_dice
from .folder import subset_names as subset_names
from .regions import CLASSES as CLASSES
from .regions import REGIONS as REGIONS
from .regions import region_dice_counts as region_dice_counts
from .regions import region_mask as region_mask
from .scores import METRICS as METRICS
