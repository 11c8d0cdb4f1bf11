"""Pack a run's predictions and your code for the leaderboard: python -m course submit RUN"""

from common.cli import run_command, run_script
from course.submit import add_submit_flags, submit

if __name__ == "__main__":
    run_script(lambda: run_command("course", __doc__, {"submit": (submit, add_submit_flags)}))
