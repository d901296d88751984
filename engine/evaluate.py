"""Evaluate one model on every set of an evaluation: see `engine.evaluation.runner`.

Of a run:      python -m engine.evaluate RECORD EVALUATION --milestone N
Of any model:  python -m engine.evaluate --open-clip MODEL --pretrained TAG_OR_FILE --evaluation NAME --out DIR
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import get_args

import torch

from engine import distributed, errors, files, paths
from engine.evaluation.runner import evaluate_published, evaluate_run, find_evaluation, restrict, summarize
from engine.heartbeat import Heartbeat
from engine.schema.base import parse
from engine.schema.evaluation import Evaluation, Precision, WhenMissing
from engine.schema.record import Record
from engine.schema.run import Execution


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, nargs="?", help="record.json of the run")
    parser.add_argument("evaluation", type=Path, nargs="?", help="a file of results/evaluations/")
    parser.add_argument("--milestone", type=int, help="samples seen by the weights to evaluate")
    parser.add_argument("--sets", metavar="A,B", help="only these sets of the evaluation")
    parser.add_argument("--execution", default="{}", help="execution settings as JSON")
    other = parser.add_argument_group("any open_clip model instead of a run")
    other.add_argument("--open-clip", metavar="MODEL", help="its name, local-dir:FOLDER or hf-hub:REPOSITORY")
    other.add_argument("--pretrained", metavar="TAG_OR_FILE", help="open_clip's tag of its weights, or a file of them")
    other.add_argument("--random-weights", action="store_true", help="take untrained weights")
    other.add_argument(
        "--evaluation", dest="evaluation_name", metavar="NAME_OR_FILE", help="of experiments/evaluations/, or a path"
    )
    other.add_argument("--out", type=Path, metavar="DIR", help="where results go, one JSON a set")
    other.add_argument("--precision", choices=get_args(Precision), help="of the encoders; bf16 is autocast")
    other.add_argument("--when-missing", choices=get_args(WhenMissing), help="what to do where a set is not on disk")
    args = parser.parse_args(argv)
    of_run, of_model = (args.record, args.evaluation, args.milestone), (args.open_clip, args.evaluation_name, args.out)
    if None in (of_run if args.open_clip is None else of_model):
        parser.error("give RECORD EVALUATION --milestone N, or --open-clip MODEL --evaluation NAME --out DIR")
    with errors.explained(), contextlib.ExitStack() as watch:
        execution = parse(Execution, args.execution, "execution", strict=True)
        torch.set_num_threads(execution.threads)
        torch.backends.cudnn.allow_tf32 = False
        device = distributed.choose_device(execution.device).type
        if args.open_clip is None:
            record = parse(Record, files.read_text(args.record), str(args.record))
            evaluation = parse(Evaluation, files.read_text(args.evaluation), str(args.evaluation))
        else:
            evaluation = find_evaluation(args.evaluation_name)
            given = {"precision": args.precision, "when_missing": args.when_missing}
            evaluation = evaluation.model_copy(update={key: value for key, value in given.items() if value})
        chosen = restrict(evaluation, args.sets)
        watch.enter_context(Heartbeat(execution.stall_sec).watching())
        if args.open_clip is None:
            results = evaluate_run(record, args.milestone, chosen, device, num_workers=execution.num_workers)
            if args.sets is None:
                done = paths.evaluated(record.run_id, args.milestone, evaluation.key)
                files.write_text(done, json.dumps(sorted(evaluation.sets)) + "\n")
        else:
            results = evaluate_published(
                args.open_clip,
                args.pretrained,
                chosen,
                args.out,
                device,
                random_weights=args.random_weights,
                num_workers=execution.num_workers,
            )
        sys.stderr.write(summarize(results, evaluation))


if __name__ == "__main__":
    main()
