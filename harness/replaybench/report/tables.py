"""The tables of the page and their CSV files."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from replaybench.analysis.compare import POOLED, UNRESOLVED
from replaybench.provenance import checkout_commit
from replaybench.report.aggregates import aggregate_frame
from replaybench.report.cells import Cell, Table, number, sortable, verdict_cell
from replaybench.report.distances import distance_means, distances_table
from replaybench.report.efficiency import efficiency_frames, efficiency_tables
from replaybench.report.figures import LEVEL_MEASURES
from replaybench.report.gridworld import study_frames
from replaybench.report.knobs import distance_table, knob_frames, optimum_table
from replaybench.report.material import Material, loaded_baseline
from replaybench.report.sensitivity import comparison_frames
from replaybench.report.words import from_to, plain, pooled, short, with_interval, with_n
from replaybench.results import replay_ratios, short_power
from replaybench.store import open_log


def csv_tables(material: Material) -> dict[str, pl.DataFrame]:
    """Returns the tables that are written as CSV, by name, with all their columns."""
    return {
        "verdicts": material.differences,
        "improvement": material.improvement,
        "levels": material.summary,
        "level-facts": material.facts.frame,
        "replay-ratio": replay_ratios(material.measured),
        "settings": settings_frame(material),
        "provenance": provenance_frame(material),
        "failures": failures_frame(material),
        "runs": material.success,
        **comparison_frames(material),
        "aggregates": aggregate_frame(material),
        **study_frames(),
        **knob_frames(material),
        "distances": distance_means(material),
        **efficiency_frames(material),
    }


def settings_frame(material: Material) -> pl.DataFrame:
    """Returns the setting and the source of every arm."""
    rows = []
    for label, run in material.first_runs.items():
        baseline = loaded_baseline(run)
        rows.append(
            {
                "baseline": label,
                "learning_rate": run.train.learning_rate,
                "config": ", ".join(f"{key}={value}" for key, value in sorted(run.config.items())),
                "paper": baseline.declaration.paper if baseline else None,
                "arxiv": baseline.declaration.arxiv if baseline else None,
                "baseline_sha256": run.baseline_sha256,
            }
        )
    schema = {name: pl.Float64 if name == "learning_rate" else pl.String for name in rows[0]} if rows else {}
    return pl.DataFrame(rows, schema=schema)


def failures_frame(material: Material) -> pl.DataFrame:
    """Returns the runs that failed and why."""
    rows = [{"run_id": failure["run_id"], "reason": failure["reason"]} for failure in material.folder.failures()]
    return pl.DataFrame(rows, schema={"run_id": pl.String, "reason": pl.String})


def provenance_frame(material: Material) -> pl.DataFrame:
    """Returns where the numbers come from, as (fact, value)."""
    rows = [("sweep", material.sweep.spec.name), ("runs planned", str(len(material.sweep.runs)))]
    rows += [("runs with a result", str(len(material.measured.finished)))]
    rows += [("sum of the runs' wall time", f"{sum(m['wall_s'] for m in material.manifests):.0f} s")]
    rows += [(f"version of {name}", value) for name, value in _tallied(m["versions"] for m in material.manifests)]
    rows += [(f"host: {name}", value) for name, value in _tallied(m["host"] for m in material.manifests)]
    rows += [("commit of the runs", value) for _, value in _tallied({"": m.get("commit")} for m in material.manifests)]
    commit = checkout_commit()
    rows += [("commit of the checkout that built this page", commit)] if commit else []
    rows += [("files that built this page", "installed package")] if not commit else []
    digests = {(run.dataset, run.lineage): run for run in material.sweep.runs}
    for (dataset, lineage), run in sorted(digests.items()):
        rows.append((f"card of {dataset}, lineage {lineage}", f"sha256 {run.card_sha256}"))
        if run.data_folder not in material.facts.unread:
            rows.append(
                (
                    f"command that made {dataset}, lineage {lineage}",
                    open_log(run.data_folder, run.card_sha256).card.command,
                )
            )
    rows += [("card not found as planned, its facts are left out", folder) for folder in material.facts.unread]
    shared = material.sweep.spec.train.model_dump(mode="json", exclude={"learning_rate"})
    rows += [(f"training: {key}", _as_text(value)) for key, value in shared.items()]
    rows += [(f"evaluation: {k}", _as_text(v)) for k, v in material.sweep.spec.evaluate.model_dump(mode="json").items()]
    return pl.DataFrame(rows, schema={"fact": pl.String, "value": pl.String}, orient="row")


def _as_text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _tallied(records: Any) -> list[tuple[str, str]]:
    """Returns each key with its values; where runs differ, with how many had which."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in record.items():
            counts.setdefault(key, Counter())[str(value)] += 1
    return [
        (key, next(iter(found)) if len(found) == 1 else ", ".join(f"{v} ({n} runs)" for v, n in sorted(found.items())))
        for key, found in sorted(counts.items())
    ]


def page_tables(material: Material) -> dict[str, Table]:
    """Returns the tables of the page by name."""
    per_dataset = material.differences.filter(pl.col("dataset") != POOLED)
    tables = [
        glance_table("glance", f"Difference to {material.sweep.reference} at a glance", material, material.differences),
        glance_table("glance-start", "Difference to the start policy at a glance", material, material.improvement),
        _comparison("verdicts", "Differences to the reference, pooled", material, pooled(material.differences)),
        _comparison("verdicts-by-dataset", "Differences to the reference, each data set", material, per_dataset),
        _comparison("improvement", "Improvement over the start policy, pooled", material, pooled(material.improvement)),
        _levels_table(material),
        _facts_table(material),
        _ratio_table(material),
        _settings_table(material),
        _text_table("provenance", "Provenance", provenance_frame(material), ["fact", "value"]),
        _text_table("failures", "Failed runs", failures_frame(material), ["run", "reason"]),
        *_sensitivity_tables(material),
        _aggregates_table(material),
        _study_table(),
        optimum_table(material),
        distance_table(material),
        distances_table(material),
        *efficiency_tables(material),
    ]
    return {table.name: table for table in tables}


def glance_table(name: str, title: str, material: Material, table: pl.DataFrame) -> Table:
    """Returns the pooled verdicts of a comparison, one row a baseline and one column a cell."""
    found = {(row["baseline"], row["replay_ratio"], row["level"]): row for row in pooled(table).to_dicts()}
    settings = material.settings
    rows = []
    for label in sorted({key[0] for key in found}):
        row = [Cell(label, label, "name")]
        for ratio, level in settings:
            row.append(verdict_cell(found[label, ratio, level], with_n))
        rows.append(row)
    headings = ["baseline", *(f"{level}, R {ratio:g}" for ratio, level in settings)]
    return Table(name, title, headings, rows, csv="verdicts" if name == "glance" else "improvement")


def _comparison(name: str, title: str, material: Material, frame: pl.DataFrame) -> Table:
    order = {level: number for number, level in enumerate(material.look.levels)}
    headings = ["data set", "replay ratio", "level", "baseline", "difference, 95 % interval", "n", "verdict"]
    headings += ["p", "p (Holm)", "detectable", "missing", "partial", "interval"]
    rows = []
    for row in sorted(
        frame.to_dicts(), key=lambda r: (r["dataset"], r["replay_ratio"], order[r["level"]], r["baseline"])
    ):
        rows.append(
            [
                Cell(row["dataset"], row["dataset"]),
                number(row["replay_ratio"], "g"),
                Cell(row["level"], order[row["level"]]),
                Cell(row["baseline"], row["baseline"], "name"),
                verdict_cell(row, with_interval),
                number(row["n"], "d"),
                Cell(row["verdict"], row["verdict"], "" if row["verdict"] == UNRESOLVED else row["verdict"]),
                number(row["p_value"], ".2g"),
                number(row["p_holm"], ".2g"),
                number(row["minimum_detectable"], ".2f"),
                number(row["num_missing"], "d"),
                number(row["num_partial"], "d"),
                Cell(row["interval_method"], row["interval_method"]),
            ]
        )
    note = (
        "Detectable: the true difference that this comparison, alone among those of the table, finds with probability "
        "0.8. Missing: lineages without a pair. Partial: lineages averaged over fewer seeds."
    )
    csv = "improvement" if name == "improvement" else "verdicts"
    if frame["dataset"].n_unique() == 1:
        headings, rows = headings[1:], [row[1:] for row in rows]
    return Table(name, title, headings, rows, note, csv)


def _sensitivity_tables(material: Material) -> list[Table]:
    frames = comparison_frames(material)
    if not frames:
        return []
    rows = []
    for (rate, upper), block in frames["matched"].group_by("learning_rate", "upper", maintain_order=True):
        found = {(row["baseline"], row["replay_ratio"], row["level"]): row for row in pooled(block).to_dicts()}
        for family in sorted({key[0] for key in found}):
            row = [Cell(f"{upper:.3g}", upper, "number"), number(rate, "g"), Cell(family, family, "name")]
            rows.append(row + [verdict_cell(found[family, *place], with_n) for place in material.settings])
    headings = ["width, nats", "learning rate", "baseline"]
    headings += [f"{level}, R {ratio:g}" for ratio, level in material.settings]
    note = "Holm's adjustment is over the baselines and settings of one width and learning rate."
    title = f"Matched against matched: difference to {material.sweep.spec.reference} at the same width"
    matched = Table("matched", title, headings, rows, note, "matched")
    title = f"Best against best: difference to {material.sweep.spec.reference}"
    best = glance_table("best", title, material, frames["best"])
    note = "Each lineage is compared at the setting that was best on the other lineages."
    return [matched, best._replace(csv="best", note=note)]


def _aggregates_table(material: Material) -> Table:
    order = {level: number for number, level in enumerate(material.look.levels)}
    titles = {"iqm": "IQM", "optimality_gap": "optimality gap", "probability_of_improvement": "P(better)"}
    found: dict[tuple[float, str, str], dict[str, dict[str, Any]]] = {}
    for row in aggregate_frame(material).to_dicts():
        found.setdefault((row["replay_ratio"], row["level"], row["baseline"]), {})[row["aggregate"]] = row
    rows = []
    for (ratio, level, baseline), values in sorted(found.items(), key=lambda item: (item[0][0], order[item[0][1]])):
        cells = [number(ratio, "g"), Cell(level, order[level]), Cell(baseline, baseline, "name")]
        for name in titles:
            found_here = values.get(name)
            text = with_interval(found_here, plain) if found_here else "-"
            cells.append(Cell(text, sortable(found_here["estimate"]) if found_here else "", "number"))
        rows.append([*cells, number(values["iqm"]["n"], "d")])
    note = (
        f"P(better): probability that a lineage is better than one of {material.sweep.reference}, averaged over tasks. "
        "Intervals: trimmed-mean t (IQM), t (optimality gap), jackknife t (P); a bootstrap from 20 lineages on."
    )
    headings = ["replay ratio", "level", "baseline", *titles.values(), "n"]
    return Table("aggregates", "Aggregates over tasks and lineages", headings, rows, note, "aggregates")


def _study_table() -> Table:
    frame = study_frames()["study-cells"]
    headings = [name.replace("_", " ") for name in frame.columns]
    table = _text_table("study-cells", "The exact study by cell", frame, headings)
    return table._replace(note="Published settings, the estimator that never moves ranked.")


def _levels_table(material: Material) -> Table:
    order = {level: number for number, level in enumerate(material.look.levels)}
    rows = []
    for row in material.summary.to_dicts():
        level = row["level"] or "start policy"
        rows.append(
            [
                Cell(row["dataset"], row["dataset"]),
                Cell(
                    "-" if row["replay_ratio"] is None else f"{row['replay_ratio']:g}",
                    sortable(row["replay_ratio"]),
                    "number",
                ),
                Cell(level, order.get(row["level"], -1)),
                Cell(row["baseline"], row["baseline"], "name"),
                Cell(with_interval(row, plain), sortable(row["estimate"]), "number"),
                number(row["n"], "d"),
                number(row["num_missing"], "d"),
            ]
        )
    headings = ["data set", "replay ratio", "level", "baseline", "success, 95 % interval", "n", "missing"]
    return Table("levels", "Success after training", headings, rows, csv="levels")


def _facts_table(material: Material) -> Table:
    frame = material.facts.frame
    shown = {**LEVEL_MEASURES, "episode_length": "episode length", "num_episodes": "episodes", "num_steps": "steps"}
    rows = []
    for dataset in material.datasets:
        for place, level in enumerate(material.look.levels):
            here = frame.filter((pl.col("dataset") == dataset) & (pl.col("level") == level))
            if here.is_empty():
                continue
            cells = [
                Cell(dataset, dataset),
                Cell(level, place),
                Cell(_lag_words(here)),
                number(here["lineage"].n_unique(), "d"),
            ]
            for metric in shown:
                values = here.filter(pl.col("metric") == metric)["value"]
                cells.append(_spread(values.to_list()))
            rows.append(cells)
    note = "Mean over lineages, with the lowest and the highest lineage in brackets."
    headings = ["data set", "level", "lag in updates", "lineages", *shown.values()]
    return Table("level-facts", "What the logs hold", headings, rows, note, "level-facts")


def _lag_words(here: pl.DataFrame) -> str:
    low, high, branch = here["lag_low"].min(), here["lag_high"].max(), here["branch_updates"]
    if low is not None and high is not None:
        return from_to(low, high)  # type: ignore[arg-type]
    if branch.drop_nulls().is_empty():
        return "-"
    return f"branched, {from_to(branch.min(), branch.max())} updates"  # type: ignore[arg-type]


def _spread(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("-", "", "number")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Cell(short(mean), mean, "number")
    return Cell(f"{short(mean)} [{short(min(values))}, {short(max(values))}]", mean, "number")


def _ratio_table(material: Material) -> Table:
    rows = [
        [
            Cell(row["dataset"], row["dataset"]),
            Cell(row["level"], row["level"]),
            number(row["replay_ratio"], "g"),
            Cell(from_to(row["realised_low"], row["realised_high"]), row["realised_low"], "number"),
            Cell(from_to(row["steps_low"], row["steps_high"]), row["steps_low"], "number"),
            number(row["num_runs"], "d"),
        ]
        for row in replay_ratios(material.measured).to_dicts()
    ]
    headings = ["data set", "level", "requested", "realised", "logged steps", "runs"]
    return Table("replay-ratio", "Replay ratio, requested and realised", headings, rows, csv="replay-ratio")


def _settings_table(material: Material) -> Table:
    rows = [
        [
            Cell(row["baseline"], row["baseline"], "name"),
            Cell(short_power(row["learning_rate"]), row["learning_rate"], "number"),
            Cell(row["config"] or "none", row["config"]),
            Cell(row["paper"] or "-", row["paper"] or ""),
            Cell(row["arxiv"] or "-", row["arxiv"] or ""),
            Cell(row["baseline_sha256"][:12], row["baseline_sha256"], "code"),
        ]
        for row in settings_frame(material).to_dicts()
    ]
    headings = ["baseline", "learning rate", "settings", "source", "arXiv", "file sha256"]
    note = "The control makes no updates; its learning rate is not used."
    return Table("settings", "Settings of each baseline", headings, rows, note, "settings")


def _text_table(name: str, title: str, frame: pl.DataFrame, headings: list[str]) -> Table:
    rows = [[Cell(str(value), str(value), "wrap") for value in row] for row in frame.iter_rows()]
    return Table(name, title, headings, rows, csv=name)
