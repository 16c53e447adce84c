"""The server: an engine behind HTTP, in the words of the interfaces that programs know."""
