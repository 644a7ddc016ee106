"""Checkpoints on the Hub: the model card, the check of a folder, the upload.

`push` here is the function; its module is imported by `from pvc.hub.push import …`.
"""

from pvc.hub.card import model_card
from pvc.hub.check import checked_files
from pvc.hub.push import push

__all__ = ["checked_files", "model_card", "push"]
