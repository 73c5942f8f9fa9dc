"""The part of KubeRay's resources that cluster/kuberay uses, closed: a field that is not here is a typing error.

Field names and types are those of the custom resource definitions of KubeRay 1.7 (ray.io/v1) and of core/v1.
"""

from typing import Any

Schema = dict[str, Any]


def obj(properties: Schema, *required: str) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES: Schema = {"type": "boolean"}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
# Kubernetes takes numbers too; Ray's autoscaler, which reads the same fields, does not take all of them.
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
RESOURCES = obj(
    {kind: {"type": "object", "additionalProperties": QUANTITY} for kind in ("requests", "limits")},
    "requests",
    "limits",
)

CONTAINER = obj(
    {
        "name": NAME,
        "image": TEXT,
        "env": array(obj({"name": TEXT, "value": {"type": "string"}}, "name", "value")),
        "ports": array(
            obj(
                {"name": {**NAME, "maxLength": 15}, "containerPort": {**COUNT, "maximum": 65535}},
                "containerPort",
            )
        ),
        "resources": RESOURCES,
        "volumeMounts": array(obj({"name": NAME, "mountPath": TEXT, "readOnly": YES}, "name", "mountPath")),
    },
    "name",
    "image",
    "resources",
)
POD = obj(
    {
        "spec": obj(
            {
                "serviceAccountName": NAME,
                "terminationGracePeriodSeconds": COUNT,
                "nodeSelector": TEXTS,
                "tolerations": array(
                    obj(
                        {
                            "key": TEXT,
                            "operator": {"enum": ["Exists", "Equal"]},
                            "value": TEXT,
                            "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                        }
                    )
                ),
                "containers": {**array(CONTAINER), "minItems": 1},
                "volumes": array(
                    obj(
                        {
                            "name": NAME,
                            "emptyDir": obj({"medium": {"enum": ["", "Memory"]}, "sizeLimit": QUANTITY}),
                        },
                        "name",
                    )
                ),
            },
            "containers",
        )
    },
    "spec",
)
CLUSTER_SPEC = obj(
    {
        "rayVersion": TEXT,
        "enableInTreeAutoscaling": YES,
        "autoscalerOptions": obj(
            {
                "version": {"enum": ["v1", "v2"]},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "idleTimeoutSeconds": COUNT,
                "resources": RESOURCES,
            }
        ),
        "authOptions": obj({"mode": {"enum": ["disabled", "token"]}, "secretName": NAME}),
        "headGroupSpec": obj({"rayStartParams": TEXTS, "template": POD}, "rayStartParams", "template"),
        "workerGroupSpecs": array(
            obj(
                {
                    "groupName": NAME,
                    "replicas": COUNT,
                    "minReplicas": COUNT,
                    "maxReplicas": COUNT,
                    "idleTimeoutSeconds": COUNT,
                    "priority": {"type": "integer"},
                    "rayStartParams": TEXTS,
                    "template": POD,
                },
                "groupName",
                "minReplicas",
                "maxReplicas",
                "template",
            )
        ),
    },
    "headGroupSpec",
)
JOB_SPEC = obj(
    {
        "entrypoint": TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
        "backoffLimit": COUNT,
        "activeDeadlineSeconds": COUNT,
        "shutdownAfterJobFinishes": YES,
        "ttlSecondsAfterFinished": COUNT,
        "runtimeEnvYAML": TEXT,
        "rayClusterSpec": CLUSTER_SPEC,
    },
    "entrypoint",
    "rayClusterSpec",
)


def document(kind: str, spec: Schema) -> Schema:
    return obj(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": obj({"name": NAME, "namespace": NAME}, "name"),
            "spec": spec,
        },
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    )


SCHEMAS = {"RayCluster": document("RayCluster", CLUSTER_SPEC), "RayJob": document("RayJob", JOB_SPEC)}
