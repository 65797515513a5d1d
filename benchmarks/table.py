"""Write the table of the last measured machine beside its report: results/bench/<machine>.md."""

import speed

from nppkit.files import write_atomic
from nppkit.study.tables import markdown


def main() -> None:
    newest = max(speed.REPORTS.glob("*.json"), key=lambda path: path.stat().st_mtime)
    report = speed.load_report(newest.stem)
    table = markdown(speed.targets_table(report).reset_index().astype(str))
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    yardsticks = {name: f"{row['yardstick_gflops']:.0f}" for name, row in report["rows"].items() if "yardstick_gflops" in row}
    head = f"{machine}. The yardstick, a 2048-cubed fp32 product, ran at (GFLOP/s): {yardsticks}."
    threads = f"Threads: { {name: row['threads'] for name, row in report['rows'].items()} }."
    write_atomic(newest.with_suffix(".md"), "\n".join(["# Benchmarks", "", head, threads, "", table, ""]))
    print(newest.with_suffix(".md"))


if __name__ == "__main__":
    main()
