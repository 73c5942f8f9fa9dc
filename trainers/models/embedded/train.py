"""Trains and exports everything that the package ships as its embedded model.

    python -m trainers.models.embedded.train --out DIR

writes DIR/pipeline, DIR/clip, DIR/prompts and DIR/quality.json, in about 75 minutes on one core. Every stage
saves its state to DIR/work as it goes: run the same command again after an interruption and it continues.
On Linux these settings spare a fifth of the time (large blocks are kept instead of returned):

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from trainers.models.embedded import classifier, export, flow, quality, tokenizer, twin, unet, vae, world

STAGES = ("vae", "clip", "unet", "export", "flow", "evaluate")


def run(out: Path, work: Path, stages: list[str]) -> None:
    """Runs the stages in order; a stage that needs an earlier one finds its state in `work`."""
    words = tokenizer.build()
    if "vae" in stages:
        held_out, _ = world.draw(world.splits()[1], 1000, quality.SEED)
        print(f"vae: {vae.psnr(vae.train(work), held_out):.2f} dB on held-out scenes", flush=True)
    if "clip" in stages:
        twin.train(words, work)
    if "unet" in stages:
        unet.train(vae.train(work), words, work)
    if "export" in stages:
        autoencoder = vae.train(work)
        denoiser, encoder = unet.train(autoencoder, words, work)
        export.export_pipeline(autoencoder, denoiser, encoder, words, out / "pipeline")
        export.export_twin(twin.train(words, work), words, out / "clip")
        export.write_prompts(out / "prompts")
        print(f"export: {export.check_size(out) / 1e6:.2f} MB", flush=True)
    if "flow" in stages:
        # On the latents of the autoencoder that has been exported, in half precision, and beside a copy of it.
        autoencoder = AutoencoderKL.from_pretrained(out / "pipeline" / "vae")
        export.export_flow(autoencoder, *flow.train(autoencoder, words, work), words, out / "flow")
        print(f"flow: {export.check_size(out) / 1e6:.2f} MB with the others", flush=True)
    if "evaluate" in stages:
        quality.report(out, classifier.train(work))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where to write weights and figures")
    parser.add_argument("--work", type=Path, help="directory of the training state (default: OUT/work)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--threads", type=int, default=1, help="one is reproducible and nearly as fast as two"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run(arguments.out, arguments.work or arguments.out / "work", arguments.stages)


if __name__ == "__main__":
    main()
