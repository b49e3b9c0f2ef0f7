"""Run by test_flash.py in processes of their own, since Triton reads once whether it is to interpret: `python in_triton.py interpret` or `compile`."""
import os
import sys

if sys.argv[1] == "interpret": os.environ["TRITON_INTERPRET"] = "1"

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_flash import is_attention

from llm_course.engine import flash_triton


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(b=st.integers(1, 2), h_kv=st.integers(1, 2), group=st.integers(1, 3), t=st.integers(1, 140), s=st.integers(1, 200), d=st.sampled_from([8, 32, 48, 64, 96, 128]),
       causal=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float16]))
@example(b=1, h_kv=1, group=1, t=64, s=64, d=128, causal=True, dtype=torch.float32)
@example(b=1, h_kv=1, group=2, t=65, s=128, d=32, causal=True, dtype=torch.float16)
def interpret(b, h_kv, group, t, s, d, causal, dtype):
    torch.manual_seed(0)
    shapes = (b, h_kv * group, t, d), (b, h_kv, s, d), (b, h_kv, s, d)
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    is_attention(flash_triton.flash_attention_triton, inputs, causal, slack=6)


def compile():
    "Compile all kernels for an H100, which need not be here."
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    for d in 32, 48, 64, 128:
        sizes = {"HEADS": 8, "GROUP": 2, "D": d, "WIDE": triton.next_power_of_2(d), "TILE": flash_triton.TILE, "CAUSAL": True, "PRECISION": "tf32"}
        kinds = {"scale": "fp32", "T": "i32", "S": "i32", "LOGS": "*fp32", "ALONG": "*fp32"} | dict.fromkeys(sizes, "constexpr")
        for kernel in flash_triton._forward, flash_triton._backward_queries, flash_triton._backward_keys:
            source = ASTSource(fn=kernel, signature={name: kinds.get(name, "*bf16") for name in kernel.arg_names}, constexprs=sizes)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
            assert made.asm["cubin"] and made.metadata.shared < 227 * 1024, (kernel, d)


if __name__ == "__main__": {"interpret": interpret, "compile": compile}[sys.argv[1]]()
