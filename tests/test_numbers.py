"""Numbers that go wrong: the run stops in the step, by name, with good weights; spikes are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import hf_kdmri.distillation.terms as terms
from hf_kdmri.training.reliability.checkpoints import checkpoints_in, damage_of
from hf_kdmri.training.reliability.numbers import FEWEST_STEPS, NotFiniteError, NumberWatch, _Step
from tests.tiny import tiny_model, tiny_trainer, tiny_views

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class LateEvent:
    """As a GPU's that has not come that far: known only to whoever waits."""

    waited = False

    def query(self) -> bool:
        return self.waited

    def synchronize(self) -> None:
        self.waited = True


class FloatViews(Dataset):
    """The tiny views as normalised floats, some of them no numbers."""

    def __init__(self, bad: set[int]) -> None:
        self.views, self.bad = tiny_views(), bad

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict:
        item = self.views[index]
        pixels = item["pixel_values"].float().expand(3, -1, -1) / 255
        return {**item, "pixel_values": pixels * torch.nan if index in self.bad else pixels}


def stopped(trainer) -> str:
    with pytest.raises(NotFiniteError) as error:
        trainer.train()
    message = str(error.value)
    assert "\n" not in message and "The same command would meet this again" in message
    return message


def all_finite(trainer) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in trainer.model.state_dict().values())


def test_images_that_are_no_numbers_are_named(tmp_path: Path):
    trainer = tiny_trainer(
        tmp_path, train_sampling_strategy="sequential", save_strategy="steps", save_steps=1, image_names=range(100, 132)
    )
    trainer.train_dataset = FloatViews({19})
    message = stopped(trainer)
    assert "the term ce (times its λ) is nan and the term logit" in message and "geometry" in message
    assert "at step 3, on images 116, 117, 118, 119, 120, 121, 122, 123." in message
    assert message.count(f"Kept: {tmp_path / 'checkpoint-2'}.") == 1
    assert all_finite(trainer) and damage_of(checkpoints_in(tmp_path)[-1]) is None


def test_the_term_whose_value_is_infinite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terms, "kernel_difference", lambda student, *args, **kwargs: student.sum() * float("inf"))
    message = stopped(tiny_trainer(tmp_path))
    assert re.search(r"the term geometry \(times its λ\) is (inf|nan) at step 1, on images \d+, ", message)
    assert "ce" not in message.split(" at step")[0] and "There is no checkpoint" in message


def test_the_term_whose_gradient_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its value is 0; the derivative of a root there is infinite."""
    monkeypatch.setattr(terms, "kernel_difference", lambda student, *args, **kwargs: (student * 0).sum().sqrt())
    trainer = tiny_trainer(tmp_path, gradient_accumulation_steps=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    message = stopped(trainer)
    assert message.startswith("the gradient of the term geometry is not finite (its norm is nan) at step 1, on images ")
    assert len(re.findall(r"\d+, ", message.partition("images ")[2])) == 15  # both micro-batches of 8
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_learning_rate_that_explodes_leaves_no_bad_checkpoint(tmp_path: Path):
    message = stopped(tiny_trainer(tmp_path, learning_rate=1e38, save_strategy="steps", save_steps=1, warmup_steps=0))
    assert "learning_rate (now 1e+38)" in message
    for checkpoint in checkpoints_in(tmp_path):
        from safetensors.torch import load_file

        values = load_file(checkpoint / "model.safetensors").values()
        assert all(bool(torch.isfinite(value).all()) for value in values)


def test_a_spike_is_logged_with_its_images_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer = tiny_trainer(
        tmp_path, model=tiny_model(with_teacher=False), num_train_epochs=8, learning_rate=0.0, loss_spike_factor=3.0,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    plain = trainer.look_at_loss
    seen = []

    def look(terms_, index, batch):
        seen.append(None)
        plain({name: term * (50 if len(seen) in (26, 30) else 1) for name, term in terms_.items()}, index, batch)

    trainer.look_at_loss = look
    trainer.train()
    spikes = [row for row in trainer.state.log_history if "spike" in row]
    assert [row["spike_step"] for row in spikes] == [26, 30]
    assert spikes[0]["spike_images"] == list(range(8, 16))
    assert spikes[0]["spike"] == pytest.approx(50 * spikes[0]["spike_median"], rel=0.5)
    shown = capsys.readouterr().out
    assert shown.count("times the usual") == 1 and "step 26" in shown


def test_the_first_steps_and_factor_0_know_no_spikes() -> None:
    told: list[int] = []
    for factor, steps in ((2.0, FEWEST_STEPS - 1), (0.0, 200)):
        watch = NumberWatch(list, spike_factor=factor, on_spike=lambda step, *rest: told.append(step))
        for step in range(steps):
            watch.look(step, {"ce": torch.tensor(1.0)}, None)
        watch.look(steps, {"ce": torch.tensor(100.0)}, None)
    assert told == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_look_comes_late_and_before_weights_are_kept():
    watch = NumberWatch(list, spike_factor=0.0, on_spike=lambda *args: None)
    with pytest.raises(NotFiniteError, match=r"the term ce .* is nan at step 5, on images 5, 5"):
        for step in range(5, 20):
            value = torch.tensor(torch.nan if step == 5 else 1.0, device="cuda")
            watch.look(step, {"ce": value}, torch.tensor([step, step], device="cuda"))
        watch.settle()


def test_numbers_on_their_way_from_a_gpu_are_waited_for_in_the_next_step():
    told = []
    watch = NumberWatch(lambda positions: told.extend(positions) or positions, spike_factor=0, on_spike=print)
    late = LateEvent()
    watch._pending.append(_Step(1, ("ce",), torch.tensor([torch.nan]), torch.tensor([5, 6]), late))
    watch._judge(wait_for_all=False)  # in the same step nobody waits
    assert not late.waited
    with pytest.raises(NotFiniteError, match=r"the term ce .* is nan at step 1, on images 5, 6"):
        watch.look(2, {"ce": torch.tensor(1.0)}, None)
    assert late.waited
