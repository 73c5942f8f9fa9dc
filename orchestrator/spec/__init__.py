"""The spec of a sweep: its face for the floors above."""

from orchestrator.spec.files.adapters import lora_files, sampler_line
from orchestrator.spec.files.contents import changes, is_code, model_identity, told
from orchestrator.spec.files.hub import hub_answers
from orchestrator.spec.files.pipelines import (
    family_named,
    flows,
    hub_id,
    known_pipeline,
    parts_left_out,
)
from orchestrator.spec.files.presets import preset_line
from orchestrator.spec.identity import meaning
from orchestrator.spec.load import dump_spec, json_schema, load_spec, parse_spec
from orchestrator.spec.records.budgets import budgeted_hours, budgeted_wall, lasting
from orchestrator.spec.records.constituents import adapter_directory
from orchestrator.spec.records.models import ResourcesSpec, RetriesSpec, SweepSpec
from orchestrator.spec.records.registry import meant
from orchestrator.spec.records.rewards import resolve_rewards
from orchestrator.spec.records.searches import (
    CERTIFIED,
    GRID,
    WeightSearchSpec,
    asks_box,
    continues,
    max_trials,
    most_rounds,
)
from orchestrator.spec.records.terms import RewardConstraint, ThresholdRange
from orchestrator.spec.records.trackers import (
    MLFLOW,
    TENSORBOARD,
    MLflowSettings,
    Tracker,
    WandbSettings,
    chosen_trackers,
    tracker_name,
)
from orchestrator.spec.rules.compositions import SIMPLEX_TOLERANCE
from orchestrator.spec.rules.packs import unpackable
from orchestrator.spec.rules.prompt_warnings import prompt_warnings
from orchestrator.spec.text.problems import suggestion

__all__ = [
    "CERTIFIED",
    "GRID",
    "MLFLOW",
    "SIMPLEX_TOLERANCE",
    "TENSORBOARD",
    "MLflowSettings",
    "ResourcesSpec",
    "RetriesSpec",
    "RewardConstraint",
    "SweepSpec",
    "ThresholdRange",
    "Tracker",
    "WandbSettings",
    "WeightSearchSpec",
    "adapter_directory",
    "asks_box",
    "budgeted_hours",
    "budgeted_wall",
    "changes",
    "chosen_trackers",
    "continues",
    "dump_spec",
    "family_named",
    "flows",
    "hub_answers",
    "hub_id",
    "is_code",
    "json_schema",
    "known_pipeline",
    "lasting",
    "load_spec",
    "lora_files",
    "max_trials",
    "meaning",
    "meant",
    "model_identity",
    "most_rounds",
    "parse_spec",
    "parts_left_out",
    "preset_line",
    "prompt_warnings",
    "resolve_rewards",
    "sampler_line",
    "suggestion",
    "told",
    "tracker_name",
    "unpackable",
]
