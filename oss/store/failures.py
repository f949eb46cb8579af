"""What went wrong between us and an S3 server, as an OSError in our own words.

The libraries' texts are never passed on: they quote requests and answers, in which names of keys and more may stand.
"""

import asyncio
import errno
import re
from typing import Final

_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_BY_CODE: Final = {
    "NoSuchKey": (errno.ENOENT, "there is no such object"),
    "NoSuchBucket": (errno.ENODEV, "there is no such bucket"),
    "NoSuchUpload": (errno.ENOENT, "there is no such upload any more"),
    "AccessDenied": (errno.EACCES, "access denied: the credentials do not allow it"),
    "InvalidAccessKeyId": (errno.EACCES, "the server does not know the access key"),
    "SignatureDoesNotMatch": (errno.EACCES, "the secret key is wrong"),
    "ExpiredToken": (errno.EACCES, "the credentials have expired"),
    "InvalidToken": (errno.EACCES, "the credentials have expired"),
    "RequestTimeTooSkewed": (errno.EACCES, "this machine's clock and the server's differ too much"),
    "InvalidObjectState": (errno.ENODATA, "it is in a cold class and must be thawed first"),
    "RestoreAlreadyInProgress": (errno.EINPROGRESS, "it is being thawed"),
    "SlowDown": (errno.EAGAIN, "the server asks us to slow down"),
    "ServiceUnavailable": (errno.EAGAIN, "the server is not available now"),
    "RequestTimeout": (errno.EAGAIN, "the server gave up waiting"),
    "InternalError": (errno.EAGAIN, "the server had an internal error"),
    "BadDigest": (errno.EBADMSG, "the bytes were damaged on the way"),
    "IncompleteBody": (errno.EBADMSG, "not all bytes arrived"),
    "XAmzContentSHA256Mismatch": (errno.EBADMSG, "the bytes were damaged on the way"),
    "PreconditionFailed": (errno.ESTALE, "the object is another one by now"),
    "ConditionalRequestConflict": (errno.EAGAIN, "the object is being written by somebody else, too"),
    "InvalidRange": (errno.ESTALE, "the object is shorter than it was"),
    "EntityTooLarge": (errno.EFBIG, "it is larger than the server takes"),
    "EntityTooSmall": (errno.EINVAL, "a part is smaller than the server takes"),
    "InvalidStorageClass": (errno.EINVAL, "the server does not know this storage class"),
    "InvalidPart": (errno.EBADMSG, "a part is missing or is another one"),
    "QuotaExceeded": (errno.ENOSPC, "the bucket's quota is used up"),
    "XMinioStorageFull": (errno.ENOSPC, "the archive is full"),
    "XMinioAdminBucketQuotaExceeded": (errno.ENOSPC, "the bucket's quota is used up"),
    "InsufficientStorage": (errno.ENOSPC, "the archive is full"),
    "MethodNotAllowed": (errno.EOPNOTSUPP, "the server cannot do that"),
    "NotImplemented": (errno.EOPNOTSUPP, "the server cannot do that"),
}
_BY_STATUS: Final = {
    400: (errno.EINVAL, "the server does not accept the request"),
    401: (errno.EACCES, "the server wants other credentials"),
    403: (errno.EACCES, "access denied: the credentials do not allow it"),
    404: (errno.ENOENT, "there is no such object or bucket"),
    405: (errno.EOPNOTSUPP, "the server cannot do that"),
    408: (errno.EAGAIN, "the server gave up waiting"),
    412: (errno.ESTALE, "the object is another one by now"),
    416: (errno.ESTALE, "the object is shorter than it was"),
    429: (errno.EAGAIN, "the server asks us to slow down"),
    501: (errno.EOPNOTSUPP, "the server cannot do that"),
    507: (errno.ENOSPC, "the archive is full"),
}


def of_answer(status: int, code: str) -> OSError:
    """The error that an answer with this HTTP status and S3 code means."""
    found = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if found is None:
        found = (errno.EAGAIN, "the server failed") if status >= 500 else (errno.EIO, "the server refused")
    number, words = found
    return OSError(number, f"{words} ({code or 'HTTP'} {status or ''})".replace(" )", ")"))


def of_obstore(error: Exception) -> OSError:
    """The error that obstore raised."""
    text = str(error)
    code = match.group(1) if (match := _CODE.search(text)) else ""
    status = int(match.group(1)) if (match := _STATUS.search(text)) else 0
    if code or status:
        return of_answer(status, code)
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError) or kind == "NotFoundError":
        return OSError(errno.ENOENT, "there is no such object")
    if kind in ("PreconditionError", "AlreadyExistsError"):
        return OSError(errno.ESTALE, "the object is another one by now")
    lowered = text.lower()
    if "connection refused" in lowered or "connectionrefused" in lowered or "dns error" in lowered:
        return OSError(errno.ECONNREFUSED, "the server cannot be reached")
    if "operation timed out" in lowered or "timedout" in lowered or isinstance(error, asyncio.TimeoutError):
        return OSError(errno.ETIMEDOUT, "the server did not answer in time")
    if "incomplete" in lowered or "error decoding" in lowered or "unexpected eof" in lowered:
        return OSError(errno.EBADMSG, "the answer ended too soon")
    if "sending request" in lowered or "reset" in lowered or "closed" in lowered:
        return OSError(errno.ECONNRESET, "the connection to the server was lost")
    if "(connect" in lowered:
        return OSError(errno.ECONNREFUSED, "the server cannot be reached")
    if "notpartial" in lowered or "non-partial" in lowered or "range" in lowered:
        return OSError(errno.EBADMSG, "the server answered with other bytes than were asked for")
    if isinstance(error, PermissionError) or kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return OSError(errno.EACCES, "access denied")
    return OSError(errno.EIO, f"the S3 client failed ({kind})")


def of_botocore(error: Exception) -> OSError:
    """The error that botocore raised."""
    details: dict[str, dict[str, object]] | None = getattr(error, "response", None)
    if details is not None:
        code = str(details.get("Error", {}).get("Code", ""))
        status = int(str(details.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))
        return of_answer(status, "" if code.isdigit() else code)
    kind = type(error).__name__
    if "Credential" in kind or "Token" in kind or "Profile" in kind:
        return OSError(
            errno.EACCES, "there are no credentials: name a file, or set AWS_ACCESS_KEY_ID for the OSS's process"
        )
    if "Timeout" in kind:
        return OSError(errno.ETIMEDOUT, "the server did not answer in time")
    if "Connect" in kind or "Endpoint" in kind or "HTTPClient" in kind or "Proxy" in kind or "SSL" in kind:
        return OSError(errno.ECONNREFUSED, "the server cannot be reached")
    if "ConnectionClosed" in kind or "ResponseStreaming" in kind or "Incomplete" in kind:
        return OSError(errno.ECONNRESET, "the connection to the server was lost")
    return OSError(errno.EIO, f"the S3 client failed ({kind})")
