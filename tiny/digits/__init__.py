"""The paper's ablations on images of digits, where a visual token is too small for what it stands for."""
