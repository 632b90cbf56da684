"""Plain containers from what was unpickled, bounded in depth and in written-out size."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cggm_cls.data.pickles.numpy_objects import PickledArray, RefusedError

_Compound = PickledArray | list[object] | tuple[object, ...] | dict[object, object]
_COMPOUND = (PickledArray, list, tuple, dict)

_DEEPEST = 32
_MOST_CONTAINERS = 200_000
_SPARE = 4_000_000  # for small files, whose texts may differ much in length
_WIDEST = 32  # characters that numpy gives a number among texts


def plain_content(content: object, size: int) -> object:
    """Replace the stand-ins for arrays and refuse all but plain containers and their content.

    Few bytes of a pickle can name one object any number of times. Such content is small as it is
    and huge as soon as it is copied or made an array, so that its written-out size is bounded.

    Args:
        content: What was unpickled.
        size: Bytes of the file.

    Raises:
        RefusedError: If the content is of other types, nested too deeply, or too large.
    """
    return _Tree(4 * size + _SPARE).plain(content, 0)[0]


class _Extent(NamedTuple):
    """How large something gets when written out.

    Attributes:
        fixed: Bytes of arrays and number of objects.
        elements: How many, if numpy made one array of it.
        longest: Characters of each of them, 0 where there is no text.
    """

    fixed: int = 1
    elements: int = 0
    longest: int = 0

    @property
    def total(self) -> int:
        # numpy gives every element of a text array the width of the longest one.
        return self.fixed + self.elements * self.longest


_NUMBER = _Extent(elements=1)
_SHORT_TEXT = _Extent(elements=1, longest=_WIDEST)


@dataclass(frozen=True)
class _Tree:
    limit: int
    done: dict[int, tuple[object, _Extent]] = field(default_factory=dict)

    def plain(self, value: object, depth: int) -> tuple[object, _Extent]:
        if not isinstance(value, _COMPOUND):
            return value, _leaf(value)
        if depth > _DEEPEST:
            raise RefusedError(f"it is nested more than {_DEEPEST} deep.")
        # By identity: what occurs many times is converted once and counted each time.
        if id(value) not in self.done:
            if len(self.done) >= _MOST_CONTAINERS:
                what = f"it holds more than {_MOST_CONTAINERS} lists, tuples and dicts."
                raise RefusedError(what, "Save numbers as arrays.")
            converted, extent = self._convert(value, depth)
            if extent.total > self.limit:
                raise RefusedError("it repeats content until it is huge when written out.")
            self.done[id(value)] = converted, extent
        return self.done[id(value)]

    def _convert(self, value: _Compound, depth: int) -> tuple[object, _Extent]:
        if isinstance(value, dict):
            return self._dict(value, depth)
        if isinstance(value, list | tuple):
            return self._sequence(value, depth)
        if value.value is None:
            raise RefusedError("an array has no content.")
        return self.plain(value.value, depth + 1)

    def _dict(self, value: dict[object, object], depth: int) -> tuple[object, _Extent]:
        items: dict[object, object] = {}
        fixed = 1
        for key, item in value.items():
            items[key], extent = self.plain(item, depth + 1)
            fixed += extent.total
        return items, _Extent(fixed)

    def _sequence(
        self, value: list[object] | tuple[object, ...], depth: int
    ) -> tuple[object, _Extent]:
        items, fixed, elements, longest = [], 1, 0, 0
        for item in value:
            converted, extent = self.plain(item, depth + 1)
            items.append(converted)
            fixed += extent.fixed
            elements += extent.elements
            longest = max(longest, extent.longest)
        return type(value)(items), _Extent(fixed, elements, longest)


def _leaf(value: object) -> _Extent:
    if isinstance(value, (str, bytes)):
        return _SHORT_TEXT if len(value) <= _WIDEST else _Extent(1, 1, len(value))
    if isinstance(value, np.ndarray):
        return _Extent(1 + value.nbytes, value.size)
    if isinstance(value, int) and value.bit_length() > 64:
        raise RefusedError("it holds an integer of more than 64 bits.")
    if value is None or isinstance(value, (int, float)):
        return _NUMBER
    raise RefusedError(f"it holds a bare {type(value).__name__}, no data.")
