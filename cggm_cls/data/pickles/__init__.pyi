from .load import load_arrays as load_arrays
