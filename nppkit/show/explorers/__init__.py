"""The live sections of the explorer notebooks."""
