import re

import numpy as np
import pytest

from cggm_cls.reports.classes import confusion_section

CONFUSION = np.array([[5, 3, 0], [0, 9, 0], [1, 0, 8]])


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("sad", "happy", "angry"), ["sad", "happy", "angry"]),
        ((), ["class 0", "class 1", "class 2"]),
    ],
)
def test_classes_are_called_by_their_names(names, shown):
    text = confusion_section(CONFUSION, names).body
    assert [name in text for name in shown] == [True] * 3
    pairs = text.partition("Largest confusions")[2]
    first = re.findall(r"<t[dh][^>]*>([^<]+)</t[dh]>", pairs.partition("<tbody>")[2])
    assert first[:2] == shown[:2]
