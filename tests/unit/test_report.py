"""The report: sentences and tables against hand computations and scipy, the page against what it promises."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from scipy import stats
from test_results import success_of, write_sweep

from replaybench.analysis.bias_variance import widest_cell
from replaybench.analysis.compare import POOLED, paired_differences
from replaybench.errors import ConfigError
from replaybench.record import SweepFolder
from replaybench.report import Built, build_report, redraw_figure
from replaybench.report.distances import distance_means, walk_words
from replaybench.report.material import gather, with_runs
from replaybench.report.tables import glance_table, provenance_frame
from replaybench.report.verdict import TERMINAL_COLUMNS, conclusion, opening, verdict_text
from replaybench.report.weights import weight_table
from replaybench.report.words import pooled, signed, with_interval
from replaybench.spec import RunSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A finished sweep in which gipo gains on fresh logs and loses on stale ones, by known amounts."""
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def built(folder: SweepFolder) -> Built:
    """Its report."""
    return build_report(folder)


def _noise(run: RunSpec) -> float:
    """Differences without a common direction: resolved nowhere."""
    return {0: 0.0, 1: 0.1, 2: -0.1}[run.lineage] if run.baseline == "gipo" else 0.0


@pytest.mark.parametrize(("value", "text"), [(0.054, "+0.05"), (-0.004, "+0.00"), (-0.126, "-0.13"), (0.0, "+0.00")])
def test_differences_have_a_sign_and_no_negative_zero(value: float, text: str) -> None:
    """Rounded by hand."""
    assert signed(value) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"estimate": 0.05, "low": -0.02, "high": 0.12}, "+0.05 [-0.02, +0.12]"),
        ({"estimate": 0.05, "low": None, "high": None}, "+0.05 [zero variance]"),
        ({"estimate": None, "low": None, "high": None}, "not measured"),
    ],
)
def test_an_estimate_comes_with_its_interval_or_says_why_not(row: dict[str, Any], text: str) -> None:
    """No number is printed alone."""
    assert with_interval({**row, "interval_method": "zero variance"}) == text


def test_the_terminal_shows_the_interval_that_scipy_computes(folder: SweepFolder) -> None:
    """gipo - ppo_clip on stale: -.2, -.22, -.24 in both data sets; the pooled t interval, n = 6 and its verdict.

    Both strata are equal, so the pooled standard error is s sqrt(1/6) with 4 degrees of freedom.
    """
    differences = [-0.2, -0.22, -0.24]
    half = stats.t.ppf(0.975, 4) * stats.tstd(differences) / 6**0.5
    line = next(line for line in _setting(verdict_text(gather(folder)), 1, "stale") if line.split()[0] == "gipo")
    assert f"{-0.22:+.2f} [{-0.22 - half:+.2f}, {-0.22 + half:+.2f}]" in line
    assert re.search(r"\s6\s+worse", line)


def _setting(text: str, ratio: int, level: str) -> list[str]:
    """The lines of one setting."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return next(block for block in blocks if block[0].startswith(f"Replay ratio {ratio}, level {level} "))


def test_every_setting_first_says_whether_the_reference_improved(folder: SweepFolder) -> None:
    """ppo_clip stays at the start policy's success in this sweep: a difference of 0, in each of the 4 settings."""
    text = verdict_text(gather(folder))
    for ratio in (1, 8):
        for level in ("fresh", "stale"):
            assert _setting(text, ratio, level)[1].startswith("  ppo_clip against the start policy: +0.00 [")


def test_no_line_of_the_terminal_is_too_wide(tmp_path: Path) -> None:
    """Also not with long labels, which a grid over settings makes."""
    arms: list[tuple[str, dict[str, Any], float]] = [("zero", {}, 1e-4), ("ppo_clip", {}, 1e-4)]
    arms += [("cispo", {"epsilon_min": 0.1 * i, "epsilon_max": 4.123456789 + i}, 1.2345e-4 * (i + 1)) for i in range(3)]
    text = verdict_text(gather(write_sweep(tmp_path, arms=arms)))
    assert max(map(len, text.splitlines())) <= TERMINAL_COLUMNS


def test_the_conclusion_counts_the_cells_of_the_tables(folder: SweepFolder) -> None:
    """gipo is better on both fresh cells and worse on both stale ones, and nothing beats the start there."""
    reference, _, start = conclusion(gather(folder))
    assert "on 4 cells (level x replay ratio): resolved better on 2: gipo; resolved worse on 2: gipo" in reference
    assert "-0.22 [" in reference
    assert "n=6" in reference
    assert start.startswith("On 2 of 4 cells some baseline is resolved better than the start policy")
    assert "stale at replay ratio 1; stale at replay ratio 8" in start
    assert "who harms least; gipo resolved worse than it there" in start


def test_the_opening_is_two_sentences_with_the_largest_differences(folder: SweepFolder) -> None:
    """gipo is +.10, +.11, +.12 on fresh and -.20, -.22, -.24 on stale logs, at both ratios, by hand."""
    against_reference, against_start = opening(gather(folder))
    assert "Of 4 comparisons with ppo_clip" in against_reference
    assert re.search(r"2 are resolved better \(most clearly gipo by \+0.11 \[.*\] n=6 on fresh at", against_reference)
    assert re.search(r"2 are resolved worse \(most clearly gipo by -0.22 \[.*\] n=6 on stale at", against_reference)
    assert "on 2 of 4 cells (most clearly gipo by +0.11 [" in against_start
    assert against_start.endswith("on the other 2 the question is who harms least.")


def test_an_unresolved_sweep_says_so_and_what_it_could_have_missed(tmp_path: Path) -> None:
    """Differences of 0, .1 and -.1 resolve nothing, on no cell, against neither the reference nor the start."""
    material = gather(write_sweep(tmp_path, lambda run: success_of(run) * 0 + 0.5 + _noise(run)))
    reference, resolution, start = conclusion(material)
    assert re.fullmatch(
        r"In the median comparison 6 lineages resolve .* of (0\.\d\d) with .*; 12 would resolve (0\.\d\d)\.", resolution
    )
    smallest = material.differences.filter(pl.col("dataset") == "all")["minimum_detectable"].min()
    assert reference.startswith("No difference to ppo_clip is resolved on any of 4 cells")
    assert f"true differences below {smallest:.2f} to" in reference
    assert start.startswith("No baseline is resolved better than the start policy on any of 4 cells")
    assert "who harms least; none is resolved worse than it either" in start
    against_reference, against_start = opening(material)
    assert "none is resolved; true differences below" in against_reference
    assert against_start.startswith("On none of 4 cells is a baseline resolved better than the start policy")


def test_the_glance_marks_exactly_the_resolved_cells(folder: SweepFolder) -> None:
    """An arrow and a class where the verdict is resolved, neither where it is not."""
    material = gather(folder)
    table = glance_table("glance", "", material, material.differences)
    marks = {row[0].text: [cell.text[0] for cell in row[1:]] for row in table.rows}
    assert table.headings == ["baseline", "fresh, R 1", "stale, R 1", "fresh, R 8", "stale, R 8"]
    assert marks["gipo"] == ["\u25b2", "\u25bc", "\u25b2", "\u25bc"]
    assert all(mark == "+" for mark in marks["zero"])


def test_weight_curves_pass_through_one_and_name_what_has_none(tmp_path: Path) -> None:
    """c(0) = 1 for both trained methods and 0 for the control; a file that changed since has no curve and is named."""
    arms = [("zero", {}, 1e-4), ("ppo_clip", {}, 1e-4), ("gipo", {"sigma": 0.5}, 1e-4)]
    material = gather(write_sweep(tmp_path, datasets=["door"], arms=arms))
    table, left_out = weight_table(material)
    at_zero = table.filter(pl.col("log_ratio").abs() < 1e-9)
    for sign in (1, -1):
        found = dict(at_zero.filter(pl.col("advantage") == sign).select("baseline", "coefficient").iter_rows())
        assert found == pytest.approx({"zero": 0.0, "ppo_clip": 1.0, "gipo": 1.0})
    assert left_out == []
    sweep = material.sweep
    changed = tuple(
        run.model_copy(update={"baseline_sha256": "0" * 64}) if run.baseline == "gipo" else run for run in sweep.runs
    )
    labels = {run.run_id(): run.baseline for run in changed}
    table, left_out = weight_table(replace(material, sweep=sweep._replace(runs=changed, labels=labels)))
    assert "gipo" not in set(table["baseline"])
    assert left_out == ["gipo (changed or missing on disk)"]


def test_what_depends_on_more_than_the_log_ratio_has_no_curve_and_says_why(tmp_path: Path) -> None:
    """A method of whole sequences and one of batch statistics are named with a reason; the others are drawn."""
    arms: list[tuple[str, dict[str, Any], float]] = [(name, {}, 1e-4) for name in ("zero", "ppo_clip", "gspo", "m2po")]
    table, left_out = weight_table(gather(write_sweep(tmp_path, datasets=["door"], arms=arms)))
    assert set(table["baseline"]) == {"zero", "ppo_clip"}
    assert len(left_out) == 2
    for name, text in zip(("gspo", "m2po"), left_out, strict=True):
        assert re.fullmatch(rf"{name} \(.{{5,}}\)", text)


def test_the_exact_study_shows_the_cell_with_the_widest_ratios() -> None:
    """PI-3 against E, by the table of the 21 cells: .17 is the most extreme ratio of all."""
    cell = widest_cell()
    assert (cell.target, cell.behaviour) == ("PI-3", "E")


def test_the_report_has_every_figure_in_four_files_and_in_the_page(built: Built) -> None:
    """Each figure is an SVG, PNG and PDF with the CSV of what it draws; inline it stands with the command for it."""
    figures = built.index.parent / "figures"
    names = {path.stem for path in figures.glob("*.csv")}
    numbers = {name.split("-")[0] for name in names}
    assert numbers == {*"12345679", "10"}, "8, the sensitivity, needs several settings of a baseline"
    assert {path.stem for path in figures.glob("*.png")} == names
    assert {path.stem for path in figures.glob("*.pdf")} == names
    assert {path.stem for path in figures.glob("*.svg")} == names
    page = built.index.read_text()
    assert page.count("<svg") == len(names) == 15
    commands = re.findall(r'<code class="command">replaybench report figure (\S+) (\S+)</code>', page)
    assert {name for _, name in commands} == names
    assert all((Path(folder) / "sweep.json").is_file() for folder, _ in commands)


def test_a_figure_drawn_again_is_the_same(built: Built, folder: SweepFolder, tmp_path: Path) -> None:
    """All four files are those of the report; a name that does not exist is answered with those that do."""
    written = redraw_figure(folder, "2-differences", tmp_path)
    assert {path.name for path in written} == {f"2-differences.{suffix}" for suffix in ("svg", "png", "pdf", "csv")}
    for path in written:
        assert path.read_bytes() == (built.index.parent / "figures" / path.name).read_bytes()
    with pytest.raises(ConfigError, match="Did you mean '2-differences'"):
        redraw_figure(folder, "differences", tmp_path)
    with pytest.raises(ConfigError, match="3-diagnostics-door-R1"):
        redraw_figure(folder, "3-diagnostics-door", tmp_path)


def test_every_table_of_the_page_has_its_csv(built: Built) -> None:
    """The caption of each table links a file."""
    page = built.index.read_text()
    captions = re.findall(r"<caption>(.*?)</caption>", page)
    assert len(captions) == page.count("<table") > 8
    for caption in captions:
        (target,) = re.findall(r'href="(tables/[^"]*)"', caption)
        assert (built.index.parent / target).is_file()


def test_the_page_needs_no_other_address(built: Built) -> None:
    """Links lead to its own parts and files; nothing is loaded from anywhere."""
    page = built.index.read_text()
    targets = re.findall(r'(?:src|href|action)="([^"]*)"', page)
    assert targets
    assert not [t for t in targets if re.match(r"[a-z]+:|//", t) and t != "data:,"]
    assert not re.findall(r"@import|url\((?!#)", page)


def test_the_files_that_the_page_links_to_exist(built: Built) -> None:
    """Every relative link has its file and every fragment its id."""
    page = built.index.read_text()
    for target in re.findall(r'<a[^>]* href="([^"]*)"', page):
        if target.startswith("#"):
            assert f'id="{target[1:]}"' in page
        else:
            assert (built.index.parent / target).is_file()


def test_the_csv_of_the_main_figure_is_what_the_sweep_measured(built: Built) -> None:
    """door, fresh, ratio 8, gipo: .5 + .01 l + .1 (1 + .1 l) for l = 0, 1, 2, mean .62 by hand; three dots."""
    table = pl.read_csv(built.index.parent / "figures" / "1-success.csv")
    chosen = table.filter(
        (pl.col("dataset") == "door")
        & (pl.col("level") == "fresh")
        & (pl.col("replay_ratio") == 8)
        & (pl.col("baseline") == "gipo")
    )
    assert chosen.filter(pl.col("kind") == "mean")["value"].to_list() == pytest.approx([0.62])
    assert chosen.filter(pl.col("kind") == "lineage")["value"].to_list() == pytest.approx([0.60, 0.62, 0.64])
    runs = chosen.filter(pl.col("kind") == "lineage")["runs"]
    assert [re.match(r"door-L(\d)-fresh-R8-gipo-s0-", run)[1] for run in runs] == ["0", "1", "2"]  # type: ignore[index]


def test_the_frontier_lists_a_baseline_in_the_order_of_its_knob(built: Built) -> None:
    """Lines join neighbours on the knob: sigma rises within gipo's rows of one n, whatever its default is."""
    table = pl.read_csv(built.index.parent / "figures" / "6-bias-variance.csv")
    rows = table.filter((pl.col("baseline") == "gipo") & (pl.col("n") == 16))
    sigmas = [float(value) for text in rows["config"] for value in re.findall(r'"sigma": ([0-9.]+)', text)]
    assert len(sigmas) > 2
    assert sigmas == sorted(set(sigmas))
    assert set(table["n"]) == {1, 16, 256}


def test_an_incomplete_sweep_says_what_is_missing(tmp_path: Path) -> None:
    """A failed run is listed with its reason, counted, and makes no number; a name cannot inject markup."""
    folder = write_sweep(
        tmp_path,
        lambda run: None if run.baseline == "gipo" and run.lineage == 1 else success_of(run),
        datasets=["door"],
        ratios=[8.0],
    )
    folder.write_failure(folder.runs()[-1], "NumericalError: <script>alert(1)</script>", "trace")
    for card in tmp_path.glob("data/*/*/card.toml"):
        card.unlink()
    page = build_report(folder).index.read_text()
    assert "13 of 15 planned runs have a result" in re.sub(r"\s+", " ", page)
    assert "NumericalError: overflow" in page
    assert "<script>alert" not in page
    assert "3 log folders are not there" in re.sub(r"\s+", " ", page)


def test_provenance_sums_the_wall_time_and_tallies_versions(folder: SweepFolder) -> None:
    """54 runs of 2 s are 108 s; one version of torch is printed without a count."""
    facts = dict(provenance_frame(gather(folder)).iter_rows())
    assert facts["sum of the runs' wall time"] == "108 s"
    assert facts["version of torch"] == "2.13.0"
    assert facts["runs planned"] == "54"


def test_a_sweep_along_knobs_gets_the_sensitivity_section(tmp_path: Path) -> None:
    """gipo gains .3 on fresh logs whatever its sigma, also against ppo_clip of its own width."""
    arms: list[tuple[str, dict[str, Any], float]] = [("zero", {}, 1e-4), ("ppo_clip", {"epsilon": 0.2}, 1e-4)]
    arms += [("gipo", {"sigma": sigma}, 1e-4) for sigma in (0.15485, 1.0)]
    folder = write_sweep(tmp_path, arms=arms)
    built = build_report(folder)
    page = built.index.read_text()
    assert 'id="sensitivity"' in page
    table = pl.read_csv(built.index.parent / "figures" / "8-sensitivity.csv")
    assert set(table["upper"].round(4)) == {0.1823, 1.1774}
    differences = paired_differences(gather(folder).success, gather(folder).sweep.reference)
    by_label = {
        (row["baseline"], row["level"], row["replay_ratio"]): row["estimate"] for row in pooled(differences).to_dicts()
    }
    matched = pl.read_csv(built.index.parent / "tables" / "matched.csv").filter(pl.col("dataset") == "all")
    assert set(matched["upper"]) == {0.182}
    for row in matched.to_dicts():
        key = ("gipo (sigma=0.15485)", row["level"], row["replay_ratio"])
        assert row["estimate"] == pytest.approx(by_label[key], abs=1e-12)


def test_every_mark_names_the_runs_behind_it(folder: SweepFolder) -> None:
    """Of a lineage, of a data set and of all of them; six by their ids, the rest by their number."""
    material = gather(folder)
    cell = {"replay_ratio": 1.0, "level": "fresh", "baseline": "gipo"}
    rows = [
        {"dataset": "door", "lineage": 1},
        {"dataset": "door", "lineage": None},
        {"dataset": POOLED, "lineage": None},
    ]
    found = with_runs(material, pl.DataFrame([cell | row for row in rows]))["runs"].to_list()
    runs = [run for run in material.sweep.runs if (run.level, run.replay_ratio, run.baseline) == ("fresh", 1.0, "gipo")]
    door = {run.lineage: run.run_id() for run in runs if run.dataset == "door"}
    assert found == [door[1], "\n".join(sorted(door.values())), "\n".join(sorted(run.run_id() for run in runs))]
    unnamed = with_runs(material, pl.DataFrame({"dataset": [POOLED]}))["runs"][0].split("\n")
    assert len(unnamed) == 7
    assert unnamed[-1] == f"and {len(material.measured.finished) - 6} more"


def test_distances_are_means_over_lineages_and_data_sets(folder: SweepFolder) -> None:
    """By hand: .1 + .01 lineage averages .11 from the start, .2 + .01 lineage .21 to the log."""
    means = distance_means(gather(folder))
    assert means["end_kl_start"].to_list() == pytest.approx([0.11] * len(means))
    assert means["end_kl_k3_behaviour"].to_list() == pytest.approx([0.21] * len(means))
    assert means["n"].unique().to_list() == [6]


def test_words_on_the_walk_name_every_off_policy_cell(folder: SweepFolder) -> None:
    """Only the stale level is off-policy, at two replay ratios: one sentence for both and one each."""
    words = walk_words(gather(folder))
    assert words[0].startswith("On 2 off-policy cells ppo_clip ends nearest of all to the log in")
    assert [sentence.split(":")[0] for sentence in words[1:]] == ["stale at replay ratio 1", "stale at replay ratio 8"]
    assert "to 0.21 (the others end at 0.21 to 0.21)" in words[1]
