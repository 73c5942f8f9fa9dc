"""Layers of a UNet, to which adapters are fitted and which targets name."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches

from trainers.adapters.reading import AdapterLayer
from trainers.config import ALL_LINEAR, LAYER_GROUPS

Shape = tuple[int, ...]

_BLOCKS = re.compile(
    r"(^|\.)(single_)?transformer_blocks\.\d+\.|^(layers|noise_refiner|context_refiner)\.\d+\."
)
"""Begins the names of what a network does over and over: of UNets, of most transformers, and of Z-Image."""
_MODULATION = re.compile(r"\.(norm\w*|\w+_mod|adaLN_modulation)\.")
"""Layers that turn the level into scales and shifts."""
_ATTENTION = re.compile(r"\.(to_[qkv]|add_[qkv]_proj|to_out(\.0)?|to_add_out|to_qkv_mlp_proj)$")
"""Projections of attention, of images and of texts, also where one layer is several of them."""


def fitted(adapter: Sequence[AdapterLayer], layers: Mapping[str, Shape]) -> dict[str, AdapterLayer]:
    """Return the update of every layer that has one, by the name of the layer.

    Args:
        adapter: Updates of a file.
        layers: Shapes ``[out, in, …]`` of the weights of the base.

    Raises:
        ValueError: An update has no layer in the base, or another shape than the layer.
    """
    by_kohya: dict[str, list[str]] = {}
    for name in layers:
        by_kohya.setdefault(name.replace(".", "_"), []).append(name)
    found: dict[str, AdapterLayer] = {}
    lost: list[AdapterLayer] = []
    for update in adapter:
        names = by_kohya.get(update.layer, []) if update.kohya else [update.layer]
        if len(names) != 1 or names[0] not in layers:
            lost.append(update)
            continue
        if names[0] in found:
            raise ValueError(f"{update.down} and {found[names[0]].down} update the same layer")
        _check_shape(update, layers[names[0]])
        found[names[0]] = update
    if lost:
        known = list(by_kohya) if lost[0].kohya else list(layers)
        near = get_close_matches(lost[0].layer, known, n=1)
        raise ValueError(
            f"{len(lost)} of its {len(adapter)} layers are not in the base, the first {lost[0].down}"
            + (f" (the nearest that is: {near[0]})" if near else "")
        )
    return found


def _check_shape(update: AdapterLayer, weight: Shape) -> None:
    rank, ones = update.rank, (1,) * (len(weight) - 2)
    pairs = (
        (update.down, update.down_shape, (rank, *weight[1:])),
        (update.up, update.up_shape, (weight[0], rank, *ones)),
    )
    for name, shape, wanted in pairs:
        if _without_ones(shape) != _without_ones(wanted):
            raise ValueError(
                f"size mismatch for {name}: it is {list(shape)}, and the layer takes {list(wanted)}"
            )


def _without_ones(shape: Shape) -> Shape:
    """Return a shape without a kernel of one pixel: a 1 x 1 convolution is a matrix."""
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def grouped(group: str, layers: Mapping[str, Shape]) -> list[str]:
    """Return the linear layers of a group, by name: those of a network's blocks, or of their attention.

    Not what embeds, modulates or ends, nor convolutions.

    Args:
        group: One of ``LAYER_GROUPS``.
        layers: Shapes of the weights of the network.
    """
    inside = [
        name
        for name, shape in layers.items()
        if len(shape) == 2 and _BLOCKS.search(name) and not _MODULATION.search(name)
    ]
    return inside if group == ALL_LINEAR else [name for name in inside if _ATTENTION.search(name)]


def target_problems(
    targets: Sequence[str], layers: Mapping[str, Shape], modules: Collection[str]
) -> Iterator[tuple[int, str]]:
    """Yield the targets that cannot be adapted, as the number in the list and the rule.

    Args:
        targets: Endings of names, or groups.
        layers: Shapes of the linear layers and convolutions by name.
        modules: Names of all that have names.
    """
    for number, target in enumerate(targets):
        if target in LAYER_GROUPS:
            if not grouped(target, layers):
                yield number, f"{target!r} names no layer of this network: name layers"
        elif any(_ends(name, target) for name in layers):
            pass
        elif others := sorted(name for name in modules if _ends(name, target)):
            below = [name for name in sorted(layers) if name.startswith(f"{others[0]}.")]
            meant = f", such as {target}{below[0].removeprefix(others[0])}" if below else ""
            rule = (
                f"ends the name of {others[0]}, which is no linear layer or convolution: name layers{meant}"
            )
            yield number, f"{target!r} {rule}"
        else:
            size = target.count(".") + 1
            endings = {".".join(name.split(".")[-size:]) for name in layers}
            near = get_close_matches(target, sorted(endings), n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            rule = "ends the name of no layer of the UNet; "
            yield number, f"{target!r} {rule}{meant}attention projections are to_q, to_k, to_v, to_out.0"


def named_layers(targets: Sequence[str], layers: Mapping[str, Shape], modules: Collection[str]) -> list[str]:
    """Return what names the layers of targets and nothing else: the endings, or all layers where one is ambiguous.

    Args:
        targets: Endings of names, or groups.
        layers: Shapes of the linear layers and convolutions by name.
        modules: Names of all that have names.
    """
    groups = {name for target in targets if target in LAYER_GROUPS for name in grouped(target, layers)}
    others = [name for name in modules if name not in layers]
    if not groups and not any(_ends(name, target) for name in others for target in targets):
        return list(targets)
    return [name for name in layers if name in groups or any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
