"""What a result was measured on: the processor, what it is capable of, and the kind whose file of results it belongs to."""
import os
import platform
import re
from pathlib import Path

import torch

# With any of these set, torch or a library below it leaves out instructions that the processor has.
IMITATIONS = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"
SETS = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
        "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2")   # those that speed depends on
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}


def imitation() -> list[str]:
    "The settings by which this processor imitates one that is capable of less."
    return [f"{name}={os.environ[name]}" for name in IMITATIONS if os.environ.get(name)]


def cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    "What Linux says about the first processor; nothing on other systems."
    if not path.exists(): return {}
    first = path.read_text("utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def instruction_sets(info: dict[str, str]) -> list[str]:
    "Those instruction sets of a processor that speed depends on."
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [name for name in SETS if name in flags]


def processor_kind(info: dict[str, str]) -> str:
    "A short name for all processors that should be about as fast per core and clock: maker, generation where its number tells it, widest instructions."
    sets = instruction_sets(info)
    vendor = VENDORS.get(info.get("vendor_id", ""))
    if vendor is None: return slug(info.get("model name") or platform.processor() or platform.machine())
    words = [vendor]
    if vendor == "amd":
        family, model = int(info.get("cpu family", 0)), int(info.get("model", 0))
        if family == 23: words.append("zen2" if model >= 0x30 else "zen1")
        if family == 25: words.append("zen4" if "avx512f" in sets else "zen3")
        if family == 26: words.append("zen5")
    for name in "avx512f", "avx2", "avx":
        if name in sets:
            words.append(name.removesuffix("f"))
            break
    if "amx_tile" in sets: words.append("amx")
    return "-".join(words)


def slug(name: str) -> str:
    "A name that can be part of a file's."
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def kind(device: str) -> str:
    "The kind of processor or GPU that this is."
    return slug(torch.cuda.get_device_name()) if device == "cuda" else processor_kind(cpuinfo())


def machine(device: str) -> dict:
    "What it ran on."
    info = cpuinfo()
    found = {"system": platform.system(), "cpu": info.get("model name") or platform.processor() or platform.machine(), "kind": kind(device),
             "instruction_sets": instruction_sets(info), "torch_capability": torch.backends.cpu.get_cpu_capability(), "imitation": imitation(),
             "cores": os.cpu_count(), "threads": torch.get_num_threads(), "omp_num_threads": os.environ.get("OMP_NUM_THREADS"), "device": device}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})
