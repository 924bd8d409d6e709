"""From a sweep's TOML to its runs: counts by hand, and every mistake found before anything runs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replaybench import plan
from replaybench.errors import ConfigError, DataError
from replaybench.plan import SweepSpec, arms, check, count_runs, load_sweep, preset_paths, runs, sources
from replaybench.recipe import load_recipe
from replaybench.spec import AdvantageSettings, RunSpec
from replaybench.store import Log, open_log

ToySweep = Callable[..., SweepSpec]
QUICK = """
name = "mine"
datasets = ["gridworld-5x5"]
lineages = [0]
levels = ["fresh"]
replay_ratios = [1]
baselines = ["zero", "gipo"]
reference = "gipo"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def planned(spec: SweepSpec, data: Path) -> list[RunSpec]:
    found = sources(spec, data)
    return runs(spec, found, check(spec, found))


@pytest.mark.parametrize("name", preset_paths())
def test_a_preset_is_named_like_its_file_and_its_datasets_exist(name: str) -> None:
    """Every shipped sweep loads, and names only data sets that have a recipe."""
    spec = load_sweep(name)
    assert spec.name == name
    assert spec.description
    for dataset in spec.datasets:
        load_recipe(dataset)


def test_the_smoke_preset_can_be_planned(tmp_path: Path) -> None:
    """Its 7 corrections run on 2 levels at 2 ratios and its control once, in each of 3 lineages: 3 * (7 * 4 + 1)."""
    spec = load_sweep("smoke")
    all_arms = check(spec, sources(spec, tmp_path))
    assert count_runs(spec, all_arms) == 87


def test_a_sweep_loads_from_a_path_with_more_baselines(tmp_path: Path) -> None:
    """Baselines given on the command line follow the file's own."""
    spec = load_sweep(write(tmp_path, QUICK), ("tis", "other/mine.py"))
    assert spec.baselines == ("zero", "gipo", "tis", "other/mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (QUICK + "level = []\n", r"mine\.toml.*'level'.*Did you mean 'levels'"),
        (QUICK + "[train]\nupdate = 3\n", r"'train\.update'.*Did you mean 'train\.updates'"),
        (
            QUICK + "[train.advantage]\nlambda = 1\n",
            r"'train\.advantage\.lambda'.*Did you mean 'train\.advantage\.lam'",
        ),
        (QUICK + "[evaluate]\nepisode = 3\n", r"'evaluate\.episode'.*Did you mean 'evaluate\.episodes'"),
        (QUICK.replace('reference = "gipo"', ""), "'reference': Field required"),
        (QUICK.replace("[1]", "[0]"), "replay_ratios"),
        (QUICK.replace("lineages = [0]", "lineages = [0, 1, 0]"), "lineages names something twice"),
        (QUICK.replace('["zero", "gipo"]', '["zero", "gipo", "gipo"]'), "baselines names something twice"),
        (QUICK.replace("lineages = [0]", "lineages = []"), "lineages"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """An unknown key gets the nearest one; missing, repeated and empty fields are refused."""
    with pytest.raises(ConfigError, match=message):
        load_sweep(write(tmp_path, text))


def test_a_misspelt_required_key_is_found_rather_than_missed(tmp_path: Path) -> None:
    """A file with `level` instead of `levels` is told about the misspelling, not that `levels` is missing."""
    with pytest.raises(ConfigError, match="'level'.*Did you mean 'levels'"):
        load_sweep(write(tmp_path, QUICK.replace("levels", "level")))


@pytest.mark.parametrize("value", ['"gipo"', "3"])
def test_baselines_that_are_no_list_are_refused(tmp_path: Path, value: str) -> None:
    """A single name without brackets is not read as a list of letters, nor is a number a crash."""
    with pytest.raises(ConfigError, match=r"mine\.toml: 'baselines'"):
        load_sweep(write(tmp_path, QUICK.replace('["zero", "gipo"]', value)))


def test_unknown_presets_and_files_are_refused() -> None:
    """A name gets the nearest preset, a path is repeated."""
    with pytest.raises(ConfigError, match="Unknown preset 'smok'. Did you mean 'smoke'"):
        load_sweep("smok")
    with pytest.raises(ConfigError, match=r"No sweep at 'none\.toml'"):
        load_sweep("none.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ("zero", "ppo_clip", "gippo")}, "Unknown baseline 'gippo'. Did you mean 'gipo'"),
        ({"baselines": ("zero", "ppo_clip", "none/mine.py")}, r"No baseline file at 'none/mine\.py'"),
        ({"datasets": ("gridworld-5x6",)}, "Unknown dataset 'gridworld-5x6'. Did you mean 'gridworld-5x5'"),
        ({"datasets": ("gridworld-5x5",), "levels": ("stal",)}, "level of dataset.*'stal'. Did you mean 'stale'"),
        ({"reference": "tis"}, "reference 'tis' is not among"),
        ({"control": "no_correction"}, "control 'no_correction' is not among"),
        ({"control": "gipo"}, "control 'gipo' updates the policy"),
        ({"grid": {"gipo": [{"sigm": [1.0]}]}}, "'sigm'. Did you mean 'sigma'"),
        ({"grid": {"gipo": [{"sigma": [-1.0]}]}}, "'gipo', setting 'sigma'"),
        ({"grid": {"gipoo": [{"sigma": [1.0]}]}}, r"baseline in \[grid\] 'gipoo'. Did you mean 'gipo'"),
        ({"tuned": "defalt"}, "Unknown tuned preset 'defalt'"),
    ],
)
def test_a_wrong_name_or_setting_is_refused_before_data_are_made(
    toy_sweep: ToySweep, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The check needs no data: it runs on an empty data folder."""
    with pytest.raises(ConfigError, match=message):
        spec = toy_sweep(**changes)
        check(spec, sources(spec, tmp_path))


def test_every_cell_runs_in_every_lineage_and_the_control_once(toy_sweep: ToySweep, toy_data: Path) -> None:
    """2 corrections x 2 levels x 2 ratios x 3 seeds, and one control: 25 a lineage, all with ids of their own."""
    spec = toy_sweep(seeds=(4, 5, 6))
    found = planned(spec, toy_data)
    assert Counter(run.baseline for run in found) == {"zero": 2, "ppo_clip": 24, "gipo": 24}
    assert len({run.run_id() for run in found}) == len(found) == count_runs(spec, list(arms(spec)))
    control = [run for run in found if run.baseline == "zero"]
    assert all((run.level, run.replay_ratio, run.seed) == (None, None, 4) for run in control)
    assert [run.lineage for run in found] == sorted(run.lineage for run in found)


def test_a_grid_is_every_combination_of_each_of_its_tables(toy_sweep: ToySweep) -> None:
    """Two rates x three widths in one table and one rate in another make 7 settings; other baselines keep one."""
    tables = [{"learning_rate": [0.1, 0.2], "sigma": [0.5, 1, 2]}, {"learning_rate": [0.3]}]
    found = list(arms(toy_sweep(grid={"gipo": tables})))
    settings = [(arm.learning_rate, arm.config["sigma"]) for arm in found if arm.baseline.name == "gipo"]
    expected = [(rate, width) for rate in (0.1, 0.2) for width in (0.5, 1.0, 2.0)]
    assert settings == [*expected, (0.3, 1.0)]
    others = {arm.baseline.name: arm.learning_rate for arm in found if arm.baseline.name != "gipo"}
    assert others == {"zero": 0.05, "ppo_clip": 0.05}


def test_tuned_settings_replace_the_defaults_and_a_grid_replaces_them(
    toy_sweep: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline takes its rate and settings from the tuned file, unless [grid] names it, or it is not in the file."""
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "quick.toml").write_text(
        "[settings.gipo]\nlearning_rate = 0.01\nsigma = 0.5\n[settings.ppo_clip]\nlearning_rate = 0.02\n"
    )
    monkeypatch.setattr(plan, "PRESETS_DIR", tmp_path)
    spec = toy_sweep(tuned="quick", grid={"ppo_clip": [{"epsilon": [0.3]}]})
    found = {arm.baseline.name: (arm.learning_rate, arm.config) for arm in arms(spec)}
    assert found["gipo"][0] == 0.01
    assert found["gipo"][1]["sigma"] == 0.5
    assert found["ppo_clip"] == (0.05, {"epsilon": 0.3})
    assert found["zero"][0] == 0.05


def test_run_ids_are_the_same_from_one_planning_to_the_next(toy_sweep: ToySweep, toy_data: Path) -> None:
    """Resuming a sweep finds its runs: ids do not depend on when they are planned or on the rest of the sweep."""
    ids = [run.run_id() for run in planned(toy_sweep(), toy_data)]
    assert [run.run_id() for run in planned(toy_sweep(), toy_data)] == ids
    smaller = toy_sweep(lineages=(1,), levels=("stale",), replay_ratios=(4.0,), baselines=("zero", "ppo_clip"))
    assert {run.run_id() for run in planned(smaller, toy_data)} < set(ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"updates": 8, "batch_size": 32, "learning_rate": 0.06}},
        {"evaluate": {"episodes": 11, "max_steps": 20}},
        {"seeds": (1,)},
        {"replay_ratios": (2.0,)},
    ],
)
def test_another_setting_makes_other_runs(toy_sweep: ToySweep, toy_data: Path, changes: dict[str, Any]) -> None:
    """No correction's run of the changed sweep carries the id of one of the old sweep."""
    before = {run.run_id() for run in planned(toy_sweep(), toy_data) if run.level}
    after = {run.run_id() for run in planned(toy_sweep(**changes), toy_data) if run.level}
    assert after
    assert before.isdisjoint(after)


def test_an_edited_baseline_file_makes_other_runs(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """The digest of the code is part of a run's id; the file's place is not."""
    source = load_baseline_source("gipo")

    def ids(folder: str, text: str) -> set[str]:
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        spec = toy_sweep(baselines=("zero", "ppo_clip", str(path)))
        return {run.run_id() for run in planned(spec, toy_data) if run.baseline == "mine"}

    first = ids("a", source)
    assert ids("b", source) == first
    assert ids("a", source + "\n# another comment\n").isdisjoint(first)


def load_baseline_source(name: str) -> str:
    return plan.load_baseline(name).path.read_text(encoding="utf-8")


def test_two_files_of_one_name_are_refused(toy_sweep: ToySweep, toy_data: Path, tmp_path: Path) -> None:
    """A user's gipo.py beside the shipped gipo would fill the same rows of every table."""
    path = tmp_path / "gipo.py"
    path.write_text(load_baseline_source("gipo") + "\n# mine\n")
    spec = toy_sweep(baselines=("zero", "ppo_clip", "gipo", str(path)))
    with pytest.raises(ConfigError, match="gipo"):
        check(spec, sources(spec, toy_data))


def test_a_log_that_is_too_short_is_refused_at_plan_time(toy_sweep: ToySweep, toy_data: Path) -> None:
    """The error names data set, lineage and level, and how many steps there are and must be: 8 * 32 / 0.01."""
    with pytest.raises(ConfigError, match=r"'toy', lineage 0, level 'fresh' holds \d+ steps.*needs 25600"):
        planned(toy_sweep(replay_ratios=(1.0, 0.01)), toy_data)


def test_a_level_that_a_log_lacks_is_refused_with_the_nearest(toy_sweep: ToySweep, toy_data: Path) -> None:
    """For a folder made elsewhere the levels are known from its card."""
    with pytest.raises(ConfigError, match="'stal'. Did you mean 'stale'"):
        planned(toy_sweep(levels=("stal",)), toy_data)


def test_a_lineage_that_is_not_there_is_refused(toy_sweep: ToySweep, toy_data: Path) -> None:
    """The error names the folder that should hold it."""
    with pytest.raises(DataError, match="lineage-007"):
        planned(toy_sweep(lineages=(0, 7)), toy_data)


def test_a_dataset_is_a_folder_only_when_it_is_written_as_a_path(
    toy_sweep: ToySweep, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "./toy" is a folder of logs; "gridworld-5x5" stays the recipe even beside a folder of that name."""
    monkeypatch.chdir(toy_data)
    (source,) = sources(toy_sweep(datasets=("./toy",)), tmp_path)
    assert (source.name, source.folder, source.recipe) == ("toy", Path("toy"), None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gridworld-5x5").mkdir()
    (source,) = sources(toy_sweep(datasets=("gridworld-5x5",)), tmp_path / "data")
    assert source.recipe is not None
    assert source.folder == tmp_path / "data" / "gridworld-5x5"


def test_a_baseline_that_reads_logits_needs_them_in_the_log(
    toy_sweep: ToySweep, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without mu_logits the sweep is refused at plan time, naming baseline and data set; with them it is planned."""
    spec = toy_sweep(baselines=("zero", "ppo_clip", "tr_ppo"))
    assert any(run.baseline == "tr_ppo" for run in planned(spec, toy_data))
    monkeypatch.setattr(Log, "has_mu_logits", lambda self, levels, format: False)
    with pytest.raises(ConfigError, match=r"'tr_ppo' needs mu_logits, which dataset 'toy', lineage 0 lacks.*log the"):
        planned(spec, toy_data)


@pytest.mark.parametrize("baseline", ["a3po", "staleness_sampling"])
def test_a_baseline_that_reads_the_lag_needs_levels_whose_lag_is_known(
    toy_sweep: ToySweep, toy_data: Path, monkeypatch: pytest.MonkeyPatch, baseline: str
) -> None:
    """In the surrogate or for sampling, an unknown lag is refused at plan time; a known one is planned."""
    spec = toy_sweep(baselines=("zero", "ppo_clip", baseline))
    assert any(run.baseline == baseline for run in planned(spec, toy_data))

    def without_lag(folder: Path) -> Log:
        log = open_log(folder)
        levels = {name: level.model_copy(update={"lag_updates": None}) for name, level in log.card.levels.items()}
        log.card = log.card.model_copy(update={"levels": levels})
        return log

    monkeypatch.setattr(plan, "open_log", without_lag)
    with pytest.raises(ConfigError, match=f"'{baseline}' needs lag_updates.*behaviour_version"):
        planned(spec, toy_data)


def test_vtrace_is_planned_with_its_own_advantages_only(toy_sweep: ToySweep, toy_data: Path) -> None:
    """The method is a ratio and an estimator together; another estimator is refused, naming both."""
    spec = toy_sweep(baselines=("zero", "ppo_clip", "vtrace_pg"))
    with pytest.raises(
        ConfigError, match="'vtrace_pg' is defined with advantage estimator 'vtrace', the sweep's is 'gae'"
    ):
        planned(spec, toy_data)
    train = spec.train.model_copy(update={"advantage": AdvantageSettings(estimator="vtrace")})
    assert any(run.baseline == "vtrace_pg" for run in planned(spec.model_copy(update={"train": train}), toy_data))
