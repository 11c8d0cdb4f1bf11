"""The table of tasks. To add a task, add a row.

A row says where the examples are, what goes in, what comes out and how it is scored. Outputs of a
task's head are [B, outputs]; labels are floats from 0 to `max_label`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from multitask.course import read_course_file, write_course_file
from multitask.losses import binary_cross_entropy, cosine_error, cross_entropy, squared_error
from multitask.metrics import accuracy, pearson


@dataclass(frozen=True)
class Task:
    files: dict                                        # split → file name
    columns: tuple                                     # of the text, or of both texts of a pair
    label: str                                         # the label's column
    label_names: tuple                                 # what the labels 0, 1, 2, … mean
    outputs: int                                       # how many numbers the head gives
    loss: Callable = cross_entropy                     # (outputs [B, outputs], labels [B]) → scalar
    metrics: dict = field(default_factory=lambda: {"accuracy": accuracy})  # the first is the score
    header: str = ""                                   # of the prediction file's second column
    is_regression: bool = False                        # labels may lie between whole numbers
    string_labels: bool = False                        # the files hold label_names, not numbers
    other_losses: dict = field(default_factory=dict)   # name → function, what --loss may choose
    heads: tuple = ("linear", "mlp")                   # kinds that fit, the default first
    nullable_columns: tuple = ()                       # columns that may be empty in a few rows
    dev_sets: tuple = ("dev",)                         # scored in training; the first one counts
    test_sets: tuple = ("test",)
    read_examples: Callable = read_course_file         # (path, task, strict_rows) → [Example]
    write: Callable = write_course_file                # → name and text of a prediction file

    @property
    def max_label(self):
        return len(self.label_names) - 1

    @property
    def pair(self):
        return len(self.columns) == 2

    def predict(self, outputs):
        """outputs [B, outputs] → predictions [B]: the value, the likeliest class, or of a single
        output whether class 1 is likelier than class 0."""
        if self.outputs > 1:
            return outputs.argmax(dim=1)
        return outputs.squeeze(1) if self.is_regression else (outputs.squeeze(1) > 0).float()


def course_files(stem):
    return {split: f"{stem}-{name}.csv"
            for split, name in (("train", "train"), ("dev", "dev"), ("test", "test-student"))}


SIMILARITY = dict(                                     # of two sentences, 0 to 5
    label_names=("on different topics", "on the same topic", "alike in some details",
                 "roughly equivalent", "nearly equivalent", "equivalent"), is_regression=True,
    outputs=1, loss=squared_error, other_losses={"cosine": cosine_error},
    heads=("linear", "mlp", "cosine", "relu-cosine"))

TASKS = {                                # multitask/__init__.py adds GLUE's (multitask/glue.py)
    "sst": Task(
        files=course_files("ids-sst"), columns=("sentence",), label="sentiment",
        label_names=("very negative", "negative", "neutral", "positive", "very positive"),
        outputs=5, header="Predicted_Sentiment",
    ),
    "para": Task(
        files=course_files("quora"), columns=("sentence1", "sentence2"), label="is_duplicate",
        label_names=("not a paraphrase", "a paraphrase"), outputs=1, loss=binary_cross_entropy,
        nullable_columns=("is_duplicate", "sentence2"), header="Predicted_Is_Paraphrase",
    ),
    "sts": Task(
        files=course_files("sts"), columns=("sentence1", "sentence2"), label="similarity",
        metrics={"pearson": pearson}, **SIMILARITY,
        header="Predicted_Similiary",                        # the course's spelling
    ),
    "cfimdb": Task(
        files=course_files("ids-cfimdb"), columns=("sentence",), label="sentiment",
        label_names=("negative", "positive"), outputs=2, header="Predicted_Sentiment",
    ),
}
