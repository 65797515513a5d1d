"""Citations: a section that is named exists in the paper's first version (arXiv v1), and says what it is cited for."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "1": "introduction",
    "2": "the method: Eq. 1 and 2, Figures 2 and 3",
    "3.1": "set-up, training and inference settings",
    "3.2": "main results, Table 1",
    "3.3": "patch size, Table 2",
    "3.4": "lambda, Table 3",
    "3.5": "levels, Table 4",
    "3.6": "cost, Table 5",
    "3.7": "samples, Figure 4",
    "4": "related work",
    "5": "limitations and future work",
    "6": "conclusion",
}
TABLES = {"1": "3.2", "2": "3.3", "3": "3.4", "4": "3.5", "5": "3.6"}
LLAMAGEN = "2406.06525"


def texts() -> dict[str, str]:
    """Every file that may cite: code, notebooks' sources, documents."""
    found = {
        str(p.relative_to(ROOT)): p.read_text()
        for p in [*ROOT.glob("nppkit/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    }
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        found[path.name] = "\n\n".join("".join(cell["source"]) for cell in cells)
    return found


def cited(text: str) -> list[tuple[str, str]]:
    """Section numbers, each with the sentence around it, but those of LlamaGen's paper, whose sentence names it."""
    found = []
    for match in re.finditer(r"Sections? (\d[\d., and]*)", text):
        around = text[max(0, match.start() - 120) : match.end() + 40]
        if LLAMAGEN not in around:
            found += [(number, around) for number in re.findall(r"\d(?:\.\d)?", match[1])]
    return found


def test_sections_exist():
    """Each number is one of the paper's first version; there is no Section 3.1-3.3 on the method and no 4.x."""
    unknown = {(name, number) for name, text in texts().items() for number, _ in cited(text) if number not in SECTIONS}
    assert not unknown
    assert sum(len(cited(text)) for text in texts().values()) > 20


def test_tables_are_cited_with_their_section():
    """Where a table and one section stand side by side, "Table 2 and Section 3.3", they belong together."""
    wrong = []
    for name, text in texts().items():
        for table, section in re.findall(r"Table (\d) and Section (\d(?:\.\d)?)", text):
            if TABLES[table] != section:
                wrong.append((name, table, section))
    assert not wrong
