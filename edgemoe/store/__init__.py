"""The model folder on disk: manifest, aligned expert records, reader, writer, verify."""
