"""Measure the machine in the browser, on an idle machine: `python -m bench.browser` says how long the page takes to its first token, and how many tokens a second."""
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from playwright.sync_api import sync_playwright

from bench.runner import root

sys.path.insert(0, str(root/"web"))
import render

TOKENS = """async () => {
  const tokenizer = await llm.demoTokenizer(""), machine = await llm.demoMachine("")
  let ids = tokenizer.encode("ROMEO:"), first = null
  const begin = performance.now()
  for (let n = 0; n < 100; n++) {
    const {logits} = await machine.ask("read", {ids, off: [], position: ids.length - 1, block: 0})
    ids = [...ids, llm.draw(llm.nextProbabilities(logits, {}), Math.random())]
    first ??= performance.now() - begin
  }
  return [first, 100 / (performance.now() - begin) * 1000]
}"""


def main() -> None:
    "Open the page in Chromium and let its model write 100 tokens, three times; each with all that the page shows of a token."
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        render.machine(Path(folder)/"machine")
        page = play.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()
        begin = perf_counter()
        page.goto((Path(folder)/"machine"/"index.html").as_uri())
        page.wait_for_selector("body[data-read]")
        print(f"the page shows its first token after {perf_counter() - begin:.2f} s")
        for _ in range(3): print("first token after {:.0f} ms, then {:.0f} tokens a second".format(*page.evaluate(TOKENS)))


if __name__ == "__main__": main()
