"""Sets of images of the Hugging Face hub: the Parquet files of one, fetched into the hub's own cache."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import huggingface_hub  # loads its parts when they are used
from huggingface_hub import constants

from poa.data.parquet import list_files, part_of
from poa.data.rows import PARQUET
from poa.data.sources import HUB, Listing, Progress, Source, ending_of, kinds_of
from poa.errors import UserError, first_line

CONVERTED = "refs/convert/parquet"
"""Where the hub keeps the Parquet files that it makes of sets of other formats."""
PATIENCE_SECONDS = 10.0
"""How long the hub may take to answer."""


def list_hub(source: Source, progress: Progress) -> Listing:
    """Fetch the Parquet files of a set or of a part of it, unless they were fetched before, and list their images."""
    whole = source.text.removesuffix(f":{source.inside}")
    name, _, revision = whole.removeprefix(HUB).partition("@")
    with _explained(source, name):
        commit, names = _tables(source, name, revision or None)
        wanted = part_of(names, source.inside, whole=whole, joint=":")
        folder = huggingface_hub.snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=wanted)
    listing = list_files(source, [Path(folder, each) for each in wanted], progress)
    return replace(listing, columns=f"revision {commit}, {listing.columns}")


def _tables(source: Source, name: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of a set, and its Parquet files: its own, else those that the hub has made."""
    from huggingface_hub import errors

    kinds = Counter[str]()
    for place in [revision] if revision else [None, CONVERTED]:
        try:
            found = huggingface_hub.HfApi().dataset_info(name, revision=place, timeout=PATIENCE_SECONDS)
        except errors.RevisionNotFoundError:
            if revision:
                raise
            continue
        names = [file.rfilename for file in found.siblings or ()]
        tables = [each for each in names if ending_of(each) == PARQUET]
        if tables:
            return str(found.sha), tables
        kinds.update(map(ending_of, names))
    raise UserError(
        f"{source} has no Parquet files, and the hub has made none of it; it has {kinds_of(kinds) or 'no files'}. "
        f"Fetch it with `hf download --repo-type dataset {name} --local-dir FOLDER`, unpack it and give the folder."
    )


@contextmanager
def _explained(source: Source, name: str) -> Iterator[None]:
    from huggingface_hub import errors  # only here and above: it takes a tenth of a second

    try:
        yield
    except UserError:
        raise
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"There is no set of images {name!r} on the hub, or you may not read it ({first_line(error)}). Check the "
            "name; log in with `hf auth login` if it is private or asks for an agreement."
        ) from None
    except Exception as error:  # of the client of the hub, and of the network
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{source} cannot be fetched: HF_HUB_OFFLINE is set, and it was not fetched before. Unset it, or give "
                "a folder of Parquet files."
            ) from None
        advice = "Check the name" if isinstance(error, errors.HfHubHTTPError) else "Check the connection"
        raise UserError(
            f"{source} cannot be fetched from the hub ({first_line(error)}). {advice} and run the same command again; "
            "what was fetched is kept."
        ) from None
