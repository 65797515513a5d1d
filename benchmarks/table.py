"""Write the table of the last measured machine beside its report: results/bench/<machine>.md."""

import speed

from nppkit.files import write_atomic


def main() -> None:
    newest = max(speed.REPORTS.glob("*.json"), key=lambda path: path.stat().st_mtime)
    report = speed.load_report(newest.stem)
    table = speed.targets_table(report).reset_index().astype(str)
    cells = [table.columns, ["---"] * len(table.columns), *table.values.tolist()]
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    yardsticks = {name: f"{row['yardstick_gflops']:.0f}" for name, row in report["rows"].items() if "yardstick_gflops" in row}
    head = f"{machine}. The yardstick, a 2048-cubed fp32 product, ran at (GFLOP/s): {yardsticks}."
    threads = f"Threads: { {name: row['threads'] for name, row in report['rows'].items()} }."
    lines = [f"| {' | '.join(row)} |" for row in cells]
    write_atomic(newest.with_suffix(".md"), "\n".join(["# Benchmarks", "", head, threads, "", *lines, ""]))
    print(newest.with_suffix(".md"))


if __name__ == "__main__":
    main()
