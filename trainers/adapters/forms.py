"""What an adapter may be: updates ``alpha / rank · B A`` of layers of a UNet. Everything else is refused by its name.

Compositions rely on two properties: updates add up, and they leave the base what it is. A plain LoRA has both, whoever
wrote it. Other forms lack one of them, or are not read here; each is told by a part of the name of a tensor, or by a
setting of peft.
"""

import re
from collections.abc import Mapping
from typing import Any

MERGE = "merge it into its base and name that pipeline in its place: {pretrained: DIRECTORY}"
"""What can be done about every form: a composition takes whole pipelines too."""

_TENSORS = {
    r"^(text_encoder|lora_te\d?_|base_model\.model\.text_model\.|text_model\.)": (
        "adapts the text encoder too",
        "models of one composition share it, so only adapters of the UNet alone compose; leave those matrices out",
    ),
    r"dora_scale|magnitude_vector": ("is a DoRA adapter", "updates of DoRA do not add up"),
    r"hada_(w|t)\d": ("is a LoHa adapter", "only plain LoRA is read"),
    r"lokr_": ("is a LoKr adapter", "only plain LoRA is read"),
    r"(^|[._])b?oft_": ("is an OFT adapter", "rotations of weights do not add up"),
    r"(^|[._])ia3_|\.on_input$": ("is an (IA)3 adapter", "scales of activations do not add up"),
    r"vera_": ("is a VeRA adapter", "its matrices are those of a random seed and are not in the file"),
    r"lora_E|ranknum": ("is an AdaLoRA adapter", "only plain LoRA is read"),
    r"lora_mid": ("has decomposed convolutions (Tucker, LoCon)", "only plain LoRA is read"),
    r"\.diff(_b)?$|[._][wb]_norm$": ("has whole weights", "only plain LoRA is read"),
    r"\.bias(_\w+)?$": ("has trained biases", "only plain LoRA is read"),
}
"""Part of a tensor's name, what it is, and why it is refused."""

_PLAIN_STARTS = frozenset({"true", "false", "none", "gaussian", "orthogonal", "eva", "mica"})
"""Initialisations that leave the base alone: once trained, it does not matter how the matrices began."""
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",  # of layers that no UNet has
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "target_modules",
        "task_type",
    }
)
"""Settings of peft under which matrices mean the same: of the training, or which the matrices themselves say."""
STRENGTH = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""Settings of peft that say how much of the matrices is added."""
_READ = frozenset({"peft_type", "init_lora_weights", "bias", *STRENGTH})
_SETTINGS = {
    "use_dora": "updates of DoRA do not add up",
    "lora_bias": "only plain LoRA is read, without biases",
    "modules_to_save": "only plain LoRA is read, without whole modules",
}


def tensor_refusal(names: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a file that has tensors of these names, or None."""
    for pattern, (what, why) in _TENSORS.items():
        if found := sorted(name for name in names if re.search(pattern, name)):
            return f"{what} ({found[0]}): {why}; {MERGE}"
    return None


def settings_refusal(settings: Mapping[str, Any]) -> str | None:
    """Return which of peft's settings makes an adapter something else than a plain LoRA, or None."""
    kind, start = str(settings.get("peft_type") or "LORA"), str(settings.get("init_lora_weights"))
    if kind.upper().removeprefix("PEFTTYPE.") != "LORA":
        return f"peft_type: {kind}: only plain LoRA is read; {MERGE}"
    if start.lower() not in _PLAIN_STARTS:
        return (
            f"init_lora_weights: {start}: such training changes the base, and the matrices fit the changed one; "
            "convert it, as peft does with save_pretrained(…, path_initial_model_for_weight_conversion=…), or "
            f"{MERGE}"
        )
    if settings.get("bias") not in (None, "none"):
        return f"bias: {settings['bias']}: only plain LoRA is read, without biases; {MERGE}"
    for key in sorted(settings):
        if settings[key] and key not in _READ | _WITHOUT_EFFECT:
            why = _SETTINGS.get(key, "a setting that is not known here and may change what the matrices mean")
            return f"{key}: {settings[key]}: {why}; {MERGE}"
    return None
