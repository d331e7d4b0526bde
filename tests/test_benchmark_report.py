"""What the benchmark makes of its figures: ratios, tables and the picture."""

import time

import numpy as np
import pytest
from matplotlib.figure import Figure

from flax_srnn import benchmark
from flax_srnn.__main__ import main
from flax_srnn.benchmark import process, report
from flax_srnn.benchmark.process import Record


def record(case, ours, keras, group="training", first="flax-srnn"):
    return Record(group, case, "s", {first: ours, "keras": keras})


class TestStatistics:
    def test_the_middle_process_and_the_range(self):
        assert report.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
        assert str(report.spread([3.0, 1.0, 2.0])) == "2.00 (1.00 to 3.00)"
        assert str(report.spread([1.5])) == "1.50"

    def test_ratios_are_formed_within_a_process(self):
        np.testing.assert_allclose(
            report.ratios(record("a", [1.0, 2.0, 4.0], [2.0, 6.0, 4.0]), "keras"), [2.0, 3.0, 1.0]
        )

    def test_geometric_mean_over_cases_and_the_worst_case(self):
        # Geometric means of the processes: sqrt(2·8) = 4, sqrt(4·9) = 6, sqrt(1·25) = 5.
        records = [record("a", [1.0, 1.0, 1.0], [2.0, 4.0, 1.0]), record("b", [1.0, 1.0, 1.0], [8.0, 9.0, 25.0])]
        (line,) = report.summarize(records)
        np.testing.assert_allclose(line.mean, [5.0, 4.0, 6.0])
        assert (line.worst_case, line.worst, line.cases) == ("a", (2.0, 1.0, 4.0), 2)

    @pytest.mark.parametrize(("first", "worst"), [("flax-srnn", "c"), ("native", "c"), ("float32", "b")])
    def test_of_a_peer_the_smallest_ratio_is_the_worst_and_against_itself_the_largest(self, first, worst):
        records = [record(case, [1.0], [ratio], first=first) for case, ratio in (("a", 1.2), ("b", 1.3), ("c", 1.1))]
        assert report.summarize(records)[0].worst_case == worst

    def test_the_native_kernel_has_a_table_like_this_librarys(self):
        records = [
            record("a", [1.0], [2.0]),
            record("b", [1.0], [3.0], group="training, native kernel", first="native"),
        ]
        text = report.markdown({"jax": "0.1"}, records).partition(report.DETAILS)[0]
        tables = text.split("### ")[1:]
        assert [table.splitlines()[0] for table in tables] == [
            "Time of a peer / time of flax-srnn, JAX 0.1",
            "Time of a peer / time of native, JAX 0.1",
        ]
        assert "| training, native kernel: worst | 3.00, b |" in tables[1]

    def test_merge_keeps_the_order_of_the_processes_and_joins_torch(self):
        torch = [Record("training", "a", "s", {"torch": [7.0]}), Record("training", "a", "s", {"torch": [8.0]})]
        (merged,) = report.merge([[record("a", [1.0], [2.0])], torch[:1], [record("a", [3.0], [4.0])], torch[1:]])
        assert merged.values == {"flax-srnn": [1.0, 3.0], "keras": [2.0, 4.0], "torch": [7.0, 8.0]}

    def test_every_contestant_takes_its_turns(self):
        turns = []
        calls = {name: (lambda name=name: (turns.append(name), time.sleep(0.01))) for name in "ab"}
        times = process.alternate(calls, seconds=0, rounds=30)
        assert turns[:6] == ["a", "a", "a", "b", "b", "b"]  # to warm up
        rounds = list(zip(turns[6::2], turns[7::2], strict=True))
        assert len(rounds) == 30
        assert set(rounds) == {("a", "b"), ("b", "a")}
        assert times.keys() == {"a", "b"}
        assert all(len(taken) == 1 and 0 < taken[0] < 1 for taken in times.values())


class TestPicture:
    """What stands on which axis, read from the axes themselves."""

    times = (record("a", [1.0, 1.0], [2.0, 8.0]), record("b", [1.0, 1.0], [8.0, 2.0]))
    memory = Record("memory of training", "a", "MiB", {"flax-srnn": [0.0], "flax.nnx": [7.0]})
    cycles = Record("a step", "a", "cycles", {"flax-srnn": [100.0], "keras": [300.0]})
    itself = record("a", [1.0], [1.1], first="float32")

    @pytest.fixture
    def drawn(self, monkeypatch, tmp_path):
        """Draws records; per panel: (its label, whether it is logarithmic, contestant -> figures from the top)."""
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: figures.append(figure))

        def draw(*records):
            assert report.plot(records, tmp_path / "results.png") == ""
            return [
                (
                    axes.get_xlabel().partition("\n")[0],
                    axes.get_xscale() == "log",
                    {marks.get_label(): list(marks.lines[0].get_xdata()) for marks in axes.containers},
                )
                for axes in figures[-1].axes
            ]

        return draw

    def test_what_is_counted_has_axes_of_its_own(self, drawn):
        # The geometric mean of the ratios is 4 in both processes.
        of_times = ("time of a peer / time of flax-srnn", True, {"keras": [pytest.approx(4.0)]})
        of_cycles = ("cycles of a peer / cycles of flax-srnn", True, {"keras": [pytest.approx(3.0)]})
        of_memory = ("memory of training, in MiB", False, {"flax-srnn": [0.0], "flax.nnx": [7.0]})
        assert drawn(*self.times) == [of_times]
        assert drawn(self.memory) == [of_memory]
        assert drawn(self.memory, self.cycles, *self.times) == [of_times, of_cycles, of_memory]

    def test_nothing_to_draw_is_no_picture(self, tmp_path):
        assert report.plot([self.itself], tmp_path / "results.png") == "no peer was timed, and nothing counted"
        assert not list(tmp_path.iterdir())

    def test_the_command_says_why_there_is_no_picture(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(benchmark, "measure", lambda job: ({"jax": "0.1"}, [self.itself]))
        assert main(["benchmark", "--output", str(tmp_path / "new")]) == 0
        err = capsys.readouterr().err
        assert "no peer was timed, and nothing counted: no plot.\n" in err
        first, *files = err[err.index("wrote") :].splitlines()
        assert first == f"wrote {tmp_path / 'new'}"
        names = sorted(path.name for path in (tmp_path / "new").iterdir())
        assert names == ["results.json", "results.md"] == sorted(line.split()[0] for line in files)
