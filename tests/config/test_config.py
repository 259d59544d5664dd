"""The run file: precedence, refusals, and what they say."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusechat.config.moved import MOVED, REMOVED
from fusechat.config.run import RunConfig, load_config
from fusechat.errors import ConfigError


def test_load_config_reads_file_and_applies_overrides_in_order(run_file: Path) -> None:
    config = load_config(
        run_file, ["extraction.k=7", "extraction.k=9", "sources.0.name=moe", "training.trl.max_steps=3"]
    )
    assert config.extraction.k == 9
    assert config.sources[0].name == "moe"
    assert config.training.trl["max_steps"] == 3
    assert config.training.trl["save_steps"] == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("extraction.kk=3", "did you mean 'k'"),
        ("extration.k=3", "did you mean 'extraction'"),
        ("pivot.engine.dtyp=auto", "did you mean 'dtype'"),
        ("sources.0.modell=x", "did you mean 'model'"),
        ("extraction.k=0", "greater than or equal to 1"),
        ("extraction.k=many", "valid integer"),
        ("sources.0.name=llama", "must differ"),
        ("sources.0.name=fused", "must differ"),
        ("sources.7.name=x", "has no '7'"),
        ("extraction", "expected section.field=value"),
        ("extraction.k=[", "not readable as YAML"),
        (
            'evaluation.questions.samples=["bad \\uD83D"]',
            "evaluation.questions.samples.0: lone surrogate '\\ud83d' at character 4",
        ),
        ("extraction.k.x=3", "extraction.k is int, it has no 'x'"),
        ("training.trl.save_steps.a.b=3", "training.trl.save_steps has no 'a'"),
    ],
)
def test_load_config_bad_override_names_the_key_and_the_way_out(run_file: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(run_file, [override])
    assert says in str(error.value)


OLD_VALUES: dict[str, Any] = {
    "evaluation.answers": [{"name": "a", "file": "x"}],
    "evaluation.dtype": "float32",
    "evaluation.exact_match_kinds": ["chat"],
    "evaluation.lm_eval": ["arc_easy"],
    "evaluation.lm_eval_folder": "tasks",
    "evaluation.lm_eval_unsafe_code": True,
    "evaluation.samples": ["Say hello."],
    "run.places": {"fused": "x"},
}
"""What earlier run files could say; of the other fields a number."""


@pytest.mark.parametrize("name", [*MOVED, *REMOVED])
def test_field_of_an_earlier_run_file_is_refused_with_its_new_name(run_file: Path, name: str) -> None:
    *sections, field = name.split(".")
    value = OLD_VALUES.get(name, 64)
    says = f"moved to {MOVED[name]}, write it there" if name in MOVED else f"any more; {REMOVED[name]}"
    values = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    drawer = values
    for section in sections:
        drawer = drawer.setdefault(section, {})
    drawer[field] = value
    old = run_file.with_name("old.yaml")
    old.write_text(yaml.safe_dump(values), encoding="utf-8")
    for path, overrides in ((old, []), (run_file, [f"{name}={json.dumps(value)}"])):
        with pytest.raises(ConfigError) as error:
            load_config(path, overrides)
        assert error.value.exit_status == 2
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"{path}: {name}: ") and says in line
    if name in MOVED:
        read: Any = load_config(run_file, [f"{MOVED[name]}={json.dumps(value)}"]).dump()
        for part in MOVED[name].split("."):
            read = read[part]
        assert read[0]["name"] == "a" if name == "evaluation.answers" else read == value


def test_fields_of_an_earlier_run_file_are_named_one_a_line(run_file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(run_file, ["evaluation.kl_dialogues=0", "extraction.replicas=1", "evaluation.lm_eval=[]"])
    assert len(str(error.value).splitlines()) == 3


def test_places_go_with_copies_of_a_run_and_no_file_has_them(run_file: Path) -> None:
    config = load_config(run_file)
    placed = config.with_places({"fused": "/elsewhere/fused"})
    copies = (placed, placed.model_copy(update={"run": config.run}), pickle.loads(pickle.dumps(placed)))
    assert {str(copy.fused_path) for copy in copies} == {"/elsewhere/fused"}
    assert config.places == {} and "elsewhere" not in json.dumps(placed.dump())


JUDGE = "evaluation.judge={url: 'https://host/v1', model: m"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.trl.hub_token=hf_S3CRET", "hub_token cannot be set.*HF_TOKEN"),
        ("training.trl.model_init_kwargs={token: hf_S3CRET}", "model_init_kwargs.token cannot be set.*HF_TOKEN"),
        ("training.trl.push_to_hub=true", "push_to_hub cannot be set.*fusechat push"),
        ("training.trl.hub_model_id=me/model", "hub_model_id cannot be set.*fusechat push"),
        ("sources.0.engine.extra={hf_token: hf_S3CRET}", "engine.extra: .*hf_token cannot be set.*HF_TOKEN"),
        ("evaluation.judge={url: 'https://me:S3CRET@host/v1', model: m}", "credentials.*key_variable"),
        ("evaluation.judge={url: 'https://host/v1?key=S3CRET', model: m}", "credentials or a query.*key_variable"),
        ("evaluation.judge={url: 'host/v1', model: m}", "expected the endpoint's base URL"),
        (f"{JUDGE}, key_variable: sk-S3CRET}}", "no name of an environment variable"),
    ],
)
def test_load_config_secret_is_refused_with_the_place_where_it_belongs(
    run_file: Path, override: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        load_config(run_file, [override])
    assert "S3CRET" not in str(error.value)


SETS = "evaluation.questions.sets=[{name: a, file: x}"
PAIRS = f"{JUDGE}, modes: [pairwise]"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["evaluation.models=[pivot, target.mixtrl]"], "'target.mixtrl'.*did you mean 'target.mixtral'"),
        ([f"{SETS}, {{name: a, file: y}}]"], "questions.sets: two are called 'a'"),
        ([f"{JUDGE}}}"], "no answers to judge"),
        ([f"{SETS}]", "training.train_control=false", f"{PAIRS}}}"], "found 'sft', the models that answer are pivot"),
        ([f"{SETS}]", "evaluation.models=[fused]", f"{PAIRS}, baseline: pivot}}"], "found 'pivot'.* are fused"),
    ],
)
def test_load_config_evaluation_of_what_the_run_has_not_is_refused(
    run_file: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(run_file, overrides)


def test_load_config_judge_with_a_named_key_is_read(run_file: Path) -> None:
    judge = load_config(run_file, [f"{SETS}]", f"{JUDGE}, key_variable: JUDGE_KEY}}"]).evaluation.judge
    assert judge is not None and judge.key_variable == "JUDGE_KEY"


def test_load_config_override_changes_one_place_where_the_file_says_the_same_at_several(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "pivot: {name: a, model: a, engine: &engine {dtype: bfloat16}}\n"
        "sources: [{name: b, model: b, engine: *engine}]\ndialogues: {train: [x]}\n"
    )
    config = load_config(tmp_path / "run.yaml", ["pivot.engine.dtype=float16"])
    assert [model.engine.dtype for model in config.models] == ["float16", "bfloat16"]


def test_load_config_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("pivot: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not a readable YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="found list"):
        load_config(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("fusion", "targets", "merged"),
    [
        ("pairwise", ["mixtral"], ["mixtral"]),
        ("joint", ["joint"], ["joint"]),
        ("both", ["mixtral", "joint"], ["mixtral"]),
    ],
)
def test_fusion_decides_the_targets_and_what_is_merged(
    run_file: Path, fusion: str, targets: list[str], merged: list[str]
) -> None:
    config = load_config(run_file, [f"training.fusion={fusion}"])
    assert (config.target_names, config.merged_names) == (targets, merged)
    assert [name for name in config.model_ids if name.startswith("target.")] == [f"target.{name}" for name in targets]


def test_joint_needs_a_choice_among_all_sources_and_its_name_is_taken(run_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"joint needs training\.row_choice: trusted, found 'min_ce'"):
        load_config(run_file, ["training.fusion=joint", "training.row_choice=min_ce"])
    with pytest.raises(ConfigError, match="'joint'"):
        load_config(run_file, ["sources.0.name=joint"])


def test_run_config_dump_loads_to_the_same_run(run_file: Path) -> None:
    config = load_config(run_file)
    assert RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.dump()))) == config


def test_run_config_is_frozen(run_file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(run_file).extraction.k = 3  # type: ignore[misc]


def test_run_may_have_prompts_in_place_of_dialogues_but_needs_one_of_them(run_file: Path) -> None:
    prompts = ["dialogues.train=[]", "dialogues.prompts=[p.txt]"]
    config = load_config(run_file, prompts)
    assert [writer.name for writer in config.writers] == ["mixtral"] == [one.name for one in config.scorers]
    config = load_config(run_file, [*prompts, "writing.writers=[llama, mixtral]"])
    assert [writer.name for writer in config.writers] == ["llama", "mixtral"]
    with pytest.raises(ConfigError, match="neither train nor prompts"):
        load_config(run_file, ["dialogues.train=[]"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "writing.writers=[mixtrl]",
            "writing.writers: found 'mixtrl', which is no model of this run; did you mean 'mixtral'",
        ),
        ("writing.scorers=[gpt]", "writing.scorers: found 'gpt', .*the run has llama, mixtral"),
        ("writing.writers=[]", "at least one model"),
        ("writing.writers=[llama, llama]", "each once"),
        ("writing.temperature=0", "samples: 1"),
        ("writing.kep=all", "did you mean 'keep'"),
    ],
)
def test_writing_that_cannot_be_is_refused(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(run_file, ["dialogues.prompts=[p.txt]", override])


def test_bare_off_switches_services_off_though_yaml_reads_a_boolean(run_file: Path) -> None:
    assert load_config(run_file, ["cluster.service=off"]).cluster.service == "off"
    assert load_config(run_file, ["cluster.service='off'"]).cluster.service == "off"


def test_writing_without_prompts_is_refused(run_file: Path) -> None:
    with pytest.raises(ConfigError, match="there are no prompts to answer"):
        load_config(run_file, ["writing.samples=2"])
