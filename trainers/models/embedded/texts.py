"""What pipeline and twin share on the text side: the encoder's shape and tokenised captions."""

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from trainers.models.embedded import world
from trainers.models.embedded.tokenizer import LENGTH

WIDTH = 64
CAPTION = 10  # tokens of a caption, start and end included


def config(tokenizer: CLIPTokenizer, width: int = WIDTH) -> CLIPTextConfig:
    """A text tower of two layers."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids of full length, [captions, 16]."""
    batch = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch.input_ids)


def training_captions(tokenizer: CLIPTokenizer, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids of the training captions, that of "" last, and the row of each image with these labels [images, 4]."""
    pool = world.splits()[0]
    positions = {scene.labels: i for i, scene in enumerate(pool)}
    rows = torch.tensor([positions[tuple(label)] for label in labels.tolist()])
    return tokenise(tokenizer, [*(scene.caption for scene in pool), ""]), rows
