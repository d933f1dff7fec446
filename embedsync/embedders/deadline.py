"""A time limit for a whole answer: an HTTP client's own is for each piece of one."""

import time
from typing import Any


def client_with(seconds: float) -> Any:
    """An HTTP client for the openai library that gives an answer so many seconds to be whole.

    A server that sends a byte now and then keeps within any timeout of the library's own client.
    Whatever comes too late raises ``TimeoutError``; the last piece is waited for once more, so that
    it may take twice as long. Headers alone may drip, as long as each read keeps within the
    timeout: they are out of reach here.

    It follows no redirect: what is sent, and the headers of a gateway, are for one server.
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
                # As they come: of a compressed answer nothing may come out for a long time.
                for piece in response.iter_raw():
                    pieces.append(piece)
                    if time.monotonic() > end:
                        raise TimeoutError(f"no whole answer within {seconds} s")
            finally:
                response.close()
            return type(response)(
                response.status_code,
                headers=response.headers,
                content=b"".join(pieces),
                request=response.request,
            )

    return Client(follow_redirects=False)
