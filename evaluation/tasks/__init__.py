"""All tasks by name. A module of tasks lists its own in `ALL`, and stands in `MODULES`."""

from difflib import get_close_matches

from pvc.evaluation.task import Task
from pvc.evaluation.tasks import (
    choice_images,
    egoschema,
    longvideobench,
    mlvu,
    mmbench,
    mme,
    mmmu,
    mvbench,
    nextqa,
    ocrbench,
    open_ended,
    perceptiontest,
    several_images,
    tempcompass,
    videomme,
    vqa,
)

MODULES = (
    vqa,
    choice_images,
    mme,
    mmbench,
    mmmu,
    mvbench,
    ocrbench,
    videomme,
    mlvu,
    longvideobench,
    nextqa,
    egoschema,
    perceptiontest,
    open_ended,
    tempcompass,
    several_images,
)

TASKS: dict[str, Task] = {task.name: task for module in MODULES for task in module.ALL}


def find_task(name: str) -> Task:
    """The task of that name, or of that name in the released scripts.

    Raises:
        ValueError: there is none, with the nearest names.
    """
    known = {released: task for task in TASKS.values() for released in task.released_names}
    known.update(TASKS)
    if name in known:
        return known[name]

    near = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "known are " + ", ".join(TASKS)
    raise ValueError(f"no task {name!r}: {hint}")
