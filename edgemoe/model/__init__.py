"""The model as data: its specification, how a store describes it, its rotary tables and generation settings."""
