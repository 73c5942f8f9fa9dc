"""Text encoders of Qwen's kind with a few thousand random weights, and their tokenizer."""

from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config

from support import tiny_pipeline
from trainers.models.embedded.tokenizer import learn_merges

_SAID = "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + _SAID + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of a chat."""


def tokenizer() -> Qwen2Tokenizer:
    """Letters, and a token for each word of the tiny pipelines."""
    merges = [(a, b.removesuffix("</w>")) for a, b in learn_merges(list(tiny_pipeline.WORDS))]
    tokens = [*sorted(ByteLevel.alphabet()), *dict.fromkeys(a + b for a, b in merges if len(a + b) > 1)]
    tokens = [*dict.fromkeys(tokens), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=list(dict.fromkeys(merges)),
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = CHAT
    return made


def sizes(words: Qwen2Tokenizer, **others: Any) -> dict[str, Any]:
    """Settings of an encoder of width 8 with three layers."""
    return {
        "vocab_size": len(words),
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 1200,
        **others,
    }


def config(words: Qwen2Tokenizer, **others: Any) -> Qwen3Config:
    """Settings of one of Qwen 3's kind."""
    return Qwen3Config(**sizes(words, **others))
