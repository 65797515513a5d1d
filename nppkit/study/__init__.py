"""Metrics to tables: presets, runs, the graph of jobs and its records, results, statistics, tables, claims."""
