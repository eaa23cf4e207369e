from pathlib import Path

import pytest
import torch

import poa
import tiny
from command import poa as command
from poa.config.network import ModelSettings
from poa.config.pretraining import Config
from poa.errors import UserError
from poa.experiments.polish import polish_settings
from poa.models.registry import family_of
from poa.models.run import Run
from poa.models.teacher import teacher_of
from poa.training.metrics import read_metrics
from trained import assert_same

SIZE = "32x3"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("polish") / "run"
    return poa.pretrain(**tiny.settings(out=str(folder), epochs=1, limit=32, lr=0.002))


def test_a_size_goes_on_from_its_weights_and_learns_from_the_intact_network(run: Run) -> None:
    assert command("polish", run.folder, "--size", SIZE) == 0
    polished = poa.load(run.folder / "polished" / SIZE)
    assert polished.sizes() == (SIZE,)
    assert (polished.config.epochs, polished.config.lr, polished.config.data) == (1, 0.0005, "digits")
    images = torch.rand(2, 3, 16, 16)
    before, after = run.network(SIZE)(images).cls, polished.network(SIZE)(images).cls
    assert torch.equal(polished.initial(SIZE)(images).cls, before)
    assert not torch.equal(after, before)
    rows = read_metrics(polished.paths.metrics)
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][f"intact/{name}"] for name in ("global", "patch", "local")))
    taught = torch.load(polished.checkpoint, weights_only=False)["method"]
    for name, value in run.teacher.state_dict().items():
        assert torch.equal(taught[f"frozen.network.{name}"], value)


def test_a_stage_with_a_choice_of_its_own_depths() -> None:
    """Of a ResNet the width and both elastic depths are one size's."""
    config = tiny.config("resnet", method="distill")
    space = family_of(config).space
    run = Run(Path("run"), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poa.experiments.polish._extracted", lambda *_: Path("model"))
        settings = polish_settings(run, str(space.sizes[1]), epochs=3, data="others", out=Path("new"))
    assert family_of(settings).space.sizes == (space.sizes[1],)
    assert (settings.epochs, settings.data, settings.limit, settings.out) == (3, "others", None, "new")


def test_what_cannot_be_polished_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = polish_settings(poa.load(run.folder, checkpoint=run.step), SIZE)
    assert chosen.distill.teacher == str(run.checkpoint)
    assert_same(teacher_of(chosen, family_of(chosen)).network.state_dict(), run.teacher.state_dict())
    with pytest.raises(UserError, match=r"64x3 is the largest size of .*, which is the teacher. Choose a smaller"):
        polish_settings(run, "64x3")
    with pytest.raises(UserError, match=r"no size '99x3'.*Did you mean '64x3'"):
        polish_settings(run, "99x3")
    slim = Run(run.folder, Config(method="slimclr-simclr", model=ModelSettings(name="slim-resnet")))
    with pytest.raises(UserError, match=r"slimmable ResNet cannot be polished"):
        polish_settings(slim, str(slim.space.sizes[0]))
    assert command("polish", run.folder, "--size", SIZE, "--epochs", "0") == 2
    assert "--epochs must be at least 1, got 0." in capsys.readouterr().err
    folder = run.extract("32x2")
    (folder / "model.safetensors").write_bytes((run.folder / "models" / SIZE / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"32x2 was extracted at another step of .* than 2\. Delete it"):
        polish_settings(run, "32x2")
