"""What the tests of a stranger's images and videos share: a message, and a limit of time."""

import threading

from pvc.processing_pvc import PVCProcessor

REFUSED = (OSError, ValueError)  # what is documented


def ask(processor: PVCProcessor, *blocks: dict, **options):
    """The inputs of a question about media blocks."""
    messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": "What?"}]}]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


def within(seconds: float, action, *arguments, **options):
    """The error that an action raises within so many seconds, or None."""
    done = []

    def act():
        try:
            action(*arguments, **options)
            done.append(None)
        except Exception as error:  # any: the test judges it
            done.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f"no outcome within {seconds} seconds"
    return done[0]
