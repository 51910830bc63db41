"""`dfkd deploy`, `dfkd validate`, `dfkd export`: from a trained network to the one that is run elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfkd.cli_options import AsJson, Device, print_json
from dfkd.errors import UserError

deploy_app = typer.Typer()


@deploy_app.command()
def deploy(
    student: Annotated[Path, typer.Argument(help="weights with their card (.safetensors)", metavar="STUDENT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="weights of the folded network (.safetensors)")],
) -> None:
    """Fold blocks and BatchNorms into the convolutions, and check that the network answers as before."""
    from dfkd.models.deploy import deploy as run

    done = run(student, output)
    typer.echo(
        f"{output}: {done.card.architecture}, {done.params:,} → {done.card.params:,} parameters; "
        f"largest difference of the logits {done.error:.1e} of the largest"
    )


@deploy_app.command()
def validate(
    checkpoint: Annotated[
        Path, typer.Argument(help="weights with their card, or a state dict trained elsewhere", metavar="CHECKPOINT")
    ],
    dataset: Annotated[str | None, typer.Option(help="on data/NAME.test.h5; left away: as the card says")] = None,
    test: Annotated[Path | None, typer.Option(help="on this prepared test split instead")] = None,
    model: Annotated[str | None, typer.Option(help="architecture of a checkpoint without a card")] = None,
    as_json: AsJson = False,
    config: Annotated[Path, typer.Option(help="configuration folder, read when the test split is absent")] = Path("config"),
    device: Device = "auto",
) -> None:
    """Measure one network on a test split: Acc@1, Acc@5, parameters, multiply-adds, and milliseconds of a forward pass."""
    from dfkd.evaluation.checkpoint_table import print_evaluation
    from dfkd.evaluation.checkpoints import Architectures, find_test
    from dfkd.evaluation.validate import validate as run
    from dfkd.runtime import Runtime
    from dfkd.settings import EvaluateSettings

    settings = EvaluateSettings()
    runtime = Runtime.create(settings.precision, device, settings.compile)
    architectures = Architectures.parse([model] if model else [], [checkpoint])
    found = run(checkpoint, find_test(test, dataset, [checkpoint], config), settings, runtime, architectures)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_evaluation(found.evaluation)
    if found.deployment is not None:
        forms = found.deployment
        typer.echo(f"blocks {forms.blocks}; deployed: {forms.deploy_params:,} parameters, {forms.deploy_macs:,} MACs")
    for one in found.passes:
        typer.echo(f"a forward pass over {one.batch} image{'s' * (one.batch > 1)}: {one.ms:.3g} ms")
    typer.echo(f"on {found.hardware['name']} ({found.hardware['device']}, {found.hardware['threads']} threads)")


@deploy_app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="weights with their card (.safetensors)", metavar="CHECKPOINT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write")],
    form: Annotated[str, typer.Option("--format", help="onnx or torchscript")],
    normalise: Annotated[
        bool, typer.Option("--normalise", help="take images in [0, 1] and normalise them within; else normalised ones")
    ] = False,
) -> None:
    """Write a network for other runtimes, for any batch size, compared with the original before it gets its name."""
    from dfkd.models.export import export as run

    if output.suffix in (".safetensors", ".json"):
        raise UserError(f"{output}: is the name of weights or of a card; end it in .{'onnx' if form == 'onnx' else 'pt'}.")
    done = run(checkpoint, output, form, normalise)
    takes = "in [0, 1]" if normalise else "normalised"
    typer.echo(
        f"{output}: {done.card.architecture}{' with its blocks folded' if done.folded else ''}, images {takes}, "
        f"{done.size:,} bytes; largest difference of the logits {done.error:.1e} of the largest"
    )
