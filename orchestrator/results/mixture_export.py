"""Several adapters as plain files with an index: members of a picked mixture."""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.results.export import exported
from orchestrator.results.formats import Format
from trainers.pipelines.families import Family

INDEX = "mixture.json"
README = "README.md"

_FIGURES = ("kl", "kl_low", "kl_high", "kl_bound", "rewards", "rewards_bound")

_TEXT = """# A mixture of adapters

Draw a member for every image with its probability, then sample it: that distribution has the expected rewards and at
most the KL below. `pretrained` is the model without an adapter.

| member | probability | adapter |
|---|---|---|
{rows}

KL at most {kl:.4g} nats ({low:.4g} to {high:.4g}); the least possible is at least {bound:.4g} nats ({kind}).

`mixture.json` has the same figures: `members` is a list of `trial_id`, `probability` and `adapter` (a folder beside it,
a LoRA with the names of {form}, or null), `rewards` the measured means by name, `rewards_bound` and `kl_bound` what
holds at 95 % confidence.
"""


def mixture_files(
    document: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, bytes]],
    form: Format,
    family: Family | None,
) -> dict[str, bytes]:
    """Return the files of an export by path.

    Args:
        document: Of ``cdsweep pick``.
        adapters: Files of each member's adapter, by trial id; none for the pretrained model.
        form: Whose names their tensors are given.
        family: Of the pipeline; None where it is not known.

    Raises:
        StorageError: An adapter cannot be exported.
    """
    members = [
        {**member, "adapter": member["trial_id"] if member["trial_id"] in adapters else None}
        for member in document["mixture"]
    ]
    rows = "\n".join(
        f"| {m['trial_id']} | {m['probability']:.4f} | {m['adapter'] or 'none'} |" for m in members
    )
    text = _TEXT.format(
        rows=rows,
        kl=document["kl"],
        low=document["kl_low"],
        high=document["kl_high"],
        bound=document["lower_bound"],
        kind=document["lower_bound_kind"],
        form=form,
    )
    index = {"format": 1, "members": members} | {
        key: document[key] for key in (*_FIGURES, "thresholds", "lower_bound", "lower_bound_kind")
    }
    files = {INDEX: (json.dumps(index, indent=2) + "\n").encode(), README: text.encode()}
    for trial_id, parts in adapters.items():
        files |= {f"{trial_id}/{name}": data for name, data in exported(parts, form, family).items()}
    return files
