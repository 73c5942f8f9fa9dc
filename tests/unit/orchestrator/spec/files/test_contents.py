"""What names stand for is part of a trial: other weights, commits or code are other trials, wherever they lie."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.errors import SpecError
from orchestrator.plan import base_config, make_plan
from orchestrator.results.sample_cache import samples_key
from orchestrator.spec.files import contents, digests, hub
from orchestrator.spec.load import dump_spec, load_spec, parse_spec
from orchestrator.spec.records.models import SweepSpec
from trainers.models.pipeline import EMBEDDED_DIRECTORY

COMMIT, LATER = 40 * "a", 40 * "b"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No hub, and an empty cache of its own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield
    forget()


def forget() -> None:
    """As a new process."""
    hub.commit_of.cache_clear()
    hub.hub_answers.cache_clear()
    hub._asked.cache_clear()


def spec_of(folder: Path, model: str = "./pipeline", reward: str = "saturation", more: str = "") -> SweepSpec:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spec.yaml"
    file.write_text(
        f"name: demo\nmodel: {{pretrained: {model}}}\nprompts: {{train: [a cat], evaluate: [a dog]}}\n"
        f"constraints: [{{reward: {reward}, name: wish, at_least: 0.5, unit: sigma}}]\n{more}"
    )
    return load_spec(file)


def known_by(spec: SweepSpec) -> tuple[str, str]:
    """Return the id of the trial, and the key of the samples of its pretrained model."""
    (trial,) = make_plan(spec).trials
    return trial.trial_id, samples_key(base_config(spec))


def apart(one: SweepSpec, other: SweepSpec) -> bool:
    """Return whether trials and samples differ; never only one of them."""
    same = [a == b for a, b in zip(known_by(one), known_by(other), strict=True)]
    assert len(set(same)) == 1
    return not same[0]


# Pipelines -------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(EMBEDDED_DIRECTORY, tmp_path / "pipeline")


def flip(file: Path) -> None:
    """Change the last byte, and neither size nor time."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
def test_a_pipeline_retrained_in_place_is_another(pipeline: Path, tmp_path: Path, file: str) -> None:
    before = spec_of(tmp_path)
    flip(pipeline / file)
    assert apart(before, spec_of(tmp_path))


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("scheduler/scheduler_config.json", {"beta_end": 0.013}),
        ("unet/config.json", {"attention_head_dim": 4}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 5}),
    ],
)
def test_a_configuration_counts(pipeline: Path, tmp_path: Path, file: str, settings: dict[str, Any]) -> None:
    before = spec_of(tmp_path)
    (pipeline / file).write_text(json.dumps(json.loads((pipeline / file).read_text()) | settings))
    assert apart(before, spec_of(tmp_path))


def test_place_time_and_what_is_not_read_do_not_count(pipeline: Path, tmp_path: Path) -> None:
    before = spec_of(tmp_path)
    for file in pipeline.rglob("*.safetensors"):
        os.utime(file, (1, 1))
    (pipeline / "README.md").write_text("A card.")
    (pipeline / "safety_checker").mkdir()
    (pipeline / "safety_checker" / "model.safetensors").touch()
    (pipeline / "unet" / "diffusion_pytorch_model.ema.safetensors").touch()
    assert not apart(before, spec_of(tmp_path))
    pipeline.rename(tmp_path / "elsewhere")
    assert not apart(before, spec_of(tmp_path, "./elsewhere"))
    assert apart(before, spec_of(tmp_path, "embedded")), "another name, although it is a copy"


def test_a_variant_counts_by_its_files(pipeline: Path, tmp_path: Path) -> None:
    unet = pipeline / "unet"
    shutil.copy(
        unet / "diffusion_pytorch_model.safetensors", unet / "diffusion_pytorch_model.fp16.safetensors"
    )
    plain, half = spec_of(tmp_path), spec_of(tmp_path, "./pipeline, variant: fp16")
    flip(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert not apart(plain, spec_of(tmp_path))
    assert apart(half, spec_of(tmp_path, "./pipeline, variant: fp16"))


def test_a_composed_pipeline_counts(pipeline: Path, tmp_path: Path) -> None:
    def composed() -> SweepSpec:
        file = tmp_path / "spec.yaml"
        file.write_text(
            "name: two\nmodels: {one: {pretrained: embedded}, two: {pretrained: ./pipeline}}\n"
            "objective: {minmax_kl: [one, two]}\nprompts: {train: [a], evaluate: [b]}\n"
        )
        return load_spec(file)

    before = composed()
    assert set(before.contents) == {"models.one", "models.two"}
    flip(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    assert apart(before, composed())


def test_the_shipped_pipeline_has_the_same_digest_everywhere(tmp_path: Path) -> None:
    one, other = spec_of(tmp_path / "a", "embedded"), spec_of(tmp_path / "b" / "c", "embedded")
    assert one.contents == other.contents
    assert not apart(one, other)


# The spec that a sweep keeps -------------------------------------------------------------------------


def test_a_resolved_spec_keeps_its_contents(pipeline: Path, tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    stored = parse_spec(dump_spec(spec))
    assert stored == spec
    assert not apart(stored, spec)
    assert contents.changes(stored) == {}
    flip(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    assert not apart(parse_spec(dump_spec(spec)), spec), "it is still about what it was about"
    (line,) = contents.told(stored, contents.changes(stored))
    assert line.startswith(f"model has changed: it was {spec.contents['model'][:12]}, and is ")
    shutil.rmtree(pipeline)
    assert contents.changes(stored) == {}, "what is not here says nothing"


def test_contents_that_are_written_must_be_here(pipeline: Path, tmp_path: Path) -> None:
    digest = spec_of(tmp_path).contents["model"]
    assert spec_of(tmp_path, more=f"contents: {{model: {digest}}}\n").contents == {"model": digest}
    flip(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(SpecError, match=r"(?s)contents\.model .*has changed: here it is"):
        spec_of(tmp_path, more=f"contents: {{model: {digest}}}\n")
    with pytest.raises(SpecError, match=r"contents\.modl.*\n.*is the place of nothing in this spec"):
        spec_of(tmp_path, more="contents: {modl: abc}\n")


# Hub ids ---------------------------------------------------------------------------------------------


def cache_commit(repository: str, commit: str, revision: str = "main") -> None:
    """Let the hub's cache say which commit a revision was."""
    folder = (
        Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / revision).write_text(commit)
    forget()


def test_a_hub_id_is_known_by_its_commit(tmp_path: Path) -> None:
    cache_commit("owner/name", COMMIT)
    before = spec_of(tmp_path, "owner/name")
    assert before.contents == {"model": COMMIT}
    assert base_config(before).model.revision == COMMIT, "which is what is loaded"
    assert not apart(before, spec_of(tmp_path, "owner/name, revision: main"))
    assert not apart(before, spec_of(tmp_path, f"owner/name, revision: {COMMIT}"))
    cache_commit("owner/name", LATER)
    assert apart(before, spec_of(tmp_path, "owner/name"))
    assert contents.changes(before) == {}, "its own commit is loaded, wherever main has gone"
    written = spec_of(tmp_path, "owner/name", more=f"contents: {{model: {COMMIT}}}\n")
    assert not apart(before, written)


def test_a_commit_that_nothing_tells_is_said(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "owner/name")
    assert spec.contents == {"model": contents.UNKNOWN}
    config = base_config(spec)
    assert config.contents == {}
    assert config.model.revision is None
    assert any(
        line.startswith("model: the commit of the hub id is not known") for line in make_plan(spec).warnings
    )
    assert parse_spec(dump_spec(spec)) == spec


def test_a_hub_id_of_a_reward_is_known_by_its_commit(tmp_path: Path) -> None:
    cache_commit("owner/clip", COMMIT)
    before = spec_of(tmp_path, "embedded", "{clip_score: {model: owner/clip, processor: embedded}}")
    assert before.contents["rewards.wish.model"] == COMMIT
    (reward,) = base_config(before).rewards
    assert reward.revisions == {"model": COMMIT}
    cache_commit("owner/clip", LATER)
    assert apart(
        before, spec_of(tmp_path, "embedded", "{clip_score: {model: owner/clip, processor: embedded}}")
    )


class Hub(BaseHTTPRequestHandler):
    """The one answer that is asked for."""

    commits: dict[str, str] = {}  # noqa: RUF012 - replaced by tests
    files: tuple[str, ...] = ()

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        commit = self.commits.get(self.path)
        self.send_response(404 if commit is None else 200)
        self.end_headers()
        self.wfile.write(b"" if commit is None else self._said(commit))

    def _said(self, commit: str) -> bytes:
        return json.dumps({"sha": commit, "siblings": [{"rfilename": name} for name in self.files]}).encode()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def serving(commits: dict[str, str], files: tuple[str, ...] = ()) -> Iterator[str]:
    Hub.commits, Hub.files = commits, files
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_hub_is_asked_before_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_commit("owner/name", COMMIT)
    cache_commit("owner/gated", COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(
        {
            "/api/models/owner/name/revision/main": LATER,
            "/api/models/owner/name/revision/refs%2Fpr%2F1": COMMIT,
        }
    ) as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        assert spec_of(tmp_path, "owner/name").contents == {"model": LATER}
        assert spec_of(tmp_path, "owner/name, revision: refs/pr/1").contents == {"model": COMMIT}
        assert spec_of(tmp_path, "owner/gated").contents == {"model": COMMIT}, "refused there, known here"
    forget()
    assert spec_of(tmp_path, "owner/name").contents == {"model": COMMIT}, "it does not answer any more"


def test_the_hub_tells_that_only_a_variant_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = (
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    )
    with serving({"/api/models/owner/name/revision/main": COMMIT}, files) as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(SpecError, match=r"only the fp16 variant is there: model\.variant: fp16"):
            spec_of(tmp_path, "owner/name")
        assert spec_of(tmp_path, "owner/name, variant: fp16").contents == {"model": COMMIT}
        with pytest.raises(SpecError, match="no files of the variant 'bf16'; there are: fp16"):
            spec_of(tmp_path, "owner/name, variant: bf16")


# Rewards, estimators and optimisers ------------------------------------------------------------------


def test_weights_of_a_reward_count(tmp_path: Path) -> None:
    head = tmp_path / "head"
    head.mkdir()

    def written(value: float) -> SweepSpec:
        save_file({"layers.0.weight": np.full((4, 64), value, np.float32)}, head / "model.safetensors")
        return spec_of(tmp_path, "embedded", f"{{aesthetic: {{model: {head}, clip: embedded}}}}")

    before = written(1.0)
    (head / "README.md").write_text("A card.")
    assert not apart(before, written(1.0))
    assert apart(before, written(2.0))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with a reward, an estimator and an optimiser, which fails where it is imported."""
    site = tmp_path / "site"
    (site / "mine" / "parts").mkdir(parents=True)
    for name in ("__init__.py", "parts/__init__.py", "parts/reward.py", "helper.py"):
        (site / "mine" / name).write_text("raise AssertionError('a plan imports nothing')\n")
    info = site / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cdsweep.rewards]\nmine = mine.parts.reward:Mine\n"
        "[cdsweep.primal_estimators]\nslow = mine.helper:Slow\n"
        "[cdsweep.dual_optimizers]\nslow = mine.helper:Slow\n"
    )
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.parametrize("file", ["mine/parts/reward.py", "mine/helper.py", "mine/weights.bin"])
def test_code_of_a_reward_counts(package: Path, tmp_path: Path, file: str) -> None:
    before = spec_of(tmp_path, "embedded", "mine")
    assert before.contents["rewards.wish"].startswith("mine 1.0 ")
    (package / "mine" / "__pycache__").mkdir()
    (package / "mine" / "__pycache__" / "helper.pyc").touch()
    assert not apart(before, spec_of(tmp_path, "embedded", "mine"))
    (package / file).write_text("changed = True\n")
    assert apart(before, spec_of(tmp_path, "embedded", "mine"))
    assert contents.told(before, contents.changes(before))[0].startswith(
        "rewards.wish has changed: it was mine 1.0 "
    )


def test_version_of_a_reward_counts(package: Path, tmp_path: Path) -> None:
    before = spec_of(tmp_path, "embedded", "mine")
    info = package / "mine-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.1\n")
    assert apart(before, spec_of(tmp_path, "embedded", "mine"))


def test_what_a_reward_of_another_package_reads_counts(package: Path, tmp_path: Path) -> None:
    assert package.is_dir()
    file = tmp_path / "table.csv"
    file.write_text("1")
    reward = f"{{mine: {{table: {file}, size: 3, words: a/b}}}}"
    before = spec_of(tmp_path, "embedded", reward)
    assert set(before.contents) == {"model", "rewards.wish", "rewards.wish.table"}
    file.write_text("2")
    assert apart(before, spec_of(tmp_path, "embedded", reward))


def test_code_of_estimators_and_optimisers_counts_for_trials(package: Path, tmp_path: Path) -> None:
    for more, place in (
        ("training: {primal: slow}\n", "training.primal"),
        ("duals: {kind: slow}\n", "duals.kind"),
    ):
        before = spec_of(tmp_path, "embedded", more=more)
        assert before.contents[place].startswith("mine 1.0 ")
        (package / "mine" / "helper.py").write_text(f"# {place}\n")
        after = spec_of(tmp_path, "embedded", more=more)
        (one, samples), (other, same) = known_by(before), known_by(after)
        assert one != other
        assert samples == same, "nothing is trained yet"


# Digests of large files ------------------------------------------------------------------------------


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_LARGE", 4)
    monkeypatch.setattr(digests, "_SETTLED", -(10**12))  # the file was written just now
    file = tmp_path / "weights.bin"
    file.write_bytes(b"0123456789")
    first = digests.tree_digest(tmp_path, [file])
    read = []
    whole = digests.hashlib.file_digest
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *args: read.append(args) or whole(*args))
    assert digests.tree_digest(tmp_path, [file]) == first
    assert not read
    flip(file)
    assert digests.tree_digest(tmp_path, [file]) != first, "size and time are those of before"
    assert len(read) == 1
    kept = tmp_path / "cache" / "cdsweep" / "digests.json"
    kept.write_text("{")
    assert digests.tree_digest(tmp_path, [file]) != first
    assert json.loads(kept.read_text())


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_LARGE", 4)
    file = tmp_path / "weights.bin"
    file.write_bytes(b"0123456789")
    digests.tree_digest(tmp_path, [file])
    assert not (tmp_path / "cache").exists()


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return digests.tree_digest(folder, digests.files_below(folder))

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="12"), digest(c="1", b="2")}) == 4


def test_links_in_circles_and_to_nowhere_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("1")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert {file.name for file in digests.files_below(tmp_path)} == {"real", "alias"}
