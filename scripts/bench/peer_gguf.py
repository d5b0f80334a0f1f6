"""llama.cpp's form of a random checkpoint, by llama.cpp's own converter.

    PYTHONPATH=LLAMA_CPP PYTHON scripts/bench/peer_gguf.py CHECKPOINT --outfile FILE --outtype bf16

LLAMA_CPP is the folder of llama.cpp's sources, PYTHON an interpreter that has what the converter
needs (torch, transformers, sentencepiece; vLLM's environment does), CHECKPOINT what
`python -m scripts.bench.checkpoints` prints; imports nothing of Shoal. The converter knows
tokenizers by how they cut a given text, and refuses one that was trained here. It cuts as GPT-2's
does, and that is what the converter is told.
"""

import convert_hf_to_gguf  # type: ignore[import-not-found,unused-ignore]
from conversion.base import TextModel  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
