"""What `docs/use-a-loss-elsewhere.md` shows runs as it stands there, in open_clip's own trainer too."""

import inspect
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import open_clip_train.data
import open_clip_train.main as trainer
import pytest
import torch
from losses import same
from PIL import Image
from support import toy
from torch.utils.data import DataLoader, TensorDataset

from baselines import AmorLIPLoss, FastCLIPLoss
from engine.standalone import StandaloneLoss
from neuclip import NeuCLIPLoss

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "use-a-loss-elsewhere.md").read_text(encoding="utf-8")
OWN_LOOP, POSITIONS, TRAINER, TRAINER_FASTCLIP = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'")
open_clip.add_model_config(ROOT / "engine" / "models")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's loops take as given."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    pairs = TensorDataset(
        torch.randn(40, 3, 32, 32, generator=generator), torch.randint(1, 1000, (40, 12), generator=generator)
    )
    return {
        "model": open_clip.create_model("tiny-vit", output_dict=True),
        "embed_dim": 32,
        "batch_size": 16,
        "pairs": pairs,
        "loader": DataLoader(pairs, 16, drop_last=True),
    }


@pytest.mark.parametrize("snippet", [OWN_LOOP, POSITIONS], ids=["neuclip", "fastclip"])
def test_a_loop_of_ones_own_runs_as_shown(snippet: str, given: dict[str, Any]) -> None:
    exec(snippet, given)

    assert given["losses"]["contrastive_loss"].isfinite()
    assert given["loss"].step == 2
    if snippet == OWN_LOOP:
        again = NeuCLIPLoss(given["embed_dim"], given["batch_size"])
        again.load_state_dict(torch.load("checkpoint.pt", weights_only=True)["loss"])
        assert same(again.state_dict(), given["loss"].state_dict())


@pytest.mark.parametrize("kind", [NeuCLIPLoss, FastCLIPLoss, AmorLIPLoss])
def test_the_table_names_the_arguments_of_each(kind: type[StandaloneLoss]) -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGE, re.MULTILINE)
    name = kind.__name__.removesuffix("Loss")
    listed = [arg for args, who in rows if who == "all" or name in who for arg in re.findall(r"`(\w+)`", args)]

    assert listed == [arg for arg in inspect.signature(kind).parameters if arg != "options"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A module for a script of the page, a folder with the toy pairs, and open_clip's trainer as it was, afterwards."""
    lines = ["filepath\ttitle"]
    for colour, place, number in toy.pairs():
        (tmp_path / f"{number}.png").write_bytes(toy.picture(colour, place, number))
        lines.append(f"{number}.png\ta {colour} square, {place}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    for module, name in ((trainer, "create_loss"), (trainer, "train_one_epoch"), (open_clip_train.data, "CsvDataset")):
        monkeypatch.setattr(module, name, getattr(module, name))
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    yield {"__name__": "script"}
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


SYNTHETIC = ("--dataset-type", "synthetic")
CSV = ("--dataset-type", "csv", "--train-data", "pairs.csv")
ENOUGH_EPOCHS = 10
"""To learn something from the toy pairs, at six steps each."""


def run_trainer(*options: str, epochs: int) -> list[float]:
    """Train with open_clip's trainer on a CPU; returns the losses that it logged."""
    fixed = "--model tiny-vit --name run --device cpu --workers 0 --batch-size 16 --lr 1e-3 --warmup 1"
    logs = f"--logs . --log-every-n-steps 1 --save-frequency 1 --epochs {epochs} --train-num-samples {toy.NUM_PAIRS}"
    trainer.main([*fixed.split(), *logs.split(), *options])
    losses = [float(value) for value in re.findall(r" Loss: (\S+)", Path("run/out.log").read_text())]
    assert all(map(math.isfinite, losses))
    return losses


def kept_state(epoch: int) -> dict[str, Any]:
    return torch.load(f"run/checkpoints/epoch_{epoch}.loss", weights_only=True)


def load(**pretrained: str) -> tuple[Any, Any]:
    model, _, transform = open_clip.create_model_and_transforms("tiny-vit", output_dict=True, **pretrained)
    return model.eval(), transform


def check_learning() -> None:
    """open_clip loads what was trained, and that tells the 16 kinds of toy pairs apart: chance is log 16 = 2.77."""
    path = f"run/checkpoints/epoch_{ENOUGH_EPOCHS}.pt"
    model, transform = load(pretrained=path)
    weights = torch.load(path, weights_only=True)["state_dict"]
    kinds = toy.pairs()[:16]
    images = torch.stack([transform(Image.open(f"{number}.png")) for _, _, number in kinds])
    tokens = open_clip.get_tokenizer("tiny-vit")([f"a {colour} square, {place}" for colour, place, _ in kinds])
    with torch.no_grad():
        output = model(images, tokens) | {"logit_scale": torch.tensor(1 / 0.07)}

    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert float(open_clip.ClipLoss()(**output)) < math.log(16) - 0.5


def test_open_clip_trains_with_neuclip(script: dict[str, Any]) -> None:
    exec(TRAINER, script)
    losses = run_trainer(*CSV, epochs=ENOUGH_EPOCHS)
    first, last = kept_state(1), kept_state(ENOUGH_EPOCHS)

    check_learning()
    assert len(losses) == 60
    assert losses[-1] < losses[0]
    assert last["_extra_state"] == {"step": 60, "part": 0}
    assert not torch.equal(first["method.normalizer.weights"], last["method.normalizer.weights"])


def test_open_clip_trains_on_synthetic_data_with_accumulation_and_autocast(script: dict[str, Any]) -> None:
    exec(TRAINER, script)
    losses = run_trainer(*SYNTHETIC, "--accum-freq", "2", "--precision", "amp_bf16", epochs=2)
    first, last = kept_state(1), kept_state(2)

    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert last["_extra_state"] == {"step": 6, "part": 0}
    assert not torch.equal(first["method.normalizer.weights"], last["method.normalizer.weights"])


def test_open_clip_goes_on_from_its_checkpoint_with_the_state_of_the_loss(script: dict[str, Any]) -> None:
    exec(TRAINER, script)
    # All synthetic pairs are the same, so that their order, which open_clip does not restore, does not matter.
    run_trainer(*SYNTHETIC, epochs=2)
    whole = kept_state(2)
    for suffix in ("pt", "loss"):
        Path(f"run/checkpoints/epoch_2.{suffix}").unlink()
    run_trainer(*SYNTHETIC, "--resume", "latest", epochs=2)

    assert same(kept_state(2), whole)


@pytest.mark.parametrize(("options", "steps"), [((), 6), (("--accum-freq", "2"), 3)], ids=["plain", "accumulation"])
def test_open_clip_trains_with_fastclip_once_the_positions_go_beside_it(
    options: tuple[str, ...], steps: int, script: dict[str, Any]
) -> None:
    exec(TRAINER_FASTCLIP, script)
    made, create_loss = [], trainer.create_loss
    trainer.create_loss = lambda args: made.append(create_loss(args)) or made[0]
    run_trainer(*CSV, *options, epochs=1)

    assert made[0].step == steps
    assert made[0].method.visited_N.all()
