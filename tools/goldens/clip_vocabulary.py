"""The vocabulary of OpenAI's CLIP (openai/CLIP, MIT licence, Copyright (c) 2021 OpenAI), in its embedded form.

    python tools/goldens/clip_vocabulary.py bpe_simple_vocab_16e6.txt.gz    (the file is in the PyPI package open_clip_torch)

writes src/tokenizer/clip_merges.bin: for each of the 48894 merges the ids of its two parts, little-endian u16, in the
order of their rank. That is all: ids 0..255 are the byte symbols in the order of GPT-2's byte table, 256..511 the same
at the end of a word, 512.. the results of the merges, then `<|startoftext|>` and `<|endoftext|>`
(openai/CLIP clip/simple_tokenizer.py). `vocabulary()` turns the file back into vocab.json and merges.txt.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np

EMBEDDED = Path(__file__).resolve().parents[2] / "src" / "tokenizer" / "clip_merges.bin"
MERGES = 48894
SPECIALS = ["<|startoftext|>", "<|endoftext|>"]


def byte_symbols() -> list[str]:
    """The 256 symbols in id order: printable bytes stand for themselves and come first, the others are U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """vocab.json and the merges, from the embedded file."""
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols]
    merges = []
    for left, right in np.frombuffer(EMBEDDED.read_bytes(), "<u2").reshape(-1, 2):
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return {token: i for i, token in enumerate(tokens + SPECIALS)}, merges


def write_folder(folder: Path, pad_token: str = "<|endoftext|>") -> None:
    """A `tokenizer/` folder as diffusers pipelines have it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": SPECIALS[0], "eos_token": SPECIALS[1],
              "unk_token": SPECIALS[1], "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    lines = gzip.decompress(Path(sys.argv[1]).read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    symbols = byte_symbols()
    ids = {token: i for i, token in enumerate(symbols + [s + "</w>" for s in symbols])}
    pairs = []
    for line in lines:
        left, right = line.split()
        pairs.append((ids[left], ids[right]))
        assert ids.setdefault(left + right, len(ids)) == 512 + len(pairs) - 1
    EMBEDDED.write_bytes(np.array(pairs, "<u2").tobytes())


if __name__ == "__main__":
    main()
