"""The commands of the terminal; each is a thin module, imported when it is called."""
