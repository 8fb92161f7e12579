"""tests/data/tokenizer: ids of Hugging Face's CLIPTokenizer (transformers) on the public vocabulary.

    python tools/goldens/tokenizer.py [--check]
"""

import json
import sys
import tempfile
from pathlib import Path

import clip_vocabulary

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "tokenizer" / "cases.json"

TEXTS = [
    "", " ", " \t\n", "a photo of a cat", "A Photo,  of   a CAT!!", "don't 2024 I'll", "café naïve 東京 🙂", "x1y22", "Ünïcode…—test",
    "e\u0301 vs é, ﬁ ﬃ Å", "&amp; <b>", "an astronaut riding a horse, (masterpiece:1.2), 8k, highly detailed [bad]",
    "it's we're they've I'm he'd you'll CAN'T 'sup ''s !'s", "ΟΔΥΣΣΕΥΣ ΤΑΣ ςσ", "İstanbul ISTANBUL ı", "a\u200bb \u00a0 x\u3000y\x00z \u2028q",
    "ǅ Ⅷ ½ ² ١٢ 一二三 ①", "👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪", "naïve\u0327 \u0301lone q\u0323\u0307", "ｆｕｌｌ ｗｉｄｔｈ “quotes” ‘x’",
    "<|startoftext|>x<|endoftext|> y", "<|ENDOFTEXT|>!! <|StartOfText|>", "wow!! ! a!b !", "日本語のテキスト 한국어 עברית العربية हिन्दी ไทย",
    "snake_case kebab-case CamelCase http://example.org/?q=1&r=2#frag", "ßẞ ŉ ǰ ΐ", "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "..., ;; :: -- ~~ `` ^^ %% $$ ## @@ || \\\\ //", "a" * 300, "very " * 80 + "long", "🙂" * 40, "0123456789" * 9, "\ufeffbom \ud7ff\ue000",
]


def make() -> str:
    from transformers import CLIPTokenizer

    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        for pad in ("<|endoftext|>", "!"):
            folder = Path(scratch) / str(len(cases))
            clip_vocabulary.write_folder(folder, pad)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            for text in TEXTS:
                alone = tokenizer(text, truncation=False, padding=False, add_special_tokens=False).input_ids
                whole = tokenizer(text, truncation=True, padding="max_length", max_length=77).input_ids
                cases.append({"pad": pad, "text": text, "ids": alone, "padded": whole})
    return "[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        same = OUT.read_text() == make()
        print("as committed" if same else "differs")
        sys.exit(not same)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(make())
