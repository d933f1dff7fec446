"""A time limit for a whole answer: an HTTP client's own is for each piece of one."""

import time
from typing import Any

OF_THE_CONNECTION = {"content-encoding", "content-length", "transfer-encoding"}


def client_with(seconds: float) -> Any:
    """An HTTP client for the openai library that gives an answer so many seconds to be whole.

    A server that sends a byte now and then keeps within any timeout of the library's own client.
    Whatever comes too late raises ``TimeoutError``. Headers alone may drip, as long as each read
    keeps within the timeout: they are out of reach here.
    """
    from openai import DefaultHttpxClient

    class Client(DefaultHttpxClient):
        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            end = time.monotonic() + seconds
            response = super().send(request, stream=True, **options)
            if stream:
                return response
            pieces = []
            try:
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    if time.monotonic() > end:
                        raise TimeoutError(f"no whole answer within {seconds} s")
            finally:
                response.close()
            return type(response)(
                response.status_code,
                headers=[
                    (name, value)
                    for name, value in response.headers.multi_items()
                    if name.lower() not in OF_THE_CONNECTION
                ],
                content=b"".join(pieces),
                request=response.request,
                history=response.history,
            )

    return Client()
