from bench.runner import Config, main
from llm_course.engine.commands import run_command

if __name__ == "__main__": run_command(Config, main, prog="python -m bench")
