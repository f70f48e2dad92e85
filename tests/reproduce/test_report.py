"""The paper's numbers as they are printed; one page of everything that is recorded."""

import re
import statistics
from pathlib import Path

import pytest
import report
from paper import printed
from runs import COLUMNS, Ledger

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"
DOMAINS = ("locomotion", "kitchen", "adroit", "antmaze")
SIZES = dict(zip(DOMAINS, (9, 3, 2, 6), strict=True))
# Averages that the paper prints and its rows do not have.
SLIPS = {
    ("5", "kitchen", "TD3 EDP", "OMS"),
    ("5", "adroit", "TD3 EDP", "OMS"),
    ("5", "antmaze", "TD3 EDP", "OMS"),
    ("5", "antmaze", "IQL EDP", "OMS"),
}


def domain(dataset):
    other = {"pen": "adroit", "kitchen": "kitchen", "antmaze": "antmaze"}
    return other.get(dataset.split("-")[0], "locomotion")


def averages(table):
    scores = printed(table)
    for (dataset, case, metric), average in scores.items():
        if dataset.startswith("average "):
            name = dataset.removeprefix("average ")
            rows = [
                score
                for (other, *column), score in scores.items()
                if column == [case, metric] and not other.startswith("average") and domain(other) == name
            ]
            assert len(rows) == SIZES[name]
            yield (table, name, case, metric), average, statistics.mean(rows)


@pytest.mark.parametrize("table", ["2", "4", "5", "6"])
def test_averages_are_those_of_the_rows_but_for_the_known_slips(table):
    # rows and averages are rounded to a tenth each
    wrong = {name for name, average, mean in averages(table) if abs(average - mean) > 0.1 + 1e-9}
    assert wrong == {slip for slip in SLIPS if slip[0] == table}


def test_tables_agree_where_they_print_the_same():
    first, fourth, second, fifth, sixth = map(printed, ("1", "4", "2", "5", "6"))
    assert first == {
        (name.removeprefix("average "), *rest): score for (name, *rest), score in fourth.items() if "average" in name
    }
    shared = {name: score for name, score in fifth.items() if name[2] == "RAT"}
    ours = {name: score for name, score in second.items() if name[2] == "RAT"}
    assert shared == ours and len(ours) == 72
    assert sixth["average locomotion", "TD3 EDP", "RAT"] == second["average locomotion", "TD3 EDP", "RAT"]
    assert [len(printed(table)) for table in ("1", "2", "4", "5", "6", "7", "C.5", "Fig. 2")] == [
        *(12, 144, 72, 144, 30, 6, 2, 10)
    ]


def test_the_papers_headline():
    """As PAPER.md and the abstract have them."""
    second = printed("2")
    rows = {"TD3 FF": (75.3, 1.0, 11.6, 16.4), "TD3 EDP": (85.5, 58.4, 32.1, 29.8), "CRR FF": (77.6, 48.2, 38.4, 7.0)}
    rows |= {
        "CRR EDP": (78.3, 53.3, 62.1, 43.8),
        "IQL FF": (77.0, 53.3, 54.4, 63.0),
        "IQL EDP": (79.9, 59.4, 71.3, 73.4),
    }
    for case, scores in rows.items():
        metric = "RAT" if "EDP" in case else "quoted"
        assert tuple(second[f"average {name}", case, metric] for name in DOMAINS) == scores


def test_page_of_nothing_says_what_to_run(tmp_path, capsys):
    report.main(["--output", str(tmp_path / "new")])
    page = (tmp_path / "new" / "report.md").read_text()
    assert "No training runs so far" in page
    for part in report.PARTS:
        assert f"Nothing is recorded yet: run `python examples/reproduce/{part.command or part.name + '.py'}`." in page
    assert "![" not in page
    assert "| average locomotion | 89.4 | 89.4 | 90.3 |" in page
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "report.md")


def test_page_has_what_is_recorded_in_the_papers_order(tmp_path):
    (tmp_path / "table2.md").write_text("# A title\n\nOur table 2.\n")
    (tmp_path / "table2.png").write_bytes(b"")
    (tmp_path / "table2.csv").write_text("case,dataset,rat,oms\nTD3 EDP,local/hopper/medium-v0,50,60\n")
    (tmp_path / "fig4.md").write_text("# Another\n\nOur figure 4.\n")
    for name in ("fig4_policy.x=2", "fig5_a=1_b=2", "fig44"):
        (tmp_path / f"{name}.md").write_text("# Other settings\n")
    ledger = Ledger(tmp_path / "runs.csv")
    for key, processor in (("a", "2 x A"), ("b", "4 x B")):
        ledger.add(dict.fromkeys(COLUMNS, "1") | {"key": key, "seconds": 5400, "processor": processor})
    page = report.page(tmp_path)
    assert "2 training runs, 3.0 hours of them, on 2 x A, 4 x B" in page
    assert re.findall(r"!\[(.*?)\]\((.*?)\)", page) == [("Table 2", "table2.png")]
    assert "A title" not in page
    assert page.index("Our table 2.") < page.index("`local/*` are not the paper's data") < page.index("Our figure 4.")
    assert page.count("Nothing is recorded yet") == len(report.PARTS) - 3
    links = re.findall(r"With other settings: \[(.*?)\]\((.*?)\)\.", page)
    assert links == [("policy.x=2", "fig4_policy.x=2.md"), ("a=1_b=2", "fig5_a=1_b=2.md")]
    titles = re.findall(r"^## (.*)$", page, re.M)
    assert titles == [part.title for part in report.PARTS]


def test_ports_stand_beside_the_paper_and_their_difference_is_named(tmp_path):
    (tmp_path / "table2.md").write_text("# T\n\nOurs.\n")
    lines = ["case,dataset,rat,oms", "TD3 EDP,D4RL/pen/human-v2,40.04,50", "IQL FF,D4RL/kitchen/mixed-v2,51.5,60"]
    lines += ["IQL EDP,D4RL/kitchen/mixed-v2,,", "TD3 EDP,mujoco/hopper/medium-v0,70,80"]
    (tmp_path / "table2.csv").write_text("\n".join(lines) + "\n")
    section = report.section(next(part for part in report.PARTS if part.name == "table2"), tmp_path)
    assert "| D4RL/pen/human-v2 | TD3 EDP | RAT | 40.0 | 48.2, RAT |" in section
    assert "| D4RL/kitchen/mixed-v2 | IQL FF | RAT | 51.5 | 51.0, quoted |" in section
    assert "IQL EDP | RAT" not in section
    assert "mujoco/hopper/medium-v0 |" not in section
    for name in ("D4RL/pen/", "D4RL/kitchen/", "mujoco/"):
        assert report.DIFFERENCES[name] in section
    assert report.DIFFERENCES["local/"] not in section


def test_curves_and_sweeps_of_ports(tmp_path):
    """The last row of a curve; a table of points has no case."""
    parts = {part.name: part for part in report.PARTS}
    (tmp_path / "fig3.md").write_text("# T\n\nOurs.\n")
    lines = ["case,dataset,updates,rat,oms", *(f"TD3 EDP,D4RL/antmaze/umaze-v1,{i},{i}.5,{i}" for i in (1, 2))]
    (tmp_path / "fig3.csv").write_text("\n".join(lines) + "\n")
    section = report.section(parts["fig3"], tmp_path)
    assert "| D4RL/antmaze/umaze-v1 | TD3 EDP | RAT | 2.5 | 96.6, RAT |" in section and "| 1.5 |" not in section
    (tmp_path / "table6.md").write_text("# T\n\nOurs.\n")
    (tmp_path / "table6.csv").write_text("key,dataset,score\nk,D4RL/antmaze/umaze-v1,3\n")
    assert "Ours on the ports" not in report.section(parts["table6"], tmp_path)


def test_every_port_has_rows_in_tables_2_and_4():
    for table in ("2", "4"):
        names = {name for name, _, _ in printed(table)}
        for original in report.PORTS.values():
            assert sum(name.startswith(f"{original}-v") or name == original for name in names) == 1


def test_every_part_has_a_script():
    scripts = {(part.command or f"{part.name}.py").split()[0] for part in report.PARTS}
    assert all((SCRIPTS / script).exists() for script in scripts)
