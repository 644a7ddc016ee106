"""A web page to ask a model about images and videos: `pvc web MODEL`.

    page.py        the page: gradio's components and events
    dialogue.py    gradio's history -> messages
    assistant.py   messages -> an answer, piece by piece, in a thread that can be stopped
    live.py        a camera that the model watches
    seen.py        what the model saw, as HTML beside the answer

Only `page.py` needs gradio. The prompt, its media policy and the reuse of earlier turns are those of
`pvc serve`.
"""
