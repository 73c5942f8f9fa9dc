"""Adapters, prompts and pipelines as chains on one noise.

Symbols: ``x̂_i`` the clean image that model ``i`` guesses, after guidance; ``u_i = (B / C) x̂_i`` its control. A
step's mean is linear in ``x̂_i`` and the models share its coefficients, so controls need no base: in all that is
measured only differences of controls matter.

What is asked of one network with the same adapters goes through it in one call, and shares the pass without a prompt
that guidance needs: ``m`` prompts cost ``m + 1`` passes, not ``2 m``. In the last ``rest`` steps adapters are off,
concepts are named all together, and all models are one question: those steps, whose KL has the largest weights, cost
none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from trainers.composition.networks.chains import at_weights
from trainers.composition.networks.loading import Networks, load_networks
from trainers.config import ConstituentConfig, LoraConfig, PromptsConfig, TrialConfig
from trainers.models.base import Draw
from trainers.models.denoiser import Denoiser, random_seeds, shuffled
from trainers.models.layers.trained_lora import Adapter
from trainers.types import FloatArray

_STUDENT = "student"
_CHUNK = 32
"""Samples that are drawn at a time, unless told otherwise."""


@dataclass(frozen=True)
class _Call:
    """A network in one state of its adapters; any number of prompts go through it at once."""

    network: int = 0
    adapters: tuple[tuple[str, float], ...] = ()
    """Those that act, by name, with their weights."""
    student: bool = False
    """The student acts, in their place."""


_Question = tuple[_Call, str | None]
"""A call, and a text; None: the prompt of each sample."""


class PipelineChains:
    """``m`` models of which each is an adapter or a prompt on the base, or a pipeline of its own."""

    def __init__(
        self,
        models: Sequence[ConstituentConfig],
        networks: Networks,
        prompts: PromptsConfig | None,
        chunk: int | None = None,
    ) -> None:
        """Take models whose networks are loaded, and the trial's prompts; None where all models are prompts.

        Args:
            models: In the order of weights.
            networks: Theirs.
            prompts: Of the trial.
            chunk: Samples that are drawn at a time.

        Raises:
            ValueError: there are no prompts, and a model needs them.
        """
        self.chunk = chunk or _CHUNK
        self._models, self._networks, self._prompts = tuple(models), networks, prompts
        concepts = [model.prompt for model in models if model.prompt is not None]
        self._joint = ", ".join(concepts) if len(concepts) == len(models) else None
        if self._joint is None and prompts is None:
            raise ValueError(
                "prompts: adapters and pipelines are asked with the trial's prompts, and there are none"
            )
        self._adapted = all(model.adapter is not None for model in models)
        self._student: Adapter | None = None

    # ------------------------------------------------------------------ sizes

    @property
    def count(self) -> int:
        """Models m."""
        return len(self._models)

    @property
    def steps(self) -> int:
        """Gaussian steps K."""
        return self._first.steps

    @property
    def active_steps(self) -> int:
        """The first steps, in which models differ and a student acts; then adapters rest, and so do concepts."""
        resting = self._adapted or self._joint is not None
        return self._first.adapted_steps if resting else self.steps

    @property
    def alpha_bars(self) -> FloatArray:
        """``ᾱ`` before every step, ``[K]``, from noise to clean."""
        return np.square(self._first.table.levels.alpha[:-1])

    @property
    def score_scale(self) -> FloatArray:
        """Difference of scores per difference of controls, ``[K]``: ``α / σ² · C / B``."""
        table = self._first.table
        scale: FloatArray = (
            table.levels.alpha[:-1] / table.levels.sigma[:-1] ** 2 * table.noise / table.from_clean
        )
        return scale

    @property
    def evaluations(self) -> float:
        """Network evaluations of one sample when every model is asked in every step; guidance adds one per call."""
        guided = int(self._first.guided)
        return float(
            sum(
                len(texts) + guided
                for step in range(self.steps)
                for texts in _calls(self._models_at(step)).values()
            )
        )

    # ------------------------------------------------------------------ noise and prompts

    def draw(self, groups: int, size: int, seed: int, *, first: int = 0, held_out: bool = False) -> Draw:
        """Return noise and prompts of groups; held out, sample ``i`` of the sequence has the noise ``seed + i``."""
        numbers = np.arange(first * size, (first + groups) * size)
        held = (seed + numbers).astype(np.int64)
        seeds = held if held_out else random_seeds((first + groups) * size, seed)[numbers]
        if self._joint is not None:
            asked: Sequence[str] = (self._joint,) * groups
        else:
            assert self._prompts is not None
            if held_out:
                known = self._prompts.in_turn("evaluate", seed)
                asked = [known[group % len(known)] for group in range(first, first + groups)]
            else:
                asked = shuffled(self._prompts.train, first + groups, seed)[first:]
        return Draw(
            noise=self._first.noise(seeds),
            seeds=seeds,
            prompts=tuple(text for text in asked for _ in range(size)),
            seed=seed,
        )

    # ------------------------------------------------------------------ controls

    def controls(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        """Return ``u_i`` of all models, ``[m, batch, d]``."""
        with torch.no_grad():
            return self._ask(step, state, draw, self._models_at(step))

    def control(
        self, driver: str | int, step: int, state: Tensor, draw: Draw, weights: Sequence[float]
    ) -> Tensor:
        """Return the control of a model, ``base``, ``merged``, ``joint``, or the ``student``, ``[batch, d]``."""
        with torch.no_grad():
            if driver == _STUDENT and draw.tilt is None and len(weights):
                draw = at_weights(draw, np.asarray(weights))
            if isinstance(driver, int):
                return self._ask(step, state, draw, [self._model(driver, step)])[0]
            return self._ask(step, state, draw, [self._baseline(driver, step, weights)])[0]

    def advance(self, step: int, state: Tensor, control: Tensor, noise: Tensor) -> Tensor:
        """Return ``a x + σ (u + ε)``, ``[batch, …]``."""
        table = self._first.table
        shift = control.view_as(state) + noise
        return float(table.from_state[step]) * state + float(table.noise[step]) * shift

    def decode(self, state: Tensor) -> Tensor:
        """Return images of final latents, by the first network's VAE."""
        with torch.no_grad():
            return self._first.parts.decode(state)

    # ------------------------------------------------------------------ a student

    def student(self, lora: LoraConfig, seed: int = 0, *, form: str | None = None) -> Adapter:
        """Add an adapter to the first network, to be trained beside the models.

        It is asked with the trial's prompts, or, where all models are prompts, with all of them in one.

        Args:
            lora: Its size.
            seed: Of its first values.
            form: Where it is a function of the models' weights, which a draw then has in place of a tilt: its kind.

        Raises:
            ValueError: the UNet has no such layers, or the form does not fold.
        """
        assert self._student is None, "there is one student"
        torch.manual_seed(seed)
        adapters = self._networks.each[0].adapters
        if form is None:
            self._student = adapters.trainable(lora, _STUDENT)
        else:
            names = [model.name for model in self._models]
            self._student = adapters.trainable(lora, _STUDENT, conditions=names, form=form)
        return self._student

    def student_parameters(self) -> list[nn.Parameter]:
        """Return the student's matrices, float32."""
        return list(self._taught.parameters().values())

    def student_control(self, step: int, state: Tensor, draw: Draw) -> Tensor:
        """Return the student's control, ``[batch, d]``, with gradients to its matrices alone.

        Where it rests, after ``active_steps``, that is the base's, without gradients.
        """
        return self._ask(step, state.detach(), draw, [self._baseline(_STUDENT, step, ())])[0]

    def student_files(self) -> dict[str, bytes]:
        """Return the student in the diffusers LoRA format; a function of weights with the tensors of its form."""
        return self._taught.files()

    def load_student(self, files: Mapping[str, bytes]) -> None:
        """Take the files of ``student_files()``.

        Raises:
            ValueError: they do not fit.
        """
        self._taught.load(files)

    def folded_student(self, weights: Tensor) -> dict[str, bytes]:
        """Return the student at weights ``[m]`` in the diffusers LoRA format, where it is a function of them."""
        return self._taught.folded(weights.to(self._first.parts.device))

    # ------------------------------------------------------------------ questions

    @property
    def _first(self) -> Denoiser:
        return self._networks.each[0].denoiser

    @property
    def _taught(self) -> Adapter:
        assert self._student is not None, "a student is added first"
        return self._student

    def _models_at(self, step: int) -> list[_Question]:
        return [self._model(number, step) for number in range(self.count)]

    def _model(self, number: int, step: int) -> _Question:
        model = self._models[number]
        acting = model.adapter is not None and step < self._first.adapted_steps
        text = self._joint if self._joint is not None and step >= self._first.adapted_steps else model.prompt
        return _Call(self._networks.places[number], ((model.name, 1.0),) if acting else ()), text

    def _baseline(self, name: str, step: int, weights: Sequence[float]) -> _Question:
        """Return the question of a baseline.

        Raises:
            ValueError: these models have no such baseline.
        """
        if name == _STUDENT and self._student is not None:
            return _Call(student=step < self.active_steps), self._joint
        if name == "base":
            if self._networks.based and self._joint is None:
                return _Call(), None
            raise ValueError("these models have no base to compare with")
        if name == "merged":
            if not self._adapted:
                raise ValueError("only adapters can be merged, and not all of these models are adapters")
            named = zip(self._models, weights, strict=True)
            summed = tuple((model.name, float(weight)) for model, weight in named if weight)
            return _Call(adapters=summed if step < self._first.adapted_steps else ()), None
        if name == "joint":
            if self._joint is not None:
                return _Call(), self._joint
            raise ValueError("only prompts have a joint one, and not all of these models are prompts")
        raise ValueError(f"these models have no baseline {name!r}; known: base, merged, joint")

    def _ask(self, step: int, state: Tensor, draw: Draw, questions: Sequence[_Question]) -> Tensor:
        """Return controls, ``[questions, batch, d]``; what one network can answer at once is one call."""
        assert draw.prompts is not None
        answers = {}
        for call, texts in _calls(questions).items():
            denoiser = self._networks.each[call.network].denoiser
            asked = [draw.prompts if text is None else (text,) * len(draw) for text in texts]
            conditions, prepare = denoiser.conditions(*asked), partial(self._prepare, call, draw)
            if call.student and self._taught.form is not None:
                clean, shift = denoiser.pair(step, state, conditions, prepare=prepare)
                guesses = clean + shift
            else:
                guesses = denoiser.guess(step, state, conditions, prepare=prepare)
            for text, clean in zip(texts, guesses, strict=True):
                answers[call, text] = self._first.control(step, clean)
        return torch.stack([answers[question] for question in questions])

    def _prepare(self, call: _Call, draw: Draw) -> None:
        if call.student and self._taught.form is not None:
            paired = self._networks.each[call.network].denoiser.paired
            self._taught.switch_beside_reference(paired=paired, tilts=draw.tilt)
        elif call.student:
            self._taught.switch(on=True)
        else:
            self._networks.each[call.network].adapters.use(dict(call.adapters))


def build_chains(config: TrialConfig, device: str = "cpu") -> PipelineChains:
    """Load the networks of a composition onto a device.

    Raises:
        ValueError: a model cannot be used, or they do not go together; names the models and says why.
    """
    composition = config.model.composition
    assert composition is not None, "a composition"
    networks = load_networks(composition, config.sampling, config.training.precision, device)
    return PipelineChains(composition.models, networks, config.prompts, config.evaluation.batch)


def _calls(questions: Iterable[_Question]) -> dict[_Call, list[str | None]]:
    """Return the different texts of every call."""
    calls: dict[_Call, list[str | None]] = {}
    for call, text in dict.fromkeys(questions):
        calls.setdefault(call, []).append(text)
    return calls
