"""The whole story of one model as a page: verdict, importance, similarity, facts."""

from headscope.cli import script
from headscope.cli.options import Loading, Model
from headscope.cli.story import Report, Story


def main(model: Model, report: Report, story: Story = Story(), loading: Loading = Loading()) -> None:
    """Analyse a model and write its report, as `headscope analyze` does.

    Example: python analyses/redundancy_report.py ./my-model --text notes.txt --out report
    """
    report.check()
    report.write(story.analysis(model, loading, report.unfinished), as_json=False)


if __name__ == "__main__":
    script(main)
