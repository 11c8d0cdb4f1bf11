"""Store matrices of a saved run in fewer bytes, without training it again, and see what it costs.

    python -m compression RUN                                  # FFN matrices, every method
    python -m compression RUN --matrices key --ratios 5,10,25
    python -m compression RUN --matrices embeddings
    python -m compression RUN --methods shared --ratios 10 --save RUN2
    python -m compression tiny --data FOLDER                   # a checkpoint: its masked-LM loss

A ratio of 10 gives the chosen matrices a tenth of their bytes; everything that must be stored to
have them back counts. A saved run holds the stored form, and opening it decodes the matrices: this
saves space, not time (two thin matrices, python -m laser apply --factored, save both).

Writes compress-MATRICES.csv and .png to RUN/compression (or --out). A stopped command goes on when
it is called again. Methods: see compression/codecs.py and compression/autoencoder.py.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from bert import UserError
from bert.errors import check_known
from bert.files import write_json
from bert.matrices import MATRICES
from common.cli import Parser, add_run_flags, run_script
from common.flags import parse_numbers
from common.plots import draw_curves
from common.tables import format_number, text_table, write_csv
from compression.codecs import FLOAT
from compression.importance import fisher_importance
from compression.stored import CODECS, EMBEDDINGS, Compressed, find_modules
from multitask import runs
from multitask.evaluation import model_fingerprint
from multitask.metrics import main_scores
from multitask.session import RunSession

UNCHANGED = "as it is"                                       # the first row of the table
DEFAULT = "svd,centered,weighted,kronecker,prune,bits,autoencoder,shared"
DEFAULT_EMBEDDINGS = "centered,prune,bits,direction"


def parse(arguments):
    """→ args with lists: args.matrices, args.methods (names of codecs), args.ratios"""
    parser = Parser(prog="python -m compression", description=__doc__)
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", help="folder of the results (default: RUN/compression)")
    parser.add_argument("--matrices", default="fc_in,fc_out",
                        help=f"all, or some of {', '.join(MATRICES)} (default: %(default)s), or "
                             f"{EMBEDDINGS}")
    parser.add_argument("--methods", help=f"some of {', '.join(CODECS)} (default: all that suit)")
    parser.add_argument("--ratios", default="5,10", help="how many times smaller (default: 5,10)")
    parser.add_argument("--save", metavar="RUN2", help="save a run whose matrices are stored so: "
                                                       "one method, one ratio")
    args = parser.parse_args(arguments)
    default = DEFAULT_EMBEDDINGS if args.matrices == EMBEDDINGS else DEFAULT
    args.methods = (args.methods or default).split(",")
    args.matrices = list(MATRICES) if args.matrices == "all" else args.matrices.split(",")
    args.ratios = parse_numbers("--ratios", args.ratios, lambda ratio: ratio > 1,
                                "numbers above 1, as in 5,10")
    for flag, names, known in (("--matrices", args.matrices, (*MATRICES, EMBEDDINGS)),
                               ("--methods", args.methods, CODECS)):
        for name in names:
            check_known(name, known, flag[2:], where=flag)
    if args.save and len(args.methods) * len(args.ratios) > 1:
        raise UserError("--save saves one model; give one of --methods and one of --ratios")
    if not runs.is_saved_run(args.run) and (args.save or "weighted" in args.methods):
        raise UserError(f"--save and the method weighted need a saved run, and {args.run} is none")
    return args


def put_weights(modules, weights):
    """Put the weights {target: [n, m]} into the modules {target: module} → the previous weights."""
    previous = {target: module.weight.data for target, module in modules.items()}
    for target, module in modules.items():
        module.weight.data = weights[target].to(previous[target].device)
    return previous


def reconstruction_error(weights, decoded):
    """{target: [n, m]} both → {"rmse", "cosine"}: of all entries, and the mean over all rows"""
    old, new = (torch.cat([w.flatten() for w in side.values()]) for side in (weights, decoded))
    cosines = torch.cat([F.cosine_similarity(weights[t], decoded[t]) for t in weights])
    return {"rmse": float((old - new).square().mean().sqrt()), "cosine": float(cosines.mean())}


def measure(session, matrices, compressed=None):
    """→ a row of the table: sizes, errors and scores of the model with the decoded matrices; of the
    unchanged model without `compressed`"""
    modules, error = find_modules(session.model.bert, matrices), {"rmse": 0.0, "cosine": 1.0}
    plain = FLOAT * sum(module.weight.numel() for module in modules.values())
    method, ratio, size = UNCHANGED, 1.0, plain
    if compressed is not None:
        method, ratio, size = compressed.codec, compressed.ratio, compressed.bytes
        decoded = compressed.decode()
        weights = put_weights(modules, decoded)
        error = reconstruction_error({t: w.cpu() for t, w in weights.items()}, decoded)
    scores = main_scores(session.evaluate()[0])
    if compressed is not None:
        put_weights(modules, weights)
    rest = FLOAT * sum(p.numel() for p in session.model.bert.parameters()) - plain
    return {"method": method, "ratio": ratio, "bytes": size, "model_bytes": rest + size, **error,
            **scores}


def compare(session, args, folder):
    """Measure each method at each ratio; write the table and the figure. Rows that were measured
    before on the same model and data are read from compress-MATRICES.json."""
    bert, names = session.model.bert, args.matrices
    path = folder / f"compress-{'-'.join(names)}.json"
    mark = model_fingerprint(session.model, session.first_splits, session.precision)
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("fingerprint") != mark:
        found = {"fingerprint": mark, "rows": {}}
    importance = fisher_importance(session, names) if "weighted" in args.methods else None
    rows = []
    for method, ratio in [(UNCHANGED, 1), *((m, r) for m in args.methods for r in args.ratios)]:
        key = f"{method} {ratio:g}"
        if key not in found["rows"]:
            compressed = (None if method == UNCHANGED else
                          Compressed.fit(bert, names, method, ratio, importance))
            found["rows"][key] = measure(session, names, compressed)
            write_json(path, found)
        rows.append(found["rows"][key])
    numbers = list(rows[0])[2:]
    print(text_table([["method", "ratio", *numbers], *(
        [row["method"], f"{row['ratio']:g}", *(format_number(row[n]) for n in numbers)]
        for row in rows)]))
    write_csv(path.with_suffix(".csv"), rows)
    score = next(name for name in ("overall", "mean", "masked_lm_loss") if name in numbers)
    curves = {method: sorted((row["model_bytes"] / 2 ** 20, row[score]) for row in rows
                             if row["method"] == method) for method in (UNCHANGED, *args.methods)}
    draw_curves([(score, curves)], path.with_suffix(".png"), xlabel="stored model, MiB")
    print(f"\n{folder}/: {path.stem}.csv, {path.stem}.png")


def save(session, args):
    """Save the run with these matrices in stored form."""
    def edit(session):
        bert, names, (method,) = session.model.bert, args.matrices, args.methods
        importance = fisher_importance(session, names) if method == "weighted" else None
        bert.compressed = Compressed.fit(bert, names, method, args.ratios[0], importance)
        put_weights(find_modules(bert, names), bert.compressed.decode())
        bert.edits = [*bert.edits, {"method": "compression", "codec": method,
                                    "ratio": args.ratios[0], "matrices": names}]

    session.derive_and_compare(args.save, args.overwrite, edit)


def main(arguments=None):
    args = parse(arguments)
    if args.save:
        return save(RunSession(args), args)
    if runs.is_saved_run(args.run):
        return compare(RunSession(args), args, Path(args.out or Path(args.run, "compression")))
    from compression.checkpoint import CheckpointSession  # imports pretraining

    folder = Path(args.out or f"compression-{Path(args.run).name}")
    return compare(CheckpointSession(args), args, folder)


if __name__ == "__main__":
    run_script(main)
