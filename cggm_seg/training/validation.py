"""Dice of whole cached volumes, for any subsets of modalities at once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.ImageColor import getrgb
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cggm.distributed import gather_shards, is_first_rank, shard
from cggm.runs import Picture
from cggm.scores import ratio_score
from cggm.tensors import evaluating
from cggm_seg.data import CLASS_CODES, SliceCache
from cggm_seg.evaluation import REGIONS, region_dice_counts
from cggm_seg.networks import OUTPUT_STRIDE, ModalityFeatures, MultiEncoderDeepLabV3Plus
from cggm_seg.pictures import COLORS, gray_levels, shown_modalities

Subset = tuple[str, ...]
Rows = list[dict[str, float | str]]

COLUMNS = (*(f"dice_{region}" for region in REGIONS), "dice_mean")


def evaluate_cached(
    network: MultiEncoderDeepLabV3Plus,
    cache: SliceCache,
    case_ids: Sequence[str],
    *,
    subsets: Sequence[Subset] | None = None,
    batch_size: int = 16,
    progress: str | None = None,
    sharded: bool = False,
) -> dict[Subset, Rows]:
    """Dice per case over the whole volume, by the BraTS rule for empty regions.

    An absent modality is zero-filled as in training. Encoders run once however many subsets there
    are, only the decoder runs for each.

    Args:
        network: Evaluated in eval mode on its own device; its mode is restored.
        cache: Where slices are read.
        case_ids: Cases to evaluate.
        subsets: Modalities present; all of them where not given.
        batch_size: Slices at once.
        progress: Name of a bar that goes when it is done, if there is a terminal; none if ``None``.
        sharded: Whether the ranks share the cases; every rank then calls this and gets all rows.

    Returns:
        For each subset one row per case: ``case``, ``dice_WT``, ``dice_TC``, ``dice_ET`` and
        ``dice_mean``.
    """
    subsets = subsets or [network.modalities]
    found = []
    hidden = None if progress and is_first_rank() else True
    with evaluating(network):
        mine = shard(case_ids) if sharded else case_ids
        for case_id in tqdm(mine, progress, unit="case", leave=False, disable=hidden):
            counts = _count(network, cache, case_id, subsets, batch_size)
            found.append({s: {"case": case_id, **_dice(counts[s])} for s in subsets})
    found = gather_shards(found) if sharded else found
    return {subset: [rows[subset] for rows in found] for subset in subsets}


def validation_metrics(
    network: MultiEncoderDeepLabV3Plus,
    cache: SliceCache,
    case_ids: Sequence[str],
    *,
    progress: str | None = None,
) -> dict[str, Any]:
    """Means over cases, with all modalities, of what :func:`evaluate_cached` gives for each.

    Where there are several ranks they share the cases, and every rank has to call it.

    Returns:
        ``dice_WT``, ``dice_TC``, ``dice_ET`` and ``dice_mean``; and ``warnings``, a list of
        sentences, where :func:`missed_warnings` has one.
    """
    (rows,) = evaluate_cached(network, cache, case_ids, progress=progress, sharded=True).values()
    metrics: dict[str, Any] = {name: mean_of(rows, name) for name in COLUMNS}
    warnings = missed_warnings(rows, cache)
    return {**metrics, "warnings": warnings} if warnings else metrics


def missed_warnings(rows: Rows, cache: SliceCache) -> list[str]:
    """A sentence on the regions that were never found, and what to do; none where there is none.

    Args:
        rows: See :func:`missed_regions`.
        cache: See there.
    """
    missed = missed_regions(rows, cache)
    if not missed:
        return []
    cases = ", ".join(f"{region} {count}" for region, count in missed.items())
    return [
        f"Not one voxel was found of {' and '.join(missed)}, although validation cases have it "
        f"({cases} of {len(rows)}). Train longer, or with --loss.dice regions and --slices.focus "
        "regions, which count small regions as much as large ones."
    ]


def unused_class_warnings(cache: SliceCache, case_ids: Sequence[str]) -> list[str]:
    """A sentence on the classes that training cannot teach; none where there is none.

    Args:
        cache: Tells which classes a case has.
        case_ids: Cases of the training.
    """
    counts = [cache.class_counts(case_id) for case_id in case_ids]
    held = {int(number) for own in counts for number in np.flatnonzero(own.any(axis=0))}
    unused = [name for number, name in enumerate(CLASS_CODES) if number not in held]
    if not unused:
        return []
    return [
        f"No label map of the {len(case_ids)} training cases holds {' or '.join(unused)}: the "
        "network learns that there is none. Say with --labels what the values mean if that is not "
        "so."
    ]


def missed_regions(rows: Rows, cache: SliceCache) -> dict[str, int]:
    """Regions of which not one voxel was found in any case that has it.

    Args:
        rows: Those of all cases, with all modalities, as :func:`evaluate_cached` gives them.
        cache: Tells which regions a case has.

    Returns:
        Such a region to the number of cases that have it, the largest region first.
    """
    missed = {}
    for region, classes in sorted(REGIONS.items(), key=lambda item: -len(item[1])):
        having = [r for r in rows if cache.class_counts(str(r["case"]))[:, list(classes)].any()]
        if having and all(row[f"dice_{region}"] == 0 for row in having):
            missed[region] = len(having)
    return missed


def mean_of(rows: Rows, name: str = "dice_mean") -> float:
    """Mean of one column over cases."""
    return float(np.mean([float(row[name]) for row in rows]))


def subset_means(rows: Mapping[Subset, Rows], cache: SliceCache) -> dict[str, dict[str, float]]:
    """Mean Dice for each subset of modalities over the cases that have all of it.

    A case without T1ce says of FLAIR and T1ce together what it says of FLAIR alone, which would
    make T1ce look useless.

    Args:
        rows: Subset to the rows of all cases, see :func:`evaluate_cached`.
        cache: Tells which modalities a case has.

    Returns:
        Modalities joined by ``+`` to their means and, where a case lacks a modality, to the number
        of ``cases`` behind them; without the subsets that no case has.
    """
    table: dict[str, dict[str, float]] = {}
    for subset, every_row in rows.items():
        having = [row for row in every_row if _has(cache, str(row["case"]), subset)]
        if having:
            table["+".join(subset)] = {name: mean_of(having, name) for name in COLUMNS}
            if not all(_has(cache, str(row["case"]), cache.modalities) for row in every_row):
                table["+".join(subset)]["cases"] = len(having)
    return table


def _has(cache: SliceCache, case_id: str, subset: Subset) -> bool:
    present = dict(zip(cache.modalities, cache.present(case_id), strict=True))
    return all(present[name] for name in subset)


def _count(
    network: MultiEncoderDeepLabV3Plus,
    cache: SliceCache,
    case_id: str,
    subsets: Sequence[Subset],
    batch_size: int,
) -> dict[Subset, Tensor]:
    """Numerators and denominators of Dice, ``(2, 3)``, of each subset."""
    device = next(network.parameters()).device
    counts = {subset: torch.zeros(2, len(REGIONS), device=device) for subset in subsets}
    partial = any(len(subset) < len(network.modalities) for subset in subsets)
    absent: ModalityFeatures = {}
    for images, labels in _batches(cache, case_id, batch_size):
        height, width = labels.shape[1:]
        padded = F.pad(images, (0, -width % OUTPUT_STRIDE, 0, -height % OUTPUT_STRIDE)).to(device)
        present = network.encode(padded)
        if partial and not absent:
            absent = network.encode(torch.zeros_like(padded[:1]))
        for subset in subsets:
            features = {n: f if n in subset else _like(absent[n], f) for n, f in present.items()}
            logits = network.decode(features)[..., :height, :width]
            counts[subset] += torch.stack(region_dice_counts(logits, labels.to(device)))
    return counts


def _like(feature: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.expand_as(other[key]) for key, value in feature.items()}


def _batches(cache: SliceCache, case_id: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, cache.depth(case_id), batch_size):
        stop = min(start + batch_size, cache.depth(case_id))
        slices = [cache.read(case_id, z) for z in range(start, stop)]
        images, labels = (np.stack(column) for column in zip(*slices, strict=True))
        yield torch.from_numpy(images), torch.from_numpy(labels).long()


def _dice(counts: Tensor) -> dict[str, float]:
    # region by region: (3, 2, 1), so that each is a score of its own
    scores = ratio_score(counts.T[..., None]).tolist()
    by_region = {f"dice_{name}": score for name, score in zip(REGIONS, scores, strict=True)}
    return {**by_region, "dice_mean": float(np.mean(scores))}


# Each outline is that of a nested region, drawn from the largest to the smallest.
_OUTLINES = {"ED": (1, 2, 3), "ET": (1, 3), "NCR": (1,)}
_ZOOM = 2  # pixels per voxel, so that an outline hides half a voxel
_GAP = 4  # pixels between panels


class ValidationSlice:
    """The axial slice with the most tumor of one case; the middle one of a case without tumor.

    Args:
        network: Seen in eval mode, without gradients; its mode is restored.
        cache: Where the slice is read.
        case_id: The case.
    """

    def __init__(self, network: MultiEncoderDeepLabV3Plus, cache: SliceCache, case_id: str) -> None:
        areas = cache.class_counts(case_id)[:, 1:].sum(1)
        self._depth = int(areas.argmax()) if areas.any() else len(areas) // 2
        self._network = network
        self._images, self._truth = cache.read(case_id, self._depth)
        self._name = f"validation/{case_id}-slice-{self._depth}/image-truth-prediction"

    def __call__(self) -> Picture:
        """FLAIR and T1ce (else the first modality) plain, with truth, and with prediction."""
        names = self._network.modalities
        shown = [names.index(name) for name in shown_modalities(names)]
        prediction = self._predict()
        rows = [_row(self._images[k], (None, self._truth, prediction)) for k in shown]
        return Picture(self._name, np.concatenate(rows))

    def _predict(self) -> NDArray[np.int64]:
        height, width = self._truth.shape
        device = next(self._network.parameters()).device
        padding = (0, -width % OUTPUT_STRIDE, 0, -height % OUTPUT_STRIDE)
        images = F.pad(torch.from_numpy(self._images)[None], padding).to(device)
        with evaluating(self._network):
            classes = self._network(images)[0, :, :height, :width].argmax(0)
        return np.asarray(classes.cpu())


def _row(image: np.ndarray, labels: tuple[np.ndarray | None, ...]) -> NDArray[np.uint8]:
    """Panels side by side, anterior up and the patient's left on the right, as in radiology."""
    levels = (255 * gray_levels(image)).astype(np.uint8)
    gray = _enlarged(levels.T)[..., None].repeat(3, -1)
    panels = [gray if own is None else _outlined(gray, _enlarged(own.T)) for own in labels]
    framed = [np.pad(panel, ((0, _GAP), (0, _GAP), (0, 0))) for panel in panels]
    return np.concatenate(framed, axis=1)


def _enlarged(slice_: np.ndarray) -> np.ndarray:
    return slice_.repeat(_ZOOM, 0).repeat(_ZOOM, 1)


def _outlined(gray: NDArray[np.uint8], labels: np.ndarray) -> NDArray[np.uint8]:
    picture = gray.copy()
    for name, members in _OUTLINES.items():
        picture[_outline(np.isin(labels, members))] = getrgb(COLORS[name])
    return picture


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask that touch a pixel outside of it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
