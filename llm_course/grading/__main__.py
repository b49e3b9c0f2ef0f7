"""`python -m llm_course.grading` judges the parts in files and folders."""
from llm_course.grading.grading import main

main()
