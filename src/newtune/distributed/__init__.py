"""Where this process stands among the others, and on which device."""
