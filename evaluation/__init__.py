"""Evaluation: benchmarks as data and pure functions, and the one loop that runs them.

`task.py` says what a task is, `tasks/` lists them, `run.py` is the loop. Nothing but `engine.py`, `media.py`
and the engines of others imports torch, so that answers can be scored again without it.
"""
