"""What kind of value the configurations of a pipeline's components must hold, where rules compute with it.

Looked at before any such rule: a text where a number belongs is said, and computed with by none.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainers.pipelines.families import STABLE_DIFFUSION, STABLE_DIFFUSION_3

_Form = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words, and whether it is."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value > 0 and value % 1 == 0


def _all(check: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(check, value))


_NUMBER: _Form = ("a number", _is_number)
_WHOLE: _Form = ("a whole number above 0", _is_whole)
_WHOLES: _Form = ("a list of whole numbers above 0", lambda value: _all(_is_whole, value))
_SIDES: _Form = (
    "a whole number above 0, height and width, or null",
    lambda value: value is None or _is_whole(value) or (_all(_is_whole, value) and len(value) == 2),
)
_SWITCHES: _Form = (
    "a list of true and false",
    lambda value: _all(lambda part: isinstance(part, bool), value),
)
_NETWORK = {"in_channels": _WHOLE, "sample_size": _SIDES}
_FORMS: Mapping[str, Mapping[str, _Form]] = {
    STABLE_DIFFUSION.network: _NETWORK
    | {
        "addition_time_embed_dim": (
            "a whole number above 0, or null",
            lambda value: value is None or _is_whole(value),
        )
    },
    STABLE_DIFFUSION_3.network: _NETWORK
    | {"joint_attention_dim": _WHOLE, "patch_size": _WHOLE, "all_patch_size": _WHOLES},
    "vae": {
        "latent_channels": _WHOLE,
        "z_dim": _WHOLE,
        "block_out_channels": _WHOLES,
        "temperal_downsample": _SWITCHES,
    },
    "scheduler": {
        "num_train_timesteps": _WHOLE,
        "beta_start": _NUMBER,
        "beta_end": _NUMBER,
        "trained_betas": (
            "a list of numbers, or null",
            lambda value: value in (None, [], ()) or _all(_is_number, value),
        ),
    },
}
"""By component and key, of those that may be left out."""
_LONGEST = 60


def value_mistakes(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what configurations hold that is of another kind than diffusers writes.

    Args:
        configs: By component; what is left out is not looked at.
    """
    for component, forms in _FORMS.items():
        for key, (form, holds) in forms.items():
            if component in configs and key in configs[component] and not holds(configs[component][key]):
                value = repr(configs[component][key])[:_LONGEST]
                yield f"has a {component} whose config has {key} {value}: it must be {form}"
