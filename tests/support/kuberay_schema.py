"""The fields of KubeRay 1.5's RayJob, and of the Kubernetes objects in it, that the example uses; nothing else passes.

Written from the field reference of `ray.io/v1` and of Kubernetes' core/v1, because the schema itself cannot be had
without a cluster: names, required fields, types and enumerations of what is used. A misspelt or misplaced field is
refused, as the API server would with strict validation.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Count = Annotated[int, Field(ge=0, strict=True)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Reference(Strict):
    name: Name


class EnvFrom(Strict):
    secretRef: Reference | None = None
    configMapRef: Reference | None = None


class SecretKey(Strict):
    name: Name
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKey


class Env(Strict):
    name: str
    value: Annotated[str, Field(strict=True)] | None = None
    valueFrom: ValueFrom | None = None


class Mount(Strict):
    name: Name
    mountPath: str
    readOnly: bool = False


class Resources(Strict):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Container(Strict):
    name: Name
    image: str
    resources: Resources
    env: list[Env] = []
    envFrom: list[EnvFrom] = []
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: Name


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    configMap: Reference | None = None
    emptyDir: EmptyDir | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Volume":
        assert sum(source is not None for source in (self.persistentVolumeClaim, self.configMap, self.emptyDir)) == 1
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    nodeSelector: dict[str, str] = {}
    tolerations: list[Toleration] = []

    @model_validator(mode="after")
    def _mounts_are_volumes(self) -> "PodSpec":
        there = {volume.name for volume in self.volumes}
        assert {mount.name for container in self.containers for mount in container.volumeMounts} <= there
        return self


class PodTemplate(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, Annotated[str, Field(strict=True)]]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: Count
    minReplicas: Count
    maxReplicas: Count
    numOfHosts: int = 1
    rayStartParams: dict[str, Annotated[str, Field(strict=True)]]
    template: PodTemplate

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: Count = 60
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]
    secretName: Name | None = None


class RayCluster(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str = ""
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoffLimit: Count = 0
    activeDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: Count = 0
    rayClusterSpec: RayCluster

    @model_validator(mode="after")
    def _ttl_needs_shutdown(self) -> "RayJobSpec":
        assert self.shutdownAfterJobFinishes or not self.ttlSecondsAfterFinished
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class ConfigMap(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[str, str]


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]]
    resources: Resources
    storageClassName: str | None = None


class VolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


KINDS: dict[str, type[BaseModel]] = {"RayJob": RayJob, "ConfigMap": ConfigMap, "PersistentVolumeClaim": VolumeClaim}


def parse(document: dict[str, Any]) -> BaseModel:
    """The object, or a ValidationError that names the field."""
    return KINDS[document["kind"]].model_validate(document)
