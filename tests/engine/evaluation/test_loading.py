"""Any open_clip model can be evaluated; random weights only where they are asked for."""

import json
import pickle

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from support import evalsets

from engine import evaluate
from engine.evaluation import loading
from engine.schema.evaluation import EvalResult, Evaluation
from engine.training import towers

NAME = "tiny-vit"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights in every form that open_clip loads; all the same."""
    folder = tmp_path_factory.mktemp("weights")
    clip = towers.build_towers(NAME, seed=5)
    towers.export(clip, NAME, folder / "export", logit_scale=torch.tensor(20.0), logit_bias=None)
    state = load_file(folder / "export" / towers.WEIGHTS_FILE)
    torch.save(state, folder / "plain.pt")
    training = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}, "optimizer": {}}
    torch.save(training, folder / "training.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"state_dict": folder}))
    torch.save({"encoder": torch.zeros(3)}, folder / "other.pt")
    state.pop("positional_embedding")
    torch.save(state, folder / "less.pt")
    (folder / "empty").mkdir()
    config = (folder / "export" / towers.CONFIG_FILE).read_text()
    (folder / "empty" / towers.CONFIG_FILE).write_text(config)
    torch.save(state, folder / "empty" / "epoch_1.pt")  # open_clip does not look for .pt, and goes on without
    return folder


def test_all_forms_of_the_same_weights_load_alike(files):
    forms = {
        "export": loading.load_model(f"local-dir:{files / 'export'}", None),
        "safetensors": loading.load_model(NAME, str(files / "export" / towers.WEIGHTS_FILE)),
        "plain": loading.load_model(NAME, str(files / "plain.pt")),
        "training": loading.load_model(NAME, str(files / "training.pt")),
    }
    digests = {form: loading.weights_sha256(loaded[0]) for form, loaded in forms.items()}
    assert len(set(digests.values())) == 1, digests
    assert not any(clip.training for clip, _, _ in forms.values())


def test_random_weights_are_the_same_on_every_call_and_leave_the_generator_alone():
    torch.manual_seed(1)
    first, second = (loading.load_model(NAME, None, random_weights=True)[0] for _ in range(2))
    same = loading.weights_sha256(first)
    assert loading.weights_sha256(second) == same
    with torch.no_grad():
        second.visual.proj[0, 0] += 1e-3
    assert loading.weights_sha256(second) != same
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        (NAME, None, r"no weights are named for 'tiny-vit', and random ones are no result: .*--random-weights"),
        ("ViT-B-32", None, r"tags: openai, laion400m_e31"),
        ("ViT-B-32", "laion2b_s34b_b79", r"is no file, and unknown tag .*did you mean 'laion2b_s34b_b79k'"),
        ("tiny-vitt", "x", r"unknown open_clip model 'tiny-vitt'; did you mean 'tiny-vit'"),
        (
            NAME,
            "{files}/pickle.pt",
            r"^'.*pickle\.pt' cannot be loaded: it holds other things than tensors .* safetensors$",
        ),
        (NAME, "{files}/other.pt", r"other\.pt' cannot be loaded: RuntimeError: .{,300} \.\.\.$"),
        (NAME, "{files}/less.pt", r"cannot be loaded: RuntimeError: .*[Mm]issing key.*positional_embedding"),
        ("tiny-resnet", "{files}/plain.pt", r"'tiny-resnet' with weights '.*plain\.pt' cannot be loaded"),
        ("local-dir:{files}/empty", None, r"cannot be loaded: RuntimeError: .*[Pp]retrained"),
        ("local-dir:{files}/export", "openai", r"says where its weights are: leave --pretrained 'openai' out"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_are_an_error_and_never_random(files, name, pretrained, message):
    name, pretrained = (text and text.format(files=files) for text in (name, pretrained))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        loading.load_model(name, pretrained)


def test_an_activation_that_the_weights_were_not_trained_with_is_an_error(files, monkeypatch):
    # As with ViT-B-32 and the tag "openai": open_clip computes another activation and only warns.
    tag = {"file": str(files / "plain.pt"), "quick_gelu": True}
    monkeypatch.setattr(open_clip.factory, "get_pretrained_cfg", lambda *_: tag)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda cfg, **_: cfg["file"])
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: ["theirs"])
    with pytest.raises(ValueError, match="QuickGELU mismatch"):
        loading.load_model(NAME, "theirs")


def test_the_command_line_evaluates_any_model_and_goes_on_where_it_stopped(files, tmp_path, capsys):
    cards = [
        evalsets.classification(tmp_path / "one", 20),
        evalsets.retrieval(tmp_path / "two", [[f"number {n}"] for n in range(10)]),
    ]
    evaluation = Evaluation(name="x", sets={c.name: c for c in cards}, averages={"Average": ("one", "two")})
    (tmp_path / "x.json").write_text(evaluation.model_dump_json())
    weights = ["--open-clip", NAME, "--pretrained", str(files / "plain.pt")]
    command = [*weights, "--evaluation", str(tmp_path / "x.json"), "--out", str(tmp_path / "out")]
    evaluate.main([*command, "--sets", "two"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["two.json"]
    first = (tmp_path / "out" / "two.json").stat().st_mtime_ns
    evaluate.main(command)
    assert (tmp_path / "out" / "two.json").stat().st_mtime_ns == first
    results = [EvalResult.model_validate_json((tmp_path / "out" / f"{n}.json").read_text()) for n in ("one", "two")]
    printed = capsys.readouterr().err
    assert f"average Average: {50 * (results[0].value + results[1].value):.2f} %" in printed
    assert results[0].run_id == f"tiny-vit {files / 'plain.pt'}"

    # Other weights are evaluated again, and are another subject.
    random = ["--open-clip", NAME, "--random-weights", *command[4:]]
    evaluate.main(random)
    again = EvalResult.model_validate(json.loads((tmp_path / "out" / "one.json").read_text()))
    assert again.run_id == "tiny-vit random weights"
    assert again.weights_sha256 != results[0].weights_sha256


def test_the_command_line_wants_a_run_or_a_model(tmp_path, capsys):
    for command in ([], ["record.json", "x.json"], ["--open-clip", NAME, "--evaluation", "scenes"]):
        with pytest.raises(SystemExit):
            evaluate.main(command)
        assert "give RECORD EVALUATION --milestone N, or --open-clip MODEL" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unknown evaluation 'datacomp'; did you mean 'datacomp38'"):
        evaluate.main(["--open-clip", NAME, "--evaluation", "datacomp", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no weights are named for 'tiny-vit'"):
        evaluate.main(["--open-clip", NAME, "--evaluation", "datacomp38", "--out", str(tmp_path)])


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_named_weights_that_never_saw_a_step_are_told_of_and_trained_or_wanted_ones_are_not(tmp_path, capsys, name):
    clip = towers.build_towers(name, seed=5)
    towers.export(clip, name, tmp_path / "new", logit_scale=torch.tensor(20.0), logit_bias=None)
    image, text = clip(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, 12, dtype=torch.int64))
    (image @ text.T)[0, 0].backward()
    torch.optim.AdamW(clip.parameters(), lr=1e-4).step()
    towers.export(clip, name, tmp_path / "stepped", logit_scale=torch.tensor(20.0), logit_bias=None)
    loading.load_model(f"local-dir:{tmp_path / 'new'}", None)
    assert f"the weights of local-dir:{tmp_path / 'new'} look untrained" in capsys.readouterr().err
    loading.load_model(name, str(tmp_path / "new" / towers.WEIGHTS_FILE))
    assert "look untrained" in capsys.readouterr().err
    loading.load_model(f"local-dir:{tmp_path / 'stepped'}", None)
    loading.load_model(name, None, random_weights=True)
    assert capsys.readouterr().err == ""
