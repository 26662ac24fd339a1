"""dtrain explain: what every phase of a step computes and trains, as text and as a picture."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from dtrain.cli.arguments import a_recipe
from dtrain.errors import DtrainError


@click.command()
@a_recipe
@click.option("--svg", type=click.Path(path_type=Path), help="Write a picture of the data flow to this file.")
def explain(
    recipe: Path,
    overrides: Sequence[str],
    set_files: Sequence[Path],
    untrusted: bool,
    trust: Sequence[str],
    svg: Path | None,
) -> None:
    """Say what a recipe trains, how, in what order.

    Each phase with the values it computes, its loss, the models that its gradients reach and where they
    stop; then the evaluation. Nothing is trained: every loss is called once, on made-up numbers.
    """
    from dtrain.cli.plan import rate_text
    from dtrain.cli.trust import trust_of
    from dtrain.recipe.fit import check_data
    from dtrain.recipe.load import from_document, read

    document = read(recipe, overrides, set_files=set_files, trust=trust_of(untrusted, trust))
    if document.trust.everything:
        sys.path.append(str(recipe.parent.absolute()))  # a recipe's own modules may lie beside it
    loaded = from_document(document, hashes=False)  # a mistake is told before torch takes its seconds to come
    data = check_data(loaded, document, 1)

    from dtrain.data.opening import open_examples
    from dtrain.explain.panels import panels
    from dtrain.explain.picture import picture
    from dtrain.explain.text import explanation
    from dtrain.explain.trace import trace

    # What an imported source holds only it can tell.
    fields = (data or open_examples(loaded.data, "train", loaded.seed, document.trust)).fields
    flows, evaluation = trace(loaded, fields, document.trust)
    rates = {name: rate_text(loaded, name) for name in loaded.optimizers}
    click.echo(explanation(loaded, flows, evaluation, rates))
    if svg is not None:
        try:
            svg.write_text(picture(loaded.name, panels(loaded, flows, evaluation, rates)), encoding="utf-8")
        except OSError as error:
            raise DtrainError(f"{svg} cannot be written: {error.strerror}") from error
