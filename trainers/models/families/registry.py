"""The families that can be trained.

A new one is a file beside this one, a record in ``pipelines.families``, and a line here;
``trainers.testing.check_family`` says whether it is one.
"""

from typing import Any

from trainers.models.families.base import NetworkFamily
from trainers.models.families.flux_1 import Flux1
from trainers.models.families.flux_2 import Flux2, Flux2Klein
from trainers.models.families.qwen_image import QwenImage
from trainers.models.families.stable_diffusion import StableDiffusion
from trainers.models.families.stable_diffusion_3 import StableDiffusion3
from trainers.models.families.stable_diffusion_xl import StableDiffusionXL
from trainers.models.families.z_image import ZImage
from trainers.pipelines.families import Family

FAMILIES: tuple[NetworkFamily, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux1(),
    ZImage(),
    Flux2(),
    Flux2Klein(),
    QwenImage(),
)


def family_with(form: Family) -> NetworkFamily:
    """Return the family of a record."""
    return next(family for family in FAMILIES if family.form == form)


def family_asking(network: Any) -> NetworkFamily:
    """Return the family whose network this is, or another of the same networks, whose adapters are alike."""
    names = {
        kind.__name__ for kind in type(network).__mro__
    }  # a sharded network is of a class of its own below it
    return next((family for family in FAMILIES if family.form.network_class in names), FAMILIES[0])
