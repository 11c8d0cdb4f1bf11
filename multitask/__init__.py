"""Several tasks on one BERT.

data       course.py  glue.py  data.py  tasks.py  metrics.py            files → examples → batches
model      heads.py  model.py                                           encoder → vector → outputs
training   preparation.py  schedule.py  losses.py  pcgrad.py  distributed.py
runs       settings.py  methods.py  recipes.py  runs.py  session.py  evaluation.py  report.py
"""

from multitask.glue import GLUE
from multitask.tasks import TASKS

TASKS |= GLUE
