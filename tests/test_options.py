"""Options: YAML, flags, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hf_kdmri.training.options import OptionError, parse_options, read_config, write_config
from tests.conftest import ROOT


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path: Path):
    config = write(tmp_path / "c.yaml", "fold: 2\nlearning_rate: 1e-4\ntemperature: 2\n")
    options = parse_options(["--config", config, "--fold", "3"])
    assert (options.data.fold, options.training.learning_rate, options.training.temperature) == (3, 1e-4, 2.0)
    assert options.training.geometry_grid == 7


def test_the_default_student_is_that_of_the_real_run():
    configured = read_config(ROOT / "configs" / "figshare.yaml")["student_architecture"]
    assert parse_options([]).model.student_architecture == configured == "mobilenetv4_conv_small"


def test_a_later_file_overrides_an_earlier_one(tmp_path: Path):
    first = write(tmp_path / "a.yaml", "fold: 2\nexit_weight: 0.5\n")
    second = write(tmp_path / "b.yaml", "exit_weight: 0.25\nstage_weights: [1, 2, 1]\n")
    options = parse_options(["--config", first, second, "--seed", "7"])
    assert (options.data.fold, options.training.exit_weight, options.training.seed) == (2, 0.25, 7)
    assert options.training.loss_options().stage_weights == [1, 2, 1]


def test_the_epochs_flag_speaks_for_all_stages(tmp_path: Path):
    config = write(tmp_path / "c.yaml", "num_train_epochs: 30\nteacher_num_train_epochs: 8\n")
    assert parse_options(["--config", config]).model.teacher_num_train_epochs == 8
    for flag in (["--num_train_epochs", "1"], ["--num-train-epochs", "1"], ["--num_train_epochs=1"]):
        options = parse_options(["--config", config, *flag])
        assert options.training.num_train_epochs == 1
        assert options.model.teacher_num_train_epochs is None
    both = parse_options(["--config", config, "--num_train_epochs", "1", "--teacher_num_train_epochs", "5"])
    assert both.model.teacher_num_train_epochs == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foldd: 1", r"unknown key foldd; did you mean fold\?"),
        ("learning_rat: 1", r"did you mean learning_rate\?"),
        ("zzzzzzz: 1", r"unknown key zzzzzzz; .*--help. lists all"),
        ("fold: one", r"fold is 'one', a str, but must be int"),
        ("fold: 1.5", r"fold is 1\.5, a float, but must be int"),
        ("bf16: perhaps", r"bf16 is 'perhaps', a str, but must be bool"),
        ("student_architecture: [a]", r"student_architecture is \['a'\], a list, but must be str"),
        ("- fold", r"must hold a mapping .* not a list"),
        ("fold: [", r"not valid YAML"),
        ("fold: !!python/object/apply:os.system ['true']", r"not valid YAML"),
    ],
)
def test_bad_files_are_refused_with_the_way_out(tmp_path: Path, text: str, message: str):
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(OptionError, match=message) as refusal:
        read_config(path)
    assert "bad.yaml" in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fol", "1"], r"unknown option --fol; did you mean --fold\?"),
        (["--fold", "5"], r"fold is 5; the folds are 0, 1, 2, 3 and 4"),
        (["--fold", "-1"], r"fold is -1"),
        (["--max_train_samples", "0"], r"max_train_samples is 0; it must be at least 1"),
        (["--temperature", "0"], r"temperature is 0\.0"),
        (["--logit_weight", "-1"], r"logit_weight is -1\.0"),
        (["--distillation_warmup", "2"], r"distillation_warmup is 2\.0; it is a share"),
        (["--push_to_hub", "--hub_model_id", "nobody"], r"needs --hub_model_id USER/NAME, got 'nobody'"),
        (["--cpu_threads", "0"], r"cpu_threads is 0"),
        (["--student_image_size", "16"], r"student_image_size is 16; .* at least 32"),
        (["--phantom_slices", "50", "--data_dir", "x"], r"give one of them"),
        (["--config", "absent.yaml"], r"no configuration file at absent\.yaml; configs/ holds"),
        (["--optim", "adam"], r".*"),
        (["--student_model_args", "ls_init_value"], r"'ls_init_value'; each is name=value"),
        (["--student_model_args", "depths=[2"], r"the value of depths is not valid YAML"),
        (["--teacher_only", "--teacher", "there"], r"--teacher there is finished"),
        (["--views_per_image", "0"], r"views_per_image is 0"),
        (["--folds", "0", "7"], r"folds is '0 7'; give all, or some of 0 1 2 3 4, each once"),
        (["--folds", "1", "1"], r"each once"),
        (["--folds", "all", "--push_to_hub", "--hub_model_id", "a/b"], r"push one afterwards"),
        (["--teacher_cache", "x", "--max_steps", "5"], r"needs views_per_image"),
        (["--robustness_images", "-1"], r"robustness_images is -1"),
        (["--sample_weight", "1", "--per_device_train_batch_size", "2"], r"rkd relates at least 4 images.* has 2 over"),
        (
            ["--logit_loss", "dist", "--per_device_train_batch_size", "3"],
            r"dist relates at least 4 images.* has 3",
        ),
        (
            ["--sample_weight", "1", "--sample_loss", "gromov_wasserstein", "--per_device_train_batch_size", "64"],
            r"takes at most 49 images, and the batch has 64",
        ),
        (["--shuffle_teacher", "--per_device_train_batch_size", "1"], r"batch, which has only 1"),
    ],
)
def test_bad_flags_are_refused_with_the_way_out(arguments: list[str], message: str):
    with pytest.raises((OptionError, SystemExit), match=message):
        parse_options(arguments)


def test_a_wrong_split_or_precision_in_the_file_is_refused(tmp_path: Path):
    for text, message in (
        ("split: by_slice", "choose one of patient_groups"),
        ("teacher_dtype: int8", "choose one of"),
    ):
        with pytest.raises(OptionError, match=message):
            parse_options(["--config", write(tmp_path / "c.yaml", text)])


def test_the_resolved_file_repeats_the_run(tmp_path: Path):
    first = parse_options(
        ["--fold", "4", "--learning_rate", "0.01", "--bf16", "--report_to", "tensorboard", "--optim", "sgd",
         "--lr_scheduler_type", "linear", "--no_baseline", "--output_dir", str(tmp_path), "--hub_token", "hf_secret"]
    )  # fmt: skip
    write_config(first, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "hf_secret" not in text
    second = parse_options(["--config", str(tmp_path / "config.yaml")])
    assert second.as_dict() == first.as_dict()
    assert (second.training.optim, second.model.baseline) == (first.training.optim, False)


@pytest.mark.parametrize(
    "path",
    # those of accelerate/ are accelerate's own, see test_accelerate_presets.py
    [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "accelerate"],
    ids=lambda path: path.name,
)
def test_shipped_configurations_are_valid(path: Path):
    data = ["--dataset_name", "some/set"] if path.name == "streaming.yaml" else []
    assert set(yaml.safe_load(path.read_text())) <= set(parse_options(["--config", str(path), *data]).as_dict())


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as leave:
        parse_options(["--help"])
    assert leave.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in parse_options([]).as_dict():
        assert f"--{option} " in text or f"--{option}," in text
    assert "fused spatial similarity over the stages; 0 switches it off. (default: 0.0)" in text


@pytest.mark.parametrize(
    ("text", "folds"),
    [("folds: all", [0, 1, 2, 3, 4]), ("folds: 2", [2]), ("folds: [3, 0]", [0, 3]), ("seed: 1", None)],
)
def test_folds_are_read_from_the_file(tmp_path: Path, text: str, folds: list[int] | None):
    assert parse_options(["--config", write(tmp_path / "c.yaml", text)]).data.fold_numbers() == folds


def test_each_fold_has_its_own_folder_teacher_and_cache(tmp_path: Path):
    options = parse_options(
        ["--folds", "all", "--output_dir", "out", "--teacher", "teachers/{fold}/teacher", "--teacher_cache", "said"]
    ).of_fold(3)
    assert (options.data.fold, options.data.folds) == (3, None)
    assert (options.training.output_dir, options.model.teacher) == (str(Path("out/fold-3")), "teachers/3/teacher")
    assert options.training.teacher_cache == str(Path("said/fold-3"))
