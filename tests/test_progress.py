"""What the terminal shows of long work."""

from advprune.core.progress import progress


def test_a_narrow_terminal_cuts_the_words_and_no_numbers(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    what = "ESR={'E': 0.01} [field] eps 0.031 steps 40"
    for columns in (80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        with progress(what, 11460) as advance:
            advance(11460)
        (line,) = filter(None, capsys.readouterr().err.splitlines())
        shown, _, numbers = line.partition(" ━")
        assert numbers.split()[1] == "11460/11460" and "…" not in numbers
        assert len(line) <= columns
        assert shown == what if columns == 200 else what.startswith(shown.removesuffix("…"))
        assert ("…" in shown) == (columns == 80)
