"""Judge parts that somebody wrote: what they get wrong, and the likely mistake. Every module here is exported from a notebook in `nbs/grading/`."""
from llm_course.grading.grading import CHECKS, check, grade_files, main

__all__ = ["CHECKS", "check", "grade_files", "main"]
