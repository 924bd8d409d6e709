"""The verdicts as text, and the conclusions that the tables support."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from replaybench.analysis.compare import BETTER, UNRESOLVED, WORSE
from replaybench.report.material import Material, n_words
from replaybench.report.words import (
    counted,
    detectable,
    listed,
    mean_fact,
    plain,
    pooled,
    pooled_rows,
    setting_name,
    short,
    with_interval,
    with_n,
)

TERMINAL_COLUMNS = 110


LABEL_COLUMNS = 40


def verdict_text(material: Material) -> str:
    """Returns the pooled verdicts as plain text of at most 110 columns."""
    sweep = material.sweep
    lines = [
        f"{sweep.spec.name}: success after training, difference to {sweep.reference}",
        f"pooled over {counted(len(material.datasets), 'data set')}; 95 % t interval over n lineages; "
        "verdicts adjusted after Holm over all rows",
    ]
    for ratio, level in material.settings:
        lines += ["", f"Replay ratio {ratio:g}, level {level}{_distance_words(material, level)}"]
        lines += _setting_lines(material, ratio, level)
    lines += ["", *textwrap.wrap(" ".join(conclusion(material)), TERMINAL_COLUMNS)]
    # Names come from the user and have no limit of their own.
    return "\n".join(line if len(line) <= TERMINAL_COLUMNS else line[: TERMINAL_COLUMNS - 3] + "..." for line in lines)


def _setting_lines(material: Material, ratio: float, level: str) -> list[str]:
    start = pooled_rows(material.improvement, ratio, level)
    lines = [
        f"  {_shortened(row['baseline'] + ' against the start policy')}: {with_n(row)}, {row['verdict']}"
        for row in start
        if row["baseline"] == material.sweep.reference
    ]
    rows = pooled_rows(material.differences, ratio, level)
    width = max([len("baseline"), *(len(_shortened(row["baseline"])) for row in rows)])
    lines.append(f"  {'baseline':<{width}}  {'difference':<24} {'n':>3}  {'verdict':<22}  detectable")
    for row in rows:
        lines.append(
            f"  {_shortened(row['baseline']):<{width}}  {with_interval(row):<24} {row['n']:>3}  "
            f"{row['verdict']:<22}  {detectable(row)}"
        )
    return lines


def _shortened(label: str) -> str:
    return label if len(label) <= LABEL_COLUMNS else label[: LABEL_COLUMNS - 3] + "..."


def _distance_words(material: Material, level: str) -> str:
    distance = mean_fact(material.facts.frame, "kl", level)
    return "" if distance is None else f" (KL(mu||start) {short(distance)})"


def conclusion(material: Material) -> list[str]:
    """Returns the sentences that the pooled tables support: against the reference, then against the start policy."""
    sentences = [_against_reference(material)]
    resolution = resolution_words(pooled(material.differences))
    if resolution:
        sentences.append(resolution)
    if material.sweep.reference != material.sweep.control:
        sentences.append(_against_start(material))
    return sentences


def opening(material: Material) -> list[str]:
    """Returns the verdict in two sentences: against the reference, then against the start policy."""
    control, reference = material.sweep.control, material.sweep.reference
    rows = pooled(material.differences).filter(pl.col("baseline") != control)
    sentences = [_found_words(rows.to_dicts(), reference, material)]
    if reference != control:
        sentences.append(_gain_words(pooled(material.improvement).to_dicts(), material))
    return sentences


def _found_words(rows: Sequence[Mapping[str, Any]], reference: str, material: Material) -> str:
    found = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in (BETTER, WORSE)}
    if not any(found.values()):
        return (
            f"Of {counted(len(rows), 'comparison')} with {reference} (baseline x level x replay ratio, "
            f"{n_words(material)}) none is resolved{_missed_words(rows)}."
        )
    parts = [f"{_are(len(some))} resolved {verdict}{_clearest(some)}" for verdict, some in found.items()]
    return (
        f"Of {counted(len(rows), 'comparison')} with {reference} (baseline x level x replay ratio) "
        f"{' and '.join(parts)}."
    )


def _are(number: int) -> str:
    return f"{number or 'none'} {'are' if number > 1 else 'is'}"


def _clearest(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    row = max(rows, key=lambda row: abs(row["estimate"]))
    most = "most clearly " if len(rows) > 1 else ""
    return f" ({most}{row['baseline']} by {with_n(row)} on {setting_name(row['replay_ratio'], row['level'])})"


def _gain_words(rows: Sequence[Mapping[str, Any]], material: Material) -> str:
    better = [row for row in rows if row["verdict"] == BETTER]
    cells = counted(len(material.settings), "cell")
    if not better:
        return (
            f"On none of {cells} is a baseline resolved better than the start policy: who harms least is the question."
        )
    gained = {(row["replay_ratio"], row["level"]) for row in better}
    rest = len(material.settings) - len(gained)
    others = f"; on the other {rest} the question is who harms least" if rest else ""
    return (
        f"Training resolvably raises success over the start policy on {len(gained)} of {cells}{_clearest(better)}"
        f"{others}."
    )


def resolution_words(rows: pl.DataFrame) -> str:
    """Returns which differences the lineages at hand resolve and which twice as many would, at the median cell."""
    measured = rows.drop_nulls("minimum_detectable")
    if measured.is_empty():
        return ""
    n = int(measured["n"].median())  # type: ignore[arg-type]
    now, then = (float(measured[name].median()) for name in ("minimum_detectable", "minimum_detectable_doubled"))  # type: ignore[arg-type]
    return (
        f"In the median comparison {n} lineages resolve a true difference of {plain(now)} with probability 0.8; "
        f"{2 * n} would resolve {plain(then)}."
    )


def _against_reference(material: Material) -> str:
    rows = [row for setting in material.settings for row in pooled_rows(material.differences, *setting)]
    rows = [row for row in rows if row["baseline"] != material.sweep.control]
    reference, cells = material.sweep.reference, counted(len(material.settings), "cell")
    found = [row for row in rows if row["verdict"] != UNRESOLVED]
    if not found:
        return (
            f"No difference to {reference} is resolved on any of {cells} (level x replay ratio, {n_words(material)})"
            f"{_missed_words(rows)}."
        )
    parts = [f"resolved {verdict} {_shares(found, verdict)}" for verdict in (BETTER, WORSE)]
    silent = sorted({row["baseline"] for row in rows} - {row["baseline"] for row in found})
    if silent:
        parts.append(f"no difference resolved anywhere for {listed(silent)}")
    largest = max(found, key=lambda row: abs(row["estimate"]))
    place = setting_name(largest["replay_ratio"], largest["level"])
    return (
        f"Against {reference}, on {cells} (level x replay ratio): {'; '.join(parts)}. "
        f"The largest is {largest['baseline']} with {with_n(largest)} on {place}."
    )


def _shares(found: Sequence[Mapping[str, Any]], verdict: str) -> str:
    """Returns which baselines have the verdict, by the number of cells on which they have it."""
    counts = Counter(row["baseline"] for row in found if row["verdict"] == verdict)
    by_count: dict[int, list[str]] = {}
    for name, count in sorted(counts.items()):
        by_count.setdefault(count, []).append(name)
    parts = [f"on {count}: {listed(names)}" for count, names in sorted(by_count.items(), reverse=True)]
    return ", ".join(parts) if parts else "nowhere"


def _missed_words(rows: Sequence[Mapping[str, Any]]) -> str:
    limits = [row["minimum_detectable"] for row in rows if row["minimum_detectable"] is not None]
    if not limits:
        return ""
    return f"; true differences below {plain(min(limits))} to {plain(max(limits))} could have been missed"


def _against_start(material: Material) -> str:
    tables = {setting: pooled_rows(material.improvement, *setting) for setting in material.settings}
    measured = {setting: rows for setting, rows in tables.items() if any(row["estimate"] is not None for row in rows)}
    if not measured:
        return "No run can be compared with the start policy."
    barren = [setting for setting, rows in measured.items() if all(row["verdict"] != BETTER for row in rows)]
    cells = counted(len(measured), "cell")
    if not barren:
        return f"On each of {cells} some baseline is resolved better than the start policy."
    worse = sorted({row["baseline"] for setting in barren for row in measured[setting] if row["verdict"] == WORSE})
    harm = f"{listed(worse)} resolved worse than it" if worse else "none is resolved worse than it either"
    if len(barren) == len(measured):
        return (
            f"No baseline is resolved better than the start policy on any of {cells}, so that the question is who "
            f"harms least; {harm}."
        )
    return (
        f"On {len(measured) - len(barren)} of {cells} some baseline is resolved better than the start policy; on the "
        f"others ({_places(barren)}) the question is who harms least; {harm} there."
    )


def _places(settings: Sequence[tuple[float, str]]) -> str:
    by_ratio: dict[float, list[str]] = {}
    for ratio, level in settings:
        by_ratio.setdefault(ratio, []).append(level)
    return "; ".join(f"{listed(levels)} at replay ratio {ratio:g}" for ratio, levels in by_ratio.items())
