"""Measure the machine in the browser: `python -m bench.browser` writes browser.json, which says how long the page takes to its first token, and how many it writes in a second."""
import datetime
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.machine import machine
from bench.runner import commit, root
from llm_course.engine.commands import output_path, run_command, whole_file

sys.path.insert(0, str(root/"web"))
import render

# The model in its worker, asked for one token after the other, with all that the page shows of each.
ALONE = """async () => {
  const tokenizer = await llm.demoTokenizer(""), machine = await llm.demoMachine("")
  let ids = tokenizer.encode("ROMEO:"), first = null
  const begin = performance.now()
  for (let n = 0; n < 100; n++) {
    const {logits} = await machine.ask("read", {ids, off: [], position: ids.length - 1, block: 0})
    ids = [...ids, llm.draw(llm.nextProbabilities(logits, {}), Math.random())]
    first ??= performance.now() - begin
  }
  machine.end()
  return [first / 1000, 100 / (performance.now() - begin) * 1000]
}"""
# The page's own button, which writes 200 tokens.
PAGE = """() => new Promise(done => {
  const button = [...document.querySelectorAll("#next button")].find(button => button.textContent === "Write on"), begin = performance.now()
  new MutationObserver(() => { if (button.textContent === "Write on") done(200 / (performance.now() - begin) * 1000) }).observe(button, {childList: true, characterData: true, subtree: true})
  button.click()
})"""


@dataclass(frozen=True)
class Config:
    "Measure the machine in the browser, in Chromium.\n\nExample: python -m bench.browser --rounds 9"
    rounds: int = 5                             # How often each is measured; the medians are kept
    output: Path = Path("bench/browser.json")   # File for the results

    def __post_init__(self):
        if self.rounds < 1: raise ValueError(f"--rounds must be at least 1, but it is {self.rounds}")


def measured(rounds: int) -> dict:
    "Medians; a page of its own for each round."
    from playwright.sync_api import sync_playwright
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    found = {"page_to_first_distribution_s": [], "first_token_s": [], "tokens_per_s": [], "tokens_per_s_on_the_page": []}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        render.machine(Path(folder)/"machine")
        size = sum(file.stat().st_size for file in (Path(folder)/"machine").iterdir())
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(rounds):
            page = browser.new_page()
            begin = perf_counter()
            page.goto((Path(folder)/"machine"/"index.html").as_uri())
            page.wait_for_selector("body[data-read]")
            opened = perf_counter() - begin
            first, alone = page.evaluate(ALONE)
            for values, value in zip(found.values(), (opened, first, alone, page.evaluate(PAGE))): values.append(value)
            page.close()
        version = browser.version
        browser.close()
    return {name: float(f"{median(values):.3g}") for name, values in found.items()} | {"size_mb": round(size / 1e6, 2), "chromium": version}


def main(config: Config) -> None:
    "Print what was found, and keep it."
    output = output_path(config.output, "--output")
    found = measured(config.rounds)
    for name, value in found.items(): print(f"{name:30} {value}")
    result = {"what": "The demo model in the reader's browser: medians.", "rounds": config.rounds, "found": found,
              "machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    with whole_file(output, "w") as file: file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.browser")
