"""`python -m ckpt_doctor`."""

from ckpt_doctor.cli import entry_point

if __name__ == "__main__":
    entry_point()
