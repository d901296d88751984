"""A process takes the device that was asked for, or says why it is not there."""

import re

import pytest
import torch
from support import toy

from engine import distributed, evaluate, train

NO_GPU = (
    r"a GPU was asked for \(gpus_per_node, or device 'cuda'\): torch sees none\. "
    rf"It is {re.escape(torch.__version__)}, built (without CUDA|for (CUDA|ROCm) [\d.]+); "
    r"NVIDIA driver (not found|[\d.]+); CUDA_VISIBLE_DEVICES (not set|'.*'): .*, or use gpus_per_node 0"
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
CUDA = ["--execution", '{"device": "cuda"}']


@without_gpu
def test_a_training_that_must_use_a_gpu_ends_with_one_error_where_there_is_none(tmp_path):
    path = toy.write_spec(tmp_path, toy.run_spec("openclip"))
    with pytest.raises(SystemExit, match=rf"^error: {NO_GPU}$"):
        train.main([str(path), *CUDA])


@without_gpu
def test_an_evaluation_that_must_use_a_gpu_ends_with_one_error_where_there_is_none():
    with pytest.raises(SystemExit, match=rf"^error: {NO_GPU}$"):
        evaluate.main(["record.json", "evaluation.json", "--milestone", "1", *CUDA])


@without_gpu
def test_where_no_gpu_was_asked_for_the_cpu_will_do():
    assert distributed.choose_device("auto") == distributed.choose_device("cpu") == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match=r"process 4 of this node needs a GPU of its own, and torch sees 4"):
        distributed.choose_device("cuda")


@pytest.mark.parametrize(
    ("build", "driver", "advice"),
    [
        ((None, None), None, r"without CUDA; NVIDIA driver not found; .*: install torch for CUDA"),
        ((None, None), "550.54.14", r"without CUDA; NVIDIA driver 550\.54\.14; .*: install torch for CUDA"),
        (("12.8", None), None, r"for CUDA 12\.8; NVIDIA driver not found; .*: run on a machine with an NVIDIA driver"),
        (("12.8", None), "470.1", r"for CUDA 12\.8; NVIDIA driver 470\.1; .* '': let the job see its GPUs"),
        ((None, "6.4"), None, r"for ROCm 6\.4; .*: let the job see its GPUs"),
    ],
)
def test_the_error_says_what_to_do_about_this_build_and_this_driver(monkeypatch, build, driver, advice):
    monkeypatch.setattr(torch.version, "cuda", build[0])
    monkeypatch.setattr(torch.version, "hip", build[1])
    monkeypatch.setattr(distributed, "nvidia_driver", lambda: driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert re.search(advice, distributed.explain_no_gpu())


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC 11.4.0\n",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54  Release Build  (dvs-builder@x)\n", "550.54"),
        ("something else\n", None),
        (None, None),
    ],
)
def test_the_driver_s_version_is_what_its_kernel_module_says(tmp_path, said, version):
    path = tmp_path / "version"
    if said is not None:
        path.write_text(said)
    assert distributed.nvidia_driver(path) == version
