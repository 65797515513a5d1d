"""What a reader looks at: plots, figures, live sections of the notebooks, and the runs' progress."""
