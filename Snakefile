"""Suites -> runs -> data -> train -> evaluate -> collect -> tables and figures -> report.

`snakemake` alone runs the quickstart suite on this machine; `--config suites=smoke` another one, `--profile slurm` on
a cluster. Training and evaluation are jobs that `engine.launch` submits and waits for; everything else runs here. How a
job is run stands in `resources`, whose changes run nothing again. What files and jobs there are says
experiments/workflow.py.
"""

import gc
import os
import sys

from engine import errors, versions

# All of a graph of thousands of jobs is kept: looking for garbage in it each 700 objects takes a tenth of the planning.
gc.set_threshold(100_000)

try:
    versions.check_packages()

    from analysis import artifacts
    from engine import paths
    from experiments.workflow import ABLATIONS, Workflow, wait_for_many

    flow = Workflow(config, sys.argv, workflow.cores)
except errors.KNOWN as error:
    raise WorkflowError(errors.describe(error))

if flow.is_elsewhere:
    wait_for_many(workflow)
# Rules start the interpreter that runs Snakemake, whatever comes first on the PATH.
shell.prefix(f"export PATH='{os.path.dirname(sys.executable)}':$PATH; ")


rule all:
    input:
        lambda wildcards: flow.whole(workflow, flow.files),
    message:
        "all of it is there"


# Parts of it: `snakemake tables figures`.
for part, files in flow.targets.items():

    rule:
        name:
            part
        input:
            lambda wildcards, files=files: flow.whole(workflow, files),
        message:
            f"{part}: all of it is there"


# `snakemake ablation_restart_period --config suites=cc12m`.
for target in ABLATIONS:

    rule:
        name:
            target
        input:
            lambda wildcards, target=target: flow.whole(workflow, flow.ablation(target)),
        message:
            f"{target}: all of it is there"


# `snakemake tune --config suites=study`: its trials, then the file of what they have chosen.
rule tune:
    input:
        lambda wildcards: flow.whole(workflow, flow.files),
    message:
        "choose the settings that were best"
    shell:
        f"python -m experiments choose {flow.choosing}"


for build in flow.builds():

    rule:
        name:
            build.name
        output:
            build.ready,
        threads: flow.preparation_threads
        resources:
            run=flow.preparation(build.name.replace("_", "-", 1), build.ready),
            queue=int(flow.prepares_in_jobs),
        params:
            command=build.command,
            revisions=build.revisions,
        message:
            f"{build.name.replace('_', ' ', 1)}: {build.command}"
        shell:
            "{resources.run} engine.jobs.shell {params.command:q}"


# What fetches training sets: here, and only when it is named. No other rule takes anything from these.
for target, arguments in flow.fetches().items():

    rule:
        name:
            target
        resources:
            here=1,
        params:
            options=arguments,
        shell:
            "exec python -m experiments training-data {params.options}"


# The only rule that downloads evaluation sets; it runs here, and only when it is named.
rule evaluation_data:
    resources:
        here=1,
    params:
        evaluations=sorted({each.reference for each in flow.evaluations.values()}),
    shell:
        "exec python -m experiments evaluation-data {params.evaluations:q}"


rule index:
    input:
        lambda wildcards: flow.datasets[wildcards.dataset].ready or [],
    output:
        paths.index("{dataset}"),
    log:
        paths.log("index", "{dataset}"),
    threads: flow.preparation_threads
    resources:
        run=lambda wildcards: flow.preparation(
            f"index-{wildcards.dataset}", paths.index(wildcards.dataset)
        ),
        processes=lambda wildcards, threads: threads or flow.prepare.cpus_per_task,
        queue=int(flow.prepares_in_jobs),
    params:
        revision=lambda wildcards: flow.datasets[wildcards.dataset].revision,
        shards=lambda wildcards: flow.datasets[wildcards.dataset].shards,
        digest=lambda wildcards: flow.datasets[wildcards.dataset].digest,
        fraction=lambda wildcards: flow.datasets[wildcards.dataset].fraction,
        pairs=lambda wildcards: flow.datasets[wildcards.dataset].pairs,
        captions=lambda wildcards: flow.datasets[
            wildcards.dataset
        ].captions.model_dump_json(),
    message:
        "index {wildcards.dataset}"
    shell:
        "{resources.run} engine.index --name {wildcards.dataset} --revision {params.revision:q} --shards {params.shards:q}"
        " --captions {params.captions:q} --pairs {params.pairs} --digest {params.digest} --fraction {params.fraction}"
        " --out {output} --jobs {resources.processes} 2> {log}"


# Specs and evaluations are written before the first job, and named by their content: nothing depends on their times.
rule train:
    input:
        lambda wildcards: paths.index(flow.runs[wildcards.run].dataset.name),
    output:
        paths.record("{run}"),
    log:
        paths.log("train", "{run}"),
    threads: lambda wildcards: flow.train[wildcards.run].threads
    resources:
        launch=lambda wildcards: flow.training(wildcards.run),
        queue=1,
    message:
        "train {wildcards.run}"
    shell:
        "exec python -m engine.launch --output {output} {resources.launch} 2> {log}"


rule evaluate:
    input:
        record=paths.record("{run}"),
        data=lambda wildcards: flow.built_for[wildcards.evaluation],
    output:
        paths.evaluated("{run}", "{milestone}", "{evaluation}"),
    log:
        paths.log("evaluate", "{run}-{milestone}-{evaluation}"),
    threads: lambda wildcards: flow.evaluate[wildcards.run].threads
    resources:
        launch=lambda wildcards: flow.evaluating(**wildcards),
        queue=1,
    message:
        "evaluate {wildcards.run} after {wildcards.milestone} samples on {wildcards.evaluation}"
    shell:
        "exec python -m engine.launch --output {output} {resources.launch} 2> {log}"


rule collect:
    input:
        lambda wildcards: flow.evaluated(wildcards.suite),
    output:
        paths.collected("{suite}"),
    log:
        paths.log("collect", "{suite}"),
    resources:
        here=1,
    params:
        content=lambda wildcards: flow.digest(wildcards.suite),
        sources=artifacts.collecting_sha256(),
    message:
        "collect {wildcards.suite}"
    shell:
        f"python -m analysis collect {paths.suite('{wildcards.suite}')} --out {{output}} 2> {{log}}"


# All tables and figures that a frame has something for. What is current stays.
rule draw:
    input:
        paths.collected("{suite}"),
    output:
        paths.drawn("{suite}"),
    log:
        paths.log("draw", "{suite}"),
    resources:
        here=1,
    params:
        sources=artifacts.drawing_sha256(),
    message:
        "draw the tables and figures of {wildcards.suite}"
    shell:
        f"python -m analysis draw {{input}} --out {paths.RESULTS} 2> {{log}}"


rule page:
    input:
        lambda wildcards: flow.shown_in(wildcards.report),
    output:
        paths.report("{report}"),
    log:
        paths.log("page", "{report}"),
    resources:
        here=1,
    params:
        suites=lambda wildcards: flow.reports[wildcards.report],
        sources=artifacts.report_sha256(),
    message:
        "write the report {wildcards.report}"
    shell:
        "python -m analysis report {params.suites} --out {output} 2> {log}"


onstart:
    try:
        flow.start(workflow)
    except errors.KNOWN as error:
        raise WorkflowError(errors.describe(error))


onsuccess:
    if made := flow.made(workflow):
        shell(f"python -m analysis show {' '.join(map(str, made))}")
