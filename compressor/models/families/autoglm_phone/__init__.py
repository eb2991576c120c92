"""The reference model: a screen and a written or spoken command in, the cell to tap out."""
