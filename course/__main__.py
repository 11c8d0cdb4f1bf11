"""Hand the project out to students as exercises, and grade what they wrote.

    python -m course handout OUT         # a copy without the answers; EXERCISES.md leads through it
    python -m course grade FOLDER        # a score for each exercise; the last line is the total

A student writes the bodies of a few functions. The grader takes only these bodies into an intact
copy of the project, runs each exercise in a process of its own, and judges the results by fresh
inputs. course/README.md says what it does not protect against.
"""

from common.cli import run_command, run_script
from course.handout import write_handout


def handout(args):
    """Write a copy of the project in which the exercises' functions have only signature, docstring,
    equation and `raise NotImplementedError`, with EXERCISES.md, public tests, and an AGENTS.md that
    asks assistants to tutor. Pages, tests, history and code that show an answer are left out.
    """
    files = write_handout(args.out)
    print(f"{files} files in {args.out}; students begin with {args.out}/README.md")


COMMANDS = {"handout": (handout, lambda parser: parser.add_argument(
    "out", metavar="OUT", help="a new or empty folder"))}


def main(arguments=None):
    return run_command("course", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    run_script(main)
