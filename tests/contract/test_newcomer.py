"""A file in `baselines/` is a method: found and held to the contract with no other line written anywhere."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

METHOD = """
import torch
from engine.method import LossOutput, Method, MethodConfig, Temperature, TemperatureConfig

class Pull(Method):
    class Config(MethodConfig):
        temperature: TemperatureConfig = TemperatureConfig()
        squared: bool = False

    def __init__(self, config, env):
        super().__init__(config, env)
        self.config, self.temperature = config, Temperature(config.temperature)

    @property
    def logit_scale(self):
        return self.temperature.scale

    def loss(self, features, progress):
        distance_B = (features.image_BD - features.text_BD).square().sum(dim=1)
        distance_B = distance_B.square() if self.config.squared else distance_B
        total = self.logit_scale * (distance_B + CONSTANT).mean()
        return LossOutput(total, {"loss/distance": total.detach()})
"""


def test_a_new_file_is_found_and_tested_and_a_careless_one_fails(tmp_path: Path) -> None:
    for name in ("engine", "tests/contract", "tests/support", "tests/conftest.py", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "baselines").mkdir()
    for name, constant in (("pull", "1"), ("careless", "torch.rand(())")):
        (tmp_path / "baselines" / f"{name}.py").write_text(METHOD.replace("CONSTANT", constant))

    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "tests/contract/test_methods.py"]
    command += ["-k", "scalar or order or state or options"]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600).stdout

    lines = report.splitlines()
    passed, failed = ([line for line in lines if line.startswith(how)] for how in ("PASSED", "FAILED"))
    assert any("global_random_state" in line and "[pull squared=True]" in line for line in passed)
    assert any("global_random_state" in line and "[careless squared=True]" in line for line in failed)
    assert not any("pull" in line.split(" - ")[0] for line in failed), report
