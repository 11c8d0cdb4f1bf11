"""LASER on a saved run.

    python -m laser sweep RUN            each of a grid of layer × matrix × keep: CSV, heat map
    python -m laser search RUN           the best stack, and whether its gain holds on held-out data
    python -m laser apply RUN --laser 4:fc_out:0.3,5:fc_in:0.3 --out RUN2 [--factored]

Each command has its own --help. An intervention is written layer:matrix:keep. Layers count from 0,
matrices are fc_in, fc_out, query, key, value and attention_output, keep is a fraction of the rank,
or with :magnitude after it of the entries, of which one fewer stays."""

from contextlib import contextmanager
from functools import partial

from bert import UserError
from bert.errors import check_known
from bert.matrices import MATRICES
from common.cli import add_run_flags, run_command, run_script
from common.flags import parse_numbers
from common.tables import rows_table, write_csv
from laser import search, sweep
from laser.interventions import VARIANTS, apply, parse
from laser.output_cache import OutputCache
from multitask.session import RunSession


def add_grid_flags(parser):
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision")
    parser.add_argument("--out", help="folder of the results (default: RUN/laser)")
    parser.add_argument("--layers", default="upper", help="upper (default), all, or as in 3,4,5")
    parser.add_argument("--matrices", default="fc_in,fc_out",
                        help=f"all, or some of {', '.join(MATRICES)} (default: %(default)s)")
    parser.add_argument("--keep", default=",".join(map(str, sweep.KEEPS)), metavar="FRACTIONS",
                        help="fractions of the rank to keep (default: %(default)s)")
    parser.add_argument("--variant", default="svd", choices=VARIANTS,
                        help="lower rank (svd, the default), or smallest entries zero (magnitude)")


@contextmanager
def open_grid(args):
    """Claim the folder of the results; yield OutputCache, interventions of the grid, folder."""
    session = RunSession(args)
    bert = session.model.bert
    matrices = list(MATRICES) if args.matrices == "all" else args.matrices.split(",")
    keeps = parse_numbers("--keep", args.keep, lambda keep: 0 < keep <= 1,
                          "fractions above 0 and up to 1, as in 0.9,0.5,0.1")
    layers = sweep.parse_layers(args.layers, len(bert.layers))
    interventions = sweep.grid(bert, layers, matrices, keeps, args.variant)
    with session.results(args.out, "laser") as folder:
        yield OutputCache(session, folder / "outputs.safetensors"), interventions, folder


def sweep_command(args):
    """Score every intervention of a grid alone, on the dev sets of all tasks.

    python -m laser sweep RUN                      # Alappat: FFN matrices of the upper half
    python -m laser sweep RUN --layers all --matrices all --keep 0.9,0.5,0.1

    Writes sweep.csv, heatmap.png, spectra.png and outputs.safetensors to RUN/laser, or --out. A
    stopped sweep resumes with the same command, and a search reuses its outputs."""
    with open_grid(args) as (outputs, interventions, folder):
        rows = sweep.sweep(outputs, interventions)
        write_csv(folder / "sweep.csv", rows)
        errors = sweep.gain_errors(outputs, interventions)
        sweep.draw_heat_maps(rows, folder / "heatmap.png", errors)
        sweep.draw_spectra({i.target: outputs.evaluator.decomposition(i.target)
                            for i in interventions}, folder / "spectra.png")
    print(f"{sweep.sweep_table(rows)}\n\n{folder}/: sweep.csv, heatmap.png, spectra.png\n"
          f"These are the best of {len(interventions)} on the examples on which they were chosen; "
          f"to see whether a gain is real: python -m laser search")


def add_search_flags(parser):
    add_grid_flags(parser)
    parser.add_argument("--metric", default="", help="score to raise: overall (default if there is "
                                                     "one), mean (as Alappat's sum), or a task")
    parser.add_argument("--splits", type=int, default=5, help="random halvings of dev (default: 5)")


def search_command(args):
    """Search for the stack of interventions to keep, and test whether its gain is real.

    First, stacks are chosen and scored on all of dev, as in Alappat. Then each search (single,
    backwards, forwards, additive: see laser/search.py) chooses on one half of dev, and the gain is
    measured on the other half with a bootstrap interval. Writes search.csv and search.png to
    RUN/laser, or --out. A stopped search resumes with the same command."""
    if args.splits < 1:
        raise UserError(f"--splits is {args.splits}; it must be 1 or more")
    with open_grid(args) as (outputs, interventions, folder):
        outputs.add([()])
        scores = outputs.scores(())
        check_known(args.metric or "mean", scores, "score", where="--metric")
        metric = args.metric or ("overall" if "overall" in scores else "mean")
        print(rows_table(search.paper_protocol(outputs, interventions, metric)), flush=True)
        found = search.held_out(outputs, interventions, metric, args.splits)
        print(f"\n{search.held_out_tables(found, metric)}")
        write_csv(folder / "search.csv", found)
        search.draw_gains(found, f"gain in {metric}", folder / "search.png")
    print(f"\n{folder}/: search.csv, search.png")


def add_apply_flags(parser):
    add_run_flags(parser, "run", "--data", "--limit", "--device", "--precision", "--overwrite")
    parser.add_argument("--out", required=True, help="folder of the new run")
    parser.add_argument("--laser", required=True, help="layer:matrix:keep[:magnitude][,…]")
    parser.add_argument("--factored", action="store_true",
                        help="store and compute two thin matrices where that is smaller")


def apply_command(args):
    """Reduce matrices of a saved run and save the result as a new run, which every script opens.
    Nothing is trained."""
    stack = parse(args.laser)

    def edit(session):
        apply(session.model.bert, stack, args.factored)

    RunSession(args).derive_and_compare(args.out, args.overwrite, edit)


COMMANDS = {"sweep": (sweep_command, add_grid_flags), "search": (search_command, add_search_flags),
            "apply": (apply_command, add_apply_flags)}
main = partial(run_command, "laser", __doc__, COMMANDS)

if __name__ == "__main__":
    run_script(main)
