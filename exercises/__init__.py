"""What exercise.py checks the reader's functions with."""
