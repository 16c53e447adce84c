"""The sizes of panels and groups, in which every matrix is cut (`formats.py`)."""

from __future__ import annotations

PANEL_ROWS = 16
GROUP_COLUMNS = 32
