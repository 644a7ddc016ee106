"""An OpenAI-compatible server of one model: `pvc serve MODEL`.

    app.py         routes, limits of a request, keys; errors in OpenAI's shape (errors.py)
    requests.py    the body of a request -> `ChatRequest`
    prompts.py     messages -> inputs of the model, media read within a `MediaPolicy`
    engine.py      the queue, and the thread that answers in batches
    batch.py       one batch: known prefixes (prefixes.py), `generate`, pieces of answers (answers.py)
    protocol.py    connections that send nothing are closed
    metrics.py     counters in Prometheus' text format

The model is loaded once, by the command; no request loads code or weights.
"""
