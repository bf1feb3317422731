"""What was decided, and why, before anything heavy is loaded."""
