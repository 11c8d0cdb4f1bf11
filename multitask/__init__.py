"""What several tasks need: data, the Task table, heads, the model, runs."""

from multitask.glue import GLUE
from multitask.tasks import TASKS

TASKS |= GLUE
