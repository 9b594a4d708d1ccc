"""One module for each command: its arguments, its help, and the call of the rooms below."""
