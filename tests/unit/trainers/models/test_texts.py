"""The text side of pipelines: each text once, in batches that change nothing, and then its memory is free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_pipeline
from support.models.families.flux import SIZE, write_flux
from support.models.families.flux_2 import write_flux_2
from support.models.families.qwen_image import write_qwen_image
from support.models.families.sd3 import write_sd3
from support.models.families.xl import write_xl
from support.models.families.z_image import write_z_image

from trainers.config import LoraConfig, ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.models.pipeline import Parts, load_parts
from trainers.models.pipeline_policy import PipelinePolicy
from trainers.models.texts import BATCH, Reader

ROUNDING = 1e-5
LONG = "a circle beside which another circle is nearly as large"
TEXTS = ("red circle", LONG, "blue", "")
WRITERS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "sd": (tiny_pipeline.write, {}),
    "sdxl": (write_xl, {}),
    "sd3": (write_sd3, {"max_sequence_length": 7}),
    "flux": (write_flux, SIZE),
    "klein": (write_flux_2, SIZE | {"max_sequence_length": 60}),
    "z_image": (write_z_image, SIZE | {"max_sequence_length": 100}),
    "qwen": (write_qwen_image, SIZE | {"max_sequence_length": 400}),
}


@pytest.fixture(scope="module", params=WRITERS)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Those of a small pipeline of each family."""
    write, model = WRITERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    write(folder)
    return load_parts(ModelConfig(pretrained=str(folder), **model), "fp32")


@contextmanager
def counted(parts: Parts) -> Iterator[dict[str, list[int]]]:
    """Note the batches that the text encoders are asked with, by component."""
    form, sizes = parts.family.form, dict[str, list[int]]()
    hooks = []
    for name in (*form.text_encoders, *form.optional):
        if (encoder := getattr(parts.pipeline, name)) is not None:
            found = sizes.setdefault(name, [])

            def note(_: Any, args: Any, kwargs: Any, found: list[int] = found) -> None:
                found.append(len(args[0] if args else kwargs["input_ids"]))

            hooks.append(encoder.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def encoders(parts: Parts) -> list[Any]:
    form = parts.family.form
    return [getattr(parts.pipeline, name) for name in (*form.text_encoders, *form.optional)]


def test_a_batch_says_what_each_text_says_alone(parts: Parts) -> None:
    asked = parts.asked(SamplingConfig())
    together = parts.texts.encode(TEXTS, asked).rows()
    for text, row in zip(TEXTS, together, strict=True):
        (alone,) = parts.texts.encode((text,), asked).rows()
        assert row.named().keys() == alone.named().keys()
        for name, value in row.named().items():
            torch.testing.assert_close(value, alone.named()[name], rtol=ROUNDING, atol=ROUNDING)
    assert not torch.equal(together[0].sequence, together[2].sequence[:, : together[0].sequence.shape[1]])


def test_every_text_is_encoded_once_in_batches_and_no_prompt_once(parts: Parts) -> None:
    guided = {"guidance": 3.0} if parts.family.form.guidance == "free" else {}
    listed = [f"circle {number}" for number in range(BATCH + 3)]
    reader = Reader(parts.texts, parts.asked(SamplingConfig(**guided)), listed)
    with counted(parts) as sizes:
        for text in (*reversed(listed), *listed):
            reader.of(text)
            if guided:
                reader.away()
    assert sizes.keys(), "it has text encoders"
    for found in sizes.values():
        assert sorted(found) == ([1] if guided else []) + [3, BATCH]


def test_encoders_that_are_gone_come_back_for_new_texts(parts: Parts) -> None:
    asked = parts.asked(SamplingConfig())
    reader = Reader(parts.texts, asked, ("red", "green"))
    before = [encoder is not None for encoder in encoders(parts)]
    (new,) = parts.texts.encode((LONG,), asked).rows()
    reader.read_list()
    assert all(encoder is None for encoder in encoders(parts))
    known = reader.of("green")
    assert all(encoder is None for encoder in encoders(parts)), "what is known needs none"
    (again,) = parts.texts.encode(("green",), asked).rows()
    assert [encoder is not None for encoder in encoders(parts)] == before
    torch.testing.assert_close(again.sequence, known.sequence, rtol=ROUNDING, atol=ROUNDING)
    parts.texts.let_go()
    (back,) = parts.texts.encode((LONG, "red"), asked).rows()[:1]
    torch.testing.assert_close(back.sequence, new.sequence, rtol=ROUNDING, atol=ROUNDING)


def test_training_reads_its_prompts_before_its_first_batch(tmp_path: Path) -> None:
    policy = tiny_pipeline.policy(tiny_pipeline.write(tmp_path), steps=2, guidance=3.0)
    parts = policy.parts
    with counted(parts) as sizes:
        policy.rollout(policy.fixed_draw(0, 0, 1))
        assert encoders(parts) != [None], "samples may be asked for other prompts"
        draw = policy.draw(4, 0)
        assert encoders(parts) == [None]
        policy.rollout(draw)
        policy.rollout(policy.fixed_draw(0, 0, 4))
    assert sizes == {"text_encoder": [5, 1]}, "three prompts to train on, two held out, and none"
    policy.rollout(policy.fixed_draw(0, 0, 1, prompts=["green circle"]))
    assert encoders(parts) != [None]


def test_lists_of_which_training_sees_a_part_are_not_read_whole(tmp_path: Path) -> None:
    folder = tiny_pipeline.write(tmp_path)
    many = tuple(f"circle {number}" for number in range(40))
    policy = tiny_pipeline.policy(folder, steps=2, train=many)  # 600 steps of 256 draws
    few = PipelinePolicy.build(
        ModelConfig(pretrained=str(folder), lora=LoraConfig(rank=2)),
        PromptsConfig(train=many, evaluate=("red",)),
        SamplingConfig(steps=2),
        TrainingConfig(steps=3, batch_per_worker=2),
    )
    found = []
    for one in (policy, few):
        with counted(one.parts) as sizes:
            one.rollout(one.draw(2, 0))
        found.append(sizes["text_encoder"])
    assert found == [[BATCH] * 5 + [2], [1, 1]]


def test_what_is_read_does_not_hang_on_who_asks_first(tmp_path: Path) -> None:
    folder = tiny_pipeline.write(tmp_path)
    first, second = (tiny_pipeline.policy(folder, steps=2, guidance=3.0) for _ in range(2))
    evaluated = first.rollout(first.fixed_draw(0, 0, 2)).samples
    second.draw(4, 1)
    assert torch.equal(second.rollout(second.fixed_draw(0, 0, 2)).samples, evaluated)
