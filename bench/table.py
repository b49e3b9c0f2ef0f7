"""Write the READMEs' tables: of races, from the files in `results/`, a column for each kind of processor; of the machine in the browser, from `browser.json`; of the race against nanoGPT, from `nanogpt.json`; and what `make demo` printed, from `demo.json`. `python -m bench.table`"""
import json
import re
from dataclasses import dataclass
from statistics import mean

from bench.runner import kinds, root
from llm_course.engine.commands import run_command

ROWS = {   # a case: what was raced, in English and in Chinese, and the peer's short name
    "encode": ("encoding, one thread", "编码，单线程", "tokenizers"),
    "encode_tiktoken": ("the same", "同上", "tiktoken"),
    "encode_file": ("40 MB of text to ids on disk, two processes", "40 MB 文本编码到磁盘，两个进程", "tokenizers"),
    "encode_file_tiktoken": ("the same", "同上", "tiktoken"),
    "train_small": ("learning 500 tokens from 133 kB", "从 133 kB 学 500 个词元", "minbpe's method"),
    "train_shakespeare": ("learning 10,000 tokens from 4.8 MB", "从 4.8 MB 学 10,000 个词元", "tokenizers"),
    "train_shakespeare_rustbpe": ("the same", "同上", "rustbpe"),
    "train_mixed": ("learning 10,000 tokens from 40 MB", "从 40 MB 学 10,000 个词元", "tokenizers"),
    "train_mixed_rustbpe": ("the same", "同上", "rustbpe"),
    "rmsnorm": ("RMSNorm, forward and backward", "RMSNorm，前向与反向", "F.rms_norm"),
    "attention": ("attention written out, forward and backward", "写开的注意力，前向与反向", "F.scaled_dot_product_attention"),
    "cross_entropy": ("cross-entropy, forward and backward", "交叉熵，前向与反向", "F.cross_entropy"),
    "adamw": ("a step of AdamW", "AdamW 走一步", "AdamW(foreach=True)"),
    "loop": ("ten steps of the training loop", "训练循环走十步", "the bare step"),
    "train_step": ("a training step by default, width 512", "默认的训练一步，宽 512", "LlamaForCausalLM"),
    "train_step_small": ("the same, width 128", "同上，宽 128", "LlamaForCausalLM"),
    "step_large_float32_eager_torch": ("a training step, both AdamW fused, width 512", "训练一步，两边的 AdamW 都用融合核，宽 512", "torch's own layers"),
    "step_large_float32_eager_transformers": ("the same", "同上", "LlamaForCausalLM"),
    "step_large_float32_compiled_transformers": ("the same, both compiled", "同上，两边都编译", "LlamaForCausalLM"),
    "generate": ("128 tokens, 6 layers of width 512", "生成 128 个词元，6 层，宽 512", "transformers"),
    "generate_small": ("128 tokens, 4 layers of width 128", "生成 128 个词元，4 层，宽 128", "transformers"),
    "generate_int8": ("128 tokens, 6 layers of width 512, int8 weights", "生成 128 个词元，6 层，宽 512，int8 权重", "ours in float32"),
    "generate_int4": ("the same, int4", "同上，int4", "ours in float32"),
    "smollm2_writing": ("SmolLM2-135M writing", "SmolLM2-135M 写", "transformers"),
    "smollm2_reading": ("SmolLM2-135M reading", "SmolLM2-135M 读", "transformers"),
}
HEADS = {"README.md": "| what, on a CPU | peer |", "README_cn.md": "| 内容（CPU） | 同类 |"}
CHINESE = {"minbpe's method": "minbpe 的方法", "the bare step": "裸训练步", "torch's own layers": "torch 自带的层", "ours in float32": "我们的 float32 模型"}
BROWSER = {   # what was measured, its row in English and in Chinese, and its unit
    "page_to_first_distribution_s": ("from opening the page to its first probabilities", "从打开页面到第一批概率", "s"),
    "first_token_s": ("the first token after loading", "加载之后的第一个词元", "s"),
    "tokens_per_s": ("tokens a second, the model alone", "每秒词元数，仅模型", ""),
    "tokens_per_s_on_the_page": ("tokens a second, as the page shows them", "每秒词元数，页面上所见", ""),
    "size_mb": ("all of it, model included", "全部大小，含模型", "MB"),
}
BROWSER_HEADS = {"README.md": "| the demo model in Chromium | |", "README_cn.md": "| Chromium 中的演示模型 | |"}

RACE_HEADS = {"README.md": "| tiny-shakespeare's last tenth | nats per byte |", "README_cn.md": "| tiny-shakespeare 的最后十分之一 | 每字节 nat |"}
PUBLISHED = 1.4697   # nats a character: the README of nanoGPT, on its recipe for a GPU


def measured() -> dict[str, dict]:
    "The races on each kind of processor, by its name."
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(kinds.glob("*.json"))}
    return {kind: results for kind, results in found.items() if any(name.endswith("/cpu") for name in results)}


def cell(result: dict | None) -> str:
    "The ratio, bold where we lose, and the share of the limit; a dash for a race that was not run."
    if result is None: return "–"
    ratio = result["ratio"]["median"]
    shown = f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.4f}"
    if float(shown) > 1: shown = f"**{shown}**"
    return f"{shown} · {result['share']['median']:.0%}" if "share" in result else shown


def table(readme: str) -> str:
    "The rows of one README."
    found = measured()
    rows = [f"{HEADS[readme]} {' | '.join(found)} |", "|---" * (2 + len(found)) + "|"]
    for name, (english, chinese, peer) in ROWS.items():
        cells = [cell(results.get(f"{name}/cpu")) for results in found.values()]
        what, who = (chinese, CHINESE.get(peer, peer)) if readme == "README_cn.md" else (english, peer)
        rows.append(f"| {what} | {who} | {' | '.join(cells)} |")
    return "\n".join(rows)


def browser(readme: str) -> str:
    "The rows on the machine in the browser, of one README."
    found = json.loads((root/"bench"/"browser.json").read_text("utf-8"))["found"]
    rows = [BROWSER_HEADS[readme], "|---|---|"]
    for name, (english, chinese, unit) in BROWSER.items():
        rows.append(f"| {chinese if readme == 'README_cn.md' else english} | {f'{found[name]:g} {unit}'.strip()} |")
    return "\n".join(rows)


def race(readme: str) -> str:
    "The rows on the race against nanoGPT, of one README: the means of all seeds."
    found = json.loads((root/"bench"/"nanogpt.json").read_text("utf-8"))["tinyshakespeare with counts"]
    def mixed(share): return mean(run["shares"][share] for run in found["mixed"]["runs"])
    rows = [("nanoGPT's recipe for a CPU: our stand-in (its own README says 1.88)", "nanoGPT 的 CPU 配方：我们的代替者（其 README 说 1.88）", f"{found['peer']['nats_per_byte']:.3f}"),
            ("counts of four tokens, made in a second", "四个词元的计数，一秒做成", f"{mixed('1.0'):.3f}"),
            ("our network, in no more time than that recipe", "我们的网络，用时不多于该配方", f"{mixed('0.0'):.3f}"),
            ("the mean of network and counts, in no more time", "网络与计数的平均，用时不多于该配方", f"{found['mixed']['nats_per_byte']:.3f}"),
            ("nanoGPT's recipe for a GPU, as its own README says (rows drawn at random)", "nanoGPT 的 GPU 配方（据其 README；随机抽取的行）", str(PUBLISHED))]
    return "\n".join([RACE_HEADS[readme], "|---|---|", *(f"| {chinese if readme == 'README_cn.md' else english} | {value} |" for english, chinese, value in rows)])


DEMO = {   # the first command, with what it takes
    "README.md": "make demo    # from nothing to a model that speaks, in {minutes} minutes of processor time ({kind})",
    "README_cn.md": "make demo    # 从零开始，用 {minutes} 分钟处理器时间（{kind}）得到一个会说话的模型"}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def demo(readme: str, text: str) -> str:
    "The text of a README with what `make demo` took, with the text that its model wrote, and with what its other commands printed, each below its command."
    found = json.loads((root/"bench"/"demo.json").read_text("utf-8"))
    *outputs, spoken = found["printed"].values()
    printed = dict(zip((command.removesuffix(" --resume") for command in found["printed"]), outputs))   # all but the last
    took = DEMO[readme].format(minutes=round(sum(found["processor_seconds"].values()) / 60, 1), kind=found["machine"]["kind"])
    text = re.sub(r"^make demo +#.*$", lambda _: took, text, count=1, flags=re.M)
    below = [spoken]   # the first output is the model's own text
    def shown(block):
        kind, body = block.groups()
        command = " ".join(body.replace("\\\n", " ").split())
        if kind == "bash" and command in printed: below.append(printed[command])
        if kind != "text" or not below: return block[0]
        return f"```text\n{below.pop()}\n```"
    return BLOCK.sub(shown, text)


@dataclass(frozen=True)
class Config:
    "Write the READMEs' tables and outputs from the files in bench.\n\nExample: python -m bench.table"


def main(config: Config) -> None:
    "Replace the tables and outputs in both READMEs."
    for readme in HEADS:
        text = (root/readme).read_text("utf-8")
        for head, rows in (HEADS[readme], table(readme)), (RACE_HEADS[readme], race(readme)), (BROWSER_HEADS[readme], browser(readme)):
            before, _, after = text.partition(head)
            rest = re.sub(r"^.*\n(\|.*\n)+", "\n", after)   # the rest of the head, and the rows
            text = before + rows + rest
        (root/readme).write_text(demo(readme, text), "utf-8", newline="\n")


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.table")
