"""Training data from raw videos: section 4 of Dynamic-VLM's paper as a tool (`pvc data construct`).

    videos.py        a list of videos -> those that are kept: one a caption, frequent noun phrases thinned
    noun_phrases.py  the noun phrases of a caption, by a rule of its own
    frames.py        a video -> JPEGs in a folder, one a second
    tasks.py         the tasks of `prompts.yaml`, and which a video gets
    requests.py      a task and the frames of a video -> a request
    asking.py        requests -> kept replies, at a rate
    replies.py       a reply -> questions and answers, or why it is dropped
    frame_marks.py   `<Frame 3>` -> "frame of 3s"
    construct.py     all of it -> JSON lines for `pvc train`, and a report
    estimate.py      what it would cost

Whatever ends a run, the same command goes on: folders of frames appear whole or not at all, a reply is on the
disk before it is used, and the JSON lines are written anew from these in the order of the list.
"""
