"""Suites -> runs -> data -> train -> evaluate -> collect -> tables and figures.

`snakemake` alone runs the quickstart suite on this machine; `--config suites=smoke` another one. Training and
evaluation are jobs that engine.launch submits and waits for; everything else runs here.
"""

import json
import os
import sys

from analysis import artifacts
from engine import environment, paths
from engine.spec import Execution, parse
from experiments import cards, expansion

DEFAULTS = {"suites": "quickstart", "execution": {}}
for key in config:
    if key not in DEFAULTS:
        raise WorkflowError(f"unknown --config key {key!r}. Known: {', '.join(DEFAULTS)}.")
config = {**DEFAULTS, **config}
try:
    environment.check_packages()
    EXECUTION = parse(Execution, json.dumps(config["execution"]), "--config execution")
    SUITES = expansion.load(str(config["suites"]).split(","))
    DATASETS = {name: cards.dataset(name) for name in cards.names("datasets")}
    EVAL_SETS = {name: cards.eval_set(name) for name in cards.names("evals")}
except ValueError as error:
    raise WorkflowError(str(error))
RUNS = {run["run_id"]: run["spec"] for suite in SUITES.values() for run in suite["runs"]}
EVALUATIONS = {suite["evaluation"]["key"]: suite["evaluation"] for suite in SUITES.values()}
BUILDS = {card.ready: card.build for card in [*DATASETS.values(), *EVAL_SETS.values()] if card.build}
# Rules start the interpreter that runs Snakemake, whatever comes first on the PATH.
shell.prefix(f"export PATH='{os.path.dirname(sys.executable)}':$PATH; ")


rule all:
    input:
        [paths.tables(suite) / f"{name}.json" for suite in SUITES for name in artifacts.tables(suite)],
        [paths.figures(suite) / f"{name}.json" for suite in SUITES for name in artifacts.figures(suite)],


for ready, command in BUILDS.items():

    rule:
        name:
            f"build_{os.path.basename(os.path.dirname(ready))}"
        output:
            ready,
        params:
            command=command,
        threads: workflow.cores
        shell:
            "{params.command}"


rule index:
    input:
        lambda wildcards: DATASETS[wildcards.dataset].ready or [],
    output:
        paths.index("{dataset}"),
    log:
        paths.log("index", "{dataset}"),
    params:
        card=lambda wildcards: DATASETS[wildcards.dataset],
        captions=lambda wildcards: DATASETS[wildcards.dataset].captions.model_dump_json(),
    threads: workflow.cores
    shell:
        "python -m engine.index --name {wildcards.dataset} --revision {params.card.revision:q}"
        " --shards {params.card.shards:q} --captions {params.captions:q} --pairs {params.card.pairs}"
        " --out {output} --jobs {threads} 2> {log}"


rule train:
    input:
        spec=paths.spec("{run}"),
        index=lambda wildcards: paths.index(RUNS[wildcards.run]["dataset"]["name"]),
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
            EVAL_SETS[name].ready for name in EVALUATIONS[wildcards.evaluation]["sets"] if EVAL_SETS[name].ready
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
            paths.evaluated(run["run_id"], milestone, SUITES[wildcards.suite]["evaluation"]["key"])
            for run in SUITES[wildcards.suite]["runs"]
            for milestone in run["spec"]["milestones"]
        ],
    output:
        paths.collected("{suite}"),
    log:
        paths.log("collect", "{suite}"),
    shell:
        "python -m analysis collect {input.suite} --out {output} 2> {log}"


rule table:
    input:
        paths.collected("{suite}"),
    output:
        [paths.tables("{suite}") / f"{{name}}{suffix}" for suffix in artifacts.TABLE_SUFFIXES],
    log:
        paths.log("table", "{suite}-{name}"),
    params:
        folder=subpath(output[0], parent=True),
    shell:
        "python -m analysis table {input} {wildcards.name} --out {params.folder} 2> {log}"


rule figure:
    input:
        paths.collected("{suite}"),
    output:
        [paths.figures("{suite}") / f"{{name}}{suffix}" for suffix in artifacts.FIGURE_SUFFIXES],
    log:
        paths.log("figure", "{suite}-{name}"),
    params:
        folder=subpath(output[0], parent=True),
    shell:
        "python -m analysis figure {input} {wildcards.name} --out {params.folder} 2> {log}"


onsuccess:
    for suite in SUITES:
        shell(f"python -m analysis show {paths.collected(suite)}")
