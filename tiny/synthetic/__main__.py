"""`python -m pvc.tiny.synthetic FOLDER --samples N`: the synthetic data as files."""

from pvc.tiny.synthetic.dataset import main

if __name__ == "__main__":
    main()
