"""Modality balance: what each encoder's head scored, and what the method did with it, over time."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from cggm.display import Values, number
from cggm.reports.charts import figures, legend
from cggm.reports.page import Section
from cggm.runs import Log, balance_charts, by_modality, column, running_mean

FEWEST = 20
"""Recorded steps below which nothing is said."""
WINDOW = 0.1
"""Share of the run that scores and gates are averaged over before they are compared."""
CHANCE = 0.1
"""Share of the best head's signal below which a head counts as no better than chance."""
LEAD = 0.05
"""Share of the largest gain by which a modality must be ahead to have overtaken another."""
ALIKE = 0.05
"""Relative difference of factors below which they count as alike."""
_COSINE = 0.1
_NORMS = 2.0
_SPREAD = 0.05  # of shares whose mean is 1
_TRUST = 0.1


def read_balance(log: Log) -> list[str]:
    """Sentences on pace, chance, factors, samples, directions and gradients, in this order.

    Args:
        log: Lines of ``balance.jsonl``.
    """
    if len(log) < FEWEST:
        return [f"Only {len(log)} steps were recorded, too few to read anything from."]
    steps = column(log, "iteration")
    scores, gates = (_smooth(by_modality(log, key)) for key in ("score", "gate"))
    terms = by_modality(log, "term")
    return [
        *_pace(steps, scores, terms),
        *_chance(steps, scores, gates),
        *_factors(terms),
        *_raw(by_modality(log, "raw_term"), terms),
        *_guided(*(by_modality(log, key) for key in ("lead", "spread", "weight", "trust"))),
        *_directions(by_modality(log, "cosine")),
        *_norms(by_modality(log, "gradient_norm")),
    ]


def _smooth(columns: Mapping[str, Values]) -> dict[str, Values]:
    return {name: running_mean(v, max(1, round(WINDOW * len(v)))) for name, v in columns.items()}


def _pace(
    steps: Values, scores: Mapping[str, Values], terms: Mapping[str, Values]
) -> Iterator[str]:
    """Who gained most from the first score on, until another one had gained clearly more."""
    if len(scores) < 2:
        return
    names = [*scores]
    gains = np.stack([v - v[np.isfinite(v)][0] for v in scores.values()])
    gains = np.nan_to_num(gains, nan=0.0)
    largest = gains.max()
    if largest <= 0:
        yield "No head's score rose above its first value."
        return
    start = int((gains.max(0) >= CHANCE * largest).argmax())
    leader = int(gains[:, start].argmax())
    ahead = np.delete(gains, leader, 0).max(0) - gains[leader]
    overtaken = np.flatnonzero(ahead[start:] > LEAD * largest)
    end = start + int(overtaken[0]) if overtaken.size else len(steps) - 1
    when = f"until step {steps[end]:.0f}" if overtaken.size else "throughout"
    own = scores[names[leader]]
    sentence = (
        f"{names[leader]} learnt fastest {when}: its head's score went from "
        f"{number(own[np.isfinite(own)][0], 2)} to {number(own[end], 2)}"
    )
    yield sentence + _held(names[leader], terms, end) + "."
    if overtaken.size:
        final = int(gains[:, -1].argmax())
        other = scores[names[final]]
        yield (f"In the end {names[final]} had gained most, to a score of {number(other[-1], 2)}.")


def _held(leader: str, terms: Mapping[str, Values], end: int) -> str:
    """How the leader's factor compared with the others' while it led."""
    if leader not in terms or len(terms) < 2:
        return ""
    means = {name: float(np.nanmean(v[: end + 1])) for name, v in terms.items()}
    own = means.pop(leader)
    others = float(np.mean([*means.values()]))
    if abs(own - others) <= ALIKE * abs(others):
        return f"; its factor, {number(own, 2)} on average, was like the others'"
    verb = "held back to" if own < others else "sped up to"
    return f", and it was {verb} {number(own, 2)} on average, the others to {number(others, 2)}"


def _chance(
    steps: Values, scores: Mapping[str, Values], gates: Mapping[str, Values]
) -> Iterator[str]:
    """By the gates where a method has them; else by the gains, which know no chance."""
    for name, gate in gates.items():
        start = round(WINDOW * len(gate))  # as long as no head has a signal, its shares are noise
        open_ = start + np.flatnonzero(gate[start:] >= CHANCE)
        share = f"{number(gate[-1], 2)} of the best head's signal in the end"
        if not open_.size:
            yield (
                f"{name}'s head never rose above chance: its signal stayed below "
                f"{number(CHANCE, 2)} of the best head's."
            )
        elif gate[-1] < CHANCE:
            yield f"{name}'s head rose above chance and fell back to it, {share}."
        elif open_[0] > start:
            yield f"{name}'s head rose above chance at step {steps[open_[0]]:.0f}, with {share}."
    if gates or len(scores) < 2:
        return
    gains = {n: float(v[-1] - v[np.isfinite(v)][0]) for n, v in scores.items()}
    for name, gain in gains.items():
        if max(gains.values()) > 0 and gain < CHANCE * max(gains.values()):
            yield (
                f"{name}'s head hardly learnt: its score changed by {number(gain, 2)}, where the "
                f"best one gained {number(max(gains.values()), 2)}."
            )


def _factors(terms: Mapping[str, Values]) -> Iterator[str]:
    """The mean factors, where they are not all 1."""
    if not terms:
        return
    every = np.stack([*terms.values()])
    every = every[np.isfinite(every)]
    if np.allclose(every, 1.0, atol=1e-6):
        yield "No encoder was held back or sped up: every factor was 1."
        return
    means = {name: float(np.nanmean(v)) for name, v in terms.items()}
    if np.ptp([*means.values()]) <= ALIKE * abs(np.mean([*means.values()])):
        mean = float(np.mean([*means.values()]))
        yield f"On average all encoders had about the same factor, {number(mean, 2)}."
        return
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    yield (
        f"Over the whole run {low} was held back most (factor {number(means[low], 2)} on average) "
        f"and {high} least ({number(means[high], 2)}); factors went from "
        f"{number(float(every.min()), 2)} to {number(float(every.max()), 2)}."
    )


def _raw(raw: Mapping[str, Values], used: Mapping[str, Values]) -> Iterator[str]:
    """How often equation (7) as it stands left the range of what was used."""
    if not raw or not used:
        return
    ratio = np.stack([*raw.values()])
    taken = np.stack([*used.values()])
    low, high = np.nanmin(taken), np.nanmax(taken)
    outside = float(np.mean((ratio < low) | (ratio > high) | ~np.isfinite(ratio)))
    if outside > 0:
        largest = float(np.nanmax(np.abs(ratio)))
        yield (
            f"The raw ratio of equation (7) was outside the range of the factors in use in "
            f"{outside:.0%} of the readings, up to {largest:.3g} in size.".replace("%", " %")
        )


def _guided(
    leads: Mapping[str, Values],
    spreads: Mapping[str, Values],
    weights: Mapping[str, Values],
    trust: Mapping[str, Values],
) -> Iterator[str]:
    """Which modality explained how many samples in the second half, and what that was worth."""
    if len(leads) < 2:
        return
    shares = {n: float(np.nanmean(v[len(v) // 2 :])) for n, v in leads.items()}
    ordered = sorted(shares, key=shares.__getitem__)
    if len(ordered) == 2:
        less, more = ordered
        yield f"In {_percent(shares[less])} of the samples {less} explained more than {more}."
    else:
        parts = [f"{n} in {_percent(shares[n])}" for n in reversed(ordered)]
        yield f"In the second half a sample was explained best by {_listed(parts)} of the cases."
    alike = [n for n, v in spreads.items() if np.nanmean(v[len(v) // 2 :]) < _SPREAD]
    if alike:
        yield f"To {_listed(alike)} all samples counted about alike: shares hardly differed."
    means = {n: float(np.nanmean(v)) for n, v in weights.items()}
    low, high = (choose(means, key=means.__getitem__, default="") for choose in (min, max))
    if means and means[high] - means[low] > ALIKE * means[high]:
        yield (
            f"{high}'s loss had the largest weight, {number(means[high], 2)} on average, and "
            f"{low}'s the smallest, {number(means[low], 2)}."
        )
    for name, values in trust.items():
        if values[-1] < _TRUST:
            yield f"{name} was hardly trusted in the end: its head had no signal above chance."


def _directions(cosines: Mapping[str, Values]) -> Iterator[str]:
    """Mean cosine over the second half, with the way it points."""
    means = {n: float(np.nanmean(v[len(v) // 2 :])) for n, v in cosines.items()}
    groups: dict[str, Sequence[str]] = {
        "the same way as": [n for n, c in means.items() if c > _COSINE],
        "across": [n for n, c in means.items() if abs(c) <= _COSINE],
        "against": [n for n, c in means.items() if c < -_COSINE],
    }
    said = [
        f"{way} the network's for {_listed([f'{n} ({number(means[n], 2)})' for n in names])}"
        for way, names in groups.items()
        if names
    ]
    if said:
        yield f"In the second half the heads' gradients pointed {'; '.join(said)} (mean cosine)."


def _norms(norms: Mapping[str, Values]) -> Iterator[str]:
    """Which encoder got the largest gradient in the last tenth, where it was twice another's."""
    if len(norms) < 2:
        return
    last = {n: float(np.nanmedian(v[-max(1, len(v) // 10) :])) for n, v in norms.items()}
    low, high = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    if last[low] > 0 and last[high] / last[low] >= _NORMS:
        yield (
            f"In the last tenth {high}'s encoder had the largest gradient, "
            f"{last[high] / last[low]:.1f} times that of {low}."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_MEAN = "Lines: running means over 4 % of the run; dots: single steps."


def balance_section(log: Log) -> Section:
    """Charts of all readings, and what they say in plain language.

    Args:
        log: Lines of ``balance.jsonl``.
    """
    charts = [*balance_charts(log).values()]
    if not charts:
        return Section("Modality balance", Markup())
    sentences = Markup().join(Markup("<li>{}</li>").format(s) for s in read_balance(log))
    lines = [line for chart in charts for line in chart.known]
    body = Markup('<ul class="reading">{}</ul>{}<p class="note">{}</p>{}').format(
        sentences, legend(lines), _MEAN, figures(charts)
    )
    return Section("Modality balance", body)
