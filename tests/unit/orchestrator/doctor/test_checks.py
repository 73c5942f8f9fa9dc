"""Checks of the doctor on fakes: each status that a user may meet, and what it says to do."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from huggingface_hub import constants
from support.object_store import BUCKET, ObjectStore
from support.reward_servers import answering, offers
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.doctor import cluster, machine, servers, versions, weights
from orchestrator.doctor.examine import CHECKS, examine
from orchestrator.doctor.finding import Finding, Patient
from orchestrator.doctor.kl_floor import check_kl_floor
from orchestrator.doctor.storage import check_storage
from orchestrator.plan import base_config
from orchestrator.results.files import Files
from orchestrator.results.sample_cache import CachedSamples, SampleCache, samples_key
from orchestrator.results.schema import VERSION, VERSION_KEY
from orchestrator.spec.load import parse_spec

PIPELINE = """\
name: p
model: {pretrained: owner/name}
prompts: {train: [a cat], evaluate: [a dog]}
constraints: [{reward: aesthetic, at_least: 0.1, unit: sigma}]
"""


def only(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    for finding in examine(Patient(address="127.0.0.1:1", storage="/proc/nowhere")):
        assert finding.status == "ok" or finding.mend, finding


def test_a_check_that_breaks_down_hides_none_of_the_others() -> None:
    def check_broken(patient: Patient) -> Iterator[Finding]:
        raise RuntimeError("boom\nand more")

    def check_fine(patient: Patient) -> Iterator[Finding]:
        yield Finding(name="fine", status="ok", found="yes")

    found = list(examine(Patient(), (check_broken, check_fine)))
    assert [(f.name, f.status) for f in found] == [("broken", "fail"), ("fine", "ok")]
    assert found[0].found == "RuntimeError: boom"


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {f.status for f in versions.check_versions(Patient())} == {"ok"}
    old = {"ray": "2.9.0", "diffusers": None, "numpy": "1.26"}
    installed = versions._installed
    monkeypatch.setattr(versions, "_installed", lambda name: old.get(name, installed(name)))
    found = by_name(versions.check_versions(Patient()))
    assert found["ray"].status == "fail"
    assert found["ray"].found.startswith("2.9.0 (needs ")
    assert found["diffusers"].found.startswith("not installed")
    assert found["packages"].status == "fail"
    assert "numpy 1.26" in found["packages"].found
    assert found["torch"].status == "ok"


# The machine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "total", "status"), [(100, 200, "ok"), (5, 200, "warn"), (0.5, 200, "fail"), (20, 1000, "warn")]
)
def test_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, total: float, status: str
) -> None:
    usage = SimpleNamespace(free=free * 2**30, used=(total - free) * 2**30, total=total * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = by_name(machine.check_disk(Patient(storage=str(tmp_path / "not" / "yet"))))
    assert found["disk for results"].status == status
    assert str(tmp_path) in found["disk for results"].found
    assert "disk for results" not in by_name(machine.check_disk(Patient(storage="s3://bucket")))


@pytest.mark.parametrize(("limit", "status"), [(65536, "ok"), (-1, "ok"), (1024, "warn"), (256, "fail")])
def test_open_files(monkeypatch: pytest.MonkeyPatch, limit: int, status: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, 1048576))
    assert only(machine.check_open_files(Patient())).status == status


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=64 * 2**20))
    found = only(machine.check_shared_memory(Patient()))
    assert (found.status, "--shm-size" in found.mend) == ("warn", True)


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(PIPELINE, overrides=["resources.gpus_per_worker=1"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert only(machine.check_gpus(Patient())).status == "ok"
    assert only(machine.check_gpus(Patient(spec=spec))).status == "fail"
    assert only(machine.check_gpus(Patient(spec=spec, address="head:6379"))).status == "ok"
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert "sees no GPU" in only(machine.check_gpus(Patient())).found
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "L4")
    assert "2 × L4" in only(machine.check_gpus(Patient())).found


# Ray -------------------------------------------------------------------------------------------------


def test_the_file_of_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def check() -> Finding:
        return only(cluster.check_token(Patient()))

    assert check().status == "warn"
    assert "ray get-auth-token" in check().mend
    file = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert check().status == "fail"
    file.write_text("")
    assert (check().status, "empty" in check().found) == ("fail", True)
    file.write_text("geheim")
    file.chmod(0o644)
    assert (check().status, check().mend) == ("warn", f"chmod 600 {file}")
    file.chmod(0o600)
    assert check().status == "ok"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim")
    assert (check().status, "geheim" in check().found) == ("ok", False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert (check().status, "unset RAY_AUTH_MODE" in check().mend) == ("warn", True)


def test_a_cluster_of_another_ray_or_without_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(PIPELINE, overrides=["resources.gpus_per_worker=1"])
    node = cluster.addresses.Node(address="10.0.0.1", hostname="head", cpus=4, gpus=0)
    monkeypatch.setattr(cluster.access, "prepare", lambda **_: None)
    monkeypatch.setattr(cluster.addresses, "probe", lambda _: None)
    monkeypatch.setattr(cluster.addresses, "dashboard_url", lambda _: "http://head:8265")
    monkeypatch.setattr(cluster.addresses, "nodes", lambda _: [node])
    monkeypatch.setattr(cluster.addresses, "get_json", lambda *_: {"ray_version": cluster.version("ray")})
    found = by_name(cluster.check_ray(Patient(spec=spec, address="head:6379")))
    assert found["ray cluster"].status == "ok"
    assert found["gpus of the cluster"].status == "warn"
    monkeypatch.setattr(cluster.addresses, "get_json", lambda *_: {"ray_version": "2.1.0"})
    assert only(cluster.check_ray(Patient(address="head:6379"))).status == "fail"


# The storage -----------------------------------------------------------------------------------------


def test_a_local_storage_is_used_and_left_as_it_was(tmp_path: Path) -> None:
    found = only(check_storage(Patient(storage=str(tmp_path / "not" / "yet"))))
    assert found.status == "ok", found
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    found = only(check_storage(Patient(storage=str(tmp_path / "file" / "results"))))
    assert found.status == "fail"


def test_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore()
    try:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        before = store.keys()  # servers of one process share what they hold
        found = only(check_storage(Patient(storage=f"s3://{BUCKET}/sweeps")))
        assert found.status == "ok", found
        assert store.keys() == before
        assert only(check_storage(Patient(storage="s3://no-such-bucket/sweeps"))).status == "fail"
        with store.wire.refusing():
            found = only(check_storage(Patient(storage=f"s3://{BUCKET}/sweeps")))
        assert found.status == "fail"
    finally:
        store.close()
    found = only(check_storage(Patient(storage="s3://AKIA:geheim@bucket/a")))
    assert (found.status, "geheim" in str(found)) == ("fail", False)


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("read", lambda *_: b"stale", "not what was written"),
        ("names", lambda *_: [], "not listed"),
        ("exists", lambda *_: True, "still there"),
    ],
)
def test_a_storage_that_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, answer: object, said: str
) -> None:
    monkeypatch.setattr(Files, method, answer)
    found = only(check_storage(Patient(storage=str(tmp_path))))
    assert (found.status, said in found.found) == ("fail", True)


# Weights ---------------------------------------------------------------------------------------------


def cached(root: Path, repository: str, *names: str) -> None:
    """What the hub's client leaves of a repository."""
    folder = root / f"models--{repository.replace('/', '--')}"
    for name in names:
        file = folder / "snapshots" / "c0ffee" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")


def test_weights_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "hub_answers", lambda: True)
    patient = Patient(spec=parse_spec(PIPELINE))

    def statuses() -> set[str]:
        return {finding.status for finding in weights.check_weights(patient)}

    assert statuses() == {"warn"}, "still to be fetched"
    monkeypatch.setattr(weights, "hub_answers", lambda: False)
    assert statuses() == {"fail"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert all("HF_HUB_OFFLINE" in finding.found for finding in weights.check_weights(patient))

    cached(
        tmp_path, "owner/name", "model_index.json", "unet/x.safetensors", "vae/x.bin", "text_encoder/x.bin"
    )
    found = by_name(weights.check_weights(patient))
    assert found["weights of model"].status == "ok"
    assert found["weights of reward aesthetic, model"].status == "fail"
    assert "hf download trl-lib/ddpo-aesthetic-predictor" in found["weights of reward aesthetic, model"].mend


def test_weights_in_directories(tmp_path: Path) -> None:
    spec = PIPELINE.replace(
        "reward: aesthetic", f"reward: {{aesthetic: {{model: {tmp_path}, clip: embedded}}}}"
    )
    spec = spec.replace("owner/name", "embedded")
    found = only(weights.check_weights(Patient(spec=parse_spec(spec))))
    assert (found.status, "lacks weights" in found.found) == ("fail", True)
    (tmp_path / "head.pth").write_text("")
    assert only(weights.check_weights(Patient(spec=parse_spec(spec)))).status == "ok"
    assert list(weights.check_weights(Patient())) == []


# The command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "status"), [(None, "ok"), (7e-9, "ok"), (0.24, "warn")])
def test_the_floor_of_the_kl(tmp_path: Path, floor: float | None, status: str) -> None:
    spec = parse_spec(PIPELINE.replace("owner/name", "embedded").replace("aesthetic", "saturation"))
    patient = Patient(spec=spec, storage=str(tmp_path))
    assert "not measured yet" in only(check_kl_floor(patient)).found
    kept = CachedSamples(
        table=pa.table({"x": [1]}).replace_schema_metadata({VERSION_KEY: VERSION}),
        baseline={"kl_floor": floor},
        image=None,
    )
    SampleCache(str(tmp_path)).put(samples_key(base_config(spec)), kept)
    found = only(check_kl_floor(patient))
    assert found.status == status
    if floor is not None:
        assert f"{floor:.2g} nats in fp32" in found.found
    assert ("fp32" in found.mend) == (status == "warn")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    runner = CliRunner()
    fine = runner.invoke(app, ["doctor", "--storage", str(tmp_path), "--address", "local", "--json"])
    document = json.loads(fine.stdout)
    failing = [check for check in document["checks"] if check["status"] == "fail"]
    assert (fine.exit_code, document["healthy"]) == ((1, False) if failing else (0, True))
    assert {check["name"] for check in document["checks"]} >= {"python", "ray", "torch", "storage", "token"}
    assert sum(document["counts"].values()) == len(document["checks"]) >= len(CHECKS) - 1

    ill = runner.invoke(app, ["doctor", "--storage", str(tmp_path), "--address", "127.0.0.1:1"])
    assert ill.exit_code == 1
    assert "fail" in ill.stdout
    assert "cannot reach Ray" in " ".join(ill.stdout.split())
    wrong = runner.invoke(app, ["doctor", os.devnull])
    assert wrong.exit_code == 2


def test_servers_of_rewards_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CDSWEEP_REWARD_TOKEN", raising=False)

    def check(url: str, more: str = "") -> Finding:
        reward = f"{{http: {{url: '{url}', name: dots{more}}}}}"
        spec = (
            "name: demo\nmodel: {pretrained: embedded}\ntraining: {primal: log_variance}\n"
            f"constraints: [{{reward: {reward}, name: count, at_least: 0.5}}]\n"
        )
        return only(servers.check_reward_servers(Patient(spec=parse_spec(spec))))

    with answering(lambda path, _: offers() if path == "/rewards" else b"") as url:
        assert (check(url).status, check(url).found) == ("ok", f"{url} has 'dots', version '1'")
        assert check(url, ", version: '2'").found == f"{url} has version '1' of 'dots', not '2'"
    with answering(lambda path, _: offers(name="lines") if path == "/rewards" else b"") as other:
        assert check(other).found == f"{other} has no reward 'dots', only lines"
    assert check(other).status == "fail"
    assert "cannot ask for its rewards" in check(other).found
