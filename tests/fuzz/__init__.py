"""Fuzzing of what reads other people's files: images, videos, JSON and safetensors.

    python -m tests.fuzz --kind image --count 10000 --seed 0        or: --seconds 3600, and `make fuzz`

`seeds.py` makes small valid files, `mutate.py` damages them, `targets.py` says which readers they are given
to and which errors these may raise, `runner.py` does it in a child process with limits. Input number `i` of
a seed is the same in every run. What fails is saved under `fuzz-findings/`, and read again with
`python -m tests.fuzz --replay FILE`.
"""
