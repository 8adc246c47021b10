"""`kdmri serve`: a model behind HTTP."""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import Annotated

import typer

from hf_kdmri.cli.classifying import SHIPPED, Calibrated, Device, Model, load_classifier, model_or_shipped
from hf_kdmri.cli.exits import USAGE, stop

EXAMPLE = "kdmri serve --model runs/demo/student --port 8000"
_NEEDED = ("fastapi", "uvicorn", "python_multipart")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def serve(
    model: Model = SHIPPED,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest request: 20MB, 512KB, 1GiB.")] = "20MB",
    timeout: Annotated[
        float, typer.Option(help="Seconds for a client to send its request, and for the answer.")
    ] = 30.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in progress at once; more get 503.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model at once.")] = 8,
    device: Device = "cpu",
    calibrated: Calibrated = False,
) -> None:
    """Answer image classification requests over HTTP, as huggingface_hub's InferenceClient(model=URL) sends them.

    Images are read as by kdmri predict: 16-bit and DICOM are windowed. There is no password: let only machines that you
    trust reach it. SIGTERM and Ctrl-C end it, after the requests in progress, with exit code 0.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        stop(f"{' and '.join(missing)} missing; install with pip install 'hf_kdmri[serve]'")
    from hf_kdmri.serving.server import CannotListen, make_server, reserve
    from hf_kdmri.serving.settings import ServeSettings

    try:
        settings = ServeSettings(parse_size(max_body), timeout, concurrency, batch_size)
    except ValueError as error:
        stop(error, USAGE)
    model = model_or_shipped(model)
    try:
        reserved = reserve(host, port)
    except CannotListen as error:
        stop(error)
    with reserved:
        from hf_kdmri.serving.app import Service, create_app  # takes seconds, which a port in use should not

        service = Service(load_classifier(model, device, calibrated), model, settings)
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)  # on standard error
        logging.getLogger("hf_kdmri.serving").setLevel(logging.INFO)

        def ready(address: str) -> None:
            typer.echo(f"kdmri: {service.name} on {address}", err=True)

        server = make_server(create_app(service), timeout, ready)
        try:
            server.listen(reserved)
        except CannotListen as error:
            stop(error)
        finally:
            service.close()


def parse_size(text: str) -> int:
    """Read a number of bytes.

    Args:
        text: A number with or without a unit: B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024).

    Raises:
        ValueError: Something else.

    Example:
        >>> parse_size("20MB"), parse_size("1.5 KiB"), parse_size("300")
        (20000000, 1536, 300)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?|)B?", text.strip().upper())
    if not found:
        raise ValueError(f"{text!r} is no size; expected for instance 20MB, 512KB or 1GiB")
    return int(float(found[1]) * _UNITS[found[2]])
