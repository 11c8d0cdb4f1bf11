"""A handout for students and its grader.

    python -m course handout OUT           # a copy of the project without the exercises' answers
    python -m course grade FOLDER          # scores for what a student made of it
    python -m course submit RUN            # a checked zip for the leaderboard

course/exercises.py has the one table of exercises, course/student/ the texts that students get.
course/README.md says what the grader does not protect against.
"""
