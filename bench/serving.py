"""How does the server do beside llama.cpp's, on the same weights? `python -m bench.serving` lets 50 clients ask for a minute, and writes serving.json.

Each server runs in a process of its own, with as many rows as the other. A client sends a question, reads the answer as it streams, and asks again."""
import asyncio
import datetime
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Literal

import httpx2
import torch

from bench.machine import machine
from bench.runner import commit
from llm_course.data import fetch
from llm_course.engine import serve
from llm_course.engine.commands import by_default, input_file, output_path, run_command, whole_file
from llm_course.engine.int8 import at_precision
from llm_course.engine.model_files import import_package
from llm_course.pretrained import load_pretrained

QUESTIONS = ("What is the capital of France?", "Tell me a story about a dragon who was afraid of mice.", "How do I boil an egg?", "Why is the sky blue?",
             "Write a letter to a friend whom you have not seen for ten years.", "Name three rivers.", "What does a carburettor do?", "Explain gravity to a child.")


@dataclass(frozen=True)
class Config:
    "Ask servers as many clients would, and measure what they get.\n\nExample: python -m bench.serving --clients 4 --seconds 10"
    clients: int = 50      # Who ask at once
    seconds: float = 60    # For so long
    max_tokens: int = 64   # Tokens of an answer, at most
    rows: int = 16         # Answers that are written at once
    threads: Annotated[int | None, by_default("as torch chooses")] = None   # Of either server
    model_path: Annotated[Path | None, by_default("smollm2-135m, in four bits")] = None   # A .gguf file
    precision: Literal["float32", "bfloat16", "int8"] = "float32"   # Of our weights
    output: Path = Path("bench/serving.json")   # File that collects the results


def serve_ours(config: Config, path: Path, told) -> None:
    "Run our server until the process is ended."
    if config.threads is not None: torch.set_num_threads(config.threads)
    model, tokenizer = load_pretrained(path, "cpu")
    at_precision(model, config.precision)
    service = serve.Service(model, tokenizer, "model", 1024, rows=config.rows, waiting=2 * config.clients)
    with serve.running(serve.make_app(service)) as address:
        told.put(address)
        time.sleep(1e6)


def serve_theirs(config: Config, path: Path, told) -> None:
    "Run llama.cpp's server until the process is ended."
    xllamacpp = import_package("xllamacpp", "llama.cpp's server")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx, params.verbosity = str(path), config.rows, 1024 * config.rows, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads or torch.get_num_threads()
    server = xllamacpp.Server(params)
    told.put(server.listening_address)
    time.sleep(1e6)


async def client(address: str, number: int, config: Config, end: float, found: list) -> None:
    "Ask one question, and others until the time is over; note each answer as (began, when each piece came, tokens, error)."
    async with httpx2.AsyncClient(timeout=600) as line:
        turn = number
        while turn == number or time.perf_counter() < end:
            ask = {"messages": [{"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]}], "max_tokens": config.max_tokens, "temperature": 0.8, "top_p": 0.9,
                   "seed": turn, "stream": True}
            began, pieces, error = time.perf_counter(), [], None
            try:
                async with line.stream("POST", f"{address}/v1/chat/completions", json=ask) as reply:
                    if reply.status_code != 200: raise RuntimeError(f"status {reply.status_code}")
                    async for text in reply.aiter_lines():
                        if not text.startswith("data: {"): continue
                        event = json.loads(text.removeprefix("data: "))
                        if "error" in event: raise RuntimeError(event["error"]["message"])
                        if event["choices"] and event["choices"][0]["delta"].get("content") is not None: pieces.append(time.perf_counter())
                if not pieces: raise RuntimeError("an empty answer")
            except Exception as problem: error = f"{type(problem).__name__}: {problem}"
            found.append((began, pieces, error))
            turn += config.clients


def summary(found: list, begin: float, seconds: float) -> dict:
    "What clients got in the time that is measured: an event is a token of ours, and of llama.cpp's."
    first = [1e3 * (pieces[0] - began) for began, pieces, _ in found if pieces]
    tokens = sum(begin <= at < begin + seconds for _, pieces, _ in found for at in pieces)
    errors = [error for *_, error in found if error]
    spread = quantiles(first, n=20, method="inclusive") if len(first) > 1 else first * 19
    return {"answers": len(found) - len(errors), "errors": len(errors), "kinds_of_errors": sorted(set(errors))[:5], "tokens_per_second": round(tokens / seconds, 1),
            "first_token_ms": {"median": round(median(first), 1), "95 %": round(spread[-1], 1)} if first else None}


def measure(name: str, config: Config, path: Path) -> dict:
    "Start a server, ask it once to warm up, and let all clients ask."
    spawn = multiprocessing.get_context("spawn")   # nothing of this process is in it
    told = spawn.Queue()
    process = spawn.Process(target={"llm_course": serve_ours, "llama.cpp": serve_theirs}[name], args=(config, path, told), daemon=True)
    process.start()
    try:
        address = told.get(timeout=300)
        asyncio.run(client(address, 0, config, 0, []))
        found, begin = [], time.perf_counter()
        async def all_of_them():
            await asyncio.gather(*(client(address, i, config, begin + config.seconds, found) for i in range(config.clients)))
        asyncio.run(all_of_them())
        return summary(found, begin, config.seconds)
    finally:
        process.terminate()
        process.join()


def main(config: Config) -> None:
    "Measure each server, and keep what came."
    output = output_path(config.output, "--output")
    path = fetch("smollm2-135m") if config.model_path is None else input_file(config.model_path, "--model_path")
    servers = {}
    for name in "llm_course", "llama.cpp":
        servers[name] = measure(name, config, path)
        print(name, servers[name], flush=True)
    speeds = [each["tokens_per_second"] for each in servers.values()]
    result = {"what": "Clients who stream answers at once, one question after another, from our server and from llama.cpp's, on the same weights.",
              "model": path.name, "clients": config.clients, "seconds": config.seconds, "rows": config.rows, "max_tokens": config.max_tokens, "precision": config.precision,
              "servers": servers, "ratio": round(speeds[0] / speeds[1], 3) if speeds[1] else None,
              "machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    with whole_file(output, "w") as file: file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.serving")
