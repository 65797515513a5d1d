"""What concerns the machine and not the method: devices, processes, options, locks and signals, progress."""
