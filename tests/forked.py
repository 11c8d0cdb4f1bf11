"""Scripts in processes of their own, which meet signals and full disks at chosen moments.

To spare each process the seconds of importing torch, a server (this file run as a script) imports
it once and forks. Moments have names: "step" (an optimizer's step is done), "inside NAME" (half of
a file is on the disk), "before NAME", "after NAME" (it is put in place); "any" is each of these."""

import gc
import itertools
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                            "CUDA_VISIBLE_DEVICES": ""}
FULL = "full"                                                # instead of signals


class Strike:
    """To be called at every moment: the `count`-th time of this one it does what `first` says and
    sends signals, or from then on raises what a full disk raises."""

    def __init__(self, moment, count, signals):
        self.moment, self.count, self.signals, self.seen = moment, count, signals, 0

    def __call__(self, now, first=lambda: None):
        self.seen += self.moment in (now, "any")
        if self.signals == FULL:
            if self.seen >= self.count and now != "step":
                raise OSError(28, "No space left on device")
        elif self.seen == self.count and self.moment in (now, "any"):
            first()
            for number in self.signals:
                os.kill(os.getpid(), number)


def watch(happens):
    """Let `happens` be called at every moment."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: happens("step"))
    replace, fsync = os.replace, os.fsync

    def watched(source, target):
        happens(f"before {Path(target).name}")
        replace(source, target)
        happens(f"after {Path(target).name}")

    def cut(file):
        name = Path(os.readlink(f"/proc/self/fd/{file}")).name
        happens(f"inside {name}", lambda: os.truncate(file, os.fstat(file).st_size // 2))
        fsync(file)

    os.replace, os.fsync = watched, cut


def run_forked(arguments, out, err, blow, cwd):
    os.chdir(cwd)
    for name, number in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    strike = Strike(*(blow or ("any", 0, ())))
    if strike.moment == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (strike.count, strike.count))
    else:
        watch(strike)
    sys.argv = arguments
    try:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    except SystemExit as end:
        print(f"\nmoments: {strike.seen}", flush=True)
        os._exit(end.code or 0)                              # the usual way out takes a second


def serve():
    """Run each line of stdin, a list of commands as JSON, in forked processes side by side; answer
    their numbers and exit codes (None: stopped, and a later line [number] lets it go on)."""
    sys.path.insert(0, str(ROOT))
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # noqa: F401

    import evaluate  # noqa: F401
    import train_multitask  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            if isinstance(request, int):
                os.kill(request, signal.SIGCONT)
                children.append(request)
            elif (child := os.fork()) == 0:
                run_forked(**request)
            else:
                children.append(child)
        ends = [os.waitpid(child, os.WUNTRACED)[1] for child in children]
        codes = [None if os.WIFSTOPPED(end) else os.waitstatus_to_exitcode(end) for end in ends]
        print(json.dumps(list(zip(children, codes))), flush=True)


class Command:
    """Call scripts in processes of their own → exit code, stdout, stderr. `pid`: of the last."""

    def __init__(self, folder):
        self.folder, self.numbers = folder, itertools.count()
        self.server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True,
                                       stdout=subprocess.PIPE, env=ENVIRONMENT)

    def request(self, arguments, blow=None, cwd="."):
        stem = self.folder / str(next(self.numbers))
        return {"arguments": [str(a) for a in arguments], "out": f"{stem}.out",
                "err": f"{stem}.err", "blow": blow, "cwd": str(cwd)}

    def ask(self, requests):
        self.server.stdin.write(json.dumps(requests) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def together(self, *requests):
        """Run these requests side by side."""
        return [(code, *(Path(request[name]).read_text() for name in ("out", "err")))
                for request, (_, code) in zip(requests, self.ask(requests))]

    def __call__(self, *arguments, blow=None, cwd="."):
        request = self.request(arguments, blow, cwd)
        [[self.pid, code]] = self.ask([request])
        return code, *(Path(request[name]).read_text() for name in ("out", "err"))

    def go_on(self, pid):
        """Let a stopped process go on → its exit code."""
        return self.ask([pid])[0][1]

    def close(self):
        self.server.stdin.close()
        self.server.wait(timeout=60)


if __name__ == "__main__":
    serve()
