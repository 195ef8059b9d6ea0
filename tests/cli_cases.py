"""What the tests of the command line share: a small file of pairs, and how a mistake must be answered."""

from transduce.cli.main import main
from transduce.data import synthetic


def write_pairs(path, train, held_out, longest):
    """A table of words and their reversal."""
    corpus = synthetic.make("synthetic-reverse", train=train, held_out=held_out, shortest=2, longest=longest)
    rows = [*corpus.train, *corpus.valid, *corpus.test]
    path.write_text("".join(f"{e.source}\t{e.target}\n" for e in rows))
    return path


def refused(capsys, *arguments):
    """The one sentence, printed last, that a mistake is answered with."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("transduce: ")]
    assert len(said) == 1 and lines[-1] == said[0] and not any("Traceback" in line for line in lines), lines
    return said[0]
