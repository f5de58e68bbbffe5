"""Files of the Hugging Face Hub by name: `hf:<owner>/<name>`, and `@<revision>`, `/<file>` if any.

The package huggingface_hub downloads them into its own cache, once. To get a later state of a
repository, name its revision.
"""

import importlib
import re
from contextlib import suppress
from itertools import product
from pathlib import Path

from advprune.core.errors import UserError, first_line

SCHEME = "hf:"
# The slashes of hf://, of which a path of the operating system leaves one.
_REFERENCE = re.compile(r"hf:/{0,2}([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/([\w./-]+))?")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # where no file is named: the first there is
CONFIGURATION = "config.json"  # which says what the network is, beside the weights


def on_hub(reference: str) -> bool:
    """Whether a reference names a file of the Hub."""
    return reference.startswith(SCHEME)


def downloaded(reference: str) -> Path:
    """The local copy of a file of the Hub, with its repository's config.json beside it, if it has
    one. It is downloaded where it was not before; UserError where that fails."""
    if (parts := _REFERENCE.fullmatch(reference)) is None:
        raise UserError(f"{reference}: write hf:owner/name, hf:owner/name@revision or with /file")
    repository, revision, file = parts.groups()
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise UserError(
            f"{reference} needs the package huggingface_hub; pip install 'advprune[hub]'"
        ) from error
    known, why = {"repo_id": repository, "revision": revision}, ""
    names = (file,) if file else WEIGHTS
    for local, name in product((True, False), names):
        try:
            path = hub.hf_hub_download(filename=name, local_files_only=local, **known)
            here = hub.try_to_load_from_cache(repository, CONFIGURATION, revision=revision)
            if local and here is None:  # nor known to be absent: it was never asked for
                continue
            with suppress(errors.EntryNotFoundError):
                hub.hf_hub_download(filename=CONFIGURATION, local_files_only=local, **known)
            return Path(path)
        except errors.LocalEntryNotFoundError:
            why = "the Hub cannot be reached, and the file was not downloaded before"
            if not local:  # another file would be waited for as long
                break
        except errors.EntryNotFoundError:
            why = f"the repository has no file {' or '.join(names)}"
        except Exception as error:  # of permissions, names and connections, of many kinds
            raise UserError(f"{reference}: {first_line(error)}") from error
    raise UserError(f"{reference}: {why}")
