"""Makes the verbs that tests fork most when it is imported, for the commands of a server that imports it."""

from edgemoe.cli.main import verb_command

for verb in ("run", "chat"):
    verb_command(verb)
