"""How a large language model is built. Every module here is exported from a notebook in `nbs/`; see README.md."""
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

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
    "evaluation": ["paired_difference", "text_bits_per_byte", "wilson_interval"],
    "health": ["diagnose"],
    "grading": ["check"],
}
_home = {name: module for module, names in _homes.items() for name in names}
__all__ = sorted(_home)


if TYPE_CHECKING:   # the same names once more, for checkers and editors, which do not run `__getattr__`
    from .bpe_tokenizer import BpeTokenizer as BpeTokenizer
    from .checkpoint import load_checkpoint as load_checkpoint
    from .checkpoint import load_model as load_model
    from .checkpoint import save_checkpoint as save_checkpoint
    from .data import fetch as fetch
    from .data import get_batch as get_batch
    from .engine.flags import TrainConfig as TrainConfig
    from .evaluation import paired_difference as paired_difference
    from .evaluation import text_bits_per_byte as text_bits_per_byte
    from .evaluation import wilson_interval as wilson_interval
    from .generating import generate as generate
    from .generating import generate_ids as generate_ids
    from .generating import stream as stream
    from .grading import check as check
    from .health import diagnose as diagnose
    from .pretrained import export_pretrained as export_pretrained
    from .pretrained import load_pretrained as load_pretrained
    from .training import train as train
    from .transformer import FFN as FFN
    from .transformer import AdamW as AdamW
    from .transformer import CrossEntropyLoss as CrossEntropyLoss
    from .transformer import Embedding as Embedding
    from .transformer import Linear as Linear
    from .transformer import ModelConfig as ModelConfig
    from .transformer import MultiHeadAttention as MultiHeadAttention
    from .transformer import RmsNorm as RmsNorm
    from .transformer import RoPE as RoPE
    from .transformer import ScaledDotProductAttention as ScaledDotProductAttention
    from .transformer import SGDDecay as SGDDecay
    from .transformer import SiLu as SiLu
    from .transformer import Softmax as Softmax
    from .transformer import Transformer as Transformer
    from .transformer import TransformerBlock as TransformerBlock
    from .transformer import cos_lr_scheduler as cos_lr_scheduler
    from .transformer import gradient_clip as gradient_clip
else:
    def __getattr__(name):
        if name not in _home: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_home[name]}"), name)


def __dir__(): return sorted({*globals(), *__all__})
