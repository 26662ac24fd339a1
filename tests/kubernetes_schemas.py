"""What the API server of Kubernetes would refuse of a JobSet or a TrainJob.

Kubeflow's package has the models of both kinds, made from their OpenAPI; kubernetes-validate has the schemas
of what lies inside them. Both are strict here: a key that there is not is a mistake, as the server says, too.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet, TrainerV1alpha1TrainJob

VERSION = "1.33"  # of Kubernetes, for what lies inside
KINDS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JobsetV1alpha2JobSet,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): TrainerV1alpha1TrainJob,
}
# "8", 8 or "1500m": the models leave these to code.
LOOSE = ("IoK8sApimachineryPkgApiResourceQuantity", "IoK8sApimachineryPkgUtilIntstrIntOrString")


def mistakes(document: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong with a JobSet or a TrainJob, each with its place."""
    kind = (document.get("apiVersion", ""), document.get("kind", ""))
    if kind not in KINDS:
        yield f"there is no {kind}"
        return
    for error in Draft202012Validator(schema_of(*kind)).iter_errors(document):
        yield f"{error.json_path}: {error.message}"
    inside = job_of(document) if kind[1] == "JobSet" else pod_of(document)
    try:
        kubernetes_validate.validate(inside, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"


@cache
def schema_of(version: str, kind: str) -> Any:
    """The strict schema of a kind."""
    return strict(KINDS[version, kind].model_json_schema())


def strict(schema: Any) -> Any:
    """The same schema, which takes no key that it does not name, and no null for a key that is left out."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    made = {key: strict(value) for key, value in (schema if len(kinds) != 1 else kinds[0]).items()}
    made |= {"additionalProperties": False} if "title" in made and "properties" in made else {}
    for name in LOOSE:
        made |= {name: {"type": ["string", "number"]}} if name in made else {}
    return made


def job_of(jobset: Mapping[str, Any]) -> dict[str, Any]:
    """The Job that the JobSet's controller would make."""
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"], "spec": spec}


def pod_of(trainjob: Mapping[str, Any]) -> dict[str, Any]:
    """What of the TrainJob lies in the pods, as one of them."""
    spec = trainjob["spec"]
    trainer = spec["trainer"]
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    container = {name: trainer[name] for name in ("image", "command", "args", "env")}
    container["resources"] = trainer["resourcesPerNode"]
    containers = [{**container, **each} for each in pod["containers"]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": trainjob["metadata"],
        "spec": {**pod, "containers": containers},
    }
