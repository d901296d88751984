"""Suites -> runs -> data -> train -> evaluate -> collect -> tables and figures -> report.

`snakemake` alone runs the quickstart suite on this machine; `--config suites=smoke` another one, `--profile slurm` on
a cluster. Training and evaluation are jobs that engine.launch submits and waits for; everything else runs here. How a
job is run stands in `resources`, whose changes run nothing again.
"""

import functools
import gc
import os
import shlex
import sys

from engine import environment

try:
    environment.check_packages()
except ValueError as error:
    raise WorkflowError(str(error))

from analysis import artifacts
from engine import cluster, errors, paths
from engine.spec import unknown_name
from experiments import cards, expansion, names

# All of a graph of thousands of jobs is kept: looking for garbage in it each 700 objects takes a tenth of the planning.
gc.set_threshold(100_000)

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
except errors.KNOWN as error:
    raise WorkflowError(errors.describe(error))
SUITES, RUNS, EVALUATIONS = {}, {}, {}
# The suites that each report is on: all that one name asks for.
REPORTS = {}


def results(*asked):
    """Take suites up into the workflow; return their tables, figures and reports."""
    try:
        suites = expansion.load(asked)
        for name in asked:
            shown = [names.split(one).name for one in names.resolve([name])]
            REPORTS[names.called(name)] = shown
        runs = {r.spec.run_id: r.spec for suite in suites.values() for r in suite.runs}
        # What cannot run there is found now, for every run, before anything is submitted.
        for spec in runs.values():
            for kind in ("train", "evaluate", "prepare"):
                cluster.resolve(CLUSTER, kind, spec)
    except errors.KNOWN as error:
        raise WorkflowError(errors.describe(error))
    SUITES.update(suites)
    RUNS.update(runs)
    EVALUATIONS.update((s.evaluation.key, s.evaluation) for s in suites.values())
    for spec in runs.values():
        name, pairs = spec.dataset.name, spec.dataset.pairs
        if name not in DATASETS:  # a part of one
            DATASETS[name] = cards.dataset(name, pairs)
    return {
        "tables": [path for suite in suites for path in tables(suite)],
        "figures": [path for suite in suites for path in figures(suite)],
        "report": [paths.report(names.called(name)) for name in asked],
    }


def tables(suite):
    """Return the sidecars of a suite's tables."""
    return [paths.tables(suite) / f"{name}.json" for name in artifacts.tables(suite)]


def figures(suite):
    """Return the sidecars of a suite's figures."""
    return [paths.figures(suite) / f"{name}.json" for name in artifacts.figures(suite)]


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


# What follows is asked for each of thousands of jobs, several times.
sources_sha256 = functools.cache(artifacts.sources_sha256)


@functools.cache
def resolve(kind, run=None):
    """Return what a job asks for, and how its processes carry it out."""
    return cluster.resolve(CLUSTER, kind, run and one_of("run", RUNS, run))


@functools.cache
def options(kind, run=None):
    """Return the launcher's options for a job."""
    return cluster.launch_options(
        CLUSTER, resolve(kind, run)[0], config["on_interrupt"]
    )


@functools.cache
def module(kind, run):
    """Return the launcher's options for a job, and the module that it starts with how that is carried out."""
    execution = resolve(kind, run)[1].model_dump_json(exclude_defaults=True)
    return f"{options(kind, run)} -- engine.{kind} --execution {shlex.quote(execution)}"


def launch_training(wildcards):
    """Return the launcher's arguments for a training; the run's spec follows."""
    run = wildcards.run
    folder = paths.jobs(run) / "train"
    return f"--name {run} --folder {folder} {module('train', run)}"


def launch_evaluation(wildcards):
    """Return the launcher's arguments for an evaluation; the run's record and the evaluation follow."""
    run, milestone, key = wildcards.run, wildcards.milestone, wildcards.evaluation
    place = f"--name eval-{run}-{milestone}-{key} --folder {paths.evaluate_jobs(run, milestone, key)}"
    return f"{place} {module('evaluate', run)} --milestone {milestone}"


def cores(kind, run):
    """Return how many cores a job takes here: none if it runs elsewhere and is only waited for."""
    if CLUSTER.scheduler != "local":
        return 0
    request, execution = resolve(kind, run)
    return request.tasks * execution.threads


@functools.cache
def built_for(evaluation):
    """Return what the workflow makes for an evaluation."""
    sets = one_of("evaluation", EVALUATIONS, evaluation).sets.values()
    return sorted({card.ready for card in sets if card.ready})


def evaluated(suite):
    """Return the evaluations of all models of a suite."""
    expanded = one_of("suite", SUITES, suite)
    key = expanded.evaluation.key
    return [
        paths.evaluated(run.spec.run_id, milestone, key)
        for run in expanded.runs
        for milestone in run.spec.milestones
    ]


def preparation(name, output):
    """Return what comes before the module that prepares data: the launcher when that is a job, Python if not."""
    if CLUSTER.prepare is None:
        return "exec python -m"
    place = f"--name {name} --folder {paths.prepare_jobs(name)} --output {output}"
    return f"exec python -m engine.launch {place} {options('prepare')} --"


rule all:
    input:
        *ASKED_FOR.values(),


# Parts of it: `snakemake tables figures`.
for part, files in ASKED_FOR.items():

    rule:
        name:
            part
        input:
            files,


# Taken up only when asked for: `snakemake ablation_restart_period --config dataset=cc12m`.
for target in ["ablations", *map(names.PREFIX.__add__, cards.names("ablations"))]:

    rule:
        name:
            target
        input:
            lambda wildcards, target=target: sum(
                results(f"{target}@{config['dataset']}").values(), []
            ),


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


# What fetches training sets: here, and only when it is named. No other rule takes anything from these.
for card in [card for card in DATASETS.values() if card.fraction == 1]:
    for target in card.ways:

        rule:
            name:
                target
            resources:
                here=1,
            params:
                options=(
                    f"{card.name} --crawl" if target.startswith("crawl") else card.name
                ),
            shell:
                "exec python -m experiments training-data {params.options}"


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
        processes=lambda wildcards, threads: threads
        or resolve("prepare")[0].cpus_per_task,
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
        launch=launch_training,
        queue=1,
    shell:
        "exec python -m engine.launch --output {output} {resources.launch} {input.spec} 2> {log}"


rule evaluate:
    input:
        record=paths.record("{run}"),
        evaluation=paths.evaluation("{evaluation}"),
        data=lambda wildcards: built_for(wildcards.evaluation),
    output:
        paths.evaluated("{run}", "{milestone}", "{evaluation}"),
    log:
        paths.log("evaluate", "{run}-{milestone}-{evaluation}"),
    threads: lambda wildcards: cores("evaluate", wildcards.run)
    resources:
        launch=launch_evaluation,
        queue=1,
    shell:
        "exec python -m engine.launch --output {output} {resources.launch} {input.record} {input.evaluation} 2> {log}"


rule collect:
    input:
        suite=paths.suite("{suite}"),
        evaluated=lambda wildcards: evaluated(wildcards.suite),
    output:
        paths.collected("{suite}"),
    log:
        paths.log("collect", "{suite}"),
    resources:
        here=1,
    params:
        sources=sources_sha256(),
    shell:
        "python -m analysis collect {input.suite} --out {output} 2> {log}"


def in_report(form, path):
    """Mark the one format of a table or figure that Snakemake's own report (`snakemake --report FILE`) shows."""
    if path.name not in ("{name}.csv", "{name}.svg"):
        return path
    labels = {"what": form, "name": "{name}"}
    caption = f"analysis/report/{form}.rst"
    return report(path, caption=caption, category="{suite}", labels=labels)


rule table:
    input:
        paths.collected("{suite}"),
    output:
        [
            in_report("table", paths.tables("{suite}") / f"{{name}}{suffix}")
            for suffix in artifacts.TABLE_SUFFIXES
        ],
    log:
        paths.log("table", "{suite}-{name}"),
    resources:
        here=1,
    params:
        folder=subpath(output[0], parent=True),
        sources=lambda wildcards: sources_sha256("table", wildcards.name),
    shell:
        "python -m analysis table {input} {wildcards.name} --out {params.folder} 2> {log}"


rule figure:
    input:
        paths.collected("{suite}"),
    output:
        [
            in_report("figure", paths.figures("{suite}") / f"{{name}}{suffix}")
            for suffix in artifacts.FIGURE_SUFFIXES
        ],
    log:
        paths.log("figure", "{suite}-{name}"),
    resources:
        here=1,
    params:
        folder=subpath(output[0], parent=True),
        sources=lambda wildcards: sources_sha256("figure", wildcards.name),
    shell:
        "python -m analysis figure {input} {wildcards.name} --out {params.folder} 2> {log}"


rule page:
    input:
        lambda wildcards: [
            file
            for suite in one_of("report", REPORTS, wildcards.report)
            for file in tables(suite) + figures(suite)
        ],
    output:
        paths.report("{report}"),
    log:
        paths.log("page", "{report}"),
    resources:
        here=1,
    params:
        suites=lambda wildcards: REPORTS[wildcards.report],
        sources=artifacts.report_sha256(),
    shell:
        "python -m analysis report {params.suites} --out {output} 2> {log}"


onstart:
    # Before any job, so that none waits in a queue for data that nobody has fetched.
    to_do = {"index": [], "train": [], "evaluate": []}
    for job in workflow.dag.needrun_jobs():
        to_do.setdefault(job.rule.name, []).append(job.wildcards)
    try:
        cards.refuse_missing(
            [wildcards.dataset for wildcards in to_do["index"]]
            + [RUNS[wildcards.run].dataset.name for wildcards in to_do["train"]],
            [EVALUATIONS[wildcards.evaluation] for wildcards in to_do["evaluate"]],
        )
    except errors.KNOWN as error:
        raise WorkflowError(errors.describe(error))


onsuccess:
    collected = [str(paths.collected(suite)) for suite in SUITES]
    collected = [path for path in collected if os.path.exists(path)]
    if collected:
        shell(f"python -m analysis show {' '.join(collected)}")
