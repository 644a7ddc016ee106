"""All tasks by name."""

from pvc.evaluation.task import Task

TASKS: dict[str, Task] = {}
