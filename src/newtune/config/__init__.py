"""What the user said: the sections of the YAML file, their rules, and how they are read."""
