"""Hand the project out to students as exercises, grade what they wrote, pack what they submit.

    python -m course handout OUT         # a copy without the answers; EXERCISES.md leads through it
    python -m course grade FOLDER        # a score for each exercise; the last line is the total
    python -m course submit RUN          # a zip for the leaderboard: predictions and code, checked

A student writes the bodies of a few functions. The grader takes only these bodies into an intact
copy of the project, runs each exercise in a process of its own, and judges the results by fresh
inputs. course/README.md says what it does not protect against.
"""

import json
import os
from pathlib import Path

from bert.errors import UserError, check_known
from bert.files import write_json
from common.cli import run_command, run_script
from course.exercises import EXERCISES
from course.grade import grade as grade_folder
from course.grade import gradescope, table
from course.handout import write_handout
from course.submit import add_submit_flags, submit


def handout(args):
    """Write a copy of the project in which the exercises' functions have only signature, docstring,
    equation and `raise NotImplementedError`, with EXERCISES.md, public tests, and an AGENTS.md that
    asks assistants to tutor. Pages, tests, history and code that show an answer are left out.
    """
    files = write_handout(args.out)
    print(f"{files} files in {args.out}; students begin with {args.out}/README.md")


def grade(args):
    """Score each exercise of a student's folder (a solved handout; "." grades the project itself).

    Points are split: forward (half), gradients, edges. The last line is the total in percent. With
    --out, grade.json has every case, and results.json is what Gradescope reads:

        python -m course grade /autograder/submission --out /autograder/results
    """
    if not Path(args.folder).is_dir():
        raise UserError(f"{args.folder} is no folder; name the folder with the student's bert/")
    exercises = args.only.split(",") if args.only else list(EXERCISES)
    for name in exercises:
        check_known(name, EXERCISES, "exercise", where="--only")
    if min(args.jobs, args.seconds) < 1:
        raise UserError("--jobs and --seconds must be 1 or more")
    result = grade_folder(args.folder, args.seed, exercises, args.seconds, args.jobs)
    if args.out:
        write_json(Path(args.out) / "grade.json", result)
        write_json(Path(args.out) / "results.json", gradescope(result))
    print(json.dumps(result, indent=2, ensure_ascii=False) if args.json else table(result))


def add_grade_flags(parser):
    flag = parser.add_argument
    flag("folder", metavar="FOLDER", help="a student's folder")
    flag("--out", metavar="DIR", help="write grade.json and results.json to this folder")
    flag("--json", action="store_true", help="print JSON in place of the table")
    flag("--only", metavar="NAMES", help=f"some of {', '.join(EXERCISES)}")
    flag("--seed", type=int, metavar="N", help="repeat the inputs of a grading (default: fresh)")
    flag("--seconds", type=int, default=20, metavar="N", help="of CPU an exercise (default: 20)")
    flag("--jobs", type=int, default=os.cpu_count() or 1, metavar="N",
         help="exercises graded at a time (default: the number of CPUs)")


def add_handout_flags(parser):
    parser.add_argument("out", metavar="OUT", help="a new or empty folder")


COMMANDS = {"handout": (handout, add_handout_flags), "grade": (grade, add_grade_flags),
            "submit": (submit, add_submit_flags)}


def main(arguments=None):
    return run_command("course", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    run_script(main)
