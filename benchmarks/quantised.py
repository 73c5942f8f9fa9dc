"""What a network in 4 bits costs and changes, by bitsandbytes itself.

    pip install 'cdsweep[quantise]'
    python benchmarks/quantised.py [--device cuda] [--source embedded] [--precisions fp32 bf16 fp16]

For each precision, whole and packed: bytes of the network's weights, the KL of a fresh adapter and the KL floor, the KL
of one adapter of some effect, the distance of the pretrained model's images from the whole network's in float32, and
the processor time of a KL with its gradient.
"""

import argparse
import time
from itertools import product

import torch
from embedded_problem import start_worker

from trainers.alignment.kl_floor import kl_floor
from trainers.config import ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.models.pipeline_policy import PipelinePolicy

PROMPTS = ("a red circle", "a blue square")
SAMPLES, EFFECT = 4, 0.05


def weights(network: torch.nn.Module) -> int:
    """Return the bytes of a network's weights with their scales."""
    scales = [state.absmax for p in network.parameters() if (state := getattr(p, "quant_state", None))]
    return sum(tensor.nbytes for tensor in (*network.parameters(), *scales))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--source", default="embedded")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"])
    options = parser.parse_args()
    start_worker()
    print("precision  quantise  weights, B  fresh KL  floor    KL       images off  step, s")
    first = None
    for precision, quantise in product(options.precisions, (None, "nf4")):
        torch.manual_seed(0)
        policy = PipelinePolicy.build(
            ModelConfig(pretrained=options.source, quantise=quantise),
            PromptsConfig(train=PROMPTS, evaluate=PROMPTS),
            SamplingConfig(steps=8, guidance=3.0, rest=1),
            TrainingConfig(precision=precision),
            options.device,
        )
        held = weights(policy.parts.network)
        draw = policy.fixed_draw(0, 0, SAMPLES)
        with torch.no_grad():
            images = policy.rollout(draw, reference=True).samples
            first = images if first is None else first
            fresh, floor = float(policy.rollout(draw).path_kl.max()), kl_floor(policy, 0)
            generator = torch.Generator().manual_seed(1)
            for name, parameter in policy.parameters().items():
                if ".lora_B." in name:
                    parameter.copy_(EFFECT * torch.randn(parameter.shape, generator=generator))
        began = time.process_time()
        kl = policy.rollout(draw).path_kl.mean()
        torch.autograd.grad(kl, list(policy.parameters().values()))
        row = f"{precision:<10} {quantise or '-':<9} {held:<11} {fresh:<9.2g} {floor:<8.2g} {float(kl):<8.4g}"
        print(f"{row} {float((images - first).abs().mean()):<11.4f} {time.process_time() - began:.2f}")


if __name__ == "__main__":
    main()
