"""Synthetic images and videos with questions and answers."""
