"""The picture that stands for the site where others link to it: the title, and a line as the course's own tokenizer cuts it."""
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.style import blue, green, ink

WIDTH, HEIGHT = 1200, 630   # what open-graph readers ask for
LINE = "Shall I compare thee to a summer's day?"


def pieces() -> list[tuple[str, int]]:
    "The tokens of the line, as the demo's tokenizer has them, each with its id."
    tokenizer = BpeTokenizer.load(Path(__file__).parents[1]/"llm_course"/"demo"/"tokenizer.json")
    return [(tokenizer.decode([i]), i) for i in tokenizer.encode(LINE)]


def draw(path: Path, title: str, promise: str) -> None:
    "Draw the picture, as a PNG."
    with mpl.rc_context():
        mpl.rcParams.update(mpl.rcParamsDefault)
        figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="#14181d")
        figure.text(.06, .72, title, color="white", fontsize=58, weight="bold")
        first, second = promise.split(", ", 1)
        figure.text(.06, .54, f"{first},\n{second}", color="#dfe4ea", fontsize=25, linespacing=1.4)
        renderer, left = FigureCanvasAgg(figure).get_renderer(), .06
        for at, (token, i) in enumerate(pieces()):
            color = (blue, green)[at % 2]
            shown = figure.text(left + .006, .26, token.replace(" ", "·"), color="white", fontsize=22, family="monospace", bbox={"facecolor": color, "edgecolor": "none", "alpha": .55, "pad": 6})
            right = shown.get_window_extent(renderer).x1 / WIDTH
            figure.text((left + .006 + right) / 2, .17, str(i), color=ink, fontsize=12, ha="center")
            left = right + .009
        figure.savefig(path, metadata={"Software": None})
