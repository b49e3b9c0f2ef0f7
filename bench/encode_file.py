"""Turn a text file into a file of ids as other libraries do it, with two threads: `python -m bench.encode_file LIBRARY TOKENIZER TEXT OUTPUT`."""
import os
import sys
from pathlib import Path

END = "<|endoftext|>"


def hugging_face(tokenizer: str, documents: list[str]) -> list[list[int]]:
    "All documents as one batch; each ends in its end-of-text token."
    os.environ |= {"RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}
    from tokenizers import Tokenizer
    return [found.ids for found in Tokenizer.from_file(tokenizer).encode_batch_fast([text + END for text in documents])]


def tiktoken(tokenizer: str, documents: list[str]) -> list[list[int]]:
    "All documents as one batch; the end-of-text token is put behind each."
    from tiktoken import Encoding

    from llm_course.bpe_tokenizer import BpeTokenizer
    ours = BpeTokenizer.load(tokenizer)
    plain = {token: id for id, token in ours.vocab.items() if token != END.encode()}
    end = ours.special_tokens[END]
    # trained by us, a token's id is its rank
    theirs = Encoding("ours", pat_str=ours.pattern, mergeable_ranks=plain, special_tokens={END: end})
    found = theirs.encode_ordinary_batch(documents, num_threads=2)
    for ids in found: ids.append(end)
    return found


def main(library: str, tokenizer: str, text: str, output: str) -> None:
    "Read, encode, write a `.npy` of uint16, as `python -m llm_course.data` does."
    import numpy as np
    documents = Path(text).read_bytes().decode().split(END)[:-1]
    rows = {"tokenizers": hugging_face, "tiktoken": tiktoken}[library](tokenizer, documents)
    with open(output, "wb") as file: np.save(file, np.concatenate([np.array(row, np.uint16) for row in rows]))


if __name__ == "__main__": main(*sys.argv[1:])
