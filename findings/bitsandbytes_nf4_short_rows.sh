#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU: dequantize_4bit of a matrix whose rows are no multiple of the block does not return what was stored.
#
# quantize_4bit divides a weight into blocks of 64 of its flat values, and keeps for each its largest. On the CPU dequantize_4bit takes other
# blocks for other values wherever a row is no multiple of 64 long, without a word: layers of widths 96 or 80 come out wrong
# by a quarter of their norm. Expected: the error of four bits, 0.09. Seen: up to 0.28, where the codes and the largest values that were stored,
# put together by hand, give 0.09.
#
# Output seen:
#   rows of 64: 0.09, by hand 0.09
#   rows of 128: 0.09, by hand 0.09
#   rows of 96: 0.23, by hand 0.09
#   rows of 80: 0.28, by hand 0.09
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
venv/bin/python - 2>/dev/null <<'PY'
import bitsandbytes.functional as F
import torch

torch.manual_seed(0)


def errors(width):
    weight = torch.randn(width, width)
    packed, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    given = F.dequantize_4bit(packed, state)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten().long()
    blocks = torch.arange(codes.numel()) // 64
    by_hand = (state.code[codes] * state.absmax[blocks]).view(width, width)
    return [float((found - weight).norm() / weight.norm()) for found in (given, by_hand)]


for width in (64, 128, 96, 80):
    given, by_hand = errors(width)
    print(f"rows of {width}: {given:.2f}, by hand {by_hand:.2f}")
    assert by_hand < 0.1
    assert (given > 0.2) == bool(width % 64)
PY
