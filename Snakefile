"""Suites -> runs -> data -> train -> evaluate -> collect -> tables and figures.

`snakemake` alone runs the quickstart suite on this machine; `--config suites=smoke` another one. Training and
evaluation are jobs that engine.launch submits and waits for; everything else runs here.
"""

import json
import os
import sys

from engine import environment

try:
    environment.check_packages()
except ValueError as error:
    raise WorkflowError(str(error))

from analysis import artifacts
from engine import paths
from engine.spec import Execution, parse, unknown_name
from experiments import cards, expansion

DEFAULTS = {"suites": "quickstart", "execution": {}}
for key in config:
    if key not in DEFAULTS:
        raise WorkflowError(unknown_name("--config key", key, DEFAULTS))
config = {**DEFAULTS, **config}
try:
    EXECUTION = parse(Execution, json.dumps(config["execution"]), "--config execution")
    SUITES = expansion.load(str(config["suites"]).split(","))
    DATASETS = {name: cards.dataset(name) for name in cards.names("datasets")}
    EVAL_SETS = {name: cards.eval_set(name) for name in cards.names("evals")}
except ValueError as error:
    raise WorkflowError(str(error))
RUNS = {run.spec.run_id: run.spec for suite in SUITES.values() for run in suite.runs}
EVALUATIONS = {suite.evaluation.key: suite.evaluation for suite in SUITES.values()}
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


rule all:
    input:
        [
            paths.tables(suite) / f"{name}.json"
            for suite in SUITES
            for name in artifacts.tables(suite)
        ],
        [
            paths.figures(suite) / f"{name}.json"
            for suite in SUITES
            for name in artifacts.figures(suite)
        ],


for (command, ready), revisions in BUILDS.items():

    rule:
        name:
            f"build_{os.path.basename(os.path.dirname(ready))}"
        output:
            ready,
        threads: workflow.cores
        params:
            command=command,
            revisions=sorted(revisions),
        shell:
            "{params.command}"


rule index:
    input:
        lambda wildcards: one_of("data set", DATASETS, wildcards.dataset).ready or [],
    output:
        paths.index("{dataset}"),
    log:
        paths.log("index", "{dataset}"),
    threads: workflow.cores
    params:
        revision=lambda wildcards: DATASETS[wildcards.dataset].revision,
        shards=lambda wildcards: DATASETS[wildcards.dataset].shards,
        pairs=lambda wildcards: DATASETS[wildcards.dataset].pairs,
        captions=lambda wildcards: DATASETS[
            wildcards.dataset
        ].captions.model_dump_json(),
    shell:
        "python -m engine.index --name {wildcards.dataset} --revision {params.revision:q} --shards {params.shards:q}"
        " --captions {params.captions:q} --pairs {params.pairs} --out {output} --jobs {threads} 2> {log}"


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
    threads: EXECUTION.threads
    resources:
        execution=EXECUTION.model_dump_json(),
    shell:
        "exec python -m engine.launch engine.train {input.spec} --execution {resources.execution:q} 2> {log}"


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
    threads: EXECUTION.threads
    resources:
        execution=EXECUTION.model_dump_json(),
    shell:
        "exec python -m engine.launch engine.evaluate {input.record} {input.evaluation} --milestone {wildcards.milestone}"
        " --execution {resources.execution:q} 2> {log}"


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
    params:
        folder=subpath(output[0], parent=True),
        sources=lambda wildcards: artifacts.sources_sha256("figure", wildcards.name),
    shell:
        "python -m analysis figure {input} {wildcards.name} --out {params.folder} 2> {log}"


onsuccess:
    for suite in SUITES:
        if paths.collected(suite).exists():
            shell(f"python -m analysis show {paths.collected(suite)}")
