"""Store matrices of a saved run smaller, without training it again, and see what that costs.

    python -m compression RUN                                  # FFN matrices, every method
    python -m compression RUN --matrices key --ratios 5,10,25
    python -m compression RUN --matrices embeddings
    python -m compression RUN --methods shared --ratios 10 --save RUN2
    python -m compression tiny --data FOLDER                   # a checkpoint: its masked-LM loss

A ratio of 10 gives the chosen matrices a tenth of their bytes; everything that must be stored to
have them back counts. Biases, and the matrices that are not chosen, stay as they are. What is saved
is the stored form; it is decoded when the run is opened. So this saves space, not time (two thin
matrices, python -m laser apply --factored, save both).

Leaves compress-MATRICES.csv and .png in RUN/laser (or --out). Stopped, the same command goes on.
Methods: see compression/codecs.py and compression/autoencoder.py.
"""

import hashlib
import json

import torch
import torch.nn.functional as F

from bert import UserError
from bert.errors import did_you_mean
from bert.files import write_json
from common.cli import Parser
from compression.codecs import FLOAT
from compression.stored import CODECS, EMBEDDINGS, FILE, Compressed, get_weight, matrix_places
from laser import plots as pictures
from laser.interventions import MATRICES
from laser.report import comparison, flat, parameters, stored
from laser.session import Checkpoint, RunSession, add_run_flags, results_folder
from laser.sweep import write_csv
from multitask import runs

DEFAULT_METHODS = {                                                     # methods that are tried by default
    "matrices": ("svd", "centered", "weighted", "kronecker", "prune", "bits", "autoencoder",
                 "shared"),
    EMBEDDINGS: ("centered", "prune", "bits", "direction"),
}


def parse(arguments):
    parser = Parser(prog="python -m compression", description=__doc__)
    add_run_flags(parser)
    parser.add_argument("--out", help="folder of the results (default: RUN/laser)")
    parser.add_argument("--matrices", default="fc_in,fc_out",
                        help=f"all, or some of {', '.join((*MATRICES, EMBEDDINGS))} (default: "
                             f"%(default)s)")
    parser.add_argument("--methods", help=f"some of {', '.join(CODECS)} (default: all that suit)")
    parser.add_argument("--ratios", default="5,10", help="how many times smaller (default: 5,10)")
    parser.add_argument("--save", metavar="RUN2", help="save the run whose matrices are stored "
                                                       "so: one method, one ratio")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --save")
    args = parser.parse_args(arguments)
    names = list(MATRICES) if args.matrices == "all" else args.matrices.split(",")
    if EMBEDDINGS in names and len(names) > 1:
        raise UserError("--matrices: embeddings are compressed alone, by methods of their own")
    methods = args.methods.split(",") if args.methods else list(DEFAULT_METHODS.get(names[0], DEFAULT_METHODS["matrices"]))
    for flag, given, known in (("--matrices", names, (*MATRICES, EMBEDDINGS)),
                               ("--methods", methods, CODECS)):
        for name in given:
            if name not in known:
                raise UserError(f"{flag}: there is no {name!r}{did_you_mean(name, known)}; there "
                                f"are {', '.join(known)}")
    try:
        ratios = [float(ratio) for ratio in args.ratios.split(",")]
    except ValueError:
        ratios = [0.0]
    if min(ratios) <= 1:
        raise UserError(f"--ratios {args.ratios} is not understood; write numbers above 1, as in "
                        f"5,10")
    if args.save and len(methods) * len(ratios) > 1:
        raise UserError("--save saves one model; give one of --methods and one of --ratios")
    return args, names, methods, ratios


def reconstruction_error(weights, decoded):
    """→ {"rmse", "cosine"} of decoded rows and the rows they stand for, means over all."""
    old, new = (torch.cat([w.flatten() for w in side.values()]) for side in (weights, decoded))
    cosines = torch.cat([F.cosine_similarity(weights[p], decoded[p]) for p in weights])
    return {"rmse": float((old - new).square().mean().sqrt()), "cosine": float(cosines.mean())}


def measure(session, compressed):
    """Score the model with the decoded matrices in it → one row of the table."""
    bert = session.model.bert
    weights = {p: get_weight(bert, p).data for p in compressed.shapes}
    decoded = compressed.decode()
    whole = FLOAT * (parameters(bert) - sum(w.numel() for w in weights.values()))
    try:
        for p, weight in decoded.items():
            get_weight(bert, p).data = weight.to(session.device)
        scores, *_ = session.evaluate()
    finally:
        for p, weight in weights.items():
            get_weight(bert, p).data = weight
    return {"method": compressed.method, "ratio": compressed.ratio, "bytes": compressed.bytes,
            "model_bytes": whole + compressed.bytes,
            **reconstruction_error({p: w.cpu() for p, w in weights.items()}, decoded),
            **flat(scores)}


def table(rows):
    names = [name for name in rows[0] if name not in ("method", "ratio")]
    lines = [f"{'method':12}{'ratio':>6}" + "".join(f"{name:>13}" for name in names)]
    for row in rows:
        cells = [f"{row[n]:13,}" if isinstance(row[n], int) else f"{row[n]:13.4f}" for n in names]
        lines.append(f"{row['method']:12}{row['ratio']:6g}" + "".join(cells))
    return "\n".join(lines)


class Results:
    """The rows measured so far, on the disk: what is there is not measured again."""

    def __init__(self, path, about):
        self.path = path
        mark = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        old = json.loads(path.read_text()) if path.is_file() else {}
        self.found = old if old.get("of") == mark else {"of": mark, "rows": {}}

    def get(self, name, measured):
        if name not in self.found["rows"]:
            self.found["rows"][name] = measured()
            write_json(self.path, self.found)
        return self.found["rows"][name]


def as_it_is(session, names):
    """The table's first row: nothing compressed."""
    bert, (scores, *_) = session.model.bert, session.evaluate()
    chosen = sum(get_weight(bert, p).numel() for p in matrix_places(bert, names))
    return {"method": "as it is", "ratio": 1.0, "bytes": FLOAT * chosen,
            "model_bytes": FLOAT * parameters(bert), "rmse": 0.0, "cosine": 1.0, **flat(scores)}


def save(args, session, names, method, ratio):
    """Save the run with these matrices in stored form."""
    folder, bert = session.new_run(args.save, args.overwrite), session.model.bert
    importance = session.importance(names) if method == "weighted" else None
    compressed = Compressed.fit(bert, names, method, ratio, importance)
    before, (scores, *_) = stored(session.run), session.evaluate()
    for p, weight in compressed.decode().items():
        get_weight(bert, p).data = weight.to(session.device)
    new_scores, predictions, _ = session.evaluate()
    bert.edits = [*bert.edits, {"method": "compression", "kind": "stored", "codec": method, "ratio": ratio,
                                "matrices": names}]
    runs.save_edited(folder, args.run, session.settings, session.model, session.tokenizer, session.splits,
                     new_scores, predictions, {FILE: compressed.stored})
    print(comparison({"before": {"bytes": before, "scores": scores},
                      "after": {"bytes": stored(folder), "scores": new_scores}}))
    print(f"\nrun: {folder}")


def main(arguments):
    args, names, methods, ratios = parse(arguments)
    session = (RunSession if runs.is_saved_run(args.run) else Checkpoint)(args)
    if args.save:
        return save(args, session, names, methods[0], ratios[0])
    bert, stem, folder = session.model.bert, f"compress-{'-'.join(names)}", results_folder(args)
    results = Results(folder / f"{stem}.json", [session.fingerprint, names])
    importance = session.importance(names) if "weighted" in methods else None
    rows = [results.get("as it is", lambda: as_it_is(session, names))]
    for method in methods:
        for ratio in ratios:
            rows.append(results.get(f"{method} {ratio:g}", lambda method=method, ratio=ratio: measure(
                session, Compressed.fit(bert, names, method, ratio, importance))))
    print(table(rows))
    write_csv(folder / f"{stem}.csv", rows)
    score = next(name for name in ("overall", "mean", "masked_lm_loss") if name in rows[0])
    curves = {method: [(row["model_bytes"], row[score]) for row in rows if row["method"] == method]
              for method in ("as it is", *methods)}
    pictures.sizes(curves, score, folder / f"{stem}.png")
    print(f"\n{folder}/: {stem}.csv, {stem}.png")
    return None
