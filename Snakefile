"""Suites -> runs -> data -> train -> evaluate -> collect -> tables and figures.

`snakemake` alone runs the quickstart suite on this machine; `--config suites=smoke` another one, `--profile slurm` on
a cluster. Training and evaluation are jobs that engine.launch submits and waits for; everything else runs here. How a
job is run stands in `resources`, whose changes run nothing again.
"""

import os
import sys

from engine import environment

try:
    environment.check_packages()
except ValueError as error:
    raise WorkflowError(str(error))

from analysis import artifacts
from engine import cluster, paths
from engine.spec import unknown_name
from experiments import cards, expansion, names

DEFAULTS = {
    "suites": "quickstart",
    "dataset": names.BASE,
    "cluster": cluster.LOCAL,
    "train": {},
    "evaluate": {},
    "prepare": None,
    "execution": {},
    "on_interrupt": "cancel",
}
for key in config:
    if key not in DEFAULTS:
        raise WorkflowError(unknown_name("--config key", key, DEFAULTS))
config = {**DEFAULTS, **config}
if config["on_interrupt"] not in ("leave", "cancel"):
    raise WorkflowError(
        unknown_name("on_interrupt", config["on_interrupt"], ("leave", "cancel"))
    )
try:
    CLUSTER = cluster.configure(
        cluster.load(str(config["cluster"])), config, "--config"
    )
    DATASETS = {name: cards.dataset(name) for name in cards.names("datasets")}
    EVAL_SETS = {name: cards.eval_set(name) for name in cards.names("evals")}
except ValueError as error:
    raise WorkflowError(str(error))
SUITES, RUNS, EVALUATIONS = {}, {}, {}


def results(*asked):
    """Take suites up into the workflow; return their tables and figures."""
    try:
        suites = expansion.load(asked)
        runs = {r.spec.run_id: r.spec for suite in suites.values() for r in suite.runs}
        # What cannot run there is found now, for every run, before anything is submitted.
        for spec in runs.values():
            for kind in ("train", "evaluate", "prepare"):
                cluster.resolve(CLUSTER, kind, spec)
    except ValueError as error:
        raise WorkflowError(str(error))
    SUITES.update(suites)
    RUNS.update(runs)
    EVALUATIONS.update((s.evaluation.key, s.evaluation) for s in suites.values())
    for spec in runs.values():
        name, pairs = spec.dataset.name, spec.dataset.pairs
        if name not in DATASETS:  # a part of one
            DATASETS[name] = cards.dataset(name, pairs)
    tables = [
        paths.tables(suite) / f"{name}.json"
        for suite in suites
        for name in artifacts.tables(suite)
    ]
    figures = [
        paths.figures(suite) / f"{name}.json"
        for suite in suites
        for name in artifacts.figures(suite)
    ]
    return tables + figures


ASKED_FOR = results(*str(config["suites"]).split(","))
# What one command builds, and the revisions of all that it builds: a changed one is built again.
BUILDS = {}
for card in [*DATASETS.values(), *EVAL_SETS.values()]:
    if card.build and card.ready:
        BUILDS.setdefault((card.build, card.ready), []).append(
            f"{card.name} {card.revision}"
        )
# Rules start the interpreter that runs Snakemake, whatever comes first on the PATH.
shell.prefix(f"export PATH='{os.path.dirname(sys.executable)}':$PATH; ")


def one_of(kind, known, name):
    """Look a wildcard up, or say which values there are."""
    if name not in known:
        raise WorkflowError(
            unknown_name(kind, name, known) + " Name its suite with --config suites=..."
        )
    return known[name]


# Preparing data takes every core here, unless it runs elsewhere.
PREPARATION_CORES = (
    workflow.cores if CLUSTER.prepare is None or CLUSTER.scheduler == "local" else 0
)
if CLUSTER.scheduler != "local":
    # Snakemake has cores + 5 threads for all rules, those that take no core and only wait as well. How many compute at
    # a time is settled by then.
    workflow.resource_settings.cores += 1000


def request(kind, run=None):
    """Return what a job asks for."""
    return cluster.resolve(CLUSTER, kind, RUNS.get(run))[0]


def execution(kind, run):
    """Return how the processes of a job carry it out."""
    return cluster.resolve(CLUSTER, kind, RUNS.get(run))[1]


def options(kind, run=None):
    """Return the launcher's options for a job."""
    return cluster.launch_options(CLUSTER, request(kind, run), config["on_interrupt"])


def cores(kind, run=None):
    """Return how many cores a job takes here: none if it runs elsewhere and is only waited for."""
    if CLUSTER.scheduler != "local":
        return 0
    return request(kind, run).tasks * execution(kind, run).threads


def preparation(name, output):
    """Return what comes before the module that prepares data: the launcher when that is a job, Python if not."""
    if CLUSTER.prepare is None:
        return "exec python -m"
    place = f"--name {name} --folder {paths.prepare_jobs(name)} --output {output}"
    return f"exec python -m engine.launch {place} {options('prepare')} --"


rule all:
    input:
        ASKED_FOR,


# Taken up only when asked for: `snakemake ablation_restart_period --config dataset=cc12m`.
for target in ["ablations", *map(names.PREFIX.__add__, cards.names("ablations"))]:

    rule:
        name:
            target
        input:
            lambda wildcards, target=target: results(f"{target}@{config['dataset']}"),


for (command, ready), revisions in BUILDS.items():

    rule:
        name:
            f"build_{os.path.basename(os.path.dirname(ready))}"
        output:
            ready,
        threads: PREPARATION_CORES
        resources:
            run=preparation(f"build-{os.path.basename(os.path.dirname(ready))}", ready),
            queue=int(CLUSTER.prepare is not None),
        params:
            command=command,
            revisions=sorted(revisions),
        shell:
            "{resources.run} engine.shell {params.command:q}"


# The only rule that downloads evaluation sets; it runs here, and only when it is named.
rule evaluation_data:
    resources:
        here=1,
    params:
        evaluations=lambda wildcards: sorted(
            {suite.evaluation.name for suite in SUITES.values()}
        ),
    shell:
        "exec python -m experiments evaluation-data {params.evaluations}"


rule index:
    input:
        lambda wildcards: one_of("data set", DATASETS, wildcards.dataset).ready or [],
    output:
        paths.index("{dataset}"),
    log:
        paths.log("index", "{dataset}"),
    threads: PREPARATION_CORES
    resources:
        run=lambda wildcards: preparation(
            f"index-{wildcards.dataset}", paths.index(wildcards.dataset)
        ),
        processes=lambda wildcards, threads: threads or request("prepare").cpus_per_task,
        queue=int(CLUSTER.prepare is not None),
    params:
        revision=lambda wildcards: DATASETS[wildcards.dataset].revision,
        shards=lambda wildcards: DATASETS[wildcards.dataset].shards,
        digest=lambda wildcards: DATASETS[wildcards.dataset].digest,
        fraction=lambda wildcards: DATASETS[wildcards.dataset].fraction,
        pairs=lambda wildcards: DATASETS[wildcards.dataset].pairs,
        captions=lambda wildcards: DATASETS[
            wildcards.dataset
        ].captions.model_dump_json(),
    shell:
        "{resources.run} engine.index --name {wildcards.dataset} --revision {params.revision:q} --shards {params.shards:q}"
        " --captions {params.captions:q} --pairs {params.pairs} --digest {params.digest} --fraction {params.fraction}"
        " --out {output} --jobs {resources.processes} 2> {log}"


rule train:
    input:
        spec=paths.spec("{run}"),
        index=lambda wildcards: paths.index(
            one_of("run", RUNS, wildcards.run).dataset.name
        ),
    output:
        paths.record("{run}"),
    log:
        paths.log("train", "{run}"),
    threads: lambda wildcards: cores("train", wildcards.run)
    resources:
        options=lambda wildcards: options("train", wildcards.run),
        execution=lambda wildcards: execution("train", wildcards.run).model_dump_json(
            exclude_defaults=True
        ),
        queue=1,
    params:
        folder=lambda wildcards: paths.jobs(wildcards.run) / "train",
    shell:
        "exec python -m engine.launch --name {wildcards.run} --folder {params.folder} --output {output} {resources.options}"
        " -- engine.train {input.spec} --execution {resources.execution:q} 2> {log}"


rule evaluate:
    input:
        record=paths.record("{run}"),
        evaluation=paths.evaluation("{evaluation}"),
        data=lambda wildcards: {
            card.ready
            for card in one_of(
                "evaluation", EVALUATIONS, wildcards.evaluation
            ).sets.values()
            if card.ready
        },
    output:
        paths.evaluated("{run}", "{milestone}", "{evaluation}"),
    log:
        paths.log("evaluate", "{run}-{milestone}-{evaluation}"),
    threads: lambda wildcards: cores("evaluate", wildcards.run)
    resources:
        options=lambda wildcards: options("evaluate", wildcards.run),
        execution=lambda wildcards: execution(
            "evaluate", wildcards.run
        ).model_dump_json(exclude_defaults=True),
        queue=1,
    params:
        folder=lambda wildcards: paths.jobs(wildcards.run)
        / f"evaluate-{wildcards.milestone}",
    shell:
        "exec python -m engine.launch --name eval-{wildcards.run}-{wildcards.milestone} --folder {params.folder}"
        " --output {output} {resources.options} -- engine.evaluate {input.record} {input.evaluation}"
        " --milestone {wildcards.milestone} --execution {resources.execution:q} 2> {log}"


rule collect:
    input:
        suite=paths.suite("{suite}"),
        evaluated=lambda wildcards: [
            paths.evaluated(
                run.spec.run_id, milestone, SUITES[wildcards.suite].evaluation.key
            )
            for run in one_of("suite", SUITES, wildcards.suite).runs
            for milestone in run.spec.milestones
        ],
    output:
        paths.collected("{suite}"),
    log:
        paths.log("collect", "{suite}"),
    resources:
        here=1,
    params:
        sources=artifacts.sources_sha256(),
    shell:
        "python -m analysis collect {input.suite} --out {output} 2> {log}"


rule table:
    input:
        paths.collected("{suite}"),
    output:
        [
            paths.tables("{suite}") / f"{{name}}{suffix}"
            for suffix in artifacts.TABLE_SUFFIXES
        ],
    log:
        paths.log("table", "{suite}-{name}"),
    resources:
        here=1,
    params:
        folder=subpath(output[0], parent=True),
        sources=lambda wildcards: artifacts.sources_sha256("table", wildcards.name),
    shell:
        "python -m analysis table {input} {wildcards.name} --out {params.folder} 2> {log}"


rule figure:
    input:
        paths.collected("{suite}"),
    output:
        [
            paths.figures("{suite}") / f"{{name}}{suffix}"
            for suffix in artifacts.FIGURE_SUFFIXES
        ],
    log:
        paths.log("figure", "{suite}-{name}"),
    resources:
        here=1,
    params:
        folder=subpath(output[0], parent=True),
        sources=lambda wildcards: artifacts.sources_sha256("figure", wildcards.name),
    shell:
        "python -m analysis figure {input} {wildcards.name} --out {params.folder} 2> {log}"


onstart:
    # Before any job, so that none waits in a queue for data that nobody has fetched.
    to_do = {"train": [], "evaluate": []}
    for job in workflow.dag.needrun_jobs():
        to_do.setdefault(job.rule.name, []).append(job.wildcards)
    try:
        cards.refuse_missing(
            {RUNS[wildcards.run].dataset.name for wildcards in to_do["train"]},
            [EVALUATIONS[wildcards.evaluation] for wildcards in to_do["evaluate"]],
        )
    except ValueError as error:
        raise WorkflowError(str(error))


onsuccess:
    for suite in SUITES:
        if paths.collected(suite).exists():
            shell(f"python -m analysis show {paths.collected(suite)}")
