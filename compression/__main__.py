"""Store matrices of a saved run in fewer bytes, without training it again, and measure the loss.

    python -m compression RUN                                  # FFN matrices, every method
    python -m compression RUN --matrices key --ratios 5,10,25
    python -m compression RUN --matrices embeddings
    python -m compression RUN --methods shared --ratios 10 --save RUN2
    python -m compression tiny --data FOLDER                   # a checkpoint: its masked-LM loss

A ratio of 10 gives the chosen matrices a tenth of their bytes, counting everything that is needed
to decode them. Opening a saved run decodes its matrices: this saves space, not time (python -m
laser apply --factored saves both). Writes compress-MATRICES.csv and .png to RUN/compression (or
--out). A stopped command resumes when called again. Methods: compression/codecs.py, autoencoder.py.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from bert import UserError
from bert.checkpoint import pretraining_heads
from bert.errors import check_known
from bert.files import write_json
from bert.json_files import read_results
from bert.matrices import MATRICES
from common.cli import Parser, add_run_flags, run_script
from common.device import pick_device, pick_precision
from common.flags import parse_numbers
from common.plots import draw_curves
from common.run_folder import claim
from common.tables import rows_table, write_csv
from compression.stored import CODECS, EMBEDDINGS, Compressed, find_modules
from multitask import runs
from multitask.evaluation import check_outputs, load_split, model_fingerprint, read_split
from multitask.metrics import COURSE, main_scores
from multitask.session import RunSession
from pretraining.corpus import Corpus
from pretraining.masking import HeldOut, Masking
from pretraining.model import MaskedLM, load_head, open_checkpoint

DEFAULT = "svd", "centered", "weighted", "kronecker", "prune", "bits", "autoencoder", "shared"
DEFAULT_EMBEDDINGS = "centered", "prune", "bits", "direction"
ROW = {"method": str, "bytes": int, "model_bytes": int} | dict.fromkeys(
    ("ratio", "rmse", "cosine"), float)
EXAMPLES = 256                       # training examples of each task that give the importance


def parse(arguments):
    """→ args with lists: args.matrices, args.methods (names of codecs), args.ratios"""
    parser = Parser(prog="python -m compression", description=__doc__)
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", help="folder of the results (default: RUN/compression)")
    parser.add_argument("--matrices", default="fc_in,fc_out", help="embeddings, all, or some of "
                        f"{', '.join(MATRICES)} (default: %(default)s)")
    parser.add_argument("--methods", help=f"some of {', '.join(CODECS)} (default: all that suit)")
    parser.add_argument("--ratios", default="5,10", help="times fewer bytes (default: 5,10)")
    parser.add_argument("--save", metavar="RUN2", help="save such a run: one method, one ratio")
    args = parser.parse_args(arguments)
    default = DEFAULT_EMBEDDINGS if args.matrices == EMBEDDINGS else DEFAULT
    is_run = runs.is_saved_run(args.run)
    args.methods = (args.methods.split(",") if args.methods else
                    [method for method in default if is_run or method != "weighted"])
    args.matrices = list(MATRICES) if args.matrices == "all" else args.matrices.split(",")
    args.ratios = parse_numbers("--ratios", args.ratios, lambda ratio: ratio > 1,
                                "numbers above 1, as in 5,10")
    for matrix in args.matrices:
        check_known(matrix, (*MATRICES, EMBEDDINGS), "matrix", where="--matrices")
    for method in args.methods:
        check_known(method, CODECS, "method", where="--methods")
    if args.save and len(args.methods) * len(args.ratios) > 1:
        raise UserError("--save saves one model; give one of --methods and one of --ratios")
    if not is_run and (args.save or "weighted" in args.methods):
        raise UserError(f"--save and the method weighted need a saved run, and {args.run} is none")
    return args


class CheckpointSession:
    """A RunSession of a checkpoint: scores its masked LM on the texts of the dev files."""

    score_names = ("masked_lm_loss", "masked_accuracy", "commonest_token_accuracy")

    def __init__(self, args):
        self.first_splits, self.device = {}, pick_device(args.device)
        tokenizer, bert = open_checkpoint(args.run)
        self.precision, self.autocast = pick_precision(args.precision or "fp32", self.device,
                                                       bert.config.hidden_size)
        self.model = MaskedLM(bert).to(self.device)
        if not load_head(self.model.head, pretraining_heads(args.run), args.run):
            raise UserError(f"{args.run} is neither a saved run nor a checkpoint with a masked-LM "
                            f"head; there is nothing to score it by")
        texts = dict.fromkeys(text for task in COURSE for example in read_split(
            task, "dev", args.data or "data")[:args.limit] for text in example.texts)
        corpus, line_ids = Corpus(tokenizer, list(texts), 128), torch.arange(len(texts))
        self.heldout = HeldOut(corpus, line_ids, line_ids, Masking(tokenizer))

    def evaluate(self):
        return self.heldout.scores(self.model, None, self.device, self.autocast), None


def fisher_importance(session, matrices):
    """{(layer, matrix): [n]}: Σ (∂loss/∂w)² over the weights of each row and over batches of
    training examples (Hsu et al. 2022, Fisher-weighted SVD), by the loss that the run was trained
    with. Frozen weights require gradients from here on."""
    model, settings = session.model.eval(), session.settings
    weights = {target: module.weight.requires_grad_()
               for target, module in find_modules(model.bert, matrices).items()}
    importance = {target: torch.zeros(len(weight)) for target, weight in weights.items()}
    for task in model.heads:
        split = load_split(task, "train", settings.data, session.tokenizer, settings, EXAMPLES)
        for rows in torch.arange(len(split)).split(16):
            batch = split.batch(rows.tolist()).to(session.device)
            outputs = model(task, batch)
            check_outputs(outputs, task, [split.ids[i] for i in rows.tolist()])
            loss = settings.loss_of(task)(outputs, batch.labels)
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for target, gradient in zip(weights, gradients):
                importance[target] += gradient.square().sum(dim=1).cpu()
    return importance


def put_weights(modules, weights):
    """Put the weights {target: [n, m]} into {target: module}."""
    for target, module in modules.items():
        module.weight.data = weights[target].to(module.weight.device)


def measure(session, args, method, ratio, importance):
    """→ a row of the table, of the unchanged model where method is None. "rmse" is of all entries,
    "cosine" the mean over the rows."""
    bert, modules = session.model.bert, find_modules(session.model.bert, args.matrices)
    weights = {target: module.weight.data for target, module in modules.items()}
    size = sum(weight.nbytes for weight in weights.values())
    rest, rmse, cosine = sum(p.nbytes for p in bert.parameters()) - size, 0.0, 1.0
    if method:
        compressed = Compressed.fit(bert, args.matrices, method, ratio, importance)
        size, decoded = compressed.bytes, compressed.decode()
        put_weights(modules, decoded)
        rows = [(weights[target].cpu(), decoded[target]) for target in modules]
        difference = torch.cat([(old - new).flatten() for old, new in rows])
        rmse = float(difference.square().mean().sqrt())
        cosine = float(torch.cat([F.cosine_similarity(old, new) for old, new in rows]).mean())
    scores = main_scores(session.evaluate()[0])
    put_weights(modules, weights)
    return {"method": method or "as it is", "ratio": ratio, "bytes": size,
            "model_bytes": rest + size, "rmse": rmse, "cosine": cosine, **scores}


def compare(session, args, folder):
    """Measure each method at each ratio; write the table and figure. compress-MATRICES.json holds
    the rows that were measured before on the same model and data."""
    path = folder / f"compress-{'-'.join(args.matrices)}.json"
    fingerprint = model_fingerprint(session.model, session.first_splits, session.precision)
    known = read_results(path, fingerprint, ROW | dict.fromkeys(session.score_names, float))
    importance = fisher_importance(session, args.matrices) if "weighted" in args.methods else None
    rows = []
    for method, ratio in [(None, 1.0), *((m, r) for m in args.methods for r in args.ratios)]:
        key = f"{method} {ratio:g}"
        if key not in known:
            known[key] = measure(session, args, method, ratio, importance)
            write_json(path, {"fingerprint": fingerprint, "rows": known})
        rows.append(known[key])
    print(rows_table([row | {"ratio": f"{row['ratio']:g}"} for row in rows]))
    write_csv(path.with_suffix(".csv"), rows)
    score = next(name for name in ("overall", "mean", "masked_lm_loss") if name in rows[0])
    curves = {method: [(row["model_bytes"] / 2 ** 20, row[score]) for row in rows
                       if row["method"] == method] for method in ("as it is", *args.methods)}
    draw_curves([(score, curves)], path.with_suffix(".png"), xlabel="stored model, MiB")
    print(f"\n{folder}/: {path.stem}.csv, {path.stem}.png")


def compress(args, session):
    """Replace these matrices of the session's model by what their stored form decodes to."""
    bert, (method,), (ratio,) = session.model.bert, args.methods, args.ratios
    importance = fisher_importance(session, args.matrices) if method == "weighted" else None
    bert.compressed = Compressed.fit(bert, args.matrices, method, ratio, importance)
    put_weights(find_modules(bert, args.matrices), bert.compressed.decode())
    bert.edits = [*bert.edits, {"method": "compression", "codec": method, "ratio": ratio,
                                "matrices": args.matrices}]


def main(arguments=None):
    args = parse(arguments)
    if args.save:
        RunSession(args).derive_and_compare(args.save, args.overwrite, partial(compress, args))
    elif runs.is_saved_run(args.run):
        session = RunSession(args)
        with session.results(args.out, "compression") as folder:
            compare(session, args, folder)
    else:
        with claim(Path(args.out or f"compression-{Path(args.run).name}")) as folder:
            compare(CheckpointSession(args), args, folder)


if __name__ == "__main__":
    run_script(main)
