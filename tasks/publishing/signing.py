"""Signatures of exported folders by the package model-signing: DSSE over digests of all files, with an EC key.

A signature says that whoever holds the private key has seen these very files. Keys are files of the user's; nothing of
a private key is written or printed.
"""

from pathlib import Path
from typing import Any

from models.errors import InputError, StageError

SIGNATURE = "model.sig"
"""The signature's file, the only one that neither it nor `export.json` covers."""
UNSIGNED = (".cache", ".git", ".gitattributes", ".github", ".gitignore")
"""What a hub's or git's copy of the folder has beside its files."""
_MAKE_ONE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out pub.pem"


def check_signing(key: Path) -> None:
    """Check, before anything is written, that there will be a signature.

    Raises:
        InputError: the package is not installed, or the file is no private elliptic-curve key.
    """
    _signer(key)


def sign(folder: Path, key: Path) -> None:
    """Write the signature of all files of `folder` into it.

    Raises:
        InputError: as for `check_signing`.
    """
    _signer(key).set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)


def verify_signature(folder: Path, key: Path) -> None:
    """Compare a folder with its signature.

    Args:
        folder: An exported folder.
        key: The public key in PEM.

    Raises:
        InputError: the folder is not signed, the file is no public elliptic-curve key, or the package is not installed.
        StageError: the signature is not by that key, or the folder's files are not the signed ones.
    """
    verifying = _package().verifying
    if not (folder / SIGNATURE).is_file():
        raise InputError(f"{folder}: not signed, there is no {SIGNATURE}; verify it without --key")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(_hashing())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _not_a_key(key, "public", error) from None
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # each part of a bundle that does not parse raises another one
        why = str(error) or type(error).__name__
        raise StageError(f"{folder}: the signature does not hold with {key.name}: {why}") from None


def _signer(key: Path) -> Any:
    try:
        return _package().signing.Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _not_a_key(key, "private", error) from None


def _not_a_key(key: Path, kind: str, error: Exception) -> InputError:
    why = error.strerror if isinstance(error, OSError) else next(iter(str(error).splitlines()), "")
    remedy = f"give one without a password; to make a pair: {_MAKE_ONE}"
    return InputError(f"{key}: not a readable {kind} elliptic-curve key in PEM ({why}); {remedy}")


def _hashing() -> Any:
    return _package().hashing.Config().set_ignored_paths(paths=[SIGNATURE, *UNSIGNED])


def _package() -> Any:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError:
        raise InputError(
            "signatures need the package model-signing, which is not installed; "
            "install it: pip install 'alignment-pipeline[sign]'"
        ) from None
    return model_signing
