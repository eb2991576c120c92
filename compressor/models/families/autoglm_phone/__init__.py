"""The reference model: maps a screen and a written or spoken command to the cell to tap."""
