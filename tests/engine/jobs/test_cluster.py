import json
import shlex

import pytest
from support import toy

from engine.jobs import cluster as clusters
from engine.jobs.cluster import Cluster, Override, Request, configure, launch_options, load, resolve
from engine.schema.base import parse
from engine.schema.run import Execution


def spec(model="tiny-vit", dataset="toy", method="openclip"):
    one = toy.run_spec("openclip")
    return one.model_copy(
        update={
            "global_batch_size": 4096,
            "model": one.model.model_copy(update={"name": model}),
            "dataset": one.dataset.model_copy(update={"name": dataset}),
            "method": one.method.model_copy(update={"name": method}),
        }
    )


def test_this_machine_needs_no_file():
    assert load("local") == Cluster()
    request, execution = resolve(load("local"), "train", spec())
    assert (request.nodes, request.tasks, request.gpus_per_node, execution) == (1, 1, 0, Execution())


@pytest.mark.parametrize("path", sorted(clusters.FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_file_is_valid_for_every_kind_of_job(path):
    cluster = load(path.stem)
    for kind in ("train", "evaluate", "prepare"):
        resolve(cluster, kind, spec("ViT-B-16", "dfn1b"))


def test_the_example_documents_every_key():
    text = (clusters.FOLDER / "example.yaml").read_text()
    keys = [*Cluster.model_fields, *Request.model_fields, *Execution.model_fields]
    assert [key for key in keys if f"{key}:" not in text] == []


def test_overrides_apply_in_order_and_key_by_key():
    cluster = Cluster(
        scheduler="slurm",
        train=Request(gpus_per_node=8, timeout_min=100),
        overrides=(
            Override(dataset="dfn*", train=Request(nodes=2), execution=Execution(num_workers=4)),
            Override(model="ViT-B-*", dataset="dfn1b", train=Request(nodes=8)),
            Override(method="siglip", train=Request(gpus_per_node=4)),
        ),
    )
    plain, _ = resolve(cluster, "train", spec("ViT-B-16", "cc3m"))
    assert (plain.nodes, plain.gpus_per_node, plain.timeout_min, plain.cpus_per_task) == (1, 8, 100, 1)
    larger, execution = resolve(cluster, "train", spec("RN50", "dfn14m"))
    assert (larger.nodes, larger.gpus_per_node, larger.cpus_per_task, execution.num_workers) == (2, 8, 5, 4)
    largest, _ = resolve(cluster, "train", spec("ViT-B-16", "dfn1b", "siglip"))
    assert (largest.nodes, largest.tasks, largest.timeout_min) == (8, 4, 100)
    assert resolve(cluster, "evaluate", spec("ViT-B-16", "dfn1b"))[0].nodes == 1


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("gpus", "asked", "device"),
    [(1, "auto", "cuda"), (1, "cuda", "cuda"), (1, "cpu", "cpu"), (0, "auto", "auto"), (0, "cpu", "cpu")],
)
def test_a_job_that_asks_for_gpus_must_use_them(kind, gpus, asked, device):
    settings = {kind: {"gpus_per_node": gpus}, "execution": {"device": asked}}
    cluster = configure(Cluster(), settings, "--config")
    assert resolve(cluster, kind, spec())[1].device == device


def test_preparing_data_takes_no_gpu_even_if_there_are_some():
    cluster = configure(Cluster(), {"prepare": {"gpus_per_node": 1}}, "--config")
    assert resolve(cluster, "prepare")[1].device == "auto"


def test_settings_of_the_command_line_win_over_the_file_and_its_overrides():
    cluster = Cluster(
        scheduler="slurm", train=Request(gpus_per_node=8), overrides=(Override(train=Request(nodes=8, timeout_min=60)),)
    )
    settings = {"train": {"nodes": 1}, "execution": {"threads": 3}, "prepare": {"timeout_min": 30}, "suites": "smoke"}
    changed = configure(cluster, settings, "--config")
    request, execution = resolve(changed, "train", spec())
    assert (request.nodes, request.gpus_per_node, request.timeout_min, execution.threads) == (1, 8, 60, 3)
    assert resolve(changed, "prepare")[0].timeout_min == 30
    assert cluster.prepare is None


def test_what_the_launcher_is_told_comes_back_as_it_was():
    cluster = Cluster(scheduler="slurm", partition="it's", setup=("module load 'a b'",), sbatch={"exclusive": True})
    _, where, _, what, _, then = shlex.split(launch_options(cluster, Request(nodes=2), "leave"))
    assert parse(Cluster, where, "") == cluster
    assert parse(Request, what, "") == Request(nodes=2)
    assert then == "leave"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trane: {}", "unknown key 'trane'; did you mean 'train'"),
        ("train: {node: 1}", "train.node: unknown key 'node'; did you mean 'nodes'"),
        ("overrides: [{train: {node: 1}}]", "overrides.0.train.node: unknown key 'node'; did you mean 'nodes'"),
        ("prepare: {mem: 1}", "prepare.mem: unknown key 'mem'; did you mean 'mem_gb'"),
        ("scheduler: pbs", "'local' or 'slurm'"),
        ("partition: gpu", "partition: these are for scheduler 'slurm'"),
        ("scheduler: slurm\nsbatch: {nodes: 2}", "option 'nodes' does not belong here: set 'nodes' in train"),
        ("scheduler: slurm\nsbatch: {exclusive: false}", "sbatch.exclusive"),
        ("scheduler: slurm\ngres: 'gpu:{n}'", "only {gpus_per_node} can stand in braces"),
        ("scheduler: [", "not valid YAML"),
    ],
)
def test_a_wrong_cluster_file_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load(str(path))
    assert message in str(error.value)


def test_an_unknown_cluster_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="unknown cluster 'exmple'; did you mean 'example'"):
        load("exmple")
    with pytest.raises(ValueError, match=r"no\.yaml is not there"):
        load(str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("train", {"execution": {"device": "cuda"}}, "device 'cuda' with train.gpus_per_node = 0"),
        ("train", {"train": {"nodes": 2}}, "this machine is one node"),
        ("evaluate", {"evaluate": {"gpus_per_node": 2}}, "evaluate asks for 1 nodes with 2 tasks"),
    ],
)
def test_what_cannot_run_here_is_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        resolve(configure(Cluster(), settings, "--config"), kind, spec())


@pytest.mark.parametrize(
    ("nodes", "message"),
    [(3, "global_batch_size = 4096 cannot be divided among 6"), (2, "num_extra_pairs = 6 cannot be divided among 4")],
)
def test_what_processes_cannot_share_is_refused_for_trainings(nodes, message):
    cluster = Cluster(scheduler="slurm", train=Request(nodes=nodes, tasks_per_node=2))
    with pytest.raises(ValueError, match=f"{spec().run_id}: {message} processes"):
        resolve(cluster, "train", spec(), num_extra_pairs=6)
    resolve(cluster, "evaluate", spec(), num_extra_pairs=6)


def test_a_time_limit_must_leave_time_before_the_warning():
    cluster = Cluster(scheduler="slurm", train=Request(timeout_min=3))
    with pytest.raises(ValueError, match=r"train.timeout_min = 3: a job would be told to stop as soon as it starts"):
        resolve(cluster, "train", spec())


def test_a_wrong_setting_says_where_it_stands():
    with pytest.raises(ValueError, match="--config train: node: unknown key 'node'; did you mean 'nodes'"):
        configure(Cluster(), {"train": {"node": 1}}, "--config")
    with pytest.raises(ValueError, match="--config execution"):
        configure(Cluster(), json.loads('{"execution": {"thread": 1}}'), "--config")
