"""How fast plainbert is beside transformers and peft: same weights, same batches, one process, in
turn.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                          # all parts, about 14 minutes on two cores
    python benchmarks/speed.py --parts lora,pcgrad      # some parts; the file keeps the others
    python benchmarks/speed.py --quick --out runs/try   # few repeats, to try it
    python benchmarks/speed.py --docs runs/bench/speed.json      # its tables into docs/speed.md

Needs PLAINBERT_WEIGHTS and PLAINBERT_DATA (README.md says to what). Both sides start from lists of
token ids, drop out 10 % in training, clip gradients and train with fused AdamW; ours takes the step
of train_multitask.py, theirs the ordinary loop of torch. transformers pads each batch to its
longest sentence and attends by sdpa. bf16 is torch.autocast on both sides. A ratio is the median
of the ratios of pairs of measurements. Writes speed.json and speed.png to --out after each row;
Ctrl-C loses nothing.

Parts:
{parts}
"""

import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from benchmarks import (  # noqa: E402
    speed_costs,
    speed_growth,
    speed_methods,
    speed_report,
    speed_steps,
)
from benchmarks.bench import QUICK, ROOT, Bench, Stopped  # noqa: E402
from bert import UserError  # noqa: E402
from bert.errors import check_known  # noqa: E402
from common.cli import Parser, StopSignal, UserStop, quoted, run_script  # noqa: E402
from common.log import progress_bar  # noqa: E402
from common.run_folder import claim  # noqa: E402

PAGE = ROOT / "docs" / "speed.md"
PARTS = {                                # name → (function, planned seconds, description)
    "training": (speed_steps.training, 195, "steps of MiniLM, four kinds of batches, two types"),
    "base": (speed_steps.base, 90, "steps of bert-base's shape, random weights, batches of 8"),
    "inference": (speed_steps.inference, 25, "forward passes of MiniLM without gradients"),
    "evaluation": (speed_steps.evaluation, 110, "all CS224N dev files; theirs also sorted"),
    "lora": (speed_methods.lora, 60, "steps of LoRA and of Prune-LoRA beside peft"),
    "mixed": (speed_methods.mixed, 25, "three adapters in a batch beside one"),
    "pcgrad": (speed_methods.pcgrad, 40, "gradient surgery beside a plain step of three tasks"),
    "laser": (speed_methods.laser, 60, "12 edited models, with shared layers and one by one"),
    "tokenizer": (speed_costs.tokenizer, 12, "sentences a second beside the fast tokenizer"),
    "start": (speed_costs.start, 30, "seconds until a first command answers"),
    "memory": (speed_costs.memory, 30, "the most memory that five steps take"),
    "operations": (speed_costs.operations, 5, "operations that a forward pass dispatches"),
    "limit": (speed_costs.limit, 30, "the least time for a step's arithmetic beside its time"),
    "growth": (speed_growth.growth, 75, "time by number of examples and by length"),
    "flat": (speed_growth.flat, 30, "memory over 2,000 steps of the tiny model"),
}


def processor():
    """→ the processor's name, as far as the system tells"""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores():
    """→ the cores that this process may use"""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count()


def environment(quick):
    """What the figures depend on; results of one environment alone stand in one file."""
    if missing := {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} - set(os.environ):
        raise UserError(f"set {' and '.join(sorted(missing))}; README.md says to what")
    try:
        versions = {name: version(name) for name in ("transformers", "peft", "tokenizers")}
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install -r "
                        f"benchmarks/requirements.txt") from error
    threads = os.environ.get("RAYON_NUM_THREADS", "")
    return {"python": platform.python_version(), "torch": torch.__version__, **versions,
            "torch_threads": torch.get_num_threads(),
            "tokenizer_threads": int(threads) if threads.isdecimal() else cores(),
            "cores": cores(), "processor": processor(),
            "weights": Path(os.environ["PLAINBERT_WEIGHTS"]).name, "quick": quick}


def rows_to_keep(path, here, names, every):
    """→ the rows of the parts that are not run now, of an earlier call in the same environment"""
    if every or not path.is_file():
        return []
    report = speed_report.read_report(path)
    differ = [name for name in here if report["environment"][name] != here[name]]
    if differ:
        raise UserError(f"{path} was measured in another environment ({', '.join(differ)}: "
                        f"{report['environment'][differ[0]]!r}, now {here[differ[0]]!r}); give "
                        f"another --out, or run all parts")
    return [row for row in report["rows"] if row["part"] not in names]


def run_parts(names, quick, folder, every):
    """Run parts one after the other; print a table after each, and save after each row."""
    here, path = environment(quick), folder / "speed.json"
    report = {"environment": here, "rows": rows_to_keep(path, here, names, every)}
    print("\n".join(f"{name:18} {value}" for name, value in here.items()))
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5:
        warnings.warn(f"other programs are at work (load {load:.1f}), so figures will be noisy; "
                      f"end them first", stacklevel=2)
    scale = QUICK if quick else 1
    total = round(scale * sum(PARTS[name][1] for name in names), 1)
    with StopSignal() as stop, progress_bar("speed", total, "s") as bar:
        bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
        bench = Bench(quick, bar, stop)
        for number, name in enumerate(names):
            function, planned, _ = PARTS[name]
            bar.set_description_str(name, refresh=False)
            new = []
            try:
                bench.begin(scale * planned)
                for row in function(bench):
                    new.append({"part": name} | row)
                    report["rows"].append(new[-1])
                    speed_report.write_report(path, report)
            except Stopped:
                rest = ",".join(names[number:])
                speed_report.draw(report, folder / "speed.png") if report["rows"] else None
                raise UserStop(f"stopped; the rows so far are in {path}; go on with: python "
                               f"benchmarks/speed.py --parts {rest}{' --quick' * quick} --out "
                               f"{quoted(folder)}") from None
            for rows in speed_report.grouped(new).values():
                bar.write(f"\n{speed_report.terminal_table(rows)}", file=sys.stdout)
        bench.begin(0)
    report["rows"].sort(key=lambda row: list(PARTS).index(row["part"]))
    speed_report.write_report(path, report)
    speed_report.draw(report, folder / "speed.png")
    print(f"\n{folder}/: speed.json, speed.png")


def main(arguments=None):
    parts = "\n".join(f"  {name:11} {text}" for name, (_, _, text) in PARTS.items())
    parser = Parser(description=__doc__.replace("{parts}", parts))
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them (default: all)")
    parser.add_argument("--quick", action="store_true", help="few repeats, to try it")
    parser.add_argument("--out", default="runs/bench", help="folder (default: %(default)s)")
    parser.add_argument("--docs", metavar="JSON", help="measure nothing; write the tables of this "
                                                       "file into docs/speed.md")
    args = parser.parse_args(arguments)
    if args.docs:
        speed_report.write_docs(Path(args.docs), PAGE)
        return print(f"{PAGE}: tables of {args.docs}")
    names = list(dict.fromkeys(args.parts.replace(" ", "").split(",")))
    for name in names:
        check_known(name, PARTS, "part", where="--parts")
    with claim(Path(args.out).expanduser()) as folder:
        run_parts(names, args.quick, folder, every=set(names) == set(PARTS))


if __name__ == "__main__":
    run_script(main)
