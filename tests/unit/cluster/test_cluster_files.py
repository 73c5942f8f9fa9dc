"""Every file in cluster/ is read by the code of the tool that reads it, and says what README.md promises."""

import importlib.metadata
import json
import re
import shlex
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from support.clusters.kuberay_schema import SCHEMAS
from support.object_store import CREDENTIALS
from typer.testing import CliRunner

from orchestrator.cli import app

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
CLOUDS = ["aws/on-demand.yaml", "aws/spot.yaml", "gcp/on-demand.yaml", "gcp/spot.yaml"]
LAUNCHED = [*CLOUDS, "machines.yaml"]
KUBERNETES = ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
RAY = importlib.metadata.version("ray")


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))
    return document


def ray_cluster(name: str) -> dict[str, Any]:
    """The cluster of a manifest, as the operator makes one."""
    document = load(name)
    spec = document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]
    return {"metadata": {"name": "cdsweep", "namespace": "default"}, "spec": spec}


def start_command(lines: list[str]) -> dict[str, Any]:
    """Options of the one `ray start` among the commands, as Ray's own command line reads them."""
    (line,) = [line for line in lines if "ray start" in line]
    assert "RAY_AUTH_MODE=token" in line
    words = shlex.split(line.split("ray start", 1)[1])
    return dict(start.make_context("start", words).params)


def test_no_file_is_left_out() -> None:
    found = {str(path.relative_to(CLUSTER)) for path in CLUSTER.rglob("*.yaml")}
    assert found == {*LAUNCHED, *KUBERNETES}


# ---------------------------------------------------------------------- the cluster launcher


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_takes_the_file(name: str) -> None:
    config = prepare_config(load(name))
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "nonsense": 1})
    for remote, local in config["file_mounts"].items():
        assert remote.startswith("/home/"), "the launcher does not expand '~' in remote paths"
        assert local.startswith("~/") or (ROOT / local).exists()


@pytest.mark.parametrize("name", LAUNCHED)
def test_access_is_guarded(name: str) -> None:
    config = load(name)
    head = start_command(config["head_start_ray_commands"])
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    worker = start_command(config["worker_start_ray_commands"])
    assert worker["address"].startswith("$RAY_HEAD_IP:")
    (token,) = [remote for remote, local in config["file_mounts"].items() if local == "~/.ray/auth_token"]
    assert token.endswith("/.ray/auth_token")
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"
    if "docker" in config:
        assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_is_small_and_gpu_workers_come_and_go(name: str) -> None:
    types = load(name)["available_node_types"]
    head, worker = types["head"], types["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert worker["resources"]["GPU"] >= 1
    assert worker["min_workers"] == 0
    assert worker["max_workers"] >= 1


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_spot_differs_from_on_demand_in_the_workers_alone(cloud: str) -> None:
    regular, spot = load(f"{cloud}/on-demand.yaml"), load(f"{cloud}/spot.yaml")
    assert regular.pop("cluster_name") != spot.pop("cluster_name")
    kind = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[cloud]
    before = regular["available_node_types"]["gpu"]["node_config"].pop(kind, None)
    after = spot["available_node_types"]["gpu"]["node_config"].pop(kind)
    assert before != after
    assert "spot" in json.dumps(after).lower()
    assert regular == spot


@pytest.mark.parametrize("name", [name for name in CLOUDS if name.startswith("aws")])
def test_amazons_interface_takes_the_nodes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray's bootstrap on a stand-in for EC2, then the request for each node by Amazon's own description."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray puts the key pair that it makes
    (tmp_path / ".ssh").mkdir()
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    with mock_aws():
        boto3.client("iam")
        config = bootstrap_aws(prepare_config(load(name)))
    request = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node in config["available_node_types"].values():
        parameters = {"MinCount": 1, "MaxCount": 1, **node["node_config"]}
        assert len(parameters.pop("SubnetIds")) >= 1  # Ray's own, tried in turn
        problems = ParamValidator().validate(parameters, request)
        assert not problems.has_errors(), problems.generate_report()
        assert parameters["IamInstanceProfile"]["Name"].startswith("cdsweep-")


@pytest.mark.parametrize("name", [name for name in CLOUDS if name.startswith("gcp")])
def test_googles_nodes_have_a_driver_a_role_and_a_disk_that_goes_with_them(name: str) -> None:
    node = load(name)["available_node_types"]["gpu"]["node_config"]
    assert node["scheduling"]["onHostMaintenance"] == "TERMINATE", "a machine with a GPU cannot be moved"
    assert {"key": "install-nvidia-driver", "value": "True"} in node["metadata"]["items"]
    (account,) = node["serviceAccounts"]
    assert account["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]
    assert all(disk["autoDelete"] for disk in node["disks"])


def test_all_machines_stay() -> None:
    config = prepare_config(load("machines.yaml"))
    node = config["available_node_types"]["local.cluster.node"]
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])


# ---------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_operator_takes_the_manifest(name: str) -> None:
    document = load(name)
    jsonschema.validate(document, SCHEMAS[document["kind"]], jsonschema.Draft202012Validator)
    spec = ray_cluster(name)["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        assert {
            mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())
        } == volumes


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_autoscaler_reads_the_manifest(name: str) -> None:
    """By Ray's own code, which runs beside the head and validates what it derives."""
    config = _derive_autoscaling_config_from_ray_cr(ray_cluster(name))
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 8)
    assert config["idle_timeout_minutes"] == 5


def test_the_job_differs_from_the_cluster_in_the_dashboard_alone() -> None:
    cluster, job = (ray_cluster(name)["spec"] for name in KUBERNETES)
    assert cluster["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    # The operator asks the job's state of it from its own pod; the token is asked for.
    assert job["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "0.0.0.0"  # noqa: S104
    assert cluster == job


def test_the_job_runs_a_shipped_sweep() -> None:
    words = shlex.split(load("kuberay/rayjob.yaml")["spec"]["entrypoint"])
    spec = ROOT / Path(words[2]).relative_to("/home/ray/cdsweep")
    assert words[:2] == ["cdsweep", "run"]
    result = CliRunner().invoke(app, ["run", str(spec), *words[3:], "--dry-run"])
    assert result.exit_code == 0, result.output


# ---------------------------------------------------------------------- the sweeps' page


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launched_head_has_the_page_and_workers_have_not(name: str) -> None:
    config = load(name)
    (line,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert re.match(r'eval "\$\((~/cdsweep-venv/bin/)?cdsweep dashboard enable\)"; ', line)
    assert not [line for line in config["worker_start_ray_commands"] if "dashboard" in line]


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_head_pod_has_the_page_and_workers_have_not(name: str) -> None:
    spec = ray_cluster(name)["spec"]
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    paths = [
        {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}.get("PYTHONPATH")
        for pod in pods
    ]
    assert paths[1:] == [None]
    assert (ROOT / Path(paths[0] or "").relative_to("/home/ray/cdsweep") / "sitecustomize.py").exists()


# ---------------------------------------------------------------------- versions


def test_every_image_has_the_ray_that_is_installed_here() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CLUSTER.rglob("*") if path.is_file()]
    images = {version for text in texts for version in re.findall(r"rayproject/ray:([0-9.]+)-", text)}
    assert images == {RAY}
    assert {ray_cluster(name)["spec"]["rayVersion"] for name in KUBERNETES} == {RAY}


def test_the_image_copies_what_is_there() -> None:
    for line in (CLUSTER / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY"):
            *sources, _ = [word for word in line.split()[1:] if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), line
