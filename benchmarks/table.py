"""Write the table of the last measured machine beside its report: results/bench/<machine>.md."""

from nppkit import speed


def main() -> None:
    newest = max(speed.REPORTS.glob("*.json"), key=lambda path: path.stat().st_mtime)
    report = speed.load_report(newest.stem)
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    yardstick = speed.value(report, "step", "yardstick_gflops")
    head = f"# Benchmarks\n\n{machine}. Yardstick, a 2048-cubed fp32 product: {yardstick:.0f} GFLOP/s.\n\n"
    newest.with_suffix(".md").write_text(head + speed.targets_table(report).to_html() + "\n")
    print(newest.with_suffix(".md"))


if __name__ == "__main__":
    main()
