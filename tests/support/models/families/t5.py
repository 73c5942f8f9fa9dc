"""A text encoder of T5's kind with a few thousand random weights, and its tokenizer."""

from transformers import T5Config, T5EncoderModel, T5Tokenizer

from support import tiny_pipeline


def pieces() -> T5Tokenizer:
    """A piece for each word of the tiny pipelines; others are unknown."""
    return T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
        + [(f"▁{word}", -1.0) for word in tiny_pipeline.WORDS],
        extra_ids=0,
        model_max_length=12,
    )


def encoder(words: T5Tokenizer, *, width: int) -> T5EncoderModel:
    """One layer of a width."""
    return T5EncoderModel(
        T5Config(vocab_size=len(words), d_model=width, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    )
