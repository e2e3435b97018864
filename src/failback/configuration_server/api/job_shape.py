"""The read model of a job: ``JobProperties`` with its tree of tasks and structured errors. Pure.

The list view leaves out tasks and details, as the real service does. A group task carries its children in
``groupTaskCustomDetails``; bytes, rate and time left of a task stand in its ``failback`` table, which Azure's clients skip.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from failback.configuration_server.api.arm import Vault, envelope, timestamp
from failback.configuration_server.database.jobs import JobErrorRow, JobRow, TaskRow

JOB_TYPE = "replicationJobs"
_ACTIONS = {
    "NotStarted": ["Cancel"],
    "InProgress": ["Cancel"],
    "Failed": ["Restart"],
    "Suspended": ["Resume", "Cancel"],
}


def job_resource(vault: Vault, job: JobRow, *, item_name: str = "", full: bool = True) -> dict[str, Any]:
    return envelope(vault.job(job.job_id), JOB_TYPE, _properties(vault, job, item_name, full))


def exported(vault: Vault, clause: str, now_ns: int) -> dict[str, Any]:
    """The answer to an export: a job that is over, whose details say where the jobs are."""
    uri = vault.url(vault.resource("failback", "exportedJobs"))
    shown = f"{uri}&$filter={quote(clause)}" if clause else uri
    properties = {
        "scenarioName": "ExportJobs", "friendlyName": "Export jobs", "state": "Succeeded", "stateDescription": "Completed",
        "tasks": [], "errors": [], "startTime": timestamp(now_ns), "endTime": timestamp(now_ns), "allowedActions": [],
        "customDetails": {"instanceType": "ExportJobDetails", "affectedObjectDetails": {}, "blobUri": shown, "sasToken": ""},
    }  # fmt: skip
    return envelope(vault.job("export"), JOB_TYPE, properties)


def allowed_actions(job: JobRow) -> list[str]:
    return list(_ACTIONS.get(job.state, []))


def _properties(vault: Vault, job: JobRow, item_name: str, full: bool) -> dict[str, Any]:
    return {
        "activityId": job.job_id if full else None,
        "scenarioName": job.scenario,
        "friendlyName": job.friendly_name,
        "state": job.state,
        "stateDescription": job.state_description or job.state,
        "tasks": _tree(vault, job) if full else [],
        "errors": [_error(error) for error in job.errors] if full else [],
        "startTime": timestamp(job.started_wall_ns or job.created_wall_ns),
        "endTime": timestamp(job.ended_wall_ns),
        "allowedActions": allowed_actions(job),
        "targetObjectId": vault.item(item_name) if item_name else job.item_id,
        "targetObjectName": job.target_name or item_name,
        "targetInstanceType": job.target_instance_type,
        "customDetails": _custom(job, item_name, vault) if full else None,
        "failback": {
            "attempt": job.attempt,
            "generation": job.generation,
            "startedBy": job.started_by,
            "cancelRequested": job.cancel_requested,
            "itemName": item_name,
            "parentJobId": job.parent_job_id,
        },
    }


def _custom(job: JobRow, item_name: str, vault: Vault) -> dict[str, Any]:
    details = dict(job.custom_details or {})
    kinds = {
        "SwitchReplicationGroupProtection": "SwitchProtectionJobDetails",
        "UnplannedFailover": "FailoverJobDetails",
    }
    details.setdefault("instanceType", kinds.get(job.scenario, "AsrJobDetails"))
    details.setdefault("affectedObjectDetails", {})
    if job.scenario == "SwitchReplicationGroupProtection" and item_name:
        details.setdefault("newReplicationProtectedItemId", vault.item(item_name))
    if job.scenario == "UnplannedFailover":
        details.setdefault("protectedItemDetails", [])
    return details


def _tree(vault: Vault, job: JobRow) -> list[dict[str, Any]]:
    return [_task(vault, job, task) for task in job.tasks if not task.parent_name]


def _task(vault: Vault, job: JobRow, task: TaskRow) -> dict[str, Any]:
    children = [other for other in job.tasks if other.parent_name and other.parent_name in (task.name, task.task_id)]
    shaped: dict[str, Any] = {
        "taskId": task.task_id,
        "name": task.name,
        "friendlyName": task.friendly_name,
        "state": task.state,
        "stateDescription": task.state_description or task.state,
        "startTime": timestamp(task.started_wall_ns),
        "endTime": timestamp(task.ended_wall_ns),
        "allowedActions": [],
        "taskType": task.task_type,
        "customDetails": None,
        "groupTaskCustomDetails": None,
        "errors": [_error(error) for error in job.errors if error.task_name in (task.name, task.task_id)],
        "failback": {
            "bytesDone": task.bytes_done,
            "bytesTotal": task.bytes_total,
            "bytesPerSecond": task.bytes_per_second,
            "etaSeconds": task.eta_seconds,
            "details": task.custom_details or {},
        },
    }
    if children:
        shaped["groupTaskCustomDetails"] = {
            "instanceType": "InlineWorkflowTaskDetails",
            "childTasks": [_task(vault, job, child) for child in children],
            "workflowIds": [],
        }
    if task.child_scenario:
        shaped["customDetails"] = {
            "instanceType": "JobTaskDetails",
            "jobTask": {
                "jobId": vault.job(job.job_id),
                "jobFriendlyName": task.friendly_name,
                "targetObjectName": job.target_name,
                "targetInstanceType": "Vm",
                "jobScenarioName": task.child_scenario,
            },
        }
    return shaped


def _error(error: JobErrorRow) -> dict[str, Any]:
    number = int(error.code) if error.code.isdigit() else 0
    texts = {"possibleCauses": error.possible_causes, "recommendedAction": error.recommended_action}
    return {
        "serviceErrorDetails": {"code": error.code, "message": error.message, "activityId": error.job_id, **texts},
        "providerErrorDetails": {
            "errorCode": number,
            "errorMessage": error.message,
            "errorId": error.code,
            **texts,
        },
        "errorLevel": error.severity,
        "creationTime": timestamp(error.created_wall_ns),
        "taskId": error.task_name,
        "failback": {"attempt": error.attempt, "retryable": error.retryable},
    }
