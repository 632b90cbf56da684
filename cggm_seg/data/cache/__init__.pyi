from .build import build_cache as build_cache
from .entries import FORMAT as FORMAT
from .entries import entries as entries
from .entries import pack as pack
from .reading import SliceCache as SliceCache
