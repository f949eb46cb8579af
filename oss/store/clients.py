"""The two S3 clients of an archive, as we want them: addresses, credentials, checksums, timeouts, retries."""

from datetime import timedelta
from importlib import import_module
from typing import Any, Final

from obstore.store import S3Store as Bucket

from nacrefs.common.wire import ArchiveSpec
from nacrefs.oss.store.credentials import Secret

_Config: Final[Any] = import_module("botocore.config").Config
_TIMEOUT_S: Final = 60.0
_CONNECT_S: Final = 5.0


def obstore_bucket(bucket: str, spec: ArchiveSpec, region: str, secret: Secret) -> Any:
    """A bucket as obstore sees it: what it sends has a SHA-256 that the server verifies."""
    options: dict[str, Any] = {
        "region": region,
        "access_key_id": secret.access_key,
        "secret_access_key": secret.secret_key,
        "unsigned_payload": True,
        "checksum_algorithm": "SHA256",
    }
    if secret.token:
        options["token"] = secret.token
    if spec.endpoint:
        options |= {"endpoint": spec.endpoint, "virtual_hosted_style_request": False}
    make: Any = Bucket
    return make(
        bucket,
        client_options={
            "allow_http": True,
            "timeout": timedelta(seconds=_TIMEOUT_S),
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "pool_idle_timeout": timedelta(seconds=15),
        },
        retry_config={
            "max_retries": 2,
            "retry_timeout": timedelta(seconds=_TIMEOUT_S),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
        },
        **options,
    )


def botocore_client(
    session: Any, spec: ArchiveSpec, region: str, secret: Secret, attempts: int, connections: int
) -> Any:
    """A client of botocore that tries everything so many times, over at most so many connections."""
    return session.create_client(
        "s3",
        region_name=region,
        endpoint_url=spec.endpoint or None,
        aws_access_key_id=secret.access_key,
        aws_secret_access_key=secret.secret_key,
        aws_session_token=secret.token or None,
        config=_Config(
            s3={"addressing_style": "path" if spec.endpoint else "auto", "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=_CONNECT_S,
            read_timeout=_TIMEOUT_S,
            max_pool_connections=connections,
        ),
    )
