"""Every model in every engine and precision, made, verified and timed; kept cell by cell."""
