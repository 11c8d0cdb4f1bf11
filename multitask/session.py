"""A saved run opened for work on it, and the one way to make a run of a run."""

from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from bert.files import write_json
from common.device import pick_device, pick_precision
from common.run_folder import below, claim
from common.tables import rows_table
from multitask import runs
from multitask.evaluation import evaluate, load_sets
from multitask.metrics import main_scores, summary
from multitask.settings import SHARED
from multitask.tasks import TASKS


class RunSession:
    """`args` has the attribute `run`, and any of data, limit, device and precision; None means the
    run's own. `settings` are those that the session scores with."""

    def __init__(self, args):
        self.run = Path(args.run)
        self.model, self.tokenizer, settings, self.record = runs.open_run(self.run)
        self.device, asked = pick_device(args.device), getattr(args, "precision", None)
        self.precision, self.autocast = pick_precision(asked or settings.precision, self.device,
                                                       self.model.hidden_size)
        self.model.to(self.device)
        data = Path(getattr(args, "data", None) or settings.data).resolve()
        limit = getattr(args, "limit", None)
        self.settings = replace(settings, precision=asked or settings.precision, data=str(data),
                                limit=settings.limit if limit is None else limit)

    @cached_property
    def splits(self):
        """{task: {name: Split}}: the dev sets that training scores."""
        return load_sets(self.model.heads, self.settings, self.tokenizer)

    @property
    def first_splits(self):
        """{task: Split}: of each task the dev set that counts."""
        return {task: next(iter(named.values())) for task, named in self.splits.items()}

    @property
    def score_names(self):
        """The names that main_scores gives the scores of `evaluate`."""
        return list(main_scores(summary({task: dict.fromkeys(TASKS[task].metrics, 0.0)
                                         for task in self.model.heads})))

    def evaluate(self):
        """→ scores and predictions, as of multitask.evaluation.evaluate"""
        return evaluate(self.model, self.splits, self.device, self.autocast)

    def derive(self, out, overwrite, edit):
        """Make a run of this run in the folder `out`, without training → folder, dev scores.
        edit(session) changes or replaces session.model and may return other settings."""
        changes = {"overwrite": overwrite, "from_run": str(self.run.resolve())}
        with runs.choose_folder(replace(self.settings, out=str(out), **changes)) as folder:
            self.settings = edit(self) or self.settings
            self.__dict__.pop("splits", None)                    # the tasks may be others now
            self.model.to(self.device)
            scores, predictions = self.evaluate()
            settings = replace(self.settings, out=str(folder), **changes)
            self.model.requires_grad_(False)                     # nothing was trained
            record = runs.new_record(settings, "", runs.checksums(settings.data, self.splits),
                                     self.model)
            record |= {"best_step": {SHARED: 0}}
            record["times"]["train_seconds"] = 0.0
            runs.init_run_folder(folder, record)
            runs.save_best(folder, self.model, self.tokenizer, list(self.model.heads), scores,
                           self.splits, predictions)
            write_json(folder / "run.json", record | {"complete": True})
            return folder, scores

    @contextmanager
    def results(self, out, name):
        """Claim the folder of a command's results, `out` or else RUN/name, and yield its Path."""
        with claim(Path(out).expanduser() if out else below(self.run, name)) as folder:
            yield folder

    def derive_and_compare(self, out, overwrite, edit):
        """Like derive, and print the encoder's size and the scores before and after."""
        rows = []

        def add_row(title, folder, scores):
            files = (folder / "model").glob("*.safetensors")
            size = sum(parameter.numel() for parameter in self.model.bert.parameters())
            rows.append({"": title, "parameters": size,
                         "bytes of the encoder": sum(file.stat().st_size for file in files),
                         **main_scores(scores)})

        def measure_and_edit(session):
            add_row("before", self.run, self.evaluate()[0])
            return edit(session)

        folder, scores = self.derive(out, overwrite, measure_and_edit)
        add_row("after", folder, scores)
        print(f"{rows_table(rows)}\n\nrun: {folder}")
