"""What is minimised: pure tensor functions that return a sum and a count."""
