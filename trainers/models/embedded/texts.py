"""What pipeline and twin share on the text side: the encoder's shape and tokenised captions."""

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from trainers.models.embedded.tokenizer import LENGTH

WIDTH = 64
CAPTION = 10  # tokens of a caption, start and end included


def config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A text tower of two layers."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids of full length, [captions, 16]."""
    batch = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch.input_ids)
