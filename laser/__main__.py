"""LASER on a saved run, and compression without retraining.

    python -m laser sweep RUN            every layer × matrix × keep, each alone: CSV and heat map
    python -m laser search RUN           the best one, stacks of them, and whether the gain is real
    python -m laser apply RUN --laser 4:fc_out:0.3,5:fc_in:0.3 --out RUN2 [--factored]
    python -m compression RUN         store matrices smaller: sizes against scores

Each has its own --help. An intervention is written layer:matrix:keep; layers count from 0, matrices
are fc_in, fc_out, query, key, value and attention_output, and keep is a fraction of the rank. After
it may stand :magnitude (keep the largest entries) or :random[:seed] (keep entries by chance).
"""

import sys

from bert import UserError
from bert.errors import did_you_mean
from common.cli import Parser, run_script
from compression import __main__ as compress
from laser import plots as pictures
from laser import search, sweep
from laser.edit import apply, edit_of
from laser.interventions import MATRICES, VARIANTS, parse
from laser.output_cache import OutputCache
from laser.report import comparison, parameters, stored
from laser.session import RunSession, add_run_flags, results_folder
from multitask import runs


def grid_parser(command, doc):
    parser = Parser(prog=f"python -m laser {command}", description=doc)
    add_run_flags(parser)
    parser.add_argument("--out", help="folder of the results (default: RUN/laser)")
    parser.add_argument("--layers", default="upper", help="upper (default), all, or as in 3,4,5")
    parser.add_argument("--matrices", default="fc_in,fc_out",
                        help=f"all, or some of {', '.join(MATRICES)} (default: fc_in,fc_out)")
    parser.add_argument("--keep", default=",".join(map(str, sweep.KEEPS)), metavar="FRACTIONS",
                        help="fractions of the rank to keep (default: %(default)s)")
    parser.add_argument("--variant", default="svd", choices=VARIANTS,
                        help="default: svd; the others drop entries instead of ranks")
    return parser


def open_grid(args):
    """→ Outputs, the grid of interventions, the folder for results."""
    session, folder = RunSession(args), results_folder(args)
    bert = session.model.bert
    layers = sweep.choose_layers(args.layers, len(bert.layers))
    grid = sweep.grid(bert, layers, sweep.choose_matrices(args.matrices),
                      sweep.choose_keeps(args.keep), args.variant)
    return OutputCache(session.model, session.first_splits, session.device, session.autocast,
                   folder / "outputs.safetensors", session.precision), grid, folder


def main_sweep(arguments):
    outputs, grid, folder = open_grid(grid_parser("sweep", sweep.__doc__).parse_args(arguments))
    rows = sweep.sweep(outputs, grid)
    sweep.write_csv(folder / "sweep.csv", rows)
    pictures.heat_maps(rows, folder / "heatmap.png")
    places = {i.session: outputs.evaluator.ranks_of(i.session).parts for i in grid}
    pictures.spectra(places, folder / "spectra.png")
    print(f"{sweep.sweep_table(rows)}\n\n{folder}/: sweep.csv, heatmap.png, spectra.png\n"
          f"These are the best of {len(grid)} on the examples they were chosen on; whether a gain "
          f"is real says: python -m laser search")


def main_search(arguments):
    parser = grid_parser("search", search.__doc__)
    parser.add_argument("--metric", default="", help="what to raise: overall, mean (which ranks as "
                        "Alappat's plain sum), or a task (default: overall if there is one)")
    parser.add_argument("--splits", type=int, default=5, help="seeded halvings of dev (default: 5)")
    args = parser.parse_args(arguments)
    if args.splits < 1:
        raise UserError(f"--splits is {args.splits}; it must be 1 or more")
    outputs, grid, folder = open_grid(args)
    outputs.add([()], "evaluate")
    by = search.choose_score(outputs, args.metric)
    print(search.paper_table(search.paper_protocol(outputs, grid, by)), flush=True)
    found = search.held_out(outputs, grid, by, args.splits)
    print(f"\n{search.held_out_table(found, by)}\n\n{search.verdict(found, by)}")
    sweep.write_csv(folder / "search.csv", [
        {**row, "gain": row["gain"].value, "low": row["gain"].low, "high": row["gain"].high}
        for row in found])
    pictures.gains({name: [row["gain"] for row in found if row["search"] == name]
                    for name in search.SEARCHES}, f"gain in {by}", folder / "search.png")
    print(f"\n{folder}/: search.csv, search.png")


def main_apply(arguments):
    """Reduce matrices of a saved run and save the result as a run of its own, which any script
    opens. Nothing is trained."""
    parser = Parser(prog="python -m laser apply", description=main_apply.__doc__)
    add_run_flags(parser)
    parser.add_argument("--out", required=True, help="folder of the new run")
    parser.add_argument("--laser", required=True, help="layer:matrix:keep[:variant][,…]")
    parser.add_argument("--factored", action="store_true",
                        help="store and compute two thin matrices where that is smaller")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    args = parser.parse_args(arguments)
    stack = parse(args.laser)
    session = RunSession(args)
    folder = session.new_run(args.out, args.overwrite)
    bert = session.model.bert
    count, (scores, _, seconds) = parameters(bert), session.evaluate()
    apply(bert, stack, args.factored)
    session.model.to(session.device)
    bert.edits = [*bert.edits, edit_of(bert, stack)]
    new_scores, predictions, new_seconds = session.evaluate()
    runs.save_edited(folder, args.run, session.settings, session.model, session.tokenizer, session.splits,
                     new_scores, predictions)
    print(comparison({
        "before": {"parameters": count, "bytes": stored(session.run), "seconds": seconds,
                   "scores": scores},
        "after": {"parameters": parameters(bert), "bytes": stored(folder), "seconds": new_seconds,
                  "scores": new_scores}}))
    print(f"\nrun: {folder}")


COMMANDS = {"sweep": main_sweep, "search": main_search, "apply": main_apply,
            "compress": compress.main}


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return None
    if arguments[0] not in COMMANDS:
        near = did_you_mean(arguments[0], COMMANDS)
        raise UserError(f"there is no command {arguments[0]!r}{near}; there are "
                        f"{', '.join(COMMANDS)}")
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    run_script(main)
