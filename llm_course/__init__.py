"""How a large language model is built. Every module here is exported from a notebook in `nbs/`; see README.md."""
from importlib import import_module

__version__ = "0.1.0"

# Names are looked up when they are first used: importing the package stays cheap, and `python -m llm_course.training` runs that module once.
_homes = {
    "transformer": ["AdamW", "CrossEntropyLoss", "Embedding", "FFN", "Linear", "ModelConfig", "MultiHeadAttention", "RmsNorm", "RoPE",
                    "ScaledDotProductAttention", "SGDDecay", "SiLu", "Softmax", "Transformer", "TransformerBlock", "cos_lr_scheduler",
                    "gradient_clip"],
    "bpe_tokenizer": ["BpeTokenizer"],
    "data": ["fetch", "get_batch"],
    "checkpoint": ["load_checkpoint", "load_model", "save_checkpoint"],
    "training": ["TrainConfig", "train"],
    "generating": ["generate", "generate_ids", "stream"],
    "pretrained": ["export_pretrained", "load_pretrained"],
    "evaluation": ["bits_per_byte", "paired", "wilson"],
    "health": ["diagnose"],
    "grading": ["check"],
}
_home = {name: module for module, names in _homes.items() for name in names}
__all__ = sorted(_home)


def __getattr__(name):
    if name not in _home: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_home[name]}"), name)


def __dir__(): return sorted({*globals(), *__all__})
