"""A plan of many trials is hardly larger than a plan of one."""

import json
import subprocess
import sys
from pathlib import Path

_TRIALS, _PROMPTS = 500, 1500


def _spec(trials: int) -> str:
    prompts = [
        f"a photograph of a small red boat near the mountain lake under an evening sky {place}"
        for place in range(2 * _PROMPTS)
    ]
    spec = {
        "name": "large",
        "model": {"pretrained": "embedded"},
        "prompts": {"train": prompts[:_PROMPTS], "evaluate": prompts[_PROMPTS:]},
        "constraints": [{"reward": "clip", "at_least": {"grid": [0.001 * n for n in range(trials)]}}],
    }
    return json.dumps(spec)


def _planned(path: Path) -> tuple[str, int]:
    """Return what ``cdsweep plan --json`` prints, and the most memory that it took, KiB."""
    script = (
        "import sys\nfrom orchestrator.cli import app\n"
        f"sys.argv = ['cdsweep', 'plan', {str(path)!r}, '--json']\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        # Not ru_maxrss: it begins with what this process has, and nothing would be measured.
        "known = open('/proc/self/status').read()\n"
        "print(known.split('VmHWM:')[1].split()[0], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout, int(done.stderr.splitlines()[-1])


def test_size_and_memory_of_500_trials_of_1500_prompts(tmp_path: Path) -> None:
    for trials in (1, _TRIALS):
        (tmp_path / f"{trials}.json").write_text(_spec(trials))
    _, least = _planned(tmp_path / "1.json")
    text, most = _planned(tmp_path / f"{_TRIALS}.json")
    assert len(json.loads(text)["trials"]) == _TRIALS
    assert len(text.encode()) <= 3_000_000
    assert most <= 1.2 * least
