from .load import describe_array_folder as describe_array_folder
from .load import load_array_folder as load_array_folder
from .load import table_data as table_data
from .load import with_drawn_splits as with_drawn_splits
from .simulation import simulate_array_folder as simulate_array_folder
from .table import ArrayModality as ArrayModality
from .table import ArrayTable as ArrayTable
