"""`python -m llm_course` is `llm-course`, for where the script is not on the path."""
from llm_course.engine.commands import main

main()
